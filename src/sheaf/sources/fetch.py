"""One request over HTTP: redirects by hand, three tries, nothing decoded, limits on size and time.

A try fails for now on a time-out, a reset, a body of a wrong length, 408, 425, 429 or 5xx, and for good on any other
4xx or a forbidden target. Secrets of the recipe go only to the origins that the recipe names, never along with a
redirect elsewhere; they are checked before they are sent, and no message quotes them.
"""

from __future__ import annotations

import base64
import functools
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import TypeVar

import httpx

from sheaf.errors import EnvironmentProblem, RecipeError
from sheaf.recipe import Secret, SourceSpec
from sheaf.recipe_file import resolve_secret
from sheaf.sources.address import CheckedTransport, ForbiddenAddress, origin_of, tls_problem

TRIES = 3
BACKOFF_SECONDS = 0.25  # before the second try; doubled before each further one
TIMEOUT = httpx.Timeout(30.0, connect=10.0)
MAX_REDIRECTS = 5
CHUNK_BYTES = 1 << 20
# A server that drips a byte every few seconds meets no time-out; it meets this.
SLOW_AFTER_SECONDS, SLOWEST_BYTES_PER_SECOND = 60.0, 1024
NOT_NOW = frozenset({408, 425, 429})  # RFC 9110, 15.5.9; RFC 8470; RFC 6585
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
HEADER_VALUE = re.compile("[\t\x20-\x7e\xa0-\xff]*")
T = TypeVar("T")


class BadAnswer(Exception):
    """The server's answer is final and no good. reason: a code such as "http-404"."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Unreachable(Exception):
    """No good answer now; it may come later."""


class WrongLength(Unreachable):
    """The body is not as long as was announced. length: what came."""

    def __init__(self, announced: int, length: int) -> None:
        super().__init__(f"the server announced {announced:,} bytes and sent {length:,}")
        self.length = length


class Fetcher:
    """A client for one source. Safe for threads."""

    def __init__(self, spec: SourceSpec, urls: Sequence[str]) -> None:
        self._spec = spec
        self._named = frozenset(origin_of(httpx.URL(url)) for url in urls)
        # A named host may move its own visitors from http to https.
        allowed = self._named | {(host, 443) for host, port in self._named if port == 80}
        self._client = httpx.Client(
            transport=CheckedTransport(allowed),
            trust_env=False,
            timeout=TIMEOUT,
            headers={"User-Agent": f"sheaf/{version('sheaf')}", "Accept": "*/*", "Accept-Encoding": "identity"},
        )

    @contextmanager
    def send(self, method: str, url: str) -> Generator[httpx.Response, None, None]:
        """The answer, body unread, at the end of the redirects. Raises BadAnswer for a redirect that is refused."""
        target = httpx.URL(url)
        for _ in range(MAX_REDIRECTS + 1):
            if target.scheme not in ("http", "https") or not target.host:
                raise BadAnswer("http-redirect", f"a redirect leads to {target.scheme}:, which is not http")
            answer = self._client.send(self._request(method, target), stream=True)
            try:
                if method == "HEAD":
                    answer.read()  # nothing to read, but only then is the connection kept alive
                if answer.next_request is None:
                    yield answer
                    return
                target = answer.next_request.url
            finally:
                answer.close()
        raise BadAnswer("http-redirect", f"more than {MAX_REDIRECTS} redirects")

    def check(self, answer: httpx.Response) -> None:
        """Raises BadAnswer for a status that says no, Unreachable for one that says not now."""
        if answer.status_code in NOT_NOW or answer.status_code >= 500:
            raise Unreachable(f"the server answers {answer.status_code} {answer.reason_phrase}")
        if answer.status_code != 200:
            raise BadAnswer(f"http-{answer.status_code}", f"the server answers {answer.reason_phrase}")

    def retry(self, attempt: Callable[[], T]) -> T:
        """What the attempt gives, at the third try at the latest. Raises BadAnswer, or Unreachable after them."""
        problem = Unreachable()
        for number in range(1, TRIES + 1):
            try:
                return attempt()
            except httpx.LocalProtocolError:
                problem = Unreachable("the request cannot be sent")  # the error's own text quotes the request
            except ForbiddenAddress as error:
                raise BadAnswer("http-forbidden-address", str(error)) from error
            except httpx.HTTPError as error:
                if tls_problem(error):
                    raise BadAnswer("http-certificate", str(error)) from error
                problem = Unreachable(str(error) or type(error).__name__)
            except Unreachable as error:
                problem = error
            except (httpx.InvalidURL, httpx.CookieConflict) as error:
                raise BadAnswer("http-redirect", f"a redirect leads to no URL: {error}") from error
            if number < TRIES:
                time.sleep(BACKOFF_SECONDS * 2 ** (number - 1))
        raise problem

    def _request(self, method: str, url: httpx.URL) -> httpx.Request:
        headers = self._own_headers if origin_of(url) in self._named else {}
        return self._client.build_request(method, url.copy_with(username="", password=""), headers=headers)

    @functools.cached_property
    def _own_headers(self) -> dict[bytes, bytes]:
        """The recipe's headers and password (for the user that the uri names), looked up when first used."""
        headers = {name.encode(): _header(name, value) for name, value in self._spec.headers.items()}
        if self._spec.password is not None:
            pair = f"{httpx.URL(self._spec.uri).username}:{resolve_secret(self._spec.password)}"
            headers[b"Authorization"] = b"Basic " + base64.b64encode(pair.encode())
        return headers


def _header(name: str, value: str | Secret) -> bytes:
    """A header's value as it is sent. Raises RecipeError or EnvironmentProblem, without the value in it."""
    if not HEADER_NAME.fullmatch(name):
        raise RecipeError(f"'{ascii(name)[1:-1]}' cannot be the name of a header", why="it is one word of ASCII")
    text = value if isinstance(value, str) else resolve_secret(value)
    if HEADER_VALUE.fullmatch(text):
        return text.strip(" \t").encode("latin-1")
    why = "a header holds Latin-1 characters only, and no line breaks"
    if isinstance(value, str):
        raise RecipeError(f"the value of header '{name}' cannot be sent", why=why)
    place = f"environment variable {value.env}" if value.env is not None else f"file {value.file}"
    raise EnvironmentProblem(f"a secret cannot be sent as header '{name}'", where=place, why=why)


def body(answer: httpx.Response, max_bytes: int) -> Iterator[bytes]:
    """The body as it is sent. Raises httpx.RemoteProtocolError if it is shorter than announced."""
    begun, size = time.monotonic(), 0
    for chunk in answer.iter_raw(CHUNK_BYTES):
        size += len(chunk)
        seconds = time.monotonic() - begun
        if size > max_bytes:
            raise BadAnswer("too-large", f"more than {max_bytes:,} bytes")
        if seconds > SLOW_AFTER_SECONDS and size < seconds * SLOWEST_BYTES_PER_SECOND:
            raise Unreachable(f"the server sends less than {SLOWEST_BYTES_PER_SECOND} bytes a second")
        yield chunk


def length_of(answer: httpx.Response) -> int | None:
    """The announced length of the body, or None."""
    text = answer.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None
