"""A small published model to start from: weights, a tokenizer with ChatML's control tokens, and talks to train on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sheaf.model.config import preset
from sheaf.model.decoder import Decoder
from sheaf.model.init import initialise
from sheaf.model.pretrained import export_folder
from sheaf.train.checkpoint import list_checkpoints, step_of

SENTENCE = "why is the ferry late today because tide wind turned against us every day since spring"
WORDS = SENTENCE.split()
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def talks(folder: Path, number: int = 60) -> None:
    """Questions whose answer repeats their words."""
    folder.mkdir()
    rows: list[dict[str, Any]] = []
    for n in range(number):
        words = [WORDS[(n * k) % len(WORDS)] for k in (1, 3, 5, 7)]
        said = [("user", f"{' '.join(words)} {n}?"), ("assistant", f"{' '.join(reversed(words))}, that is {n}.")]
        rows.append({"messages": [{"role": role, "content": content} for role, content in said]})
    (folder / "talk.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))


def tokenizer(path: Path) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=CONTROLS, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([" ".join(WORDS)] * 50, trainer)
    made.save(str(path))
    return made


def published(folder: Path) -> Path:
    """A Qwen3 of some 50,000 weights with a tokenizer of its own."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / "tokenizer.json"
    size = tokenizer(path).get_vocab_size()
    shape = {"hidden_size": 48, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 96}
    model = Decoder(preset("tiny", vocab_size=size, max_positions=128, end_of_text=0, **shape))
    initialise(model, 1)
    export_folder(model, folder, path, 0, torch.float32)
    path.unlink()
    return folder


def rewound(run: Path, to: Path, step: int) -> Path:
    """A copy of a finished run as it lay after `step` steps had been saved, to be resumed."""
    shutil.copytree(run, to)
    for checkpoint in list_checkpoints(to):
        if step_of(checkpoint) > step:
            shutil.rmtree(checkpoint)
    record: Mapping[str, Any] = orjson.loads((to / "run.json").read_bytes())
    (to / "run.json").write_bytes(orjson.dumps({**record, "result": None, "avoided": []}))
    return to
