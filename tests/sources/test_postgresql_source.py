"""What a PostgreSQL source promises, against a real server: every row once, exact, read-only, and only what changed."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from postgres_server import PASSWORD, Postgres, postgres_server

from sheaf.corpus.reading import parse_options
from sheaf.errors import DataRefused, EnvironmentProblem, RecipeError, SheafError, TryAgain
from sheaf.formats.sandbox import ItemInput, Sandbox
from sheaf.recipe import Limits, Secret, SourceSpec
from sheaf.sources import Item, ItemChanged, ItemUnavailable, open_source
from sheaf.sources.postgresql import PostgresqlSource
from sheaf.sources.retry import Line


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres_server() as running:
        os.environ["SHEAF_TEST_PG"] = PASSWORD
        yield running
        del os.environ["SHEAF_TEST_PG"]


@pytest.fixture(scope="module")
def tickets(server: Postgres) -> Postgres:
    """60,000 rows: some blocks, whichever values bound them."""
    server.run(
        "CREATE TABLE ticket AS SELECT i AS id, 'subject ' || i AS subject, repeat('body ', i % 7) || i AS body,"
        " timestamptz '2026-01-01 00:00+02' + i * interval '1 minute' AS updated_at FROM generate_series(1, 60000) i",
        "CREATE UNIQUE INDEX ON ticket (id)",
    )
    return server


def spec(server: Postgres, query: str, *, user: str = "boss", database: str = "postgres", **more: Any) -> SourceSpec:
    uri = f"postgresql://{user}@127.0.0.1:{server.port}/{database}"
    return SourceSpec(name="t", uri=uri, query=query, password=Secret(env="SHEAF_TEST_PG"), **more)


def source(server: Postgres, query: str, **more: Any) -> PostgresqlSource:
    found = open_source(spec(server, query, **more))
    assert isinstance(found, PostgresqlSource)
    return found


def items(found: PostgresqlSource) -> list[Item]:
    return [item for item in found.list_items() if isinstance(item, Item)]


def lines(found: PostgresqlSource, item: Item) -> list[bytes]:
    with found.open_item(item) as f:
        data = f.read()
    assert item.size in (-1, len(data))
    return data.splitlines()


def rows(found: PostgresqlSource) -> list[Any]:
    return [json.loads(line) for item in items(found) for line in lines(found, item)]


def test_a_query_without_increment_is_one_item_sorted_by_its_key(tickets: Postgres) -> None:
    found = source(tickets, "SELECT id, body FROM ticket WHERE id <= 300 ORDER BY body;  ")
    [item] = items(found)
    assert item.path == "rows" and item.uri == f"postgresql://boss@127.0.0.1:{tickets.port}/postgres#rows"
    assert [row["id"] for row in rows(found)] == list(range(1, 301))


def test_with_an_increment_the_blocks_hold_every_row_once(tickets: Postgres) -> None:
    found = source(tickets, "SELECT id, subject FROM ticket", increment="id")
    listed = items(found)
    assert len(listed) > 2 and [i.path for i in listed] == sorted(i.path for i in listed)
    assert sorted(row["id"] for row in rows(found)) == list(range(1, 60001))
    assert [json.loads(line)["id"] for line in lines(found, listed[0])] == list(
        range(1, len(lines(found, listed[0])) + 1)
    )


@pytest.mark.parametrize("column", ["id", "subject", "updated_at", "part", "price"])
def test_any_ordered_type_can_be_the_increment(tickets: Postgres, column: str) -> None:
    query = "SELECT *, id % 5 AS part, id / 3.0 AS price FROM ticket WHERE id <= 20000"
    found = source(tickets, query, increment=column, key="id")
    assert sorted(row["id"] for row in rows(found)) == list(range(1, 20001))


def test_new_rows_cost_new_blocks_and_a_changed_row_costs_its_own(server: Postgres) -> None:
    server.run("CREATE TABLE growing AS SELECT i AS id, 'text ' || i AS body FROM generate_series(1, 60000) i")
    found = source(server, "SELECT * FROM growing", increment="id")
    before = items(found)
    server.run("INSERT INTO growing SELECT i, 'text ' || i FROM generate_series(60001, 80000) i")
    grown = items(found)
    assert len(set(before) - set(grown)) == 1  # the last block alone went on growing
    server.run("UPDATE growing SET body = 'other' WHERE id = 30000")
    assert len(set(grown) - set(items(found))) == 1
    server.run("DELETE FROM growing WHERE id = 30001", "VACUUM FULL growing")
    after = items(found)
    assert len(set(grown) - set(after)) == 1
    assert sum(len(lines(found, item)) for item in after) == 79999


def test_rows_without_a_value_of_the_increment_are_a_block_of_their_own(server: Postgres) -> None:
    server.run("CREATE TABLE holes (id int, body text)", "INSERT INTO holes VALUES (1, 'a'), (NULL, 'b'), (NULL, 'c')")
    found = source(server, "SELECT * FROM holes", increment="id", key="body")
    assert [i.path for i in items(found)] == ["id=1,1", "id=null"]
    assert sorted(row["body"] for row in rows(found)) == ["a", "b", "c"]


def test_every_type_comes_through_exactly(server: Postgres) -> None:
    server.run("CREATE TYPE mood AS ENUM ('sad', 'it''s \"ok\"')", "CREATE TYPE pair AS (a int, b text)")
    query = r"""SELECT 1::bigint AS id, 12345678901234567890.1230::numeric AS n, 'NaN'::numeric AS nan, NULL AS nothing,
        'infinity'::float8 AS inf, 0.1::float8 AS tenth, true AS yes, ARRAY[1, NULL, 3] AS list,
        ARRAY[1.10, 2] AS exact,
        '{"b": 1, "a": [1, 2]}'::jsonb AS jb, E'{"b":\n 1,\r\n "a": "x\\ny"}'::json AS j, '\x00ff'::bytea AS raw,
        'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid AS u, 'it''s "ok"'::mood AS m,
        '2026-03-29 02:30+02'::timestamptz AS tz,
        '2026-03-29'::date AS d, interval '1 day 2 hours' AS i, (1, 'x,y')::pair AS p, '\u0000 and \n' AS escapes,
        E'line\nbreak\ttab "quote" \\ back' AS text,
        'é漢字😀'::varchar(9) AS wide, '10.0.0.1'::inet AS ip, ''::text AS empty"""
    [row] = rows(source(server, query))
    assert row == {
        "id": 1, "n": "12345678901234567890.1230", "nan": "NaN", "nothing": None, "inf": "Infinity", "tenth": 0.1,
        "yes": True, "list": [1, None, 3], "exact": ["1.10", "2"], "jb": {"a": [1, 2], "b": 1},
        "j": {"b": 1, "a": "x\ny"}, "raw": "\\x00ff", "u": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "m": 'it\'s "ok"', "tz": "2026-03-29T00:30:00+00:00", "d": "2026-03-29", "i": "P1DT2H",
        "p": {"a": 1, "b": "x,y"},
        "escapes": "\\u0000 and \\n", "text": 'line\nbreak\ttab "quote" \\ back', "wide": "é漢字😀", "ip": "10.0.0.1",
        "empty": "",
    }  # fmt: skip


def test_columns_of_the_same_name_are_all_kept(server: Postgres) -> None:
    assert rows(source(server, "SELECT 1 AS a, 2 AS a, 3 AS line, 4 AS k")) == [{"a": 1, "a:1": 2, "line": 3, "k": 4}]


HOSTILE = """x"; DROP TABLE victim; -- '$1 %s {0} \\ é"""


