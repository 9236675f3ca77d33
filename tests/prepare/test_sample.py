"""The sample that a tokenizer is trained on follows the mixture, is deterministic, and holds nothing that is masked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheaf import recipe_file
from sheaf.console import Silent
from sheaf.corpus.version import CorpusVersion
from sheaf.prepare.pipeline import prepare
from sheaf.prepare.sample import shares


def test_each_source_gets_its_share_and_what_a_small_one_leaves_goes_to_the_others() -> None:
    assert shares([1000, 1000, 1000], [1, 1, 2], 400) == [100, 100, 200]
    assert shares([10, 1000, 1000], [1, 1, 2], 400) == [10, 130, 260]
    assert shares([10, 1000, 0], [1, 1, 2], 400) == [10, 390, 0]
    assert shares([10, 20], [1, 1], 400) == [10, 20]


def test_a_source_of_weight_0_gives_nothing_unless_all_others_are_empty() -> None:
    assert shares([1000, 1000], [0, 1], 400) == [0, 400]
    assert shares([1000, 0], [0, 1], 400) == [400, 0]
    assert shares([0, 0], [1, 1], 400) == [0, 0]


sizes = st.lists(st.integers(0, 10**9), min_size=1, max_size=6)


@given(sizes, st.integers(0, 10**9), st.data())
def test_shares_fill_the_limit_and_nobody_gives_more_than_it_has(
    held: list[int], limit: int, data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.sampled_from([0.5, 1.0, 7.0]), min_size=len(held), max_size=len(held)))
    got = shares(held, weights, limit)
    assert all(0 <= g <= size for g, size in zip(got, held, strict=True))
    assert min(limit, sum(held)) - len(held) <= sum(got) <= limit


class Listening(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def make(base: Path) -> None:
    for folder, word, files in (("many", "ferry", 40), ("few", "tide", 2)):
        (base / folder).mkdir()
        for i in range(files):
            (base / folder / f"{i}.txt").write_text(f"The {word} number {i} was late, and {word}s always are. " * 600)


def recipe(base: Path, more: str = "", privacy: str = "") -> object:
    text = f"""
name: test
sources: [{{name: many, uri: ./many}}, {{name: few, uri: ./few}}]
prepare: {{tokenizer: {{train: bpe, vocab_size: 320, sample_mb: 1}}{privacy}}}
{more}
"""
    return recipe_file.loads(text, base)


def test_the_mixture_decides_what_a_tokenizer_is_trained_on_and_the_manifest_says_it(tmp_path: Path) -> None:
    make(tmp_path)
    console = Listening()
    prepare(recipe(tmp_path), workers=2, console=console)
    plain = CorpusVersion.open(tmp_path / "workspace").manifest
    sizes = {f: sum(len(p.read_text().strip()) for p in (tmp_path / f).iterdir()) for f in ("many", "few")}
    assert plain["sample"]["many"] / plain["sample"]["few"] == pytest.approx(sizes["many"] / sizes["few"], rel=0.01)
    assert "training a tokenizer of 320 tokens on 1.0 MB (many 1.0 MB, few 0.0 MB)" in console.notes
    weighted = "mixture: {many: {weight: 1}, few: {weight: 1}}"
    prepare(recipe(tmp_path, weighted), workers=2)
    mixed = CorpusVersion.open(tmp_path / "workspace").manifest
    assert mixed["sample"] == {"many": (1 << 20) - sizes["few"], "few": sizes["few"]}
    assert mixed["tokenizer"] != plain["tokenizer"]
    prepare(recipe(tmp_path), workers=1)
    assert CorpusVersion.open(tmp_path / "workspace").manifest["tokenizer"] == plain["tokenizer"]


def test_what_the_recipe_masks_is_not_learned_by_the_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    (tmp_path / "few").mkdir()
    secret = "zyxwvutsrq@example.org"
    for i in range(3):
        (tmp_path / "many" / f"{i}.txt").write_text(f"Write {i} to {secret}. " * 200)
    (tmp_path / "few" / "a.txt").write_text("A tide that nobody wrote about, and no address. " * 5)
    prepare(recipe(tmp_path, privacy=", privacy: {email: mask}"), workers=1)
    corpus = CorpusVersion.open(tmp_path / "workspace")
    vocabulary = orjson.loads(corpus.tokenizer_path.read_bytes())["model"]["vocab"]
    assert not any("zyx" in token for token in vocabulary)
    assert all(secret not in text for text in corpus.texts(np.arange(len(corpus.documents))))
