"""How long work tells what it does: stages with progress, and notes. Data never goes here; it goes to stdout."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Console(Protocol):
    """Where progress and messages go (stderr, or nowhere)."""

    def stage(self, title: str, total: int | None, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """A stage of work with a bar. The value is a function that advances it. unit: "B", "items", "steps", …"""
        ...

    def note(self, text: str) -> None:
        """One line worth keeping."""
        ...


class Silent:
    """For library use and tests."""

    @contextmanager
    def stage(self, title: str, total: int | None, unit: str) -> Generator[Callable[[int], None]]:
        yield lambda _: None

    def note(self, text: str) -> None:
        pass
