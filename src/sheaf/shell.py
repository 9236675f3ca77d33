"""Run one verb: print its outcome, tell its errors, end with the right code.

stdout carries data alone: a rendering for people, or with `--json` one JSON object in ASCII (so that no locale and no
control character can change what a script reads). stderr carries the rest. Where the reader of stdout goes away
(`| head`) the verb ends in silence, as its work is done.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, TextIO

from cyclopts import App, CycloptsError, Parameter

from sheaf.console import Console, Silent, TerminalConsole, printable
from sheaf.errors import Interrupted, SheafError, UsageError

Json = dict[str, Any]


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """What every verb understands."""

    json: Annotated[bool, Parameter(negative=(), help="Print one JSON object on stdout.")] = False
    debug: Annotated[bool, Parameter(negative=(), help="Show the traceback of an error.")] = False
    quiet: Annotated[bool, Parameter(negative=(), help="Nothing on stderr but errors.")] = False

    def console(self) -> Console:
        return Silent() if self.quiet else TerminalConsole()


@dataclass(frozen=True)
class Outcome:
    """What a verb hands back. show: what a person sees of the data (None: the JSON). next: a command line to type."""

    data: Json
    show: Callable[[Json], Sequence[Any]] | None = None
    next: str = ""
    exit_code: int = 0


class ReaderGone(Exception):
    """Whoever read our stdout has closed it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: what makes work safe on Ctrl-C does so here too."""


def run(app: App, argv: Sequence[str]) -> int:
    """Parse, call, print. Returns the exit code."""
    words = list(argv)
    # Before parsing, so that an error in the command line itself is told in the way that was asked for.
    common = Common(json="--json" in words, debug="--debug" in words, quiet="--quiet" in words)
    signal.signal(signal.SIGTERM, _on_terminate(os.getpid()))
    try:
        command, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
        outcome = command(*bound.args, **bound.kwargs)
        if isinstance(outcome, Outcome):
            return _finish(outcome, common)
        sys.stdout.flush()  # --help and --version have printed
        return 0
    except (ReaderGone, BrokenPipeError) as error:
        if isinstance(error, BrokenPipeError) and not _stdout_closed():
            return _unexpected(error, common)
        return _reader_gone()
    except CycloptsError as error:
        return _tell(UsageError(str(error), fix=_help_line(app, words)), common)
    except SheafError as error:
        return _tell(error, common)
    except KeyboardInterrupt as error:
        return _interrupted(error, common)
    except Exception as error:  # noqa: BLE001 - the last net: one line, the traceback on request, exit code 1
        return _unexpected(error, common)


def command_line(verb: str, *words: str | Path) -> str:
    """A command line that can be pasted into a shell."""
    return " ".join([verb, *(shlex.quote(str(word)) for word in words)])


def write(stream: TextIO, text: str) -> None:
    """Write at once. Raises ReaderGone if nobody reads stdout any more."""
    try:
        stream.write(text.encode(stream.encoding or "utf-8", "backslashreplace").decode(stream.encoding or "utf-8"))
        stream.flush()
    except BrokenPipeError as error:
        raise ReaderGone from error


def as_json(value: Any) -> str:
    """One line of JSON in ASCII; NaN and infinities, which JSON lacks, become null; paths become strings."""
    return json.dumps(_plain(value), allow_nan=False, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finish(outcome: Outcome, common: Common) -> int:
    if common.json or outcome.show is None:
        write(sys.stdout, as_json(outcome.data) + "\n")
    else:
        from sheaf.show import render

        write(sys.stdout, render(outcome.show(outcome.data), sys.stdout))
    if outcome.next and not common.quiet:
        write(sys.stderr, f"next: {printable(outcome.next)}\n")
    return outcome.exit_code


def _tell(error: SheafError, common: Common, cause: BaseException | None = None) -> int:
    """What, where, why, fix; the traceback only with --debug."""
    code = 143 if isinstance(error, Interrupted) and _terminated else error.exit_code
    try:
        if common.debug:
            write(sys.stderr, _told("".join(traceback.format_exception(cause or error))))
        write(sys.stderr, f"sheaf: {_told(str(error))}\n")
        if common.json:
            from sheaf.privacy import without_secrets

            parts = {"what": error.what, "where": error.where, "why": error.why, "fix": error.fix}
            told = {name: without_secrets(part) for name, part in parts.items()}
            write(sys.stdout, as_json({"error": told, "exit_code": code}) + "\n")
    except ReaderGone:
        _reader_gone()
    return code


def _told(text: str) -> str:
    """As it may stand on a terminal and in its log: without control characters, and without a secret that it quotes."""
    from sheaf.privacy import without_secrets  # with its room's imports: for those who meet an error only

    return printable(without_secrets(text))


def _unexpected(error: Exception, common: Common) -> int:
    told = SheafError(
        "this should not have happened",
        why=f"{type(error).__name__}: {error}",
        fix="the same command with --debug shows where; please report it with that output",
    )
    return _tell(told, common, error)


def _interrupted(error: KeyboardInterrupt, common: Common) -> int:
    told = Interrupted(
        "interrupted",
        why="whatever was finished is kept",
        fix="the same command goes on with a preparation, `sheaf resume` with a training run",
    )
    return _tell(told, common, error)


def _help_line(app: App, words: list[str]) -> str:
    verb = next((w for w in words if not w.startswith("-") and w in app), None)
    return f"`sheaf {verb} --help` lists what it takes" if verb else "`sheaf --help` lists the verbs"


_terminated: list[bool] = []


def _on_terminate(owner: int) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked worker inherits the handler, and must simply end
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        _terminated.append(True)
        raise Terminated

    return handle


def _stdout_closed() -> bool:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    return False


def _reader_gone() -> int:
    # Python flushes stdout once more when it ends, and would complain there.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    return 0
