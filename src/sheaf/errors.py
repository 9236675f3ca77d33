"""Named errors: each says what happened, where, why, and what to do about it, and carries the exit code of its kind.

The exit codes are an interface that scripts build on: 2 usage or recipe, 3 data refused beyond the recipe's limit,
4 environment, 5 finished with quarantined items under --strict, 75 try again, 130/143 interrupted after a checkpoint.
A verb prints the message alone; the traceback comes only with --debug.
"""

from __future__ import annotations


class SheafError(Exception):
    """Base of all errors that a user can meet. `exit_code` is what the process ends with."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.why, self.fix = what, where, why, fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.why:
            lines.append(f"  why:   {self.why}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders; the default would drop the keyword arguments.
        return (_rebuild, (type(self), self.what, self.where, self.why, self.fix))


def _rebuild(kind: type[SheafError], what: str, where: str, why: str, fix: str) -> SheafError:
    return kind(what, where=where, why=why, fix=fix)


class UsageError(SheafError):
    """A wrong word on the command line or a wrong argument to the Python API."""

    exit_code = 2


class RecipeError(SheafError):
    """The recipe cannot be read, or says something impossible; `where` is file:line."""

    exit_code = 2


class DataRefused(SheafError):
    """The data cannot serve: an empty or missing source, nothing kept, more refused than the recipe allows."""

    exit_code = 3


class EnvironmentProblem(SheafError):
    """The machine cannot serve: disk full, port in use, missing extra, unwritable folder."""

    exit_code = 4


class OutOfMemory(EnvironmentProblem):
    """Memory ran out while training; `why` says what it went to. in_steps: steps were being made, so that shorter
    passes may help."""

    in_steps = False


class MissingExtra(EnvironmentProblem):
    """An optional dependency is not installed; `fix` is the pip command."""

    def __init__(self, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs an optional part that is not installed",
            why=f"the extra '{extra}' is missing",
            fix=f"pip install 'sheaf[{extra}]'",
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (EnvironmentProblem, self.what, self.where, self.why, self.fix))


class CorruptStore(SheafError):
    """A file of the workspace does not match its digest or its manifest."""

    exit_code = 4


class TryAgain(SheafError):
    """A source failed for now (time-out, 5xx, locked database); what was done is kept, the next run goes on."""

    exit_code = 75


class TrainingFailed(SheafError):
    """The numbers went wrong: a loss that is not finite, or ranks that no longer hold the same weights."""

    exit_code = 1


class Interrupted(SheafError):
    """Ctrl-C or SIGTERM, after what was done has been made safe."""

    exit_code = 130


class Doomed(EnvironmentProblem):
    """A run that could not be finished here: too little memory or disk, data or hours. `fix` names what would fit."""
