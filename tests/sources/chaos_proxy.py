"""A proxy between a source and a real server, which makes the network as bad as a test wants it."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SKIPPED = {"transfer-encoding", "connection", "content-length", "server", "date"}


class Proxy:
    """Hands requests on to `port`. `disturb` is called with each, and may answer it itself and return True."""

    def __init__(self, port: int) -> None:
        self.count: Counter[str] = Counter()
        self.paths: list[str] = []
        self.disturb: Callable[[Any], bool] = lambda request: False
        self.cut_after: Callable[[Any], int | None] = lambda request: None  # bytes of a body, then the end
        self.delay_seconds = 0.0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy.count[self.command] += 1
                proxy.paths.append(self.path)
                time.sleep(proxy.delay_seconds)  # the latency of a far server
                if not proxy.disturb(self):
                    proxy.hand_on(self, port)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.request_queue_size = 64
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def hand_on(self, request: Any, port: int) -> None:
        back = http.client.HTTPConnection("127.0.0.1", port)
        back.request(request.command, request.path, headers=dict(request.headers))
        answer = back.getresponse()
        body = answer.read()
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in SKIPPED:
                request.send_header(name, value)
        length = answer.getheader("content-length") if request.command == "HEAD" else str(len(body))
        request.send_header("Content-Length", length or "0")
        request.end_headers()
        if request.command != "HEAD":
            cut = self.cut_after(request)
            request.wfile.write(body[:cut])
            if cut is not None and cut < len(body):
                request.close_connection = True
        back.close()


def reset(request: Any) -> None:
    """End the connection with RST, in the middle of whatever it was."""
    request.wfile.flush()
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.close_connection = True
    request.connection.close()


def refuse(request: Any, status: int, body: bytes = b"", **headers: str) -> bool:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
    return True


def at_random(share: float, seed: int = 1) -> Callable[[Any], bool]:
    """A share of the requests fails: SlowDown, an internal error, a reset before the answer, in turn at random."""
    chance, lock = random.Random(seed), threading.Lock()

    def disturb(request: Any) -> bool:
        with lock:
            fails, way = chance.random() < share, chance.randrange(3)
        if not fails:
            return False
        if way == 2:
            reset(request)
            return True
        status, code = ((503, "SlowDown"), (500, "InternalError"))[way]
        return refuse(request, status, f"<Error><Code>{code}</Code></Error>".encode())

    return disturb


@contextmanager
def proxied(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    thread = threading.Thread(target=proxy.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.http.shutdown()
        thread.join()
        proxy.http.server_close()
