"""Files that other projects collected to break parsers: nothing crashes, every byte is accounted for, answers agree."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from pathlib import Path

from conftest import unaccounted

from sheaf.formats.encoding import decode
from sheaf.formats.sandbox import ItemInput, Parsed, ParseOptions, Sandbox
from sheaf.formats.stream import Refused
from sheaf.recipe import Limits


def parse_paths(paths: list[Path]) -> Parsed:
    with contextlib.ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(Limits(seconds=20)))
        items = [ItemInput(stack.enter_context(p.open("rb")), str(p), p.stat().st_size) for p in paths]
        parsed = sandbox.parse(items, ParseOptions())
    assert unaccounted(parsed, [p.stat().st_size for p in paths]) == [0] * len(paths)
    return parsed


def test_every_file_is_read_or_refused_within_its_limits(testdata: Path) -> None:
    paths = sorted(p for p in testdata.rglob("*") if p.is_file())
    failed: list[tuple[str, str, str]] = []
    for first in range(0, len(paths), 400):
        group = paths[first : first + 400]
        parsed = parse_paths(group)
        reached = set(parsed.records["item"].to_pylist()) | set(parsed.regions["item"].to_pylist())
        assert reached == set(range(len(group)))
        for row in parsed.regions.to_pylist():
            if row["reason"] in ("crash", "timeout", "memory", "parser-bug"):
                failed.append((str(group[row["item"]]), row["reason"], row["detail"]))
    assert failed == []
    assert len(paths) > 1000


def test_json_that_must_parse_does_and_what_must_not_does_not(testdata: Path) -> None:
    paths = sorted((testdata / "json-test-suite" / "test_parsing").glob("*.json"))
    parsed = parse_paths(paths)
    records = set(parsed.records["item"].to_pylist())
    reasons: dict[int, set[str]] = defaultdict(set)
    for row in parsed.regions.to_pylist():
        reasons[row["item"]].add(row["reason"])
    refused = {"bad-json", "undecodable"}
    wrong = [p.name for i, p in enumerate(paths) if p.name.startswith("y_") and reasons[i] & refused]
    wrong += [p.name for i, p in enumerate(paths) if p.name.startswith("n_") and (i in records or not reasons[i])]
    assert wrong == []
    assert len(paths) > 300


def test_csv_spectrum_reads_as_its_answers_say(testdata: Path) -> None:
    paths = sorted((testdata / "csv-spectrum" / "csvs").glob("*.csv"))
    rows = parse_paths(paths).records.to_pylist()
    assert paths
    for number, path in enumerate(paths):
        answer = json.loads((path.parent.parent / "json" / f"{path.stem}.json").read_text())
        expected = ["\n".join(f"{k}: {v}" for k, v in row.items()).replace("\r\n", "\n").rstrip() for row in answer]
        assert [r["text"] for r in rows if r["item"] == number] == expected, path.name


def test_labelled_texts_of_200_characters_are_decoded_right(testdata: Path) -> None:
    corpus = testdata / "node-chardet" / "corpus" / "generated"
    python = {"windows-874": "cp874", "macintosh": "mac_roman", "x-mac-cyrillic": "mac_cyrillic"}
    right = wrong = 0
    for path in sorted(corpus.rglob("*.bin")):
        label = path.relative_to(corpus).parts[0]
        raw = path.read_bytes()
        try:
            text = raw.decode(python.get(label, label))
        except (LookupError, UnicodeDecodeError):
            continue  # Python has no ISO-2022-CN, and one UTF-16 file holds a lone surrogate
        if len(text) < 200:
            continue
        try:
            same = decode(raw).text == text.removeprefix("\ufeff")
        except Refused:
            same = False
        right, wrong = right + same, wrong + (not same)
    assert (wrong, right > 60) == (0, True)


def test_good_and_bad_zstd_streams_are_told_apart(testdata: Path) -> None:
    good = sorted((testdata / "zstd" / "tests" / "golden-decompression").iterdir())
    bad = sorted((testdata / "zstd" / "tests" / "golden-decompression-errors").iterdir())
    rows = parse_paths(good + bad).regions.to_pylist()
    broken = {row["item"] for row in rows if row["reason"] in ("corrupt", "truncated")}
    assert broken == set(range(len(good), len(good) + len(bad)))
