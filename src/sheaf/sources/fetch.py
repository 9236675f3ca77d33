"""One request over HTTP: redirects by hand, nothing decoded, limits on size and time.

A try fails for now on a time-out, a reset, a body of a wrong length, 408, 425, 429 or 5xx, and for good on any other
4xx or a forbidden target; `retry.py` decides when to try again, for each server. Secrets of the recipe go only to the
origins that the recipe names, never along with a redirect elsewhere; they are checked before they are sent, and no
message quotes them.
"""

from __future__ import annotations

import base64
import functools
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import TypeVar

import httpx

from sheaf.errors import EnvironmentProblem, RecipeError
from sheaf.recipe import Secret, SourceSpec
from sheaf.recipe_file import resolve_secret
from sheaf.sources.address import CheckedTransport, ForbiddenAddress, Origin, origin_of, tls_problem
from sheaf.sources.retry import Line, Pace, Unreachable, patience

TIMEOUT = httpx.Timeout(30.0, connect=10.0)
MAX_REDIRECTS = 5
NOT_NOW = frozenset({408, 425, 429})  # RFC 9110, 15.5.9; RFC 8470; RFC 6585
AWAY = frozenset({429, 502, 503, 504})  # statuses of a server that serves nothing just now
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
HEADER_VALUE = re.compile("[\t\x20-\x7e\xa0-\xff]*")
CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})")
T = TypeVar("T")


class BadAnswer(Exception):
    """The server's answer is final and no good. reason: a code such as "http-404"."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


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
        self._patience = patience(spec)
        self._lines: dict[Origin, Line] = {}
        self._lock = threading.Lock()

    @contextmanager
    def send(
        self, method: str, url: str, headers: Mapping[str, str] | None = None
    ) -> Generator[httpx.Response, None, None]:
        """The answer, body unread, at the end of the redirects. Raises BadAnswer for a redirect that is refused."""
        target = httpx.URL(url)
        for _ in range(MAX_REDIRECTS + 1):
            if target.scheme not in ("http", "https") or not target.host:
                raise BadAnswer("http-redirect", f"a redirect leads to {target.scheme}:, which is not http")
            answer = self._client.send(self._request(method, target, headers or {}), stream=True)
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
            why = f"the server answers {answer.status_code} {answer.reason_phrase}"
            raise Unreachable(why, outage=answer.status_code in AWAY, after=_retry_after(answer))
        if answer.status_code != 200:
            raise BadAnswer(f"http-{answer.status_code}", f"the server answers {answer.reason_phrase}")

    def retry(self, url: str, attempt: Callable[[], T], *, known: bool = False) -> T:
        """What the attempt gives in the end. known: the server was seen answering. Raises BadAnswer, Unreachable."""
        return self._line(url).run(lambda: _explained(attempt), known=known)

    def _line(self, url: str) -> Line:
        with self._lock:
            origin = origin_of(httpx.URL(url))
            if origin not in self._lines:
                self._lines[origin] = Line(self._patience, what=f"{origin[0]}:{origin[1]}")
            return self._lines[origin]

    def _request(self, method: str, url: httpx.URL, more: Mapping[str, str]) -> httpx.Request:
        own = self._own_headers if origin_of(url) in self._named else {}
        headers = {**own, **{name.encode(): value.encode("latin-1") for name, value in more.items()}}
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
    """The body as it is sent. Raises httpx's errors if it breaks off."""
    pace, size = Pace(), 0
    for chunk in answer.iter_raw():  # with a size it would gather, and lose what it has when the body breaks off
        size += len(chunk)
        if size > max_bytes:
            raise BadAnswer("too-large", f"more than {max_bytes:,} bytes")
        pace.check(size)
        yield chunk


def length_of(answer: httpx.Response) -> int | None:
    """The announced length of the whole, or None; of a part, what its Content-Range says."""
    if answer.status_code == 206:
        part = part_of(answer)
        return part[1] if part else None
    text = answer.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def part_of(answer: httpx.Response) -> tuple[int, int] | None:
    """First byte and size of the whole, of a part (RFC 9110, 14.4); None if it does not say both."""
    match = CONTENT_RANGE.fullmatch(answer.headers.get("content-range", "").strip())
    return (int(match[1]), int(match[2])) if match else None


def _explained(attempt: Callable[[], T]) -> T:
    """The attempt's result; the HTTP library's errors as ours."""
    try:
        return attempt()
    except httpx.LocalProtocolError:
        # The error's own text quotes the request.
        raise Unreachable("the request cannot be sent") from None
    except ForbiddenAddress as error:
        raise BadAnswer("http-forbidden-address", str(error)) from error
    except httpx.HTTPError as error:
        if tls_problem(error):
            raise BadAnswer("http-certificate", str(error)) from error
        raise Unreachable(str(error) or type(error).__name__, outage=True) from error
    except (httpx.InvalidURL, httpx.CookieConflict) as error:
        raise BadAnswer("http-redirect", f"a redirect leads to no URL: {error}") from error


def _retry_after(answer: httpx.Response) -> float:
    """Seconds; 0 if the server does not say, or says nothing sensible."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
