"""What goes wrong with a task, as the same errors on every engine."""

from __future__ import annotations

from dataclasses import dataclass

from sheaf import errors
from sheaf.engine.base import Json, Task
from sheaf.errors import EnvironmentProblem, SheafError

ATTEMPTS = 3  # workers that a task may lose


class TaskFailed(SheafError):
    """A task raised something that is not one of ours: a bug, or a case nobody foresaw. Its traceback is a note."""


@dataclass
class Attempt:
    """A task, and how many workers ended while they had it."""

    task: Task
    deaths: int = 0


def failure(task: Task, answer: Json) -> SheafError:
    """The error that a worker's answer describes: ours as it was, anything else as TaskFailed."""
    if "sheaf" in answer:
        # A kind that lives in another room is rebuilt as its nearest ancestor in sheaf.errors: same words, same code.
        kinds = (getattr(errors, name, None) for name in answer["sheaf"])
        kind = next(k for k in kinds if k is not None and k.__init__ is SheafError.__init__)
        error = kind(answer["words"][0], **dict(zip(("where", "why", "fix"), answer["words"][1:], strict=True)))
        error.add_note(answer["traceback"])
        return error
    error = TaskFailed(
        f"the task '{name(task)}' failed",
        where=task.function,
        why=answer["error"],
        fix="this is a defect of sheaf: please report it with the output of --debug",
    )
    error.add_note(answer["traceback"])
    return error


def too_many_deaths(task: Task, why: str, fix: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"the task '{name(task)}' ended its worker {ATTEMPTS} times", where=task.function, why=why, fix=fix
    )


def joined(first: SheafError | None, error: SheafError) -> SheafError:
    """The error to raise in the end: the first one, with the others as notes."""
    if first is None:
        return error
    first.add_note(f"another task failed as well: {error}")
    return first


def name(task: Task) -> str:
    return task.label or task.function
