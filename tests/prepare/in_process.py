"""An engine whose tasks run in this process, where a test has changed or watches something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sheaf.engine.worker import resolve


class InThisProcess:
    workers = 1

    def run(self, tasks: Any, progress: Callable[[int], None] | None = None) -> Any:
        for task in tasks:
            yield task, resolve(task.function, ("sheaf",))(**task.arguments)

    def close(self) -> None:
        pass
