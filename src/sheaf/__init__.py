"""From scattered data to a trained model: one recipe, one command, every training token traceable to its source byte.

    recipe = sheaf.load("sheaf.yaml")
    corpus = sheaf.prepare(recipe)
    loader = corpus.loader(sequence_length=2048, batch=8, rank=0, world=4)
    run = sheaf.train(recipe)
    run.trace(step=120)

Names are found when they are first used: `import sheaf` loads neither torch nor pyarrow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sheaf.api import (
        Corpus,
        Run,
        load,
        open_run,
        plan,
        prepare,
        register_scorer,
        resume,
        scan,
        trace,
        train,
        tune,
        verify,
    )
    from sheaf.recipe import Recipe

__version__ = "0.1.0"

__all__ = [
    "Corpus",
    "Recipe",
    "Run",
    "__version__",
    "load",
    "open_run",
    "plan",
    "prepare",
    "register_scorer",
    "resume",
    "scan",
    "trace",
    "train",
    "tune",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'sheaf' has no attribute '{name}'")
    import importlib

    if name in ("prepare", "scan", "train", "tune"):  # rooms that can be called: see rooms.py
        return importlib.import_module(f"sheaf.{name}")
    return getattr(importlib.import_module("sheaf.recipe" if name == "Recipe" else "sheaf.api"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