def test_sql_in_names_and_values_is_never_run(server: Postgres) -> None:
    quoted = HOSTILE.replace('"', '""')
    literal = HOSTILE.replace("'", "''")
    server.run(
        "CREATE TABLE IF NOT EXISTS victim (id int)",
        f'CREATE TABLE "{quoted}" ("{quoted}" text, "b,c=d" text)',
        f"""INSERT INTO "{quoted}" VALUES ('{literal}', ''''), ('%2C,=null', 'y')""",
    )
    found = source(server, f'SELECT * FROM "{quoted}"', increment=HOSTILE, key="b,c=d")
    assert sorted(row[HOSTILE] for row in rows(found)) == ["%2C,=null", HOSTILE]
    [item, *_] = items(found)
    forged = Item("t", "id=1%29%3B DROP TABLE victim; --,2", item.uri, item.version, -1)
    with pytest.raises(SheafError, match="refuses the query"):
        source(server, "SELECT 1 AS id", increment="id").open_item(forged)
    assert server.run("SELECT count(*) FROM victim") == [(0,)]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT colour\nFROM ticket", 'column "colour" does not exist'),
        ("SELECT 1; DROP TABLE ticket", "multiple commands"),
        ("SELECT 1) TO PROGRAM 'touch /tmp/sheaf-was-here' --", "syntax error"),
        ("SELECT 1) AS q(a), (SELECT 2", "syntax error"),
        ("SELECT 1 /* never closed", "unterminated"),
        ("DELETE FROM ticket RETURNING id", "syntax error"),
        ("WITH gone AS (DELETE FROM ticket RETURNING id) SELECT * FROM gone", "WITH clause containing"),
        ("COPY ticket TO PROGRAM 'cat'", ""),
        ("SELECT $1 AS id", ""),
        ("SELECT nextval('counter') AS id", "read-only transaction"),
        ("SELECT set_config('transaction_read_only', 'off', false) AS id", "read-write mode"),
    ],
)
def test_a_wrong_or_writing_query_is_refused(tickets: Postgres, query: str, said: str) -> None:
    tickets.run("CREATE SEQUENCE IF NOT EXISTS counter")
    with pytest.raises(RecipeError) as raised:
        rows(source(tickets, query))
    assert said in raised.value.why
    assert tickets.run("SELECT count(*) FROM ticket") == [(60000,)]


