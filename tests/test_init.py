"""What `sheaf init` finds in a folder, and that what it writes is a recipe."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sheaf.errors import DataRefused, UsageError
from sheaf.init import SCHEMA_NAME, init, take_census
from sheaf.recipe_file import load
from sheaf.sources.base import Item
from sheaf.sources.registry import open_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A little of everything."""
    data = tmp_path / "my data (1)"
    for name, content in {
        "notes/a.txt": b"some text",
        "notes/B.TXT": b"more text",
        "page.html": b"<html><body>hello</body></html>",
        "rows.jsonl": b'{"text": "a"}\n',
        "tool.py": b"print()\n",
        "README": b"no suffix",
        "tool.out": b"\x7fELF\x02\x01\x01" + bytes(60),
        "film.txt.mp4": b"\0\0\0 ftypisom" + bytes(60),
        ".hidden/secret.txt": b"secret",
        "node_modules/x.js": b"x",
        "pack.tar.gz": b"\x1f\x8b\x08",
    }.items():
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with closing(sqlite3.connect(data / "help desk.db")) as base:
        base.execute('CREATE TABLE "tick""et" (id INTEGER PRIMARY KEY, subject TEXT, body VARCHAR(99), n INTEGER)')
        base.execute("INSERT INTO \"tick\"\"et\" VALUES (1, 'printer', 'is on fire', 3)")
        base.commit()
    return data


def items(recipe: Path) -> dict[str, list[str]]:
    """Paths by source, as `prepare` would list them."""
    found: dict[str, list[str]] = {}
    for spec in load(recipe).sources:
        found[spec.name] = [i.path for i in open_source(spec).list_items() if isinstance(i, Item)]
    return found


def test_the_recipe_written_loads_and_its_sources_take_every_readable_file_once(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "sheaf.yaml"
    result = init(folder, recipe)
    found = items(recipe)
    assert found == {
        "documents": ["notes/B.TXT", "notes/a.txt", "page.html"],
        "tables": ["rows.jsonl"],
        "code": ["tool.py"],
        "archives": ["pack.tar.gz"],
        "other": ["README"],
    }
    assert result["files"] == 7
    assert result["unread"] == {"ELF executable (.out)": 1, "MP4 or related media (.mp4)": 1}


def test_what_no_source_takes_is_said_in_the_recipe(folder: Path, tmp_path: Path) -> None:
    init(folder, tmp_path / "sheaf.yaml")
    text = (tmp_path / "sheaf.yaml").read_text()
    assert "left out: 1 × ELF executable, .out" in text
    assert "left out: 1 × MP4 or related media, .mp4" in text


def test_inside_the_folder_itself_recipe_schema_and_workspace_are_not_data(folder: Path) -> None:
    recipe = folder / "my.yaml"
    init(folder, recipe)
    (folder / "workspace" / "corpora").mkdir(parents=True)
    (folder / "workspace" / "corpora" / "x.txt").write_text("ours")
    assert load(recipe).workspace == str(folder / "workspace")
    everything = [path for paths in items(recipe).values() for path in paths]
    assert "README" in everything
    assert not [p for p in everything if p.startswith("workspace") or p in ("my.yaml", SCHEMA_NAME)]


def test_a_table_is_proposed_as_a_query_that_works_when_the_comment_sign_goes(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "sheaf.yaml"
    init(folder, recipe)
    text = recipe.read_text()
    assert len(load(recipe).sources) == 5
    recipe.write_text(text.replace("  # - {", "  - {"))
    table = load(recipe).sources[-1]
    assert table.uri == f"sqlite:///{folder}/help desk.db"
    with closing(sqlite3.connect(folder / "help desk.db")) as base:
        assert base.execute(table.query or "").fetchall() == [(1, "printer", "is on fire")]
    assert table.text == "{subject}\n\n{body}"


def test_a_folder_with_nothing_but_a_database_gets_its_tables_as_sources(folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (folder / "help desk.db").rename(alone / "no suffix at all")
    init(alone, tmp_path / "sheaf.yaml")
    assert [s.name for s in load(tmp_path / "sheaf.yaml").sources] == ["no-suffix-at-all-tick-et"]


def test_names_that_yaml_would_misread_are_quoted(tmp_path: Path) -> None:
    data = tmp_path / "no"
    data.mkdir()
    (data / "evil\n- {name: x}.txt").write_text("text")
    init(data, tmp_path / "sheaf.yaml")
    recipe = load(tmp_path / "sheaf.yaml")
    assert recipe.name == "no"
    assert [s.name for s in recipe.sources] == ["documents"]


def test_a_recipe_that_is_there_stays_unless_forced(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "sheaf.yaml"
    recipe.write_text("mine")
    with pytest.raises(UsageError, match="there is a recipe already"):
        init(folder, recipe)
    assert recipe.read_text() == "mine"
    assert not (tmp_path / SCHEMA_NAME).exists()
    init(folder, recipe, force=True)
    assert load(recipe).sources


def test_the_editor_line_points_to_the_schema_beside_the_recipe(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "deep" / "sheaf.yaml"
    init(folder, recipe)
    first = recipe.read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    schema = json.loads((recipe.parent / first.partition("=")[2]).read_text())
    assert "sources" in schema["properties"]


@pytest.mark.parametrize("content", [{}, {"a.out": b"\x7fELF" + bytes(9)}, {".hidden": b"text"}])
def test_a_folder_with_nothing_to_read_is_refused_with_the_reason(tmp_path: Path, content: dict[str, bytes]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, data_bytes in content.items():
        (data / name).write_bytes(data_bytes)
    with pytest.raises(DataRefused) as caught:
        init(data, tmp_path / "sheaf.yaml")
    assert caught.value.why
    assert not (tmp_path / "sheaf.yaml").exists()


def test_a_census_goes_by_first_bytes_before_suffix(tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_bytes(b"\x7fELF" + bytes(60))
    (tmp_path / "table.csv").write_bytes(b"SQLite format 3\x00" + bytes(100))
    census = take_census(tmp_path)
    assert dict(census.unread) == {(".txt", "ELF executable"): 1}
    assert census.databases == [tmp_path / "table.csv"]
    assert not census.files
