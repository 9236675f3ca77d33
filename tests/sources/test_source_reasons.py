"""Every code in a ledger has a sentence."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sheaf.sources
from sheaf.formats.reasons import REASONS, explain
from sheaf.sources.base import ItemRefused, Refusal
from sheaf.sources.reasons import REFUSALS

SOURCES = Path(sheaf.sources.__file__).parent
# What is called with a code, and where it stands among the arguments; methods do not count self.
WRITERS = {"BadAnswer": 0, "ItemRefused": 0, "_refuse": 2, "refuse": 2, "Refusal": 4}


def written_codes() -> set[str]:
    """Literal codes in the sources' code: arguments of the writers, and (code, detail) pairs that are returned."""
    found: set[str] = set()
    for file in SOURCES.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            code: ast.expr | None = None
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                code = node.args[WRITERS[name]] if name in WRITERS and len(node.args) > WRITERS[name] else None
            elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
                code = node.value.elts[0]
            if isinstance(code, ast.Constant) and isinstance(code.value, str) and "-" in code.value:
                found.add(code.value)
    return found


def test_every_code_that_the_sources_write_has_a_sentence_and_every_sentence_a_writer() -> None:
    assert written_codes() == {code for code in REFUSALS if "-" in code}
    assert {"link-outside", "http-length", "not-a-file"} <= written_codes()


def test_one_function_explains_every_code() -> None:
    for code, sentence in {**REFUSALS, **REASONS}.items():
        assert explain(code) == sentence and sentence.endswith(".")
    assert explain("http-404") == "The server answers 404."
    assert explain("nonsense") == explain("http-12") == ""
    assert all(REASONS[code] == REFUSALS[code] for code in REASONS.keys() & REFUSALS.keys())


def test_a_code_that_nobody_knows_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        Refusal("s", "p", "u", 0, "nonsense", "")
    with pytest.raises(ValueError, match="nonsense"):
        ItemRefused("nonsense", "")
