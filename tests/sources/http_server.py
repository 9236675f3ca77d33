"""A server on the loopback interface whose answers a test writes, for all tests of HTTP."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BODY = b"<p>hello</p>" * 1000


class Server:
    """Routes by path; counts requests and remembers headers and client ports."""

    def __init__(self) -> None:
        self.routes: dict[str, Callable[[Any], None]] = {}
        self.count: Counter[str] = Counter()
        self.headers: dict[str, dict[str, str]] = {}
        self.clients: set[tuple[str, int]] = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.count[f"{self.command} {self.path}"] += 1
                server.headers[self.path] = {k.lower(): v for k, v in self.headers.items()}
                server.clients.add(self.client_address)
                server.routes.get(self.path, missing)(self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/"


def answer(request: Any, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    if length != -1:
        request.send_header("Content-Length", str(len(body) if length is None else length))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
    if length not in (None, len(body)):
        request.close_connection = True


def missing(request: Any) -> None:
    answer(request, 404, b"no")


def page(request: Any) -> None:
    answer(request, 200, BODY, ETag='"v1"', Content_Type="text/html; charset=utf-8")


def redirect(to: str) -> Callable[[Any], None]:
    return lambda request: answer(request, 302, Location=to)


def in_turn(*routes: Callable[[Any], None]) -> Callable[[Any], None]:
    """The first answer at the first request, …; the last one from then on."""
    left = list(routes)
    return lambda request: (left.pop(0) if len(left) > 1 else left[0])(request)


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        thread.join()
        server.http.server_close()
