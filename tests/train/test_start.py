"""What a run costs before its first step: it imports nothing that it does not use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from pathlib import Path
from training_corpus import make_corpus, make_recipe
from sheaf.console import Silent
from sheaf.train.launch import train

folder = Path(sys.argv[1])
recipe = make_recipe(folder, budget={"steps": 2}, checkpoint_every=1, optimizer=sys.argv[2], compile="off")
assert train(recipe, make_corpus(folder), console=Silent())["steps"] == 2
slow = "torch._dynamo", "torch._inductor.config", "torch.distributed.fsdp", "sympy"
print(*(name for name in slow if name in sys.modules))
"""


def test_a_run_that_does_not_compile_loads_no_compiler_and_no_sharding(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    for optimizer in ("muon", "schedule-free"):
        command = [sys.executable, "-c", CODE, str(tmp_path / optimizer), optimizer]
        (tmp_path / optimizer).mkdir()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "", "five seconds of processor time for every run and rank"
