"""Parsers that were taken over by what they parsed; loaded into the child only where a test names this file.

"reach" tries what the process could still do to the machine; the others lie to the parent, past all our own code.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from sheaf.formats import wire
from sheaf.formats.piece import Context, Pieces, Record
from sheaf.formats.schema import PARSED_ITEMS, PARSED_REGIONS
from sheaf.formats.stream import Stream
from sheaf.formats.table import Format

FORMATS = [Format("application/x-hostile", "extra:parse", (".hostile",), (b"HOSTILE ",), binary=True)]
LIBC = ctypes.CDLL(None, use_errno=True)
TEXT = "taken over"


def parse(stream: Stream, context: Context) -> Pieces:
    raw = stream.read_all(1 << 20)
    word, *argument = raw.decode().split()
    if word != "HOSTILE":
        raise ValueError(word)
    word, *argument = argument
    yield Record(ACTIONS[word](*argument) or "nothing", 0, len(raw), "utf-8")


def _reach(*_: str) -> str:
    """What each attempt was answered."""
    return " ".join(f"{name}:{_tried(attempt)}" for name, attempt in ATTEMPTS.items())


def _tried(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return str(error.errno)
    except RuntimeError:  # what Python makes of a thread that cannot start
        return "13"
    return "done"


def _call(name: str, *arguments: object) -> None:
    ctypes.set_errno(0)
    if getattr(LIBC, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)


def _system_call(x86_64: int, aarch64: int, *arguments: int) -> None:
    _call("syscall", x86_64 if os.uname().machine == "x86_64" else aarch64, *map(ctypes.c_long, arguments))


def _items() -> list[int]:
    """The descriptors of all items of the group."""
    found: list[int] = []
    for fd in range(3, 600):
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                found.append(fd)
        except OSError:
            continue
    return found


def _connect_by_path() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("/var/run/docker.sock")


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _thread() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


ATTEMPTS: dict[str, Callable[[], object]] = {
    "mode": lambda: os.fchmod(_items()[0], 0o777),
    "times": lambda: os.utime(_items()[0], (0, 0)),
    "attribute": lambda: os.setxattr(_items()[0], "user.mark", b"x"),
    "owner": lambda: os.fchown(_items()[0], os.getuid(), os.getgid()),
    "lock": lambda: _call("flock", _items()[0], 2),
    "content": lambda: _call("ftruncate", _items()[0], 0),
    "create": lambda: os.open("new", os.O_WRONLY | os.O_CREAT),
    "remove": lambda: Path("/etc/passwd").unlink(),
    "unix-socket": _connect_by_path,
    "socketpair": socket.socketpair,
    "internet": lambda: socket.socket(socket.AF_INET),
    "raw": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "fork": _fork,
    "thread": _thread,
    "program": lambda: os.execv("/bin/true", ["true"]),
    "signal": lambda: os.kill(os.getppid(), 0),
    "signal-all": lambda: os.kill(-1, 0),
    "signal-by-file": lambda: _call("fcntl", _items()[0], 8, os.getppid()),
    "handle": lambda: os.pidfd_open(os.getppid()),
    "trace": lambda: _call("ptrace", 16, os.getppid(), 0, 0),
    "memory-of": lambda: _system_call(310, 270, os.getppid(), 0, 0, 0, 0, 0),
    "limits-of": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1)),
    "own-limits": lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)),
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19),
    "memory-file": lambda: os.memfd_create("x"),
    "shared-memory": lambda: _system_call(29, 194, 1, 4096, 0o600),
    "keys": lambda: _system_call(250, 219, 0, -3, 0, 0, 0),
    "bpf": lambda: _system_call(321, 280, 0, 0, 0),
    "io-uring": lambda: _system_call(425, 425, 1, 0),
    "perf": lambda: _system_call(298, 241, 0, 0, -1, -1, 0),
    "userfault": lambda: _system_call(323, 282, 0),
    "namespace": lambda: _call("unshare", 0x10000000),
    "mount": lambda: _call("mount", None, b"/", None, 4096, None),
    "outlive": lambda: _call("prctl", 1, 0, 0, 0, 0),
    "unknown": lambda: _system_call(9999, 9999),
}


def _write_items(*_: str) -> str:
    """Writes into every item of the group, itself and those that come later."""
    answers = []
    for fd in _items():
        try:
            answers.append(str(os.write(fd, b"forged")))
        except OSError as error:
            answers.append(str(error.errno))
    return " ".join(answers)


def _socket() -> socket.socket:
    """The one to the parent. Its number is the parent's, who may have many files open: a whole run of the tests has."""
    for fd in range(3, 4096):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
        except OSError:
            continue
    raise AssertionError("no socket")


def _begin_again(*_: str) -> None:
    """Says for ever that another item begins."""
    pipe = _pipe()
    while True:
        with contextlib.suppress(BlockingIOError):
            os.write(pipe, b"1")


