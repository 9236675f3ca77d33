"""Parsers that misbehave, for the sandbox's tests; loaded into the child only where a test names this file."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sheaf.formats import item
from sheaf.formats.charge import Charges
from sheaf.formats.piece import Context, Pieces, Record, Region
from sheaf.formats.stream import Stream, from_bytes
from sheaf.formats.table import Format

FORMATS = [Format("application/x-mock", "extra:parse", (".mock",), (b"MOCK ",), binary=True)]


def parse(stream: Stream, context: Context) -> Pieces:
    raw = stream.read_all(1 << 20)
    word = raw.split()[1].decode()
    yield Record(f"before {word}", 0, 4, "utf-8")
    text = ACTIONS[word]()
    if isinstance(text, str):
        yield Record(text, 4, len(raw), "utf-8")
    elif text == 2:
        while True:
            yield Record("flood " * 200_000, 0, 0, "utf-8")
    elif text == 3:
        for _ in range(40):
            yield Record("x" * (1 << 20), 0, 0, "utf-8")
        os.kill(os.getpid(), signal.SIGSEGV)
    elif text == 4:
        yield Region(0, 1, "no-such-reason")


def _hang() -> None:
    while True:
        time.sleep(1)


def _spin() -> None:
    while True:
        pass


def _eat() -> None:
    held = []
    while True:
        held.append(bytearray(1 << 24))


def _raise() -> None:
    raise KeyError("a bug")


def _lie() -> None:
    item.charge = lambda *_, **__: Charges([999], [1], [], 0)


def _connect() -> str:
    try:
        with socket.create_connection(("127.0.0.1", int(os.environ.get("PORT", "9"))), timeout=2):
            return "network: open"
    except OSError as error:
        return f"network: {os.strerror(error.errno or 0)}"


def _fork() -> str:
    try:
        subprocess.run(["true"], check=True)
    except OSError as error:
        return f"fork: {os.strerror(error.errno or 0)}"
    return "fork: allowed"


def _write() -> str:
    try:
        with Path("large").open("wb") as file:
            for _ in range(64):
                file.write(b"x" * (1 << 20))
    except OSError as error:
        return f"write: {os.strerror(error.errno or 0)}"
    return "write: allowed"


def _surroundings() -> str:
    inside = Path.cwd().name
    return f"environment: {' '.join(sorted(os.environ))}\nfolder: {inside}\nleader: {os.getsid(0) == os.getpid()}"


def _noise() -> str:
    for _ in range(20_000):
        sys.stdout.write("noise " * 100)
    return "noise made"


def _outside() -> str:
    """What can be reached outside of the process, by whoever takes it over."""
    attempts = {
        "file": lambda: Path("/etc/passwd").read_bytes(),
        "folder": lambda: list(Path("/").iterdir()),
        "parent": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        "itself": lambda: Path("/proc/self/environ").read_bytes(),
        "new": lambda: Path("new").write_bytes(b""),
        "program": lambda: os.execv("/bin/true", ["true"]),
        "library": lambda: Path(os.__file__).read_bytes(),
    }
    return " ".join(f"{name}:{_reached(attempt)}" for name, attempt in attempts.items())


def _reached(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except PermissionError:
        return "refused"
    return "open"


def _killed_once() -> str:
    """Dies as if killed from outside, the first time: the offset of the item's descriptor, shared by all, remembers."""
    for fd in range(3, 4096):
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode) and os.pread(fd, 5, 0) == b"MOCK " and os.lseek(fd, 0, 1) != 1:
                os.lseek(fd, 1, 0)
                os.kill(os.getpid(), signal.SIGKILL)
        except OSError:
            continue
    return "survived"


def _work_long() -> str:
    """Two seconds of processor time, with progress all the while."""
    while time.process_time() < 2.5:
        from_bytes(bytes(1 << 16)).drain()
    return "worked"


def _spin_and_say_so() -> None:
    while True:
        from_bytes(b"x").drain()


def _drip() -> None:
    while True:
        from_bytes(b"x").drain()
        time.sleep(0.05)


def _wait() -> str:
    time.sleep(1.0)
    return "waited"


def _loud() -> str:
    """More on its error output than a file of it may hold."""
    for _ in range(4000):
        try:
            os.write(2, b"complaint " * 100)
        except OSError as error:
            return f"errors: {os.strerror(error.errno or 0)}"
    return "errors: taken"


def _brood() -> str:
    """Processes that outlive it, where the kernel allows any (it spares root)."""
    for _ in range(20):
        try:
            if os.fork() == 0:
                time.sleep(600)
                os._exit(0)
        except OSError as error:
            return f"brood: {os.strerror(error.errno or 0)}"
    return "brood: twenty"


ACTIONS = {
    "loud": _loud,
    "brood": _brood,
    "outside": _outside,
    "killed-once": _killed_once,
    "work-long": _work_long,
    "spin-and-say-so": _spin_and_say_so,
    "drip": _drip,
    "wait": _wait,
    "hang": _hang,
    "spin": _spin,
    "exit": lambda: os._exit(3),
    "segfault": lambda: ctypes.string_at(0),
    "memory": _eat,
    "raise": _raise,
    "lie": _lie,
    "flood": lambda: 2,
    "late-crash": lambda: 3,
    "reason": lambda: 4,
    "connect": _connect,
    "fork": _fork,
    "write": _write,
    "surroundings": _surroundings,
    "noise": _noise,
    "oom-killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
}
