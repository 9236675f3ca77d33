"""An export holds one parameter at a time, whatever the size of the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from training_corpus import VOCABULARY, make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.files import task_folder
from sheaf.model.config import preset
from sheaf.model.decoder import Decoder
from sheaf.model.pieces import Piece
from sheaf.train.checkpoint import CheckpointWriter
from sheaf.train.launch import train

EXPORT = """
import sys
from pathlib import Path
import torch
from sheaf.api import Run
from sheaf.model.memory import peak_memory_bytes
run = Run(Path(sys.argv[1]))
run.export(Path(sys.argv[1]) / "small", step=1)  # all that is imported or opened once
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = peak_memory_bytes(torch.device("cpu"))
run.export(Path(sys.argv[1]) / "large", step=2, dtype="bf16")
print(peak_memory_bytes(torch.device("cpu")) - before)
"""


def test_an_export_of_two_hundred_megabytes_takes_a_part_of_that(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    words = {"<|end|>": 0} | {f"w{n}": n for n in range(1, VOCABULARY)}
    with task_folder(corpus.workspace.tokenizer("tok")) as folder:
        Tokenizer(WordLevel(words, unk_token="<|end|>")).save(str(folder / "tokenizer.json"))
    recipe = make_recipe(tmp_path, budget={"steps": 1}, evaluate_every=9)
    run = Path(train(recipe, corpus, console=Silent())["run"])
    config = preset("base", vocab_size=VOCABULARY, max_positions=64, end_of_text=0, layers=8)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in Decoder(config).named_parameters()}
    writer = CheckpointWriter(run, keep=9)
    size = 4 * config.parameters()
    assert 190e6 < size < 300e6
    writer.save(
        {"step": 2, "model": config.to_hf(), "tokens": 0, "adapters": None},
        {f"weight.{name}": (Piece.whole(shape), torch.full(shape, 0.5)) for name, shape in shapes.items()},
    )
    writer.wait()
    writer.close()
    ended = subprocess.run([sys.executable, "-c", EXPORT, str(run)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 0.25 * size  # a matrix of a layer is 1% of it; a copy of the model would be all
    with safe_open(run / "large" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(shapes)
        assert file.get_tensor("model.norm.weight").unique().tolist() == [0.5]
