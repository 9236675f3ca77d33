"""What docs/filters.md says is so: its tables, its expressions, its scorer, its commands."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from prose import DECLARATION

from sheaf import cli, recipe_file
from sheaf.corpus.schema import DROPS
from sheaf.errors import RecipeError
from sheaf.prepare.expression import parse
from sheaf.prepare.rules import Rules, score_kinds
from sheaf.recipe import Prepare

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "filters.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return [text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.S | re.M) if kind == language]


def test_its_tables_are_those_of_the_sets() -> None:
    assert runpy.run_path(str(ROOT / "scripts" / "filters_page.py"))["page"]() == PAGE, (
        "run: python scripts/filters_page.py"
    )


def test_the_part_of_a_recipe_on_it_is_one(tmp_path: Path) -> None:
    (block,) = blocks("yaml")
    recipe = recipe_file.loads(f"name: t\nsources: [{{name: a, uri: ./a}}]\n{block}", tmp_path)
    reasons = Rules(recipe.prepare, {}).reasons[1:]
    assert reasons[-1].startswith("filter:score.words > 50 and")
    assert all(reason.partition(":")[0] in DROPS for reason in reasons)


def test_every_expression_on_it_is_one() -> None:
    listed = next(block for block in blocks("") if block.startswith("score."))
    assert len(listed.splitlines()) == 6
    for line in listed.splitlines():
        assert parse(line, score_kinds({})).names


def test_the_error_on_it_is_what_is_told(tmp_path: Path) -> None:
    shown = next(block for block in blocks("") if block.startswith("sheaf: "))
    with pytest.raises(RecipeError) as caught:
        Rules(Prepare(filters=("score.word > 50",)), {})
    told = str(caught.value).replace("prepare.filters, entry 1", "sheaf.yaml:9")
    assert shown.strip() == f"sheaf: {told}"


def test_its_scorer_and_its_commands_do_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts").mkdir()
    for name, text in {
        **DECLARATION,
        "ask": "Is it? " * 40,
        "stub": "A few words that are here and nothing more.",
    }.items():
        (tmp_path / "texts" / f"{name}.txt").write_text(text)
    (tmp_path / "texts" / "again.txt").write_text(DECLARATION["en"] + " This was the declaration.")
    (tmp_path / "sheaf.yaml").write_text(
        "name: t\nsources: [{name: texts, uri: ./texts}]\nprepare:\n  length: {min_characters: 50}\n"
        '  filters: ["score.questions < 0.02", gopher]\n  dedup: {near: 0.8}\n'
        "  tokenizer: {train: bpe, vocab_size: 400}\n"
    )
    for block in blocks("python"):
        name = block.partition("\n")[0].removeprefix("# ")
        (tmp_path / name).write_text(block)
    run = subprocess.run(
        [sys.executable, "prepare.py"], cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False
    )
    assert run.returncode == 0, run.stderr
    monkeypatch.chdir(tmp_path)
    (commands,) = blocks("sh")
    for line in commands.splitlines():
        program, *words = line.split("#")[0].split()
        assert program == "sheaf"
        code, told = cli.main(words), capsys.readouterr()
        assert code == 0, (words, told.err)
        if not words[1:]:
            assert "filter:score.questions < 0.02" in told.out
        if "near-duplicate" in words:
            assert "kept in its place" in told.out
    assert cli.main(["prepare"]) == 2  # here nobody has registered the scorer
    assert "there is no score 'questions'" in capsys.readouterr().err
