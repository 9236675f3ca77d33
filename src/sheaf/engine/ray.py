"""Runs tasks on a Ray cluster, by Ray Core's tasks: an existing one (RAY_ADDRESS), or one started on this machine.

Ray is asked for the least: run a function somewhere, say when it ended. Its own retries are off, because they would
repeat a task in silence; here a lost task is tried again, up to three workers, and one that has finished never is.
Arguments and answers are JSON, a few kB, and data goes through the workspace; so no object of Ray's store matters, and
a node may die at any time. At most `workers` tasks are under way, however many there are.

A cluster of our own listens on the loopback device only, asks for a token that only this process and its children
know, sends no usage figures, and is gone with its files when the engine is closed or its process ends. Cost: 4 s and
500 MB to start one, 2 s to join one, 2 ms a task.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sheaf.engine.base import Json, Task
from sheaf.engine.failures import ATTEMPTS, Attempt, failure, joined, name, too_many_deaths
from sheaf.engine.ray_worker import serve
from sheaf.engine.worker import encode, one_thread
from sheaf.errors import EnvironmentProblem, MissingExtra, SheafError, UsageError

GRACE_SECONDS = 3.0  # for a cancelled task to clean up
STORE_BYTES = 100 << 20  # of our own cluster: answers are small, and this is about the least that Ray takes
HERE = "this machine"
KNOCK_SECONDS = 10.0
LONGEST_TEMPORARY = 40  # characters: Ray puts Unix sockets some 60 characters deeper, and 107 is the end


class RayEngine:
    """Tasks of Ray Core. Joins the cluster when first used. Use from one thread at a time."""

    def __init__(self, workers: int | None = None, prefixes: Sequence[str] = ("sheaf",)) -> None:
        """workers: tasks under way at once; default as many as the cluster has CPUs. prefixes: as of LocalEngine."""
        if workers is not None and workers < 1:
            raise UsageError(f"an engine needs at least one worker, not {workers}", fix="give a number from 1 up")
        self._workers = workers
        self._prefixes = tuple(prefixes)
        self._cluster: Cluster | None = None

    @property
    def workers(self) -> int:
        return self._workers or self._joined().cpus

    def run(
        self, tasks: Iterable[Task], progress: Callable[[int], None] | None = None
    ) -> Generator[tuple[Task, Json], None, None]:
        """Yield (task, result) as tasks finish. `tasks` is drawn from only as workers become free.

        Raises as LocalEngine.run does, and EnvironmentProblem if the cluster cannot be joined or cannot run sheaf.
        """
        with _Run(self._joined(), self._prefixes, self.workers, iter(tasks)) as run:
            for task, result in run.results():
                if progress is not None:
                    progress(task.weight)
                yield task, result

    def close(self) -> None:
        """Leave the cluster; end it if it is ours. A later run would join again."""
        if self._cluster is not None:
            self._cluster.leave()
            self._cluster = None

    def _joined(self) -> Cluster:
        if self._cluster is None:
            self._cluster = Cluster.join(self._workers)
        return self._cluster


class Cluster:
    """Our place in a cluster. ray: the module, which is imported when first needed. environment: the `runtime_env` that
    every task needs there."""

    def __init__(self, ray: Any, *, ours: bool, temporary: Path | None = None) -> None:
        self.ray, self._ours, self._temporary = ray, ours, temporary
        self.environment = _environment(ray) if ours else {}  # who joined before us has said what workers need
        self.cpus = int(ray.cluster_resources().get("CPU", 0))
        if self.cpus < 1:
            self.leave()
            raise EnvironmentProblem("the Ray cluster has no CPU to run tasks on", fix="start nodes: `ray start`")

    @staticmethod
    def join(workers: int | None) -> Cluster:
        address = os.environ.get("RAY_ADDRESS", "")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not address:
            _keep_to_ourselves()
        try:
            ray = importlib.import_module("ray")  # after its environment is set: some of it is read once
        except ImportError as error:
            raise MissingExtra("ray", "the engine 'ray'") from error
        if ray.is_initialized():  # by a program that uses us
            return Cluster(ray, ours=False)
        _keep_off_stdout(ray)
        with _sigterm_kept(), _told(address or HERE):
            if address:
                _knock(address)
                ray.init(address=address, log_to_driver=False, logging_level="error")
                return Cluster(ray, ours=True)
            return Cluster.start(ray, workers or len(os.sched_getaffinity(0)))

    @staticmethod
    def start(ray: Any, cpus: int) -> Cluster:
        """One of our own, on this machine."""
        temporary = _temporary_folder()
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                object_store_memory=STORE_BYTES,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(temporary),
            )
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return Cluster(ray, ours=True, temporary=temporary)

    def leave(self) -> None:
        if self._ours:
            with _sigterm_kept():
                self.ray.shutdown()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


class _Run:
    """One call of RayEngine.run: hands out tasks, collects answers, retries after deaths."""

    def __init__(self, cluster: Cluster, prefixes: Sequence[str], workers: int, tasks: Iterator[Task]) -> None:
        self.ray, self.prefixes, self.workers, self.tasks = cluster.ray, prefixes, workers, tasks
        # One core each; the local engine's variables, although Ray's own worker has loaded some libraries before.
        environment = {**cluster.environment, "env_vars": one_thread()}
        self.remote = self.ray.remote(num_cpus=1, max_retries=0, runtime_env=environment)(serve)
        self.version = importlib.metadata.version("sheaf")
        self.again: deque[Attempt] = deque()
        self.running: dict[Any, Attempt] = {}
        self.failure: SheafError | None = None

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        """Left early (Ctrl-C, an error in the consumer): nobody would take these answers."""
        for force in (False, True):  # asked first, so that `finally` blocks remove temporary files
            if self.running:
                for reference in self.running:
                    self.ray.cancel(reference, force=force)
                _, left = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=GRACE_SECONDS)
                self.running = {reference: self.running[reference] for reference in left}

    def results(self) -> Iterator[tuple[Task, Json]]:
        self._hand_out()
        while self.running:
            ended, _ = self.ray.wait(list(self.running), num_returns=1)
            for reference in ended:
                finished = self._hear(reference, self.running.pop(reference))
                self._hand_out()  # before the consumer takes its time
                if finished is not None:
                    yield finished
        if self.failure is not None:
            raise self.failure

    def _hand_out(self) -> None:
        while self.failure is None and len(self.running) < self.workers:
            attempt = self._next()
            if attempt is None:
                return
            task = attempt.task
            asked = {"function": task.function, "arguments": task.arguments, "prefixes": list(self.prefixes)}
            request = encode({**asked, "version": self.version})
            self.running[self.remote.options(name=name(task)).remote(request)] = attempt

    def _next(self) -> Attempt | None:
        if self.again:
            return self.again.popleft()
        task = next(self.tasks, None)
        return None if task is None else Attempt(task)

    def _hear(self, reference: Any, attempt: Attempt) -> tuple[Task, Json] | None:
        """Take in how a task ended; a pair if it finished."""
        gone = self.ray.exceptions
        try:
            answer: Json = json.loads(self.ray.get(reference))
        except gone.LocalRayletDiedError as error:
            self._failed(_lost_cluster(error))
            return None
        # OutOfMemoryError: Ray's own watch ended the worker; ObjectLostError: an answer died with its node.
        except (gone.WorkerCrashedError, gone.NodeDiedError, gone.OutOfMemoryError, gone.ObjectLostError) as error:
            self._died(attempt, error)
            return None
        except gone.RayError as error:
            self._failed(_unfit(error))
            return None
        if "result" in answer:
            return attempt.task, answer["result"]
        self._failed(failure(attempt.task, answer))
        return None

    def _died(self, attempt: Attempt, error: Exception) -> None:
        attempt.deaths += 1
        if attempt.deaths < ATTEMPTS:
            self.again.append(attempt)
            return
        fix = "the nodes may be out of memory: give tasks fewer CPUs of a node, or look into Ray's logs there"
        self._failed(too_many_deaths(attempt.task, _line(error), fix))

    def _failed(self, error: SheafError) -> None:
        self.failure = joined(self.failure, error)


def _keep_to_ourselves() -> None:
    """Before a cluster of our own: Ray reads these when it is imported, and its processes inherit them."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # bind to 127.0.0.1, as it does there
    if not any(f"RAY_AUTH_{what}" in os.environ for what in ("MODE", "TOKEN", "TOKEN_PATH")):
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = _token()


