"""Rank processes in milliseconds: forks of one process that has already imported everything.

Python and torch take seconds of processor time to import, once a rank and once a restart. Here they are imported once a
launch, by a process of its own that does nothing else (no compute threads, no CUDA: what a fork could not inherit), and
every rank is a fork of it, which runs a module as `python -m` would. The launcher speaks to it over a socket pair, in
JSON, one message a packet:

    start   {"environment", "arguments", "rank", "inherited_as"} and the descriptors to inherit  →  {"pid"}
    kill    {"kill": true}: all ranks' process groups, then reap them            →  {"killed": true}
    unasked                                                            {"ended": pid, "code": n} when a rank has ended

Ranks are not reaped before they are killed: a group whose head is not gone cannot be another's. Every process is bound
to its parent's life: the launcher's end, SIGKILL included, ends them all. Cost: twenty looks a second.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from sheaf.processes import die_with_parent

POLL_SECONDS = 0.05
MESSAGE_BYTES = 1 << 20  # an environment and a command line
IMPORT_SECONDS = 900.0  # from a disk on the network, by all nodes at once
REAP_SECONDS = 10.0  # a process that the kernel cannot end is left behind
PR_SET_NAME = 15
LAUNCHER = "SHEAF_LAUNCHER"  # variable with the pid that a process of ours is bound to
LOST = -signal.SIGKILL  # how ranks end whose forker was killed


class Forker:
    """The launcher's side. Started when a rank is first wanted, and again if it was killed. Use as a context manager.

    module: what a rank runs. imports: modules to import before the first fork. environment: of the forker.
    """

    def __init__(self, module: str, imports: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = [sys.executable, "-P", "-m", "sheaf.parallel.forker", module, *imports]
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._codes: dict[int, int | None] = {}

    def __enter__(self) -> Forker:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def start(
        self,
        rank: int,
        environment: Mapping[str, str],
        arguments: Sequence[str],
        inherited_as: str,
        inherit: Sequence[int],
    ) -> int:
        """Returns the pid of a new rank, the head of a process group. inherit: descriptors it gets, whose numbers there
        the variable `inherited_as` tells."""
        connection = self._connection()
        order = {"environment": environment, "arguments": arguments, "rank": rank, "inherited_as": inherited_as}
        with contextlib.suppress(OSError):
            socket.send_fds(connection, [json.dumps(order).encode()], list(inherit))
            while (answer := self._receive(IMPORT_SECONDS)) is not None:
                if "pid" in answer:
                    self._codes[answer["pid"]] = None
                    return int(answer["pid"])
        return self._lost_rank()

    def code(self, pid: int) -> int | None:
        """The exit code of a rank, negative for the signal that killed it; None while it runs."""
        if self._codes[pid] is None:
            while self._receive(0.0) is not None:
                pass
            if self._process is None or self._process.poll() is not None:
                self._codes = {each: LOST if code is None else code for each, code in self._codes.items()}
        return self._codes[pid]

    def kill(self) -> None:
        """End all ranks, with all that they have started."""
        if self._socket is not None and self._codes:
            with contextlib.suppress(OSError):
                self._socket.send(json.dumps({"kill": True}).encode())
            deadline = time.monotonic() + REAP_SECONDS
            while (left := deadline - time.monotonic()) > 0:
                answer = self._receive(left)
                if answer is not None and "killed" in answer:
                    break
                if answer is None:
                    self._end()
                    break
        self._codes = {}

    def _connection(self) -> socket.socket:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._socket is None:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                # Ranks' standard output goes to stderr: ours may be JSON.
                self._process = subprocess.Popen(
                    [*self._command[:4], str(theirs.fileno()), *self._command[4:]],
                    stdin=subprocess.DEVNULL,
                    stdout=2,
                    env={**self._environment, LAUNCHER: str(os.getpid())},
                    process_group=0,
                    pass_fds=[theirs.fileno()],
                )
        return self._socket

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        """The next message; None if there is none in time, or the forker is gone."""
        if self._socket is None:
            return None
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(MESSAGE_BYTES)
        except (TimeoutError, BlockingIOError, ConnectionError):
            return None
        if not data:
            return None
        message = json.loads(data)
        if "ended" in message and message["ended"] in self._codes:
            self._codes[message["ended"]] = message["code"]
        return message

    def _lost_rank(self) -> int:
        """The forker died before it could fork: as if the rank had been, and was killed. Its number is nobody's pid."""
        self._codes[pid := -1 - len(self._codes)] = LOST
        return pid

    def _end(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # the ranks die with it
            self._process.wait()
        if self._socket is not None:
            self._socket.close()
        self._process = self._socket = None


def main(fd: int, module: str, imports: Sequence[str]) -> int:
    """The forker itself; and in each of its forks, the rank. Returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the launcher's to pass on
    die_with_parent(int(os.environ[LAUNCHER]))
    for name in imports:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a rank would touch, and so copy, every page
    warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # numpy's and Arrow's threads bear a fork
    children: dict[int, int | None] = {}
    forker = os.getpid()
    with socket.socket(fileno=fd) as connection:
        connection.settimeout(POLL_SECONDS)
        while True:
            message, inherited = _next(connection)
            if message is not None and "environment" in message:
                pid = os.fork()
                if pid == 0:
                    connection.close()
                    return _run(module, message, inherited, forker)
                _own_group(pid)
                children[pid] = None
                connection.send(json.dumps({"pid": pid}).encode())
                for each in inherited:
                    os.close(each)
            elif message is not None:
                _kill(children)
                connection.send(json.dumps({"killed": True}).encode())
            _report(children, connection)


def _next(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    try:
        data, inherited, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 16)
    except TimeoutError:
        return None, []
    if not data:
        sys.exit()  # the launcher is gone
    return json.loads(data), inherited


def _run(module: str, order: dict[str, Any], inherited: Sequence[int], forker: int) -> int:
    """Become a rank."""
    _own_group(0)
    name = f"sheaf rank {order['rank']}"
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.environ[order["inherited_as"]] = ",".join(map(str, inherited))
    os.environ[LAUNCHER] = str(forker)
    sys.argv = [module, *order["arguments"]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def _own_group(pid: int) -> None:
    """Both sides do this, so that it is done when either goes on."""
    with contextlib.suppress(OSError):
        os.setpgid(pid, 0)


def _report(children: dict[int, int | None], connection: socket.socket) -> None:
    for pid, known in children.items():
        if known is None and (ended := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            children[pid] = code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            connection.send(json.dumps({"ended": pid, "code": code}).encode())


def _kill(children: dict[int, int | None]) -> None:
    for pid in children:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
    deadline = time.monotonic() + REAP_SECONDS / 2
    for pid in children:
        while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
    children.clear()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
