"""Tables and YAML that other projects test their readers with: what is read equals the answers beside them."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conftest import unaccounted

from sheaf.formats.sandbox import ItemInput, ParseOptions, Sandbox
from sheaf.recipe import Limits

Row = dict[str, Any]
OWN_FAULT = {"crash", "timeout", "parser-bug"}


class Files:
    """What became of each of some files: rows as they were read, and reasons."""

    def __init__(self, paths: Sequence[Path]) -> None:
        assert paths
        with contextlib.ExitStack() as stack:
            sandbox = stack.enter_context(Sandbox(Limits(seconds=20)))
            items = [ItemInput(stack.enter_context(p.open("rb")), str(p), p.stat().st_size) for p in paths]
            parsed = sandbox.parse(items, ParseOptions(raw_rows=True))
        assert unaccounted(parsed, [p.stat().st_size for p in paths]) == [0] * len(paths)
        self.paths = list(paths)
        self.rows: dict[Path, list[Row]] = defaultdict(list)
        self.reasons: dict[Path, set[str]] = defaultdict(set)
        for row in parsed.records.to_pylist():
            self.rows[paths[row["item"]]].append(json.loads(row["meta"]))
        for row in parsed.regions.to_pylist():
            self.reasons[paths[row["item"]]].add(row["reason"])
        assert not OWN_FAULT & set().union(*self.reasons.values())


def test_good_parquet_is_read_bad_parquet_is_refused_and_keyless_parquet_is_encrypted(testdata: Path) -> None:
    folder = testdata / "parquet-testing"
    files = Files([p for p in sorted(folder.rglob("*.parquet*")) if p.suffix != ".json"])
    refused = {"corrupt", "memory", "bomb", "encrypted", "unsupported", "undecodable"}
    expected: dict[str, set[str]] = {
        "incorrect_map_schema.parquet": {"corrupt"},
        "large_string_map.brotli.parquet": {"bomb"},
        "column_chunk_key_value_metadata.parquet": {"empty"},  # no rows
        "datapage_v1-corrupt-checksum.parquet": {"corrupt"},
        "rle-dict-uncompressed-corrupt-checksum.parquet": {"corrupt"},
    }
    for path in files.paths:
        if path.parent.name == "bad_data" and path.stem != "ARROW-GH-43605":
            assert files.reasons[path] & refused, path.name
        elif path.suffix == ".encrypted":
            assert (files.reasons[path], files.rows[path]) == ({"encrypted"}, []), path.name
        else:
            assert files.reasons[path] == expected.get(path.name, set()), path.name
            assert bool(files.rows[path]) == (path.name not in expected), path.name
    assert len(files.rows[folder / "bad_data" / "ARROW-GH-43605.parquet"]) == 21_186


def test_parquet_rows_equal_the_csv_beside_them(testdata: Path) -> None:
    answers = sorted((testdata / "parquet-testing" / "data").glob("*_expect.csv"))
    files = Files([p.with_name(p.name.replace("_expect.csv", ".parquet")) for p in answers])
    for answer, path in zip(answers, files.paths, strict=True):
        with answer.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        got = [["" if v is None else str(v) for v in row.values()] for row in files.rows[path]]
        assert [len(row) for row in got] == [len(header)] * len(rows)
        assert got == rows, path.name


def test_arrow_files_and_streams_equal_the_json_beside_them(testdata: Path) -> None:
    answers = sorted((testdata / "arrow-testing").rglob("*.json.gz"))
    kinds = [a.with_name(a.name.removesuffix("json.gz") + kind) for a in answers for kind in ("arrow_file", "stream")]
    files = Files(kinds)
    compared = 0
    for answer in answers:
        expected = json.loads(gzip.decompress(answer.read_bytes()))
        for kind in ("arrow_file", "stream"):
            path = answer.with_name(answer.name.removesuffix("json.gz") + kind)
            assert files.reasons[path] == set()
            rows = _rows(expected)
            assert len(files.rows[path]) == len(rows)
            for got, want in zip(files.rows[path], rows, strict=True):
                for (_, value), (_, known) in zip(got.items(), want, strict=True):
                    if known is UNKNOWN:
                        continue
                    compared += 1
                    assert value == known or (isinstance(known, float) and abs(value - known) <= 1e-6 * abs(known))
    assert compared > 3000


def test_avro_rows_are_all_read_and_equal_those_of_the_same_tables_in_parquet(testdata: Path) -> None:
    folder = testdata / "arrow-testing" / "data" / "avro"
    files = Files(sorted(folder.glob("*.avro")))
    assert all(files.rows[path] and not files.reasons[path] for path in files.paths)
    same = ("alltypes_plain", "binary", "fixed_length_decimal", "int32_decimal", "nulls.snappy", "list_columns")
    others = Files([testdata / "parquet-testing" / "data" / f"{name}.parquet" for name in same])
    for path in others.paths:
        ours = files.rows[folder / path.with_suffix(".avro").name]
        theirs = others.rows[path]
        assert len(ours) == len(theirs)
        assert [_numbers_alike(row) for row in ours] == [_numbers_alike(row) for row in theirs], path.name


def test_yaml_is_refused_and_read_as_far_as_libyaml_can_tell(testdata: Path) -> None:
    files = Files(sorted((testdata / "yaml-test-suite").rglob("in.yaml")))
    wrong = [p for p in files.paths if (p.parent / "error").exists() and "bad-yaml" not in files.reasons[p]]
    missed = [p for p in files.paths if not (p.parent / "error").exists() and "bad-yaml" in files.reasons[p]]
    equal = unequal = 0
    for path in files.paths:
        answer = path.parent / "in.json"
        if (path.parent / "error").exists() or not answer.exists() or files.reasons[path]:
            continue
        documents = _documents(answer.read_text())
        if documents and all(isinstance(document, dict) for document in documents):
            same = files.rows[path] == documents
            equal, unequal = equal + same, unequal + (not same)
    assert len(wrong) <= 8 and len(missed) <= 27  # of 48 and 163: YAML 1.2 in the hands of a reader of 1.1
    assert equal >= 49 and unequal <= 3


UNKNOWN = object()


def _rows(answer: Row) -> list[list[tuple[str, Any]]]:
    """The rows of Arrow's integration JSON; UNKNOWN where a value has a form of its own there."""
    dictionaries = {d["id"]: d["data"]["columns"][0] for d in answer.get("dictionaries", ())}
    rows: list[list[tuple[str, Any]]] = []
    for batch in answer["batches"]:
        columns = [
            _column(f, c, dictionaries) for f, c in zip(answer["schema"]["fields"], batch["columns"], strict=True)
        ]
        names = [f["name"] for f in answer["schema"]["fields"]]
        rows += [list(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return rows


def _column(field: Row, column: Row, dictionaries: dict[int, Row]) -> list[Any]:
    if "dictionary" in field:
        plain = {name: value for name, value in field.items() if name != "dictionary"}
        words = _column(plain, dictionaries[field["dictionary"]["id"]], dictionaries)
        values: list[Any] = [words[n] for n in column["DATA"]]
    else:
        values = _values(field, column, dictionaries)
    valid = column.get("VALIDITY", [1] * len(values))
    return [value if good else None for value, good in zip(values, valid, strict=True)]


def _values(field: Row, column: Row, dictionaries: dict[int, Row]) -> list[Any]:
    kind, count = field["type"]["name"], column["count"]
    inner = [
        _column(f, c, dictionaries)
        for f, c in zip(field.get("children", ()), column.get("children", ()), strict=True)
    ] if kind in ("list", "fixedsizelist", "struct", "map") else []  # fmt: skip
    if kind in ("int", "floatingpoint"):
        return [float(v) if kind == "floatingpoint" else int(v) for v in column["DATA"]]
    if kind == "bool":
        return [bool(v) for v in column["DATA"]]
    if kind == "utf8":
        return column["DATA"]
    if kind == "null":
        return [None] * count
    if kind == "list":
        return [inner[0][a:b] for a, b in zip(column["OFFSET"], column["OFFSET"][1:], strict=False)]
    if kind == "fixedsizelist":
        size = field["type"]["listSize"]
        return [inner[0][n * size : (n + 1) * size] for n in range(count)]
    if kind == "struct":
        names = [f["name"] for f in field["children"]]
        return [dict(zip(names, row, strict=True)) for row in zip(*inner, strict=True)]
    if kind == "map":
        entries = [(e["key"], e["value"]) for e in inner[0]]
        cut = [entries[a:b] for a, b in zip(column["OFFSET"], column["OFFSET"][1:], strict=False)]
        return [dict(e) if len(dict(e)) == len(e) else [list(pair) for pair in e] for e in cut]
    return [UNKNOWN] * count


def _documents(text: str) -> list[Any]:
    documents: list[Any] = []
    while text := text.strip():
        value, end = json.JSONDecoder().raw_decode(text)
        documents.append(value)
        text = text[end:]
    return documents


def _numbers_alike(row: Row) -> list[Any]:
    return [round(v, 4) if isinstance(v, float) else v for v in row.values() if not str(v).startswith("20")]
