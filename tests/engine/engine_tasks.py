"""Tasks for the engine's tests; they run in its workers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from sheaf.console import tell
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


def meet(folder: str, name: str, others: list[str]) -> dict[str, Any]:
    """Return only when all others are under way at the same time. node: who our parent's parent is."""
    (Path(folder) / name).touch()
    while not all((Path(folder) / other).exists() for other in others):
        time.sleep(0.01)
    return {"node": os.getppid()}


def count_in(tally: str) -> dict[str, Any]:
    with Path(tally).open("a") as f:
        f.write("x")
    return {}


def announce_and_wait(tally: str, go: str) -> dict[str, Any]:
    with Path(tally).open("a") as f:
        f.write(f"{os.getpid()}\n")
    return wait_for(go)


def busy(started: str, cleaned: str) -> dict[str, Any]:
    """Until it is told to leave; then clean up."""
    Path(started).touch()
    try:
        while True:
            time.sleep(0.01)
    finally:
        Path(cleaned).touch()


def listening() -> dict[str, Any]:
    """Where the processes of the node that we run on listen: 127.0.0.1, or everywhere."""
    import psutil  # here: the local engine's workers start light, and a test says so

    found: set[str] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if os.getppid() in (process.pid, process.ppid()):
                found |= {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    return {"where": sorted({"127.0.0.1" if ip.endswith("127.0.0.1") else "everywhere" for ip in found})}


def confinement() -> dict[str, Any]:
    """What a parser's process is kept from here."""
    from sheaf.formats.sandbox import sandbox_level

    return {"level": sandbox_level()}


def tell_something(text: str, length: int) -> dict[str, Any]:
    """A note in the middle, from another thread too, before a result that may not fit a pipe."""
    tell(text)
    thread = threading.Thread(target=tell, args=(f"{text}, by a thread",))
    thread.start()
    thread.join()
    return {"long": "x" * length}
