"""Where tasks run: processes of this machine, or a Ray cluster. Engines are named, so that a flag can choose one."""

from __future__ import annotations

import difflib
import importlib

from sheaf.engine.base import Engine, Json, Task
from sheaf.errors import UsageError

__all__ = ["Engine", "Json", "Task", "check_name", "make"]

# Loaded when asked for: every worker imports this file.
ENGINES = {"local": "sheaf.engine.local:LocalEngine", "ray": "sheaf.engine.ray:RayEngine"}


def make(name: str = "local", workers: int | None = None) -> Engine:
    """The engine of that name. workers: default as many as CPUs that this process may use. Raises UsageError."""
    check_name(name)
    module, _, kind = ENGINES[name].partition(":")
    return getattr(importlib.import_module(module), kind)(workers)


def check_name(name: str) -> None:
    """Raise UsageError if no engine has that name."""
    if name not in ENGINES:
        near = difflib.get_close_matches(name, ENGINES, n=1)
        raise UsageError(
            f"there is no engine '{name}'",
            why=f"known: {', '.join(sorted(ENGINES))}",
            fix=f"did you mean '{near[0]}'?" if near else "leave the engine out to use this machine's processes",
        )
