"""What an SQL source promises: every row once, in stable pages, the database untouched."""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sheaf.errors import DataRefused, RecipeError, TryAgain
from sheaf.recipe import SourceSpec
from sheaf.sources import Item, ItemChanged, ItemUnavailable, open_source, source_options
from sheaf.sources.sql import MEDIA, SqlSource


def database(path: Path, rows: int = 3) -> Path:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE ticket (id INTEGER PRIMARY KEY, subject TEXT, body)")
        db.executemany("INSERT INTO ticket VALUES (?, ?, ?)", [(n, f"subject {n}", f"body {n}") for n in range(rows)])
    return path


def source(path: Path, query: str = "SELECT id, subject, body FROM ticket ORDER BY id", **spec: Any) -> SqlSource:
    found = open_source(SourceSpec(name="tickets", uri=f"sqlite:///{path}", query=query, **spec))
    assert isinstance(found, SqlSource)
    return found


def rows(found: SqlSource) -> list[Any]:
    lines: list[Any] = []
    for item in found.list_items():
        assert isinstance(item, Item)
        with found.open_item(item) as f:
            data = f.read()
        assert len(data) == item.size
        assert item.version == hashlib.blake2b(data, digest_size=16).hexdigest()
        lines += [json.loads(line) for line in data.splitlines()]
    return lines


def test_every_row_is_one_json_object_with_its_columns_in_order(tmp_path: Path) -> None:
    found = source(database(tmp_path / "a.db"))
    [item] = found.list_items()
    assert isinstance(item, Item)
    assert (item.path, item.media) == ("rows-0000000000", MEDIA)
    assert item.uri == f"sqlite:///{tmp_path}/a.db#rows-0000000000"
    assert rows(found)[1] == {"id": 1, "subject": "subject 1", "body": "body 1"}
    assert list(rows(found)[0]) == ["id", "subject", "body"]
    assert source_options(found._spec)["key"] is None


def test_large_tables_come_in_pages_that_cover_every_row_once(tmp_path: Path) -> None:
    found = source(database(tmp_path / "a.db", 4500))
    items = list(found.list_items())
    assert [i.path for i in items] == ["rows-0000000000", "rows-0000002000", "rows-0000004000"]
    assert [r["id"] for r in rows(found)] == list(range(4500))


def test_pages_of_large_rows_are_cut_by_bytes(tmp_path: Path) -> None:
    path = database(tmp_path / "a.db", 0)
    with closing(sqlite3.connect(path)) as db, db:
        db.executemany("INSERT INTO ticket VALUES (?, '', ?)", [(n, "x" * 6_000_000) for n in range(4)])
    found = source(path)
    assert [i.path for i in found.list_items()] == ["rows-0000000000", "rows-0000000003"]
    assert [r["id"] for r in rows(found)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT id, subject FROM ticket ORDER BY id DESC;",
        "SELECT id, subject FROM ticket ORDER BY subject, id -- by subject",
        "WITH t AS (SELECT * FROM ticket) SELECT id, subject FROM t ORDER BY id % 7, id",
        "SELECT id, subject FROM ticket ORDER BY id DESC LIMIT 4100",
        "SELECT a.id, b.subject FROM ticket a JOIN ticket b ON a.id = b.id ORDER BY a.id * 37 % 4500",
        "SELECT id, subject FROM ticket UNION SELECT -1, 'x' ORDER BY 1",
        "SELECT id / 2 AS id, count(*) AS n FROM ticket GROUP BY 1 ORDER BY id DESC",
    ],
)
def test_pages_come_in_the_order_of_the_query(tmp_path: Path, query: str) -> None:
    path = database(tmp_path / "a.db", 4500)
    with closing(sqlite3.connect(path)) as db:
        expected = db.execute(query).fetchall()
    assert [tuple(r.values()) for r in rows(source(path, query))] == expected


def test_adding_rows_leaves_the_full_pages_before_them_as_they_were(tmp_path: Path) -> None:
    path = database(tmp_path / "a.db", 4500)
    before = list(source(path).list_items())
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO ticket VALUES (9999, 'new', 'new')")
    after = list(source(path).list_items())
    assert before[:2] == after[:2] and before[2] != after[2]


def test_a_page_whose_rows_changed_after_listing_is_not_read(tmp_path: Path) -> None:
    path = database(tmp_path / "a.db")
    found = source(path)
    [item] = found.list_items()
    assert isinstance(item, Item)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE ticket SET body = 'other' WHERE id = 1")
    with pytest.raises(ItemChanged):
        found.open_item(item)
    path.unlink()
    with pytest.raises(ItemUnavailable):
        found.open_item(item)


def test_any_value_that_sqlite_holds_becomes_json(tmp_path: Path) -> None:
    path = database(tmp_path / "a.db", 0)
    values = [None, 2**63 - 1, 1.5, 1e999, -1e999, "", "é\n\u2028\0", b"\x00\xff"]
    with closing(sqlite3.connect(path)) as db, db:
        db.executemany("INSERT INTO ticket VALUES (?, NULL, ?)", list(enumerate(values)))
        db.execute("INSERT INTO ticket VALUES (98, NULL, CAST(x'636166e9' AS TEXT))")  # Latin-1 in a text column
    found = [r["body"] for r in rows(source(path))]
    blob, latin = found[7], found[8]
    assert found[:7] == [None, 2**63 - 1, 1.5, "Infinity", "-Infinity", "", "é\n\u2028\0"]
    assert base64.b64decode(blob["base64"]) == b"\x00\xff" and base64.b64decode(latin["base64"]) == b"caf\xe9"