def test_a_mistake_is_shown_by_line_and_column(tickets: Postgres) -> None:
    with pytest.raises(RecipeError) as raised:
        rows(source(tickets, "SELECT id,\n  colour FROM ticket"))
    assert raised.value.where.endswith("query, line 2, column 3")


def test_a_missing_key_or_increment_names_the_nearest_column(tickets: Postgres) -> None:
    for role in ("key", "increment"):
        with pytest.raises(RecipeError) as raised:
            rows(source(tickets, "SELECT id, subject FROM ticket", **{role: "subjct"}))
        assert raised.value.fix == "did you mean 'subject'?"


def test_what_the_user_may_not_read_is_said(tickets: Postgres) -> None:
    tickets.run(f"CREATE ROLE guest LOGIN PASSWORD '{PASSWORD.replace(chr(39), chr(39) * 2)}'")
    with pytest.raises(DataRefused, match="refuses to give") as raised:
        rows(source(tickets, "SELECT * FROM ticket", user="guest"))
    assert "permission denied for table ticket" in raised.value.why


def test_a_statement_that_takes_too_long_is_stopped_and_not_tried_again(server: Postgres) -> None:
    with pytest.raises(TryAgain, match=r"more than 0\.2 s"):
        rows(source(server, "SELECT pg_sleep(60)::text AS id", timeout=0.2))


def test_a_wrong_password_and_a_missing_database_are_told_apart_and_no_message_has_the_secret(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataRefused, match="no such database"):
        items(source(server, "SELECT 1", database="nowhere"))
    monkeypatch.setenv("SHEAF_TEST_PG", "canary-7f3a'\\ x")
    with pytest.raises(EnvironmentProblem, match="does not let us in") as raised:
        items(source(server, "SELECT 1"))
    assert "canary" not in "".join(traceback.format_exception(raised.value))


def test_the_uri_may_hold_no_password_and_no_strange_parameter(server: Postgres) -> None:
    for uri in (
        f"postgresql://boss:word@127.0.0.1:{server.port}/x",
        "postgresql://h/x?options=-c%20a",
        "postgresql://h/x?passfile=/x",
    ):
        with pytest.raises(RecipeError) as raised:
            open_source(SourceSpec(name="t", uri=uri, query="SELECT 1"))
        assert "word" not in str(raised.value).replace("password", "")


def test_an_error_amid_the_rows_is_the_query_s_and_not_the_network_s(server: Postgres) -> None:
    found = source(server, "SELECT i AS id FROM generate_series(1, 200000) i")
    [item] = items(found)
    for query, kind in (
        ("SELECT 1 / (i - 150000) AS id FROM generate_series(1, 200000) i", RecipeError),
        ("SELECT pg_terminate_backend(pg_backend_pid()) AS id FROM generate_series(1, 9) i", ItemUnavailable),
    ):
        broken = source(server, query)
        broken._line = Line(outage_seconds=0, sleep=lambda _: None)
        with pytest.raises(kind):
            broken.open_item(item)


