"""A real PostgreSQL server for the tests, on a free port of the loopback interface, run by an ordinary user."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi as postgresql
import pytest

PASSWORD = "p a's\\s %40"


@dataclass
class Postgres:
    port: int
    folder: Path
    binaries: Path
    user: int | None

    def run(self, *statements: str, database: str = "postgres") -> list[Any]:
        """Each in its own transaction; the rows of the last one."""
        rows: list[Any] = []
        with postgresql.connect(self.conninfo(database), autocommit=True) as connection:
            for statement in statements:
                with connection.cursor() as cursor:
                    cursor.execute(statement)
                    rows = cursor.fetchall() if cursor.description else []
        return rows

    def conninfo(self, database: str) -> str:
        password = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
        return f"host=127.0.0.1 port={self.port} user=boss dbname={database} password='{password}'"

    def control(self, *arguments: str) -> None:
        self.call("pg_ctl", "-D", str(self.folder / "data"), "-w", *arguments)

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -c unix_socket_directories= -c fsync=off"
        self.control("-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self.control("-m", "immediate", "stop")

    def call(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self.binaries / program), *arguments],
            user=self.user,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # not a pipe: the server would keep it open
            stderr=subprocess.DEVNULL,
            env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
        )
        assert done.returncode == 0, (program, done.returncode)


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    user = _ordinary_user()
    folder = Path(tempfile.mkdtemp(prefix="sheaf-postgres-"))
    try:
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if user is not None:
            os.chown(folder, user, -1)
            os.chown(secret, user, -1)
        server = Postgres(_free_port(), folder, binaries, user)
        server.call(
            *("initdb", "-D", str(folder / "data"), "-U", "boss", "-A", "scram-sha-256", f"--pwfile={secret}"),
            *("-E", "UTF8", "--locale=C", "--no-sync"),
        )
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _binaries() -> Path | None:
    places: Sequence[Path] = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[::-1]
    found = shutil.which("pg_ctl")
    return next((p for p in ([Path(found).parent] if found else []) + list(places) if (p / "initdb").exists()), None)


def _ordinary_user() -> int | None:
    """initdb refuses root, so that the server's files belong to somebody less."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry.pw_uid for entry in pwd.getpwall()}
    return known.get("postgres", known.get("nobody", 65534))


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