def test_columns_of_the_same_name_are_all_kept(tmp_path: Path) -> None:
    [row] = rows(source(database(tmp_path / "a.db", 1), "SELECT id, subject AS id, body FROM ticket"))
    assert list(row.values()) == [0, "subject 0", "body 0"]


def test_a_query_without_rows_gives_no_items(tmp_path: Path) -> None:
    assert list(source(database(tmp_path / "a.db", 0)).list_items()) == []


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT colour FROM ticket", "no such column: colour"),
        ("SELECT id FROM tickets", "no such table: tickets"),
        ("SELEC id FROM ticket", 'near "SELEC"'),
        ("SELECT id FROM ticket WHERE", "incomplete input"),
        ("SELECT ? FROM ticket", "bindings"),
        ("DELETE FROM ticket", "not authorized"),
        ("SELECT 1; DROP TABLE ticket", "one statement"),
        ("ATTACH '/tmp/other.db' AS other", "not authorized"),
        ("PRAGMA user_version = 7", "not authorized"),
        ("SELECT load_extension('/tmp/x.so')", "not authorized"),
        ("SELECT id) FROM (SELECT id FROM ticket", 'near ")"'),
    ],
)
def test_a_wrong_or_writing_query_is_refused_in_sqlites_words(tmp_path: Path, query: str, said: str) -> None:
    path = database(tmp_path / "a.db")
    before = path.read_bytes()
    with pytest.raises(RecipeError) as raised:
        list(source(path, query).list_items())
    assert said in raised.value.why
    assert path.read_bytes() == before


def test_the_database_and_its_folder_are_left_as_they_were(tmp_path: Path) -> None:
    path = database(tmp_path / "a.db")
    path.chmod(0o444)
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    rows(source(path))
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.db"]


def test_a_locked_database_is_try_again(tmp_path: Path) -> None:
    path = database(tmp_path / "a.db")
    spec = SourceSpec(name="t", uri=f"sqlite:///{path}", query="SELECT * FROM ticket")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TryAgain, match="does not answer") as raised:
            list(SqlSource(spec, busy_seconds=0.05).list_items())
        assert "locked" in raised.value.why
        db.execute("ROLLBACK")
        assert len(list(SqlSource(spec, busy_seconds=0.05).list_items())) == 1


def test_a_query_that_never_gives_a_row_is_stopped(tmp_path: Path) -> None:
    query = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n WHERE i < 0"
    spec = SourceSpec(name="t", uri=f"sqlite:///{database(tmp_path / 'a.db')}", query=query)
    with pytest.raises(TryAgain, match="does not answer") as raised:
        list(SqlSource(spec, query_seconds=0.2).list_items())
    assert "interrupted" in raised.value.why


def test_a_missing_database_names_what_lies_beside_it(tmp_path: Path) -> None:
    database(tmp_path / "help.db")
    with pytest.raises(DataRefused) as raised:
        list(source(tmp_path / "hepl.db").list_items())
    assert "help.db" in raised.value.fix
    assert not (tmp_path / "hepl.db").exists()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(DataRefused, match="not a sound SQLite database"):
        list(source(tmp_path / "a.db").list_items())


def test_a_key_that_is_no_column_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = database(tmp_path / "a.db")
    with pytest.raises(RecipeError) as raised:
        list(source(path, key="subjct").list_items())
    assert raised.value.fix == "did you mean 'subject'?"
    assert len(list(source(path, key="subject").list_items())) == 1


def test_a_source_without_a_query_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs a query"):
        open_source(SourceSpec(name="t", uri=f"sqlite:///{tmp_path}/a.db"))


def test_odd_file_names_are_opened(tmp_path: Path) -> None:
    assert len(rows(source(database(tmp_path / "a b?c#d%20.db")))) == 3


def test_with_an_increment_only_the_touched_blocks_change(tmp_path: Path) -> None:
    path = database(tmp_path / "a.db", 30_000)
    found = source(path, "SELECT * FROM ticket", increment="id")
    before = set(found.list_items())
    assert len(before) > 2 and sorted(r["id"] for r in rows(found)) == list(range(30_000))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO ticket VALUES (30000, 'new', 'new')")
        db.execute("UPDATE ticket SET body = 'other' WHERE id = 100")
    after = set(found.list_items())
    assert len(before - after) == 2 and len(after - before) == 2


def test_an_increment_may_be_text_repeat_and_be_absent(tmp_path: Path) -> None:
    path = database(tmp_path / "a.db", 0)
    hostile = "x'; DROP TABLE ticket; -- \",%2C=null"
    with closing(sqlite3.connect(path)) as db, db:
        names = [None, None, 7, "7", hostile, hostile, "é"] * 3
        db.executemany("INSERT INTO ticket VALUES (?, ?, 'b')", list(enumerate(names)))
    found = source(path, "SELECT * FROM ticket", increment="subject")
    assert sorted(r["id"] for r in rows(found)) == list(range(21))
    assert "subject=null" in [i.path for i in found.list_items()]