def test_rows_that_changed_after_listing_are_not_read(server: Postgres) -> None:
    server.run("CREATE TABLE moving (id int, body text)", "INSERT INTO moving VALUES (1, 'a')")
    found = source(server, "SELECT * FROM moving")
    [item] = items(found)
    server.run("UPDATE moving SET body = 'b'")
    with pytest.raises(ItemChanged):
        found.open_item(item)


def test_nothing_is_listed_of_an_empty_table(server: Postgres) -> None:
    server.run("CREATE TABLE nothing (id int)")
    assert items(source(server, "SELECT * FROM nothing")) == []
    assert items(source(server, "SELECT * FROM nothing", increment="id")) == []


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JP"])
def test_databases_in_other_encodings_are_read(server: Postgres, encoding: str) -> None:
    name = f"db_{encoding.lower()}"
    server.run(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    text = "caf\\351" if encoding == "LATIN1" else "\\244\\242" if encoding == "EUC_JP" else "caf\\351"
    server.run(
        "CREATE TABLE t (id int, body text)", f"INSERT INTO t VALUES (1, 'plain'), (2, E'{text}')", database=name
    )
    found = source(server, "SELECT * FROM t", database=name)
    [item] = items(found)
    first, second = lines(found, item)
    assert json.loads(first)["body"] == "plain"
    if encoding == "SQL_ASCII":  # its bytes mean nothing to the server: they come as they are, for the parser to judge
        assert b"caf\xe9" in second
    else:
        assert json.loads(second)["body"] == {"LATIN1": "café", "EUC_JP": "あ"}[encoding]


def test_a_row_that_is_no_text_costs_that_row_and_each_is_found_by_its_key(server: Postgres) -> None:
    server.run("CREATE DATABASE dirty ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    values = r"(1, 'one good row'), (2, E'bad \377 row'), (3, 'another good row')"
    server.run("CREATE TABLE t (id int, body text)", f"INSERT INTO t VALUES {values}", database="dirty")
    found = source(server, "SELECT * FROM t", database="dirty", text="body")
    [item] = items(found)
    with Sandbox(Limits()) as sandbox, found.open_item(item) as file:
        parsed = sandbox.parse(
            [ItemInput(file, item.path, item.size, item.media)], parse_options(found._spec, mojibake=True)
        )
    assert parsed.records["text"].to_pylist() == ["one good row", "another good row"]
    assert json.loads(parsed.records["locator"][1].as_py()) == {"key": {"id": 3}, "row": 2}
    assert parsed.regions["reason"].to_pylist() == ["undecodable"]


def test_a_server_that_is_down_is_try_again_and_one_that_comes_back_is_waited_for() -> None:
    with postgres_server() as own:
        os.environ["SHEAF_TEST_PG"] = PASSWORD
        own.run("CREATE TABLE t AS SELECT 1 AS id")
        found = source(own, "SELECT * FROM t")
        [item] = items(found)
        own.stop()
        pauses: list[float] = []

        def pause(seconds: float) -> None:  # instead of sleeping: the third pause ends the outage
            pauses.append(seconds)
            if len(pauses) == 3:
                own.start()

        found._line = Line(sleep=pause)
        assert lines(found, item) == [b'{"id":1}'] and len(pauses) == 3
        own.stop()
        found._line = Line(sleep=pauses.append)
        with pytest.raises(TryAgain, match="does not answer now"):
            items(found)
        found._line = Line(outage_seconds=0, sleep=pauses.append)
        with pytest.raises(ItemUnavailable):
            found.open_item(item)
        own.start()


@pytest.mark.soak
def test_two_million_rows_take_constant_memory(server: Postgres) -> None:
    server.run(
        "CREATE TABLE big AS SELECT i AS id, repeat(md5(i::text), 8) AS body FROM generate_series(1, 2000000) i",
        "CREATE UNIQUE INDEX ON big (id)",
    )
    import psutil

    found = source(server, "SELECT * FROM big")
    [item] = items(found)
    before = psutil.Process().memory_info().rss
    with found.open_item(item) as f:
        assert os.fstat(f.fileno()).st_size == item.size > 500_000_000
    assert psutil.Process().memory_info().rss - before < 200 << 20
