"""A flipped byte in any kind of file of a workspace is caught before it is used, and the file is named."""

from __future__ import annotations

import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from sheaf import recipe_file
from sheaf.api import Corpus
from sheaf.console import Silent
from sheaf.corpus.blocks import BLOCK_BYTES
from sheaf.errors import CorruptStore
from sheaf.prepare.pipeline import prepare
from sheaf.recipe import Recipe
from sheaf.report.build import write_report
from sheaf.train.journal import read as read_journal
from sheaf.train.launch import train
from sheaf.train.trace import trace_run

SHORT = {
    "sequence_length": 64,
    "batch_tokens": 512,
    "budget": {"steps": 3},
    "compile": "off",
    "precision": "fp32",
    "held_out": 0.1,
    "evaluate_tokens": 128,
}
WORDS = ["lineage", "ledger", "corpus", "token", "shard", "origin", "source", "record", "epoch", "batch", "recipe"]


def recipe_of(folder: Path, data: Path, **more: Any) -> Recipe:
    told = {
        "name": "damage",
        "sources": [{"name": "texts", "uri": "./texts"}, {"name": "talks", "uri": "./talks", "map": "openai"}],
        "prepare": {"tokenizer": {"train": "bpe", "vocab_size": 300}},
        "workspace": str(folder / "workspace"),
        **more,
    }
    return recipe_file.loads(orjson.dumps(told).decode(), data)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared workspace with a token file of several blocks, conversations, and a pack."""
    top = tmp_path_factory.mktemp("damage")
    rng = random.Random(5)
    (top / "data/texts").mkdir(parents=True)
    (top / "data/talks").mkdir()
    for n in range(60):
        (top / f"data/texts/{n}.txt").write_text(f"{n} {' '.join(rng.choices(WORDS, k=500))}\n")
    talks = [
        {
            "messages": [
                {"role": "user", "content": f"{n} {' '.join(rng.choices(WORDS, k=20))}"},
                {"role": "assistant", "content": " ".join(rng.choices(WORDS, k=60))},
            ]
        }
        for n in range(40)
    ]
    (top / "data/talks/c.jsonl").write_bytes(b"\n".join(orjson.dumps(talk) for talk in talks))
    prepare(recipe_of(top / "made", top / "data"), workers=1)
    one_epoch(Corpus.open(top / "made/workspace"))
    return top


def one_epoch(corpus: Corpus) -> None:
    once = {name: {"weight": 1, "max_epochs": 1} for name in ("texts", "talks")}
    with corpus.loader(128, 4, strict=True, mixture=once) as loader:
        for _ in loader:
            pass


def largest(folder: Path, pattern: str) -> Path:
    return max((folder / "workspace").glob(pattern), key=lambda path: path.stat().st_size)


def opened(use: Callable[[Corpus], Any]) -> Callable[[Path, Path], Any]:
    return lambda folder, _: use(Corpus.open(folder / "workspace"))


def commit_again(folder: Path, data: Path) -> None:
    """From what lies beside the shards, as after a changed threshold."""
    shutil.rmtree(folder / "workspace/corpora")
    (folder / "workspace/HEAD").unlink()
    prepare(recipe_of(folder, data), workers=1)


KINDS: dict[str, tuple[str, Callable[[Path, Path], Any]]] = {
    "tokens": ("tokens/*/*/tokens.bin", opened(one_epoch)),
    "what of them is predicted": ("tokens/*/*/loss.bin", opened(one_epoch)),
    "their digests": ("tokens/*/*/tokens.bin.blocks", opened(one_epoch)),
    "digests of what is predicted": ("tokens/*/*/loss.bin.blocks", opened(one_epoch)),
    "their offsets": ("tokens/*/*/offsets.npy", commit_again),
    "their texts' bytes": ("tokens/*/*/bytes.npy", commit_again),
    **{
        f"documents, {name}": (f"corpora/*/{name}.npy", opened(one_epoch))
        for name in ("id", "source", "shard", "offset", "length")
    },
    "documents, row": ("corpora/*/row.npy", opened(lambda corpus: corpus.text(0))),
    "documents, bytes": ("corpora/*/bytes.npy", opened(lambda corpus: corpus.text_bytes(np.array([0])))),
    "manifest": ("corpora/*/manifest.json", opened(one_epoch)),
    "decisions": ("corpora/*/decisions.parquet", opened(lambda corpus: corpus.decisions())),
    "ledger": ("corpora/*/ledger.parquet", opened(lambda corpus: corpus.ledger())),
    "quarantine": ("corpora/*/quarantine.parquet", opened(lambda corpus: corpus.quarantine())),
    "records": ("shards/*/records.parquet", opened(lambda corpus: corpus.texts(range(len(corpus.documents))))),
    "tokenizer": ("tokenizers/*/tokenizer.json", opened(lambda corpus: corpus.tokenizer_path)),
    **{
        f"pack, {name}": (f"packs/*/{name}.npy", opened(one_epoch))
        for name in ("run_document", "run_start", "run_length", "sample_first_run", "sample_valid", "source_tokens")
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_caught_and_its_file_named(kind: str, made: Path, tmp_path: Path) -> None:
    pattern, use = KINDS[kind]
    shutil.copytree(made / "made", tmp_path / "copy")
    victim = largest(tmp_path / "copy", pattern)
    data = bytearray(victim.read_bytes())
    at = len(data) // 2 + 3
    data[at] ^= 4
    victim.write_bytes(data)
    with pytest.raises(CorruptStore) as caught:
        use(tmp_path / "copy", made / "data")
    assert str(victim) in caught.value.where
    if victim.suffix == ".bin":
        block = at // BLOCK_BYTES
        first, last = block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, len(data))
        assert f"block {block}, bytes {first} to {last}" in caught.value.where


@pytest.mark.parametrize("folder", ["tokens/*/*", "corpora/*", "packs/*"])
def test_a_flipped_byte_in_a_marker_is_caught(folder: str, made: Path, tmp_path: Path) -> None:
    """As the marker's own damage where it cannot be read, else as that of the file whose digest it no longer tells."""
    shutil.copytree(made / "made", tmp_path / "copy")
    [victim, *_] = sorted((tmp_path / "copy/workspace").glob(f"{folder}/DONE"))
    sound = victim.read_bytes()
    for at in range(0, len(sound), 1 + len(sound) // 12):
        victim.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
        try:
            one_epoch(Corpus.open(tmp_path / "copy/workspace"))
        except CorruptStore as error:
            assert str(victim.parent) in error.where
        # else: it stands where nothing is read, as in a blank, or in the digest of a file that is not used


def test_prepare_makes_damaged_tokens_again_and_they_are_the_same(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "made", tmp_path / "copy")
    recipe = recipe_of(tmp_path / "copy", made / "data")
    victim = largest(tmp_path / "copy", "tokens/*/*/tokens.bin")
    sound, before = victim.read_bytes(), Corpus.open(tmp_path / "copy/workspace").digest
    victim.write_bytes(sound[:-9] + bytes([sound[-9] ^ 4]) + sound[-8:])
    assert prepare(recipe, workers=1)["corpus"] == before
    assert victim.read_bytes() != sound  # nobody has met the damage yet, and looking for it would read everything
    with pytest.raises(CorruptStore, match="run `sheaf prepare`"):
        one_epoch(Corpus.open(tmp_path / "copy/workspace"))
    assert prepare(recipe, workers=1)["corpus"] == before
    assert victim.read_bytes() == sound
    one_epoch(Corpus.open(tmp_path / "copy/workspace"))


def test_nothing_but_what_is_wanted_is_read_of_a_token_file(made: Path, tmp_path: Path) -> None:
    """Opening does not look at blocks, and reading looks at its own alone."""
    shutil.copytree(made / "made", tmp_path / "copy")
    victim = largest(tmp_path / "copy", "tokens/*/*/tokens.bin")
    data = bytearray(victim.read_bytes())
    assert len(data) > BLOCK_BYTES
    data[-1] ^= 1
    victim.write_bytes(data)
    file = max(Corpus.open(tmp_path / "copy/workspace").token_files(), key=len)
    assert len(file[: BLOCK_BYTES // 2]) == BLOCK_BYTES // 2 and int(file[0]) == int(np.frombuffer(data, "<u2")[0])
    with pytest.raises(CorruptStore, match="damaged"):
        file[len(file) - 1]


def test_a_loader_is_sent_to_another_process_by_the_names_of_its_files(made: Path) -> None:
    with Corpus.open(made / "made/workspace").loader(128, 4, start=3) as loader:
        data = pickle.dumps(loader)
        assert len(data) < 20_000  # and not the columns themselves
        with pickle.loads(data) as sent:
            assert np.array_equal(next(iter(sent)).labels, next(iter(loader)).labels)


def test_a_run_over_damaged_tokens_shows_what_it_trained(made: Path, tmp_path: Path) -> None:
    """In the trace of the step, in its report and in its result; and what it trained is no damaged token."""
    shutil.copytree(made / "made", tmp_path / "copy")
    victim = largest(tmp_path / "copy", "tokens/*/*/tokens.bin")
    with victim.open("r+b") as file:
        file.seek(BLOCK_BYTES + 11)
        file.write(b"\xff\xff\xff")
    recipe = recipe_of(tmp_path / "copy", made / "data", train=SHORT)
    done = train(recipe, Corpus.open(tmp_path / "copy/workspace"), console=Silent())
    line = next(line for line in read_journal(Path(done["run"])) if line.get("replaced"))
    slot = line["replaced"][0]["sample"]
    [sample] = trace_run(Path(done["run"]), line["step"], slot)["samples"]
    assert (sample["instead_of"]["block"], sample["instead_of"]["file"]) == (1, str(victim))
    whole = "\n".join(Corpus.open(tmp_path / "copy/workspace").texts(range(100)))
    assert all(document["text"] in whole for document in sample["documents"])
    [shown] = trace_run(Path(done["run"]), line["step"], slot, token=0)["samples"]
    assert shown["documents"][0]["predicts"] is not None
    said = write_report(Path(done["run"])).read_text()
    assert f"<dt>samples replaced: the corpus is damaged</dt><dd>{done['replaced']}</dd>" in said
