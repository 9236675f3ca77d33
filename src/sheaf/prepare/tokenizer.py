"""The tokenizer of a workspace: trained once on a sample chosen by record id, or taken as it is.

The sample is the kept records of lowest id, up to `sample_mb`; ids are hashes, so it is a random sample that depends on
nothing but the set of records. A trained tokenizer stays: adding files later does not change the ids of what is
there (models trained on them would be lost, and all text would be encoded again). `prepare --new-tokenizer` trains
anew on what is there then, which gives what a fresh workspace would. One trained while items were deferred, or while
there was no text at all, is provisional and does not stay: after an outage the corpus is what it would have been
without.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from sheaf.corpus.version import read_rows
from sheaf.corpus.workspace import Workspace
from sheaf.errors import RecipeError
from sheaf.files import digest_json, digest_of, read_done, task_folder, write_json
from sheaf.prepare.select import Selection
from sheaf.recipe import TokenizerSpec

VERSION = 1
END_OF_TEXT = "<|endoftext|>"
# Words with a leading blank or sign, numbers in groups of three, signs, line ends, blanks. The expression gives the
# same pieces in Oniguruma (tokenizers) and Rust's regex (tiktoken) at every code point: a test goes through them all.
PATTERN = (
    r"'(?:[sdmtSDMT]|ll|LL|ve|VE|re|RE)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def ensure(
    workspace: Workspace,
    spec: TokenizerSpec,
    live_shards: list[str],
    selection: Selection,
    *,
    new: bool = False,
    provisional: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> str:
    """The digest of the tokenizer to use; its folder is `workspace.tokenizer(digest)`."""
    if spec.from_ is not None:
        return _adopt(workspace, Path(spec.from_))
    pointer = workspace.root / "tokenizers" / f"{digest_json([VERSION, spec.model_dump(by_alias=True)])}.json"
    if pointer.exists() and not new:
        kept = orjson.loads(pointer.read_bytes())
        if not kept.get("provisional") and read_done(workspace.tokenizer(kept["tokenizer"])) is not None:
            if kept["records"] != selection.content:
                note("the tokenizer stays the one trained on earlier records; --new-tokenizer trains it on these")
            return kept["tokenizer"]
    texts = sample(workspace, live_shards, selection, spec.sample_mb << 20)
    digest = _train(workspace, spec, texts)
    write_json(pointer, {"tokenizer": digest, "records": selection.content, "provisional": provisional or not texts})
    return digest


def sample(workspace: Workspace, live_shards: list[str], selection: Selection, limit_bytes: int) -> list[str]:
    """Texts of the kept records with the lowest ids, in id order, until limit_bytes are reached."""
    decisions, text_bytes = selection.decisions, selection.text_bytes
    kept = np.flatnonzero(decisions["kept"].to_numpy() & (text_bytes > 0))  # pictures and sounds teach it nothing
    if not len(kept):
        return []
    ids = decisions["id"].take(pa.array(kept)).cast(pa.binary())
    by_id = kept[pc.array_sort_indices(ids.combine_chunks()).to_numpy()]
    ends = np.cumsum(text_bytes[by_id])
    chosen = by_id[: int(np.searchsorted(ends, limit_bytes, side="left")) + 1]
    shard = decisions["shard"].to_numpy()[chosen]
    row = decisions["row"].to_numpy()[chosen]
    texts: list[str] = [""] * len(chosen)
    for number in np.unique(shard):
        here = np.flatnonzero(shard == number)
        rows = read_rows(workspace.shard(live_shards[number]), row[here], ["text"])
        for at, record in zip(here, rows, strict=True):
            texts[at] = record["text"]
    over = int(ends[len(chosen) - 1]) - limit_bytes
    if over > 0:  # the last one may be a book
        texts[-1] = texts[-1].encode()[:-over].decode("utf-8", "ignore")
    return texts


def _train(workspace: Workspace, spec: TokenizerSpec, texts: list[str]) -> str:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _store(workspace, tokenizer)


def _adopt(workspace: Workspace, path: Path) -> str:
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise RecipeError(
            "there is no tokenizer",
            where=str(path),
            fix="prepare.tokenizer.from names a tokenizer.json or a folder that holds one",
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every fault of the file
        raise RecipeError("the tokenizer cannot be read", where=str(path), why=str(error)) from error
    return _store(workspace, tokenizer)


def _store(workspace: Workspace, tokenizer: Tokenizer) -> str:
    """Write tokenizer.json in a folder named by its digest."""
    data = tokenizer.to_str(pretty=True).encode()
    digest = digest_of(data)
    if read_done(workspace.tokenizer(digest)) is None:
        with task_folder(workspace.tokenizer(digest), stage="tokenizer") as out:
            (out / "tokenizer.json").write_bytes(data)
    return digest
