"""What a source by SQLAlchemy promises, against real PostgreSQL by another driver, and SQLite."""

from __future__ import annotations

import json
import sqlite3
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from postgres_server import PASSWORD, Postgres, postgres_server

from sheaf.errors import EnvironmentProblem, RecipeError, TryAgain
from sheaf.recipe import Secret, SourceSpec
from sheaf.sources import Item, ItemChanged, open_source
from sheaf.sources.other_databases import OtherDatabaseSource
from sheaf.sources.retry import Line


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres_server() as running:
        running.run("CREATE TABLE t AS SELECT i AS id, 'a:b %s ' || i AS body FROM generate_series(1, 20000) i")
        yield running


@pytest.fixture(autouse=True)
def _password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHEAF_TEST_SQL", PASSWORD)


def source(uri: str, query: str, **more: Any) -> OtherDatabaseSource:
    found = open_source(SourceSpec(name="t", uri=uri, query=query, **more))
    assert isinstance(found, OtherDatabaseSource)
    found._line = Line(outage_seconds=0, sleep=lambda _: None)
    return found


def postgres(server: Postgres, query: str, **more: Any) -> OtherDatabaseSource:
    uri = f"sqlalchemy+postgresql+pg8000://boss@127.0.0.1:{server.port}/postgres"
    return source(uri, query, password=Secret(env="SHEAF_TEST_SQL"), **more)


def rows(found: OtherDatabaseSource) -> list[Any]:
    lines: list[Any] = []
    for item in found.list_items():
        assert isinstance(item, Item) and PASSWORD not in item.uri
        with found.open_item(item) as f:
            data = f.read()
        assert len(data) == item.size
        lines += [json.loads(line) for line in data.splitlines()]
    return lines


def test_the_rows_of_a_server_come_whole_or_in_blocks(server: Postgres) -> None:
    query = "SELECT id, body FROM t WHERE body LIKE '%:b %' ORDER BY body"
    for more in ({}, {"increment": "id"}):
        found = rows(postgres(server, query, **more))
        assert sorted(row["id"] for row in found) == list(range(1, 20001)) and found[0]["body"].startswith("a:b %s ")


def test_values_are_exact(server: Postgres) -> None:
    [row] = rows(
        postgres(server, "SELECT 1.50::numeric AS n, timestamp '2026-01-02 03:04' AS t, '\\xff'::bytea AS b, 1 AS b")
    )
    assert row == {"n": "1.50", "t": "2026-01-02T03:04:00", "b": {"base64": "/w=="}, "b:1": 1}


def test_nothing_is_written(server: Postgres) -> None:
    server.run("CREATE SEQUENCE IF NOT EXISTS counter")
    for query in ("DELETE FROM t RETURNING id", "SELECT nextval('counter') AS id", "SELECT 1; DROP TABLE t"):
        with pytest.raises(RecipeError, match="refuses the query"):
            rows(postgres(server, query))
    assert server.run("SELECT count(*) FROM t") == [(20000,)]


def test_no_message_holds_the_password(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHEAF_TEST_SQL", "canary-99")
    with pytest.raises(TryAgain) as raised:
        rows(postgres(server, "SELECT 1 AS id"))
    assert "canary" not in "".join(traceback.format_exception(raised.value))
    with pytest.raises(RecipeError, match="holds a password"):
        source("mysql+pymysql://a:b@h/x", "SELECT 1")


def test_changed_rows_are_not_read_and_hostile_increments_are_bound(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE t (id TEXT, body TEXT)")
        db.executemany("INSERT INTO t VALUES (?, 'x')", [("'; DROP TABLE t; --",), (None,), ('"%2C=,',)])
    found = source(f"sqlalchemy+sqlite:///{path}", "SELECT * FROM t", increment="id", key="body")
    assert len(rows(found)) == 3
    [*listed] = found.list_items()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE t SET body = 'y'")
    with pytest.raises(ItemChanged):
        found.open_item(listed[0])  # type: ignore[arg-type]


def test_a_driver_that_is_not_installed_is_a_matter_of_the_machine() -> None:
    with pytest.raises(EnvironmentProblem, match="driver is not installed"):
        list(source("oracle+cx_oracle://me@127.0.0.1/x", "SELECT 1").list_items())
