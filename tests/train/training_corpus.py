"""A small real corpus version, written as the store lays it out: two sources of patterned tokens in two token files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import orjson

from sheaf.corpus.blocks import write_table
from sheaf.corpus.columns import save_array
from sheaf.corpus.documents import DTYPES, Documents
from sheaf.corpus.version import CorpusVersion
from sheaf.corpus.workspace import Workspace
from sheaf.files import task_folder, write_file
from sheaf.recipe import Recipe

VOCABULARY = 320
END_OF_TEXT = 0


def make_corpus(
    root: Path,
    documents: int = 400,
    seed: int = 0,
    chats: bool = False,
    said: Iterable[int] | None = None,
    odd: int | None = None,
) -> CorpusVersion:
    """chats: of the first token file, only every third token is to be predicted, and of its first document none. said:
    the only tokens of each file that are to be predicted. odd: a document with a token, in its middle, that is in no
    other one: VOCABULARY."""
    workspace = Workspace(root)
    workspace.create()
    random = np.random.default_rng(seed)
    texts = [_pattern(random) for _ in range(documents)]
    if odd is not None:
        texts[odd][len(texts[odd]) // 2] = VOCABULARY
    ids = np.array([np.frombuffer(hashlib.blake2b(t.tobytes(), digest_size=16).digest(), np.uint8) for t in texts])
    source = (np.arange(documents) % 3 == 0).astype(np.int32)
    by = np.lexsort((*ids.T[::-1], source))
    shard = (np.arange(documents) % 2).astype(np.int32)
    length = np.array([len(t) for t in texts], np.int64)
    offset = np.zeros(documents, np.int64)
    for s in (0, 1):
        here = shard == s
        offset[here] = np.cumsum(length[here]) - length[here]
        with task_folder(workspace.tokens("tok", f"shard{s}")) as out:
            np.concatenate([texts[i] for i in np.flatnonzero(here)]).astype(np.uint16).tofile(out / "tokens.bin")
            if chats and s == 0:
                flags = (np.arange(length[here].sum()) % 3 == 0).astype(np.uint8)
                flags[: length[here][0]] = 0
                flags.tofile(out / "loss.bin")
            if said is not None:
                np.isin(np.arange(length[here].sum()), list(said)).astype(np.uint8).tofile(out / "loss.bin")
            for file in list(out.iterdir()):
                write_table(file)
    columns = Documents(ids[by], source[by], shard[by], offset[by], length[by])
    digest = hashlib.blake2b(ids[by].tobytes(), digest_size=16).hexdigest()
    manifest = {
        "corpus": digest,
        "fingerprint": digest,
        "sources": [{"name": "alpha"}, {"name": "beta"}],
        "shards": ["shard0", "shard1"],
        "tokenizer": "tok",
        "rendering": {"digest": "tok", "tokenizer": "tok", "template": "", "variables": {}, "masked": []},
        "vocab_size": VOCABULARY + (odd is not None),
        "end_of_text": END_OF_TEXT,
        "token_dtype": "uint16",
    }
    with task_folder(workspace.corpus(f"{digest}.0")) as out:
        for name in DTYPES:
            save_array(out / f"{name}.npy", getattr(columns, name))
        np.save(out / "bytes.npy", 2 * length[by], allow_pickle=False)
        (out / "manifest.json").write_bytes(orjson.dumps(manifest))
    write_file(workspace.head, f"{digest}.0\n".encode())
    return CorpusVersion.open(root)


def _pattern(random: np.random.Generator) -> np.ndarray:
    """A walk with a stride of its own: the next token can be learned from the two before it."""
    n, stride, start = random.integers(20, 150), random.integers(1, 6), random.integers(1, VOCABULARY)
    walk = 1 + (start + stride * np.arange(n)) % (VOCABULARY - 1)
    return np.append(walk, END_OF_TEXT)


def make_recipe(root: Path, **train: object) -> Recipe:
    """A model of some 60,000 weights; `train` changes the training part."""
    settings = {
        "sequence_length": 64,
        "batch_tokens": 512,
        "budget": {"steps": 20},
        "compile": "off",
        "precision": "fp32",
        "held_out": 0.05,
        "evaluate_tokens": 1024,
        "micro_batch_tokens": 256,
        **train,
    }
    return Recipe.model_validate_json(
        orjson.dumps(
            {
                "name": "test",
                "seed": 3,
                "sources": [{"name": "alpha", "uri": "/nowhere/a"}, {"name": "beta", "uri": "/nowhere/b"}],
                "mixture": {"alpha": {"weight": 2}},
                "model": {
                    "preset": "tiny",
                    "hidden_size": 48,
                    "layers": 2,
                    "heads": 2,
                    "kv_heads": 1,
                    "intermediate_size": 96,
                },
                "train": settings,
                "workspace": str(root),
            }
        )
    )
