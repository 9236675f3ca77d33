"""A task is a name, a digest and plain arguments; an engine runs tasks, each at most once, anywhere.

A task's function is a module-level function named by "module:function" and its arguments are JSON values, so that
any engine (processes here, Ray) can send it without pickling code. A task writes its output folder atomically;
running it twice is harmless. What it returns is a small JSON object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    function: str  # "sheaf.prepare.read:read_batch"
    arguments: Json
    label: str = ""  # for progress and error messages
    weight: int = field(default=1)  # for progress: bytes, rows


class Engine(Protocol):
    """Runs tasks on some workers."""

    @property
    def workers(self) -> int: ...

    def run(self, tasks: Iterable[Task], progress: Callable[[int], None] | None = None) -> Iterator[tuple[Task, Json]]:
        """Yield (task, result) as tasks finish, in any order.

        A worker that dies is replaced and its task tried again (a task that kills three workers raises).
        An exception inside a task is raised here after the others already running have ended.
        progress gets each finished task's weight.
        """
        ...

    def close(self) -> None: ...
