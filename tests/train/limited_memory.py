"""Train a recipe in a process that may have so much memory and no more: `limited_memory.py ROOT RANKS KIND MEGABYTES`.

KIND data: RLIMIT_DATA, so many megabytes more than it has once all is imported; ranks inherit it. KIND group: the
control group ROOT/group, which the parent has made, and whose limit it set.
"""

import importlib
import os
import resource
import sys
from pathlib import Path

import psutil

from sheaf.console import Silent
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import SheafError
from sheaf.recipe import Recipe
from sheaf.train import supervise
from sheaf.train.launch import train

for module in supervise.IMPORTS:  # what a rank has before its first step, and so before the limit
    importlib.import_module(module)
root, ranks, kind, megabytes = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
recipe = Recipe.model_validate_json((root / "recipe.json").read_bytes())
corpus = CorpusVersion.open(root)
if kind == "data":
    limit = psutil.Process().memory_info().data + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
else:
    (root / "group" / "cgroup.procs").write_text(str(os.getpid()))
try:
    train(recipe, corpus, nproc=ranks, console=Silent())
except SheafError as error:
    print(error)  # noqa: T201
    sys.exit(error.exit_code)
