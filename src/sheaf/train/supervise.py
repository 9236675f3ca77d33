"""Train on the ranks of this machine until the run is finished, whatever befalls them on the way.

When a rank dies, hangs or fails, all are ended and started again from the newest valid checkpoint, on as many ranks or
on those that are left, as `train.restarts` says. Nothing is skipped or repeated: a start cuts the journal back to its
checkpoint, and the order is a function of the step. What would only happen again ends the run instead: a named error
(the recipe, the data, a full disk, numbers that went wrong), the same failure at the same step twice in a row, or
`most` restarts without a new checkpoint between them. A rank that is killed from outside counts as chance; one that
the kernel kills for lack of memory, or that crashes, does not. Where memory ran out the next start takes a smaller
micro-batch (`out_of_memory`), as long as there is one.

restarts.jsonl has a line for each restart: at, cause, rank, step (steps done when it happened), from_step (where it
went on), ranks (from then on), down_seconds (from the failure, or the last sign of life, to the end of the next step),
again_seconds (what the steps took that had to be made again), change (what is done otherwise from then on). Cost:
nothing while all is well; a restart takes a fork a rank (`forker`) and what it takes to open corpus and checkpoint.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sheaf import errors
from sheaf.console import Console
from sheaf.errors import EnvironmentProblem, OutOfMemory, SheafError, TryAgain
from sheaf.files import disk_errors
from sheaf.parallel.launch import CRASH, Ended, Failed, forker, run_ranks
from sheaf.parallel.pulse import Patience
from sheaf.parallel.ranks import PeerLost, threads_for
from sheaf.processes import StopSignals
from sheaf.train import journal
from sheaf.train.checkpoint import newest_step
from sheaf.train.learner import RanksDiffer
from sheaf.train.notes import Follower
from sheaf.train.out_of_memory import advice, in_words, needs, paper_of, smaller
from sheaf.train.run import Run
from sheaf.train.setup import placed_on
from sheaf.train.stopped import interrupted

RESTARTS, STACKS = "restarts.jsonl", "stuck.txt"
# What ranks may need before their first step, imported once for all of them: a compiled run needs torch's compiler.
IMPORTS = ("sheaf.train.trainer", "torch._inductor")
LONGEST_PAUSE = 30.0
STACKS_SHOWN = 3
# Kinds of last words that a restart may cure; of some nobody knows which rank they were the fault of.
NOBODYS = (PeerLost.__name__, RanksDiffer.__name__)
PASSING = (CRASH, TryAgain.__name__, *NOBODYS)
CRASH_SIGNALS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


# From slots, signals to this process and `moved` (see `run_ranks`) to how the ranks ended.
Start = Callable[[Sequence[int], StopSignals, Callable[[int], None]], Ended]


def supervise(run: Run, nproc: int, console: Console) -> Run:
    """Train a run that this process holds to its end. Returns it with its result.

    Raises Interrupted after a signal to this process, the error that a rank named, or EnvironmentProblem if ranks
    failed for a reason that restarts do not cure. Whatever is raised, the run can be resumed.
    """
    patience = Patience(run.recipe.train.restarts.stuck_after)
    with forker("sheaf.train.worker", IMPORTS, nproc) as ranks:

        def start(slots: Sequence[int], signals: StopSignals, moved: Callable[[int], None]) -> Ended:
            words, folder = [str(run.folder)], run.folder
            return run_ranks(ranks, words, slots, folder, signals=signals, patience=patience, moved=moved)

        return supervised(run, nproc, console, start)


def supervised(run: Run, nproc: int, console: Console, start: Start, where: str = "") -> Run:
    """`supervise` for ranks that `start` starts, once each time that it is called, and waits for. where: they are."""
    with (
        StopSignals(patient=False) as signals,
        Follower(run.folder, console, run.settings.steps) as follower,
    ):
        restarts = Restarts(run, nproc, follower.say, where)
        while True:
            ended = start(restarts.slots, signals, restarts.moved)
            restarts.close()
            if ended.signal:
                raise interrupted(run.folder, ended.signal)
            if ended.failed is None:
                return Run.open(run.folder)
            restarts.after(ended.failed)
            if restarts.pause(signals):
                raise interrupted(run.folder, signals.received or signal.SIGTERM)


class Restarts:
    """What the restarts of one launch have been, and whether there may be another. slots: see `run_ranks`."""

    def __init__(self, run: Run, nproc: int, say: Callable[[str], None], where: str = "") -> None:
        self.slots = list(range(nproc))
        self._folder, self._say, self._where = run.folder, say, where
        self._allowed = run.recipe.train.restarts
        self._in_a_row = 0
        self._checkpoint = newest_step(run.folder)
        self._last: _Fault | None = None
        self._open: dict[str, Any] | None = None
        self._failed_at = 0.0
        self._made: dict[int, float] = {}
        say(self._on())

    def after(self, failed: Failed) -> None:
        """A start has failed: prepare another one, or raise the reason why not."""
        if failed.stuck:
            self._tell_stacks(failed)
        cause = _cause(failed)
        error = error_of(self._folder, failed, cause)
        if _ran_out_of_memory(failed) and self._go_smaller(failed, error, cause):
            return
        if _named(failed):
            raise error  # somebody knows what is wrong: it would only happen again
        fault, newest = _Fault.of(failed), newest_step(self._folder)
        if newest != self._checkpoint:
            self._checkpoint, self._in_a_row = newest, 0
        elif fault == self._last and not _by_chance(failed):
            error.why += f"; it happened twice, both times after {_steps(failed.step)}"
            raise error
        if self._in_a_row >= self._allowed.most:
            if self._in_a_row:
                error.why += f"; {_times(self._in_a_row)} from the same checkpoint did not help"
            raise error
        self._last = fault
        self._in_a_row += 1
        self._begin(failed, cause)

    def _go_smaller(self, failed: Failed, error: SheafError, cause: str) -> bool:
        """Whether the next start takes smaller micro-batches, which is not counted as a restart that was in vain."""
        run, world = Run.open(self._folder), len(self.slots)
        if not _named(failed):  # killed: nobody has told it yet
            paper = paper_of(run, failed.rank, world)
            error.why, error.fix = f"{error.why}; {needs(paper)}", advice(paper)
            if run.recipe.train.out_of_memory == "stop":
                raise error
        after = smaller(run, world) if failed.step >= 0 and self._allowed.most else None
        if after is None:
            return False
        self._say(error.why)
        self._begin(failed, cause, goes_on=in_words(run, after, world))
        self._last = None
        return True

    def pause(self, signals: StopSignals) -> bool:
        """None before the first restart from a checkpoint, then longer each time. Returns whether we are to stop."""
        until = time.monotonic() + min(LONGEST_PAUSE, 2.0 ** (self._in_a_row - 1) - 1.0)
        while time.monotonic() < until and not signals.received:
            time.sleep(0.1)
        return signals.received is not None

    def moved(self, began: int) -> None:
        """The ranks have made a step."""
        if self._open is not None:
            again = sum(seconds for step, seconds in self._made.items() if step >= began)
            self._open |= {"from_step": began, "again_seconds": round(again, 3)}
            line = self.close()
            steps = max(0, line["step"] - began)
            self._say(
                f"training again {line['down_seconds']:.1f} s after the failure; "
                f"{_steps(steps)} ({again:.1f} s) {'is' if steps == 1 else 'are'} made again"
            )

    def _begin(self, failed: Failed, cause: str, goes_on: str = "") -> None:
        """goes_on: how, if otherwise than before: with a smaller micro-batch."""
        self._failed_at = time.monotonic() - max((stuck.seconds for stuck in failed.stuck), default=0.0)
        self._made = {int(line["step"]): float(line["seconds"]) for line in journal.read(self._folder)}
        if self._allowed.ranks == "fewer" and not goes_on:
            self._leave_out(failed)
        self._open = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "cause": cause,
            "rank": failed.rank,
            "step": max((step + 1 for step in self._made), default=0),
            "from_step": None,
            "ranks": len(self.slots),
            **({"change": goes_on} if goes_on else {}),
        }
        told = "" if failed.stuck else f"{cause} after {_steps(self._open['step'])}; "
        self._say(f"{told}starting again from the newest checkpoint")
        self._say(
            goes_on or f"{self._on()}; {_times(self._in_a_row)} from this checkpoint, at most {self._allowed.most}"
        )

    def _leave_out(self, failed: Failed) -> None:
        """Go on with the ranks that are left: without those that were killed, or without the one that failed. If all
        hang, or lost each other, none of them is the one too many."""
        out = failed.lost or (failed.rank,)
        nobodys = len(failed.stuck) > 1 or (failed.words or {}).get("kind") in NOBODYS
        if not nobodys and len(out) < len(self.slots):
            left = [slot for rank, slot in enumerate(self.slots) if rank not in out]
            if placed_on(Run.open(self._folder), len(left)) is None:
                self._say(f"the recipe's layout cannot be had on {len(left)} ranks: going on with as many as before")
                return
            self.slots = left

    def close(self) -> dict[str, Any]:
        """Write the line of the restart under way, if there is one: it has led to a step, or these ranks have ended."""
        line, self._open = self._open, None
        if line is None:
            return {}
        line["down_seconds"] = round(time.monotonic() - self._failed_at, 3)
        with disk_errors(self._folder / RESTARTS), (self._folder / RESTARTS).open("ab") as file:
            file.write(orjson.dumps(line) + b"\n")
        return line

    def _on(self) -> str:
        ranks = len(self.slots)
        return f"{ranks} {'rank' if ranks == 1 else 'ranks'} {self._where or f'with {threads_for(ranks)} threads each'}"

    def _tell_stacks(self, failed: Failed) -> None:
        for stuck in failed.stuck[:STACKS_SHOWN]:
            for line in stuck.lines():
                self._say(line)
        with contextlib.suppress(OSError):  # perhaps it is the disk that hangs
            text = "\n\n".join(f"{stuck}\n{stuck.all_stacks}" for stuck in failed.stuck)
            (self._folder / STACKS).write_text(text)


def summary(folder: Path) -> dict[str, Any]:
    """{"restarts", "lost_seconds"} of a run: how often it was restarted, and what that took."""
    lines = journal.read_lines(folder / RESTARTS)
    lost = sum(float(line["down_seconds"]) + float(line.get("again_seconds") or 0.0) for line in lines)
    return {"restarts": len(lines), "lost_seconds": round(lost, 3)}


@dataclass(frozen=True)
class _Fault:
    """What two failures have in common when the second is the first over again."""

    step: int
    code: int
    what: str

    @staticmethod
    def of(failed: Failed) -> _Fault:
        phase = failed.stuck[0].phase.name if failed.stuck else ""
        return _Fault(failed.step, failed.code, failed.words["what"] if failed.words else phase)


def _named(failed: Failed) -> bool:
    return failed.words is not None and failed.words["kind"] not in PASSING


def _ran_out_of_memory(failed: Failed) -> bool:
    """Whether a rank said so, or was killed because of it."""
    said = failed.words is not None and failed.words["kind"] == OutOfMemory.__name__
    return said or (failed.code == -signal.SIGKILL and failed.out_of_memory)


def error_of(folder: Path, failed: Failed, cause: str) -> SheafError:
    """What to raise for ranks that did not end well: what one of them raised, if it left word."""
    words = failed.words
    if words is not None and _named(failed):
        kind = getattr(errors, words["kind"], SheafError)
        error = kind(words["what"], where=words["where"], why=words["why"], fix=words["fix"])
        error.exit_code = words["code"]
        return error
    fix = f"go on from the last checkpoint with: sheaf resume {folder}"
    stopped = f"rank {failed.rank} {'hangs' if failed.stuck else 'died'}, so the run has stopped"
    return EnvironmentProblem(stopped, where=str(folder), why=cause, fix=fix)


def _cause(failed: Failed) -> str:
    """Why the ranks were ended, in words."""
    who = f"rank {failed.rank}"
    if failed.stuck:
        return str(failed.stuck[0])
    if failed.code == -signal.SIGKILL and failed.out_of_memory:
        return f"{who} was killed by the system, which had run out of memory"
    if failed.code < 0:
        return f"{who} was killed by {_signal_name(-failed.code)}"
    if failed.words is not None:
        return f"{who} failed: {failed.words['what']}"
    return f"{who} ended with exit code {failed.code}; see its output"


def _by_chance(failed: Failed) -> bool:
    """Whether the cause came from outside, and says nothing about the next time."""
    if failed.stuck:
        return failed.stuck[0].state.startswith("stopped")
    return failed.code < 0 and not failed.out_of_memory and -failed.code not in CRASH_SIGNALS


def _steps(step: int) -> str:
    return f"{max(step, 0):,} {'step' if step == 1 else 'steps'}"


def _times(restarts: int) -> str:
    return f"{restarts} {'restart' if restarts == 1 else 'restarts'}"


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
