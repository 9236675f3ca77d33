"""Tasks for the engine's tests; they run in its workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sheaf.errors import MissingExtra, RecipeError


def double(n: int) -> dict[str, Any]:
    return {"n": 2 * n, "pid": os.getpid()}


def die(tally: str, times: int) -> dict[str, Any]:
    """Kill the own process the first `times` times."""
    with Path(tally).open("a") as f:
        f.write("x")
    deaths = len(Path(tally).read_text())
    if deaths <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"tries": deaths}


def segfault() -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def die_leaving_a_child_that_holds_the_pipe(tally: str) -> dict[str, Any]:
    """A forked child keeps every descriptor open, the answer pipe too."""
    if not Path(tally).exists():
        Path(tally).touch()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(600)
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


def refuse() -> dict[str, Any]:
    raise RecipeError("no such column", where="sheaf.yaml:3", why="because", fix="do this")


def miss() -> dict[str, Any]:
    raise MissingExtra("hf", "exporting")


def blunder(mark: str = "") -> dict[str, Any]:
    if mark:
        Path(mark).touch()
    raise ValueError("of all things")


def return_tuple() -> dict[str, Any]:
    return {"pair": (1, 2)}


def return_nan() -> dict[str, Any]:
    return {"x": float("nan")}


def chatter() -> dict[str, Any]:
    sys.stdout.write("hello from python\n")
    subprocess.run([sys.executable, "-c", "print('{\"result\": {}}')"], check=True)
    return {"stdin": sys.stdin.read() + os.read(0, 10).decode()}


def big(n: int, text: str) -> dict[str, Any]:
    return {"text": text + "y" * n}


def hang(started: str, cleaned: str) -> dict[str, Any]:
    """Announce the own pid and a child's, wait forever, clean up when told to leave."""
    child = subprocess.Popen(["sleep", "600"])
    part = Path(started + ".part")
    part.write_text(f"{os.getpid()} {child.pid}")
    part.rename(started)
    try:
        time.sleep(600)
    finally:
        Path(cleaned).touch()
    return {}


def modules() -> dict[str, Any]:
    return {"modules": sorted(sys.modules), "threads": os.environ.get("OMP_NUM_THREADS")}


def wait_for(path: str) -> dict[str, Any]:
    while not Path(path).exists():
        time.sleep(0.01)
    return {"seen": path}