def _environment(ray: Any) -> dict[str, str]:
    """Ray hands the interpreter's path to a shell as it is: one with a blank in it would never start a worker, and the
    tasks would wait for ever. Other machines have a path of their own, that we do not know."""
    quoted = shlex.quote(sys.executable)
    if quoted == sys.executable:
        return {}
    elsewhere = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]} - {ray.util.get_node_ip_address()}
    return {} if elsewhere else {"py_executable": quoted}


def _knock(address: str) -> None:
    """Raises OSError if nobody listens there: Ray itself asks for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()


def _keep_off_stdout(ray: Any) -> None:
    """Ray prints what its daemons say (a worker died …) to stdout, where our data goes; no option changes that."""
    inside: Any = getattr(getattr(ray, "_private", None), "worker", None)
    if hasattr(inside, "print_to_stdstream"):
        inside.print_to_stdstream = lambda *_, **__: None


@functools.cache
def _token() -> str:
    return secrets.token_hex(32)


def _temporary_folder() -> Path:
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="sheaf-", dir=usual if len(usual) <= LONGEST_TEMPORARY else "/tmp"))


@contextlib.contextmanager
def _sigterm_kept() -> Generator[None]:
    """Ray sets a handler of its own, which would end the process without our clean-up."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _told(where: str) -> Generator[None]:
    """Turn what Ray raises when a cluster cannot be joined or started into an error that says so."""
    try:
        yield
    # It raises bare RuntimeError, ValueError and OSError among others, and its own errors.
    except Exception as error:
        at_home = where == HERE
        raise EnvironmentProblem(
            "a Ray cluster cannot be started here" if at_home else "the Ray cluster cannot be joined",
            where=where,
            why=_line(error),
            fix="leave out `--engine ray` to use this machine's processes"
            if at_home
            else "correct RAY_ADDRESS (host:6379 of the head node, or auto), or unset it to use this machine alone",
        ) from error


def _lost_cluster(error: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(
        "this machine has lost the Ray cluster",
        why=_line(error),
        fix="run the same command again: what was finished is kept",
    )


def _unfit(error: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(
        "a node of the Ray cluster cannot run sheaf's tasks",
        why=_line(error),
        fix="install the same sheaf, with the same Python, on every node",
    )


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
