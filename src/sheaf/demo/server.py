"""A web server on this machine alone, for as long as the demo runs: what a source of URLs reads from."""

from __future__ import annotations

import contextlib
import errno
import functools
import threading
from collections.abc import Generator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sheaf.errors import EnvironmentProblem

FIRST_PORT, PORTS = 8765, 100  # the first free one: the same URLs at every run where nothing else takes it


@contextlib.contextmanager
def serving(folder: Path) -> Generator[str]:
    """Serve the files of a folder; the value is the server's URL. It ends with the block, however that ends."""
    server = _bind(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="demo-web", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _bind(folder: Path) -> ThreadingHTTPServer:
    handler = functools.partial(_Quiet, directory=str(folder))
    for port in range(FIRST_PORT, FIRST_PORT + PORTS):
        try:
            return ThreadingHTTPServer(("127.0.0.1", port), handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise EnvironmentProblem("the demo's web server cannot start", why=str(error)) from error
    raise EnvironmentProblem(
        "the demo's web server finds no free port",
        where=f"127.0.0.1, ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1}",
        fix="end some of the programs that hold them",
    )


class _Quiet(SimpleHTTPRequestHandler):
    """Files only: no listing of folders, no log."""

    def list_directory(self, path: Any) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        pass
