"""What was refused or dropped is taken after all where the recipe says so, and only there."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from sheaf import recipe_file
from sheaf.console import Silent
from sheaf.corpus import lineage
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import RecipeError
from sheaf.prepare.pipeline import prepare
from sheaf.recipe import Recipe

RUSSIAN = "Вот письмо, с которым обычное опознавание не справится. " * 3


def recipe(base: Path, *rules: str) -> Recipe:
    text = f"""
name: admit
sources: [{{name: files, uri: ./files}}]
prepare:
  tokenizer: {{train: bpe, vocab_size: 300}}
  limits: {{ratio: 50, seconds: 120}}
  admit: [{", ".join(rules)}]
"""
    return recipe_file.loads(text, base)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    files = tmp_path / "files"
    files.mkdir()
    (files / "good.txt").write_text("A good file, which is read whatever the recipe admits besides it.")
    (files / "letter.txt").write_bytes(b"\x01\x02\x03\x04\x05\x06\x07" + RUSSIAN.encode("cp1251"))
    (files / "drawing.ps").write_text("%!PS-Adobe\n% a program that draws, and that somebody wants to read as text\n")
    (files / "zeros.txt.gz").write_bytes(gzip.compress(b"much of the same, over and over again\n" * 60_000))
    (files / "note.txt").write_text("short")
    (files / "other.md").write_text("brief")
    return tmp_path


def reasons(result: dict[str, Any]) -> set[str]:
    return set(result["quarantine"]) | set(result["records"]["dropped"])


def texts(base: Path) -> list[str]:
    corpus = CorpusVersion.open(base / "workspace")
    return corpus.texts(range(len(corpus.documents)))


def test_each_rule_admits_what_it_names_and_reads_nothing_else_again(base: Path) -> None:
    first = prepare(recipe(base), workers=1)
    assert reasons(first) == {"undecodable", "unsupported", "bomb", "too-short"}
    rules = [
        "{path: letter.txt, encoding: windows-1251}",
        "{path: '*.ps', format: text/plain}",
        "{path: '*.gz', limits: {ratio: 5000}}",
        "{path: 'note*', reason: too-short}",
    ]
    read = [prepare(recipe(base, *rules[: n + 1]), workers=1) for n in range(4)]
    assert [r["items"]["read"] for r in read] == [1, 1, 1, 0]
    assert reasons(read[0]) == {"unsupported", "bomb", "too-short"}
    assert reasons(read[1]) == {"bomb", "too-short"}
    assert reasons(read[2]) == {"too-short"}
    assert read[3]["records"]["dropped"] == {"too-short": 1}
    found = "\n".join(texts(base))
    assert RUSSIAN.strip() in found and "a program that draws" in found and "short" in found and "brief" not in found
    assert prepare(recipe(base), workers=1)["corpus"] == first["corpus"]


def test_what_was_admitted_is_traced_in_the_manner_in_which_it_was_read(base: Path) -> None:
    rules = ("{path: letter.txt, encoding: cp1251}", "{path: '*.gz', limits: {ratio: 5000}}")
    prepare(recipe(base, *rules), workers=1)
    corpus = CorpusVersion.open(base / "workspace")
    with lineage.Rereader(corpus) as again:
        for number in range(len(corpus.documents)):
            for origin in lineage.origins(corpus, number):
                assert again.text(origin) == corpus.text(number)


def test_a_line_that_is_not_in_the_named_encoding_costs_that_line(base: Path) -> None:
    (base / "files/letter.txt").write_bytes(
        (RUSSIAN + "\n").encode("cp1251") + b"a bad \x98 byte\n" + b"the last line\n"
    )
    result = prepare(recipe(base, "{path: letter.txt, encoding: cp1251}"), workers=1)
    assert result["quarantine"]["undecodable"]["regions"] == 1
    assert any(RUSSIAN.strip() in t and "the last line" in t for t in texts(base))


def test_a_rule_changes_only_the_limits_that_it_names(base: Path) -> None:
    limits = recipe(base, "{path: '*', limits: {ratio: 5000}}").prepare.admit[0].limits
    assert limits is not None and (limits.ratio, limits.seconds) == (5000, 120)
    again = recipe_file.loads(recipe_file.dump(recipe(base, "{path: '*', limits: {ratio: 5000}}")), base)
    assert again.prepare.admit[0].limits == limits


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ("{encoding: cp99999}", "cp99999"),
        ("{format: text/plane}", "text/plane"),
        ("{reason: too-shrot}", "too-shrot"),
        ("{source: fiels, reason: too-short}", "fiels(.|\n)*'files'"),
    ],
)
def test_a_rule_that_can_admit_nothing_is_an_error(base: Path, rule: str, named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        prepare(recipe(base, rule), workers=1)


def test_a_rule_that_matches_no_item_is_told(base: Path) -> None:
    told = Notes()
    prepare(recipe(base, "{path: lettre.txt, encoding: cp1251}", "{path: '*.md', reason: too-short}"), console=told)
    assert [note for note in told.notes if "admit" in note] == ["prepare.admit: no item matches the path lettre.txt"]


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
