"""`prepare` over a PostgreSQL server on a bad network: the same corpus as on a good one."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from postgres_server import PASSWORD, postgres_server

from sheaf import recipe_file
from sheaf.prepare.pipeline import prepare

ROWS = 30_000
Bytes = int | None


class Wire:
    """Hands connections on to a port. `disturb` says for each how many bytes of answers pass before it is reset: None
    for all of them, -1 for a reset before anything was said. `down` until a moment resets all there are."""

    def __init__(self, port: int) -> None:
        self.disturb: Callable[[], Bytes] = lambda: None
        self.opened = 0
        self._port, self._lock = port, threading.Lock()
        self._open: set[socket.socket] = set()
        self._down_until = 0.0
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def down(self, seconds: float) -> None:
        with self._lock:
            self._down_until = time.monotonic() + seconds
            for connection in self._open:
                _reset(connection)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                self.opened += 1
                most = self.disturb()
                if most == -1 or time.monotonic() < self._down_until:
                    _reset(client)
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._port))
                with self._lock:
                    self._open |= {client, server}
                threading.Thread(target=self._pump, args=(client, server, None), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, most), daemon=True).start()

    def _pump(self, of: socket.socket, to: socket.socket, most: Bytes) -> None:
        passed = 0
        with suppress(OSError):
            while data := of.recv(1 << 16):
                passed += len(data)
                if most is not None and passed > most:
                    _reset(to)
                    break
                to.sendall(data)
        with self._lock:
            self._open -= {of, to}
        for end in (of, to):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with postgres_server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHEAF_TEST_PG", PASSWORD)
        server.run(
            "CREATE TABLE ticket AS SELECT i AS id, 'Ticket ' || i || ': ' || repeat(md5(i::text) || ' ', 3) AS body"
            f" FROM generate_series(1, {ROWS}) i",
            "CREATE UNIQUE INDEX ON ticket (id)",
        )
        between = Wire(server.port)
        yield between
        between.close()


def run(wire: Wire, folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    text = f"""
name: tickets
sources:
  - {{name: tickets, uri: "postgresql://boss@127.0.0.1:{wire.port}/postgres", query: "SELECT id, body FROM ticket",
     increment: id, text: body, password: {{env: SHEAF_TEST_PG}}}}
prepare: {{tokenizer: {{train: bpe, vocab_size: 300}}}}
"""
    (folder / "sheaf.yaml").write_text(text)
    return prepare(recipe_file.load(folder / "sheaf.yaml"), workers=2)


@pytest.mark.parametrize("outage_seconds", [1, pytest.param(300, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_connections_that_fail_or_break_off_and_an_outage_change_no_bit(
    wire: Wire, tmp_path: Path, outage_seconds: float
) -> None:
    calm = run(wire, tmp_path / "calm")
    assert calm["records"]["kept"] == ROWS and calm["items"]["deferred"] == 0
    connections, wire.opened = wire.opened, 0
    assert connections > 4
    chance, failures, lock, away = random.Random(5), Counter[str](), threading.Lock(), [False]

    def disturb() -> Bytes:
        with lock:
            if wire.opened > connections // 2 and not away[0]:
                away[0] = True
                wire.down(outage_seconds)
            if wire.opened % 6 != 3:  # more than one in ten, and never one block's every try
                return None
            kind = ("refused", "cut")[wire.opened // 6 % 2]
            failures[kind] += 1
            return -1 if kind == "refused" else chance.randrange(500, 400_000)

    wire.disturb = disturb
    result = run(wire, tmp_path / "bad")
    if result["items"]["deferred"]:  # six failures in a row by bad luck
        result = run(wire, tmp_path / "bad")
    assert result["items"]["deferred"] == 0, result["quarantine"]
    assert result["corpus"] == calm["corpus"]
    assert failures["refused"] and failures["cut"] and away[0], failures
    assert PASSWORD.encode() not in b"".join(p.read_bytes() for p in (tmp_path / "bad").rglob("*.json"))
    assert os.environ["SHEAF_TEST_PG"] == PASSWORD
