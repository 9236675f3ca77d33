"""Parse items in a separate, limited process, and survive whatever they do to it.

The child is a fresh interpreter (never a fork) with an empty environment, its own session, kernel limits on memory, CPU
and processes, and, where the kernel allows, neither files nor network (`confine`). It gets open descriptors over a Unix
socket and answers with Arrow tables, which are checked here before they are used.

It says which item it is at. When it gets nowhere (limits.seconds without progress; `watch` has the rule), dies, or
floods, it is killed, exactly that item is quarantined, and a fresh child goes on with the rest; what was committed
before is kept. An item that seems to have killed a child which had read others, or on which a child was killed from
outside (by the kernel for memory, or by anybody), is tried once more alone: neither a neighbour nor an accident
decides. Start-up is 0.2 s.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO, Self

import orjson
import pyarrow as pa

from sheaf.errors import EnvironmentProblem
from sheaf.formats import fast, wire
from sheaf.formats.answers import Answers, BadAnswer, BadItem, Parsed, by_item
from sheaf.formats.piece import ParseOptions, ParserLimits
from sheaf.formats.schema import PARSED_ITEMS, PARSED_RECORDS, PARSED_REGIONS
from sheaf.formats.start import FOLDER, start, sweep
from sheaf.formats.watch import Watch
from sheaf.processes import keep_blocks
from sheaf.recipe import Limits

__all__ = ["ItemInput", "ParseOptions", "Parsed", "Sandbox", "kept_sandbox", "sandbox_level"]

KEPT_BLOCK, KEPT_BYTES = 32 << 20, 64 << 20  # of memory that answers took, for the next answers
# Items in one request: their answers are checked together, which takes 5 ms however many there are. Each is one
# descriptor here, or two (`_for_reading`), and some processes may have 512.
GROUP = 160
PART_BYTES = 8 << 20  # of answers that are handed on together
RECYCLE_ITEMS, RECYCLE_BYTES = 20_000, 4 << 30  # then a fresh child, against fragmented memory
START_SECONDS = 60.0
FLOOD_BASE = 256 << 20


@dataclass(frozen=True, slots=True)
class ItemInput:
    """file: open, seekable, with a descriptor. name: the item's path, for its suffix. size: bytes at the source.
    media: the claimed content type, a hint. about: "" or a JSON object that joins the meta of every record."""

    file: BinaryIO
    name: str
    size: int
    media: str = ""
    about: str = ""


class Sandbox:
    """One child process, restarted when it dies. Use as a context manager; one thread at a time."""

    def __init__(self, limits: Limits, *, _extra: Path | None = None) -> None:
        """_extra: a file with more parsers, for tests; nothing that comes from data or a recipe reaches it."""
        self._limits = ParserLimits(**limits.model_dump())
        self._extra = _extra
        self._child: _Child | None = None
        sweep()
        keep_blocks(KEPT_BLOCK, KEPT_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def parse(self, items: Sequence[ItemInput], options: ParseOptions) -> Parsed:
        """Records, refused regions and accounts of all the items, sorted by item; all of it is held in memory.

        Raises EnvironmentProblem if no child can be started.
        """
        records, regions, accounts = [PARSED_RECORDS.empty_table()], [PARSED_REGIONS.empty_table()], list[pa.Table]()
        for part in self.parse_in_parts(items, options):
            records += [part.records, *(table for item in part.long for table in item.records())]
            regions.append(part.regions)
            accounts.append(part.items)
        tables = (pa.concat_tables(parts) for parts in (records, regions, [PARSED_ITEMS.empty_table(), *accounts]))
        return Parsed(*(by_item(table) for table in tables))

    def parse_in_parts(
        self, items: Sequence[ItemInput], options: ParseOptions, folder: Path | None = None
    ) -> Iterator[Parsed]:
        """As `parse`, some items at a time, so that memory is bounded whatever they expand to.

        folder: where the records of a long item wait for its end (default: the system's for temporary files).
        """
        sizes = [item.size for item in items]
        answers = Answers(sizes, self._limits.memory_mb << 20, folder)
        try:
            for _ in self._rounds(answers, items, options):
                if answers.held_bytes > PART_BYTES or answers.has_long:
                    yield answers.taken()
            yield answers.taken()
        except BaseException:  # also when the caller has enough: what the child still sends would answer nobody
            answers.rollback()
            self.close()
            raise

    def _rounds(self, answers: Answers, items: Sequence[ItemInput], options: ParseOptions) -> Iterator[None]:
        """Until all items are answered; gives way whenever some are."""
        silent_deaths = careful = 0
        suspect: int | None = None
        while waiting := answers.unfinished(1 if careful > 0 else GROUP) if suspect is None else [suspect]:
            careful -= 1
            child = self._fresh_enough()
            try:
                yield from child.parse_group(waiting, items, options, answers)
                suspect = None
                continue
            except _Blamed as blamed:
                silent_deaths = 0
                if suspect is None and (blamed.outside or (child.items > 1 and blamed.reason != "timeout")):
                    # What came before may have harmed the process, or an accident befell it: once more, in a fresh one.
                    suspect = blamed.item
                else:
                    suspect = None
                    if not answers.has(blamed.item):  # else it fell after its answer
                        answers.refuse(blamed.item, blamed.reason, blamed.detail)
            except BadAnswer:
                careful = len(waiting)  # one by one, to see whose answer it was
            except (wire.Closed, OSError):
                silent_deaths += 1  # it died between items: nobody is to blame, unless it does so always
            detail = child.last_words()
            answers.rollback()
            self.close()
            if silent_deaths > 3:
                raise _cannot_start(detail)
            yield

    def level(self) -> dict[str, bool]:
        """What confines the child here: network, files, memory, processes, …"""
        return dict(self._fresh_enough().holds)

    def _fresh_enough(self) -> _Child:
        child = self._child
        if child is not None and (child.items > RECYCLE_ITEMS or child.bytes > RECYCLE_BYTES or not child.alive()):
            self.close()
        if self._child is None:
            self._child = _Child(self._limits, self._extra)
        return self._child


_asked = 0  # bytes of all items
_kept: list[tuple[Limits, Sandbox]] = []  # one at most


def kept_sandbox(limits: Limits) -> Sandbox:
    """This process's own, for tasks that come one after another: a child takes longer to start than to read a thousand
    small files. It is closed at the end of the process, or when one with other limits is wanted."""
    if not _kept:
        atexit.register(_drop_kept)
    if not _kept or _kept[0][0] != limits:
        _drop_kept()
        _kept.append((limits, Sandbox(limits)))
    return _kept[0][1]


def _drop_kept() -> None:
    for _, sandbox in _kept:
        sandbox.close()
    _kept.clear()


def sandbox_level() -> dict[str, bool]:
    """What confines a parser on this machine, by name, for `sheaf doctor`."""
    with Sandbox(Limits()) as sandbox:
        return sandbox.level()


class _Blamed(Exception):
    """The child is lost (or must be killed) because of this item. outside: neither it nor we ended the process."""

    def __init__(self, item: int, reason: str, detail: str, outside: bool = False) -> None:
        super().__init__(item, reason, detail)
        self.item, self.reason, self.detail, self.outside = item, reason, detail, outside


class _Child:
    """One process, and the conversation with it."""

    def __init__(self, limits: ParserLimits, extra: Path | None) -> None:
        self._limits = limits
        self.items = self.bytes = 0
        self._folder = tempfile.TemporaryDirectory(prefix=f"{FOLDER}{os.getpid()}-", ignore_cleanup_errors=True)
        self._errors = _scratch()
        self._sock, theirs = socket.socketpair()
        self._begun = wire.Begun()
        with theirs, self._begun.theirs:
            begun = self._begun.theirs.fileno()
            self._process = start(theirs, begun, limits, extra, self._folder.name, self._errors)
        self._watch = Watch(self._process.pid, limits)
        self._watch.begin(0, START_SECONDS)
        try:
            self._watch.wait(self._sock, lambda: None)  # by its own time: on a busy machine a start may take minutes
            self._sock.settimeout(START_SECONDS)
            _, payload, _ = wire.receive(self._sock, 1 << 16)
        except (wire.Closed, OSError) as error:
            self._process.wait(timeout=5) if isinstance(error, wire.Closed) else None
            detail = self.last_words() or (str(error) if isinstance(error, TimeoutError) else "")
            self.kill()
            raise _cannot_start(detail) from error
        self.holds: dict[str, bool] = orjson.loads(payload)
        self._sock.settimeout(None)
        self._incoming = wire.Incoming(self._sock)

    def alive(self) -> bool:
        return self._process.poll() is None

    def parse_group(
        self, numbers: Sequence[int], items: Sequence[ItemInput], options: ParseOptions, answers: Answers
    ) -> Iterator[None]:
        """Send the group, take its answers; give way after each. Raises _Blamed, or Closed if it died outside any, or
        BadAnswer if nobody can say whose it was."""
        self._ask(numbers, items, options)
        try:
            yield from self._listen(numbers, items, answers)
        except BadItem as bad:
            raise self._blame(bad.item, "parser-bug", str(bad)) from bad
        except BadAnswer as bad:
            if len(numbers) > 1:
                raise
            raise self._blame(numbers[0], "parser-bug", str(bad)) from bad

    def _ask(self, numbers: Sequence[int], items: Sequence[ItemInput], options: ParseOptions) -> None:
        request = {
            "options": asdict(options),
            "fast": self._is_worth(sum(items[n].size for n in numbers)),
            "items": [
                {
                    **{"item": n, "size": items[n].size, "name": _printable(items[n].name)},
                    **{"media": items[n].media, "about": items[n].about},
                }
                for n in numbers
            ],
        }
        self._sock.settimeout(START_SECONDS)
        with contextlib.ExitStack() as opened:
            descriptors = [_for_reading(items[n].file, opened) for n in numbers]
            self._send(orjson.dumps(request), descriptors)
        self._sock.settimeout(None)  # or a look whether something has come would wait for it, past the watch

    def _send(self, request: bytes, descriptors: list[int]) -> None:
        """Others of this user may have so many descriptors under way that the kernel takes none for a moment."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                wire.send(self._sock, b"G", request, fds=descriptors)
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def _is_worth(self, more: int) -> bool:
        """Whether the child will read so much that it may load compiled readers; from then on they are there."""
        global _asked
        _asked += more
        return _asked >= fast.MUCH and fast.prepared()

    def _listen(self, numbers: Sequence[int], items: Sequence[ItemInput], answers: Answers) -> Iterator[None]:
        self._watch.begin(0, START_SECONDS)
        before, current = self.items, -1
        flood = FLOOD_BASE + 4 * (self._limits.expanded_mb << 20)
        allowed = flood

        def look() -> None:
            """What it is at by now: there the clocks begin anew."""
            nonlocal current, allowed
            begun = self._begun.count()
            if begun > before + len(numbers):
                raise BadAnswer("an item that was not asked for")
            if begun > self.items:
                self.bytes += sum(items[n].size for n in numbers[self.items - before : begun - before])
                self.items, current, allowed = begun, numbers[begun - before - 1], flood
                self._watch.begin(items[current].size)

        while True:
            try:
                # No frame is longer than what the child itself may hold: else one could take all our memory.
                most = min(allowed, self._limits.memory_mb << 20)
                kind, payload = self._incoming.receive(max(most, 0), lambda sock: self._watch.wait(sock, look))
                look()
                self._watch.progress(_read_of(current, payload) if kind == b"P" else None)
            except TimeoutError as late:
                raise self._blame(current, "timeout", str(late)) from None
            except (wire.Closed, ConnectionError):
                look()
                raise self._blame(current, *self._cause()) from None
            allowed -= wire.HEADER.size + len(payload)
            if kind == b"P":
                continue
            if kind == b"X":
                raise self._blame(current, "parser-bug", bytes(payload[:300]).decode("utf-8", "replace"))
            if kind == b"D":
                if not all(map(answers.has, numbers)):
                    raise BadAnswer("it says that it is done, and is not")
                return
            answers.take(kind, payload)
            if kind == b"I":
                yield
                self._watch.excuse()  # what it did while we were busy with its answers, it did unseen

    def _blame(self, item: int, reason: str, detail: str, outside: bool = False) -> Exception:
        return _Blamed(item, reason, detail, outside) if item >= 0 else wire.Closed(detail)

    def _cause(self) -> tuple[str, str, bool]:
        """Why the socket closed: reason, detail, and whether the process was killed from outside."""
        try:
            code = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "parser-bug", "it answered with more than its input could hold", False
        if code == wire.EXIT_MEMORY:
            return "memory", f"more than {self._limits.memory_mb} MB", False
        if code == -signal.SIGXCPU:
            return "timeout", f"more than {self._limits.seconds:g} s of processor time without progress", False
        if code == -signal.SIGKILL:
            return "memory", "killed by the system twice, most likely for memory", True
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        outside = code in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)
        return "crash", f"the parser's process ended with {how}", outside

    def last_words(self) -> str:
        """The end of what it wrote to its error output."""
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 1000))
        return self._errors.read().decode("utf-8", "replace").strip()

    def kill(self) -> None:
        """End the whole process group, and clean up."""
        if self._process.returncode is None:  # once it is reaped, its number may be somebody else's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._sock.close()
        self._begun.close()
        self._errors.close()
        self._folder.cleanup()


def _read_of(current: int, payload: memoryview) -> int | None:
    """How much of the current item a frame says is read; None if it is of one before."""
    if len(payload) != wire.PROGRESS.size:
        raise BadAnswer("progress of another length")
    item, read = wire.PROGRESS.unpack(payload)
    return read if item == current else None


def _for_reading(file: BinaryIO, opened: contextlib.ExitStack) -> int:
    """A descriptor of the file that cannot be written to, as that of a temporary file can: a parser could falsify the
    items that come after its own."""
    descriptor = file.fileno()
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        return descriptor
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    opened.callback(os.close, again)
    return again


def _scratch() -> IO[bytes]:
    """A file without a name, for what the child writes to its error output; closed with the child."""
    return tempfile.TemporaryFile()


def _printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()


def _cannot_start(detail: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        "the parsing process does not start",
        why=detail.splitlines()[-1] if detail else "it ended without a word",
        fix="run `sheaf doctor`; if memory is short, raise the machine's limits (ulimit -v)",
    )
