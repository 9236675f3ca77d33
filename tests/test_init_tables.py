"""What `sheaf init` says of files that hold rows: the mapping, sure or likely, and the files that it is for."""

from __future__ import annotations

import csv
import gzip
import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from sheaf.corpus.reading import parse_options
from sheaf.formats.sandbox import ItemInput, Sandbox
from sheaf.init import init
from sheaf.recipe import Limits, Recipe
from sheaf.recipe_file import load
from sheaf.sources.base import Item
from sheaf.sources.registry import open_source

sys.path.insert(0, str(Path(__file__).with_name("formats")))
import dataset_rows as data

Row = dict[str, Any]


def jsonl(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def table(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def written(folder: Path) -> tuple[str, Recipe]:
    recipe = folder.parent / "sheaf.yaml"
    init(folder, recipe, force=True)
    return recipe.read_text(), load(recipe)


def asked(recipe: Recipe) -> dict[str, tuple[Any, list[str]]]:
    """For each source what it says of its rows, and the files that it takes."""
    found: dict[str, tuple[Any, list[str]]] = {}
    for spec in recipe.sources:
        said = spec.text if spec.map is None else spec.map if isinstance(spec.map, str) else spec.map.kind
        found[spec.name] = (said, [i.path for i in open_source(spec).list_items() if isinstance(i, Item)])
    return found


def test_files_of_one_schema_are_one_source_with_its_mapping_and_a_preview(tmp_path: Path) -> None:
    for name in ("a/train.jsonl", "a/test.jsonl", "b.jsonl"):
        jsonl(tmp_path / "data" / name, data.GSM8K)
    text, recipe = written(tmp_path / "data")
    assert asked(recipe) == {"tables": ("question-answer", ["a/test.jsonl", "a/train.jsonl", "b.jsonl"])}
    assert recipe.sources[0].include == ("**/*.jsonl",)
    assert "# proposed: map: question-answer   confidence 0.88: 24 of 24 sampled rows fit" in text
    assert "record 1: User: How do I stop bread from going stale so quickly? There are 0 of them. ⏎ Assistant: " in text


def test_a_folder_of_mixed_schemas_gets_a_source_for_each_and_every_file_is_in_exactly_one(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    jsonl(folder / "sft" / "alpaca" / "one.jsonl", data.ALPACA)
    jsonl(folder / "sft" / "alpaca" / "deep" / "two.jsonl", data.ALPACA)
    jsonl(folder / "sft" / "share.jsonl", data.SHAREGPT)
    jsonl(folder / "sft" / "odd [1].jsonl", data.HH_RLHF)
    table(folder / "tickets.csv", data.TICKETS)
    table(folder / "stock" / "products.csv", data.PRODUCTS)
    (folder / "stock" / "config.yaml").write_text("a: 1\n")
    _, recipe = written(folder)
    assert asked(recipe) == {
        "tables-preference": ("preference", ["sft/odd [1].jsonl"]),
        "tables-sharegpt": ("sharegpt", ["sft/share.jsonl"]),
        "tables-alpaca": ("alpaca", ["sft/alpaca/deep/two.jsonl", "sft/alpaca/one.jsonl"]),
        "tables-template": ("{Subject}\n\n{Description}", ["tickets.csv"]),
        "tables": (None, ["stock/config.yaml", "stock/products.csv"]),
    }
    assert next(s for s in recipe.sources if s.name == "tables-alpaca").include == ("sft/alpaca/**/*.jsonl",)


def test_compressed_rows_are_sampled_and_mapped_as_if_they_were_not(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name in ("a.jsonl", "b.jsonl"):
        jsonl(folder / name, data.GSM8K)
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    (folder / "notes.gz").write_bytes(gzip.compress(b"some words"))
    _, recipe = written(folder)
    assert asked(recipe) == {
        "tables": ("question-answer", ["a.jsonl.gz", "b.jsonl.gz"]),
        "archives": (None, ["notes.gz"]),
    }


def test_a_table_of_questions_and_answers_in_a_database_is_proposed_as_a_talk(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "help.db")) as database:
        database.execute("CREATE TABLE faq (id INTEGER PRIMARY KEY, question TEXT, answer TEXT)")
        database.execute("CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT, body TEXT)")
        pairs = [(row["question"], row["answer"]) for row in data.GSM8K]
        database.executemany("INSERT INTO faq (question, answer) VALUES (?, ?)", pairs)
        database.executemany("INSERT INTO note (title, body) VALUES (?, ?)", pairs)
        database.execute("INSERT INTO note (title, body) VALUES (CAST(x'ff' AS TEXT), x'00ff')")
        database.commit()
    text, recipe = written(folder)
    faq, note = recipe.sources
    assert (faq.map, faq.text) == ("question-answer", None)
    assert (note.map, note.text) == (None, "{title}\n\n{body}")
    assert f"# {len(pairs)} of {len(pairs)} sampled rows fit" in text


def test_the_preview_is_what_the_recipe_gives(tmp_path: Path) -> None:
    jsonl(tmp_path / "data" / "rows.jsonl", data.DOLLY)
    text, recipe = written(tmp_path / "data")
    path = tmp_path / "data" / "rows.jsonl"
    with Sandbox(Limits()) as sandbox, path.open("rb") as file:
        item = ItemInput(file, path.name, path.stat().st_size)
        records = sandbox.parse([item], parse_options(recipe.sources[0], mojibake=True)).records.to_pylist()
    assert {r["kind"] for r in records} == {"chat"}
    first = next(line for line in text.splitlines() if "record 1: " in line).partition("record 1: ")[2]
    assert " ⏎ ".join(records[0]["text"].splitlines()[0:1]) in first


def test_what_is_only_likely_stands_in_a_comment(tmp_path: Path) -> None:
    jsonl(tmp_path / "data" / "rows.jsonl", data.OPENAI[:1])
    text, recipe = written(tmp_path / "data")
    assert asked(recipe) == {"tables": (None, ["rows.jsonl"])}
    assert "# perhaps: map: openai   confidence 0.48: 1 of 1 sampled rows fit" in text


def test_of_very_many_files_some_are_sampled_and_the_others_go_with_those_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sheaf.init_tables.MOST_SAMPLED", 10)
    folder = tmp_path / "data"
    for n in range(12):
        jsonl(folder / "chats" / f"{n:02d}.jsonl", data.OPENAI)
        jsonl(folder / "pairs" / f"{n:02d}.jsonl", data.HH_RLHF)
    _, recipe = written(folder)
    found = asked(recipe)
    assert {name: (said, len(files)) for name, (said, files) in found.items()} == {
        "tables-openai": ("openai", 12),
        "tables-preference": ("preference", 12),
    }
    assert [s.include for s in recipe.sources] == [("chats/**/*.jsonl",), ("pairs/**/*.jsonl",)]


@pytest.mark.parametrize("evil", ["text\nworkspace: /etc", "text\n  - {name: evil, uri: /etc}", 'a"b\\c\r\x7f\u2028'])
def test_names_and_cells_that_would_break_out_of_a_comment_do_not(tmp_path: Path, evil: str) -> None:
    rows = [{evil: f"{row['text']}\n- {{name: worse, uri: /}}\u2028\x1b[31m"} for row in data.WIKIPEDIA]
    jsonl(tmp_path / "data" / "x.jsonl", rows)
    (tmp_path / "data" / "x.a\nb").write_bytes(b"\x7fELF" + bytes(60))
    text, recipe = written(tmp_path / "data")
    assert [s.name for s in recipe.sources] == ["tables"]
    assert set(yaml.safe_load(text)) == {"name", "seed", "sources", "prepare", "model", "train", "workspace"}
    assert not {"\x1b", "\u2028", "\x7f", "\r"} & set(text)
    if "{" not in evil:  # such a name would be a template
        assert "record 1: " in text
        assert recipe.sources[0].text == evil


def test_files_that_cannot_be_sampled_are_in_the_recipe_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "broken.json").write_bytes(b"[1, 2")
    (folder / "not a table.csv").write_bytes(bytes(range(256)) * 40)
    (folder / "100%.csv").write_bytes(b"text\nsome words in a row\n")
    _, recipe = written(folder)
    assert len(asked(recipe)["tables"][1]) == 4