def _pipe() -> int:
    """The one in which items are counted."""
    return next(fd for fd in range(3, 4096) if _is_pipe(fd))


def _is_pipe(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False


def _mine() -> int:
    """Its number: tests put it second."""
    return 1


def _done(*_: str) -> None:
    """Says that the group is done, without an answer, and waits for the next."""
    wire.send(_socket(), b"D")
    time.sleep(600)


def _announce(*_: str) -> None:
    """Says that the work is on an item of another group."""
    os.write(_pipe(), bytes(1000))
    time.sleep(600)


def _huge_frame(*_: str) -> None:
    """Announces more in one frame than it may hold itself, but no flood, and sends it as fast as it is taken."""
    sock = _socket()
    sock.sendall(wire.HEADER.pack(b"R", 480 << 20))
    while True:
        sock.sendall(bytes(1 << 20))


def _hoard(*_: str) -> None:
    """Sends regions without end, and never says that the item is finished."""
    sock = _socket()
    n = 1000
    rows = {"item": [_mine()] * n, "member": ["m" * 10_000] * n, "locator": ["{}"] * n, "bytes": [0] * n}
    batch = pa.record_batch({**rows, "reason": ["empty"] * n, "detail": [""] * n}, schema=PARSED_REGIONS)
    frame = _frame([batch], PARSED_REGIONS)
    while True:
        wire.send(sock, b"Q", frame)


def _frame(batches: list[pa.RecordBatch], schema: pa.Schema, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _row(**values: object) -> pa.RecordBatch:
    row = {
        **{"item": _mine(), "kind": "text", "text": TEXT, "messages": "", "payload": b""},
        **{"meta": "{}", "member": "", "locator": "{}", "media": "", "encoding": "", "confidence": 1.0, "repairs": ""},
        **{"stream": 0, "weight": 0},
        **values,
    }
    return pa.RecordBatch.from_pylist([row], wire.RECORDS)


def _answer(*records: pa.RecordBatch, detail: str = "", notes: str = "", compression: str | None = None) -> None:
    """Records and the account of the item, in our own frames; that is the end."""
    sock = _socket()
    size = os.fstat(_items()[0]).st_size
    region = {"item": _mine(), "member": "", "locator": "{}", "bytes": size, "reason": "empty", "detail": detail}
    account = {"item": _mine(), "digest": "", "media": "", "structure_bytes": 0, "notes": notes}
    streams = {"item": _mine(), "cost": 0, "whole": 1}
    wire.send(sock, b"R", _frame(list(records), records[0].schema, compression))
    wire.send(sock, b"Q", _frame([pa.RecordBatch.from_pylist([region], PARSED_REGIONS)], PARSED_REGIONS))
    wire.send(sock, b"T", _frame([pa.RecordBatch.from_pylist([streams], wire.STREAMS)], wire.STREAMS))
    wire.send(sock, b"I", _frame([pa.RecordBatch.from_pylist([account], PARSED_ITEMS)], PARSED_ITEMS))
    os._exit(0)


def _expanding(codec: str) -> None:
    """A gigabyte of one letter: some kilobytes on the wire, and never whole in our own memory."""
    column = pa.array(["x" * (1 << 20)] * 32, pa.large_string())
    others = _row()
    n = len(column)
    columns = [column if field.name == "text" else pa.repeat(others.column(field.name)[0], n) for field in wire.RECORDS]
    _answer(*[pa.record_batch(columns, schema=wire.RECORDS)] * 32, compression=codec)


def _annotated(*_: str) -> None:
    schema = wire.RECORDS.with_metadata({b"ARROW:schema": b"x", b"pandas": b"{"})
    _answer(_row().replace_schema_metadata(schema.metadata))


def _ids(*_: str) -> None:
    """A row that says itself which record it is."""
    row = _row()
    _answer(row.append_column("id", pa.array([bytes(16)], pa.binary(16))))


def _exception(*_: str) -> None:
    wire.send(_socket(), b"X", b"\x1b[2Jline\n" * 100_000)
    time.sleep(600)


ACTIONS: dict[str, Callable[..., str | None]] = {
    "reach": _reach,
    "write-items": _write_items,
    "begin-again": _begin_again,
    "done": _done,
    "announce": _announce,
    "huge-frame": _huge_frame,
    "hoard": _hoard,
    "expanding": _expanding,
    "annotated": _annotated,
    "exception": _exception,
    "honest": lambda: _answer(_row()),
    "ids": _ids,
    "kind": lambda: _answer(_row(kind="program")),
    "meta": lambda: _answer(_row(meta='{"a":1}{')),
    "meta-list": lambda: _answer(_row(meta="[1]")),
    "locator": lambda: _answer(_row(locator='{"bytes":[0,1]}\n}')),
    "messages": lambda: _answer(_row(kind="chat", messages="[")),
    "long-detail": lambda: _answer(_row(), detail="x" * 1_000_000),
    "long-notes": lambda: _answer(_row(), notes="x" * 1_000_000),
}
