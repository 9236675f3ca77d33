"""What the page on personal data says is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sheaf import cli, recipe_file
from sheaf.prepare.evaluation import (
    COMMON_RECORDS,
    COMMON_SHARE,
    SHORTEST,
    SPACELESS_SHORTEST,
    SPACELESS_WORDS,
    WORDS,
)
from sheaf.privacy import KINDS, hidden
from sheaf.privacy.checks import IBAN_LENGTHS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "privacy.md").read_text()


def test_the_table_has_every_kind_and_the_numbers_are_those_of_the_code() -> None:
    assert tuple(re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.M)) == KINDS
    assert f"of {sum(len(countries.split()) for countries in IBAN_LENGTHS.values())} countries" in PAGE
    assert f"{WORDS} words in a row" in PAGE and f"{SPACELESS_WORDS} characters, about" in PAGE
    assert f"from {SHORTEST} words ({SPACELESS_SHORTEST} characters) on" in PAGE
    assert f"more than {COMMON_RECORDS} records and a tenth" in PAGE and COMMON_SHARE == 0.1
    assert hidden("write to bob@x.org, or call 13812345678") in PAGE


def test_the_recipe_and_the_commands_do_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    (tmp_path / "evals").mkdir()
    (tmp_path / "data").mkdir()
    question = " ".join(f"word{n}" for n in range(40))
    (tmp_path / "evals" / "gsm.jsonl").write_text(json.dumps({"question": question}))
    for n in range(9):
        (tmp_path / "data" / f"{n}.txt").write_text(f"Note {n}: write to ann{n}@x.org about the kettle of harbour {n}.")
    (tmp_path / "data" / "card.txt").write_text("The card is 4111 1111 1111 1111, and there is nothing else to say.")
    (tmp_path / "data" / "exam.txt").write_text(f"He asked: {question}?")
    tokenizer = "  tokenizer: {train: bpe, vocab_size: 300}\n"
    (tmp_path / "sheaf.yaml").write_text(f"name: t\nsources: [{{name: d, uri: ./data}}]\n{block}{tokenizer}")
    assert recipe_file.load(tmp_path / "sheaf.yaml").prepare.privacy["email"] == "mask"
    monkeypatch.chdir(tmp_path)
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    said: list[str] = []
    for line in commands.splitlines():
        assert cli.main(line.split()[1:]) == 0
        said.append(capsys.readouterr().out)
    assert "evals/gsm.jsonl row 1, 28 of 28 pieces" in said[1]
    assert "privacy:card" in said[2] and "[card]" in said[2] and "4111" not in said[2]
