"""Which addresses an HTTP source may connect to, and a transport that connects to exactly the address that was checked.

A server must not be able to send us, by a redirect or a changing DNS answer, into the network that this machine stands
in (server-side request forgery). So a host name is resolved once, its addresses are checked, and the connection goes
to a checked address, with the Host header and TLS name of the original. What the recipe itself names is allowed: the
user asked for it. Cost: one resolution a host; connections are kept alive per host.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from collections.abc import Collection

import httpx

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Origin = tuple[str, int]  # host in lower case, port
NAT64 = ipaddress.ip_network("64:ff9b::/96")
PORTS = {"http": 80, "https": 443}


class ForbiddenAddress(httpx.RequestError):
    """The host has no address that a server may send us to."""


class CheckedTransport(httpx.BaseTransport):
    """Connects to public addresses, and to whatever the origins in `named` resolve to. Safe for threads."""

    def __init__(self, named: Collection[Origin]) -> None:
        self._named = frozenset(named)
        self._ssl = httpx.create_ssl_context()  # honours SSL_CERT_FILE, for a company's own authority
        self._hosts: dict[tuple[str, Origin], tuple[list[str], httpx.HTTPTransport]] = {}
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Raises ForbiddenAddress, or httpx's errors."""
        host = request.url.host
        addresses, transport = self._host(request)
        for number, address in enumerate(addresses):
            # The Host header was set from the original URL; the certificate is checked against the original name.
            pinned = httpx.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},
            )
            try:
                return transport.handle_request(pinned)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if number == len(addresses) - 1:
                    raise
        raise ForbiddenAddress(f"{host} leads into a private network", request=request)

    def close(self) -> None:
        for _, transport in self._hosts.values():
            transport.close()

    def _host(self, request: httpx.Request) -> tuple[list[str], httpx.HTTPTransport]:
        origin = origin_of(request.url)
        key = (request.url.scheme, origin)
        with self._lock:
            known = self._hosts.get(key)
        if known is not None:
            return known
        addresses = _resolve(request, origin)
        if origin not in self._named:
            addresses = [a for a in addresses if is_public(ipaddress.ip_address(a.partition("%")[0]))]
        # A transport for each host: connections are pooled by address, and two names may share one.
        found = addresses, httpx.HTTPTransport(verify=self._ssl, trust_env=False)
        with self._lock:
            return self._hosts.setdefault(key, found)


def origin_of(url: httpx.URL) -> Origin:
    return url.host.lower(), url.port or PORTS.get(url.scheme, 0)


def is_public(address: IPAddress) -> bool:
    """Whether an address is on the open internet; IPv6 forms that carry an IPv4 address are judged by it."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner:
            return is_public(inner)
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _resolve(request: httpx.Request, origin: Origin) -> list[str]:
    try:
        found = socket.getaddrinfo(*origin, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpx.ConnectError(f"the name {origin[0]} cannot be resolved: {error}", request=request) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def tls_problem(error: BaseException | None) -> bool:
    """Whether a connection failed because the server's certificate is not good: trying again will not help."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
