"""Train on the ranks of a Ray cluster: an existing one (RAY_ADDRESS), or one started on this machine.

Every rank is a task of Ray Core in a bundle of one placement group, with as many CPUs as fit for all (and a GPU each,
where the cluster has so many); it runs `sheaf.train.worker`, as under torchrun. Ray's part is to place the ranks, to
say when one ended, and to notice nodes that are gone. What follows then is our own rules (`supervise.Restarts`): all
start again from the newest checkpoint, on nodes that are there now. The run's folder and the corpus must lie on a disk
that all nodes reach under the same path. (Ray Train would bring a second set of checkpoints, restarts and reports
beside ours, and a good part of Ray's optional packages.)

Cost: joining the cluster, 2 s; a start of the ranks, what importing torch takes on each node.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from sheaf.console import Console
from sheaf.engine.ray import Cluster
from sheaf.errors import EnvironmentProblem
from sheaf.parallel.launch import FAILURE_SECONDS, STOP_SECONDS, STOPPED, Ended, Failed, blamed
from sheaf.processes import StopSignals
from sheaf.train import journal
from sheaf.train.checkpoint import newest_step
from sheaf.train.ray_rank import place, run_rank
from sheaf.train.run import Run
from sheaf.train.supervise import supervised

PLACE_SECONDS = 60.0  # for a cluster that is busy, or grows, to make room
POLL_SECONDS = 0.2


def train_on_ray(run: Run, ranks: int, console: Console) -> Run:
    """Train a run to its end. Returns it with its result. The run is held by its rank 0, not by this process.

    Raises what `supervise` raises, and EnvironmentProblem if the cluster cannot be joined or has no room.
    """
    with _joined(ranks) as cluster:

        def start(slots: Sequence[int], signals: StopSignals, moved: Callable[[int], None]) -> Ended:
            with _placed(cluster.ray, len(slots)) as group:
                return _Start(cluster, group, run, len(slots)).wait(signals, moved)

        return supervised(run, ranks, console, start, where="on the Ray cluster")


@contextmanager
def _joined(ranks: int) -> Generator[Cluster]:
    cluster = Cluster.join(ranks)
    try:
        yield cluster
    finally:
        cluster.leave()


@contextmanager
def _placed(ray: Any, ranks: int) -> Generator[Any]:
    """A placement group with a bundle for each rank."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = _cpus_each([node.get("CPU", 0.0) for node in nodes], ranks)
    gpus = {"GPU": 1} if sum(node.get("GPU", 0.0) for node in nodes) >= ranks else {}
    group = ray.util.placement_group([{"CPU": cpus, **gpus}] * ranks, strategy="PACK")
    try:
        if not group.wait(PLACE_SECONDS):
            raise EnvironmentProblem(
                f"the Ray cluster has no room for {ranks} ranks",
                why=f"{len(nodes)} nodes have {sum(node.get('CPU', 0) for node in nodes):g} CPUs, some perhaps taken",
                fix="start nodes, wait until others' tasks are done, or lower --nproc",
            )
        yield group
    finally:
        with contextlib.suppress(Exception):  # of a cluster that is gone
            ray.util.remove_placement_group(group)


def _cpus_each(nodes: Sequence[float], ranks: int) -> int:
    """The most CPUs a rank with which all ranks fit on the nodes; 1 if they do not fit at all."""
    most = int(max(nodes, default=1))
    return next((n for n in range(most, 0, -1) if sum(int(cpus) // n for cpus in nodes) >= ranks), 1)


class _Start:
    """One start of all ranks."""

    def __init__(self, cluster: Cluster, group: Any, run: Run, ranks: int) -> None:
        ray = self.ray = cluster.ray
        self.run = run
        self.began = newest_step(run.folder)
        self.at = time.time()
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        bundle = group.bundle_specs[0]
        how = {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0), "max_retries": 0}
        how |= {"runtime_env": cluster.environment}
        here = [{**how, "scheduling_strategy": strategy(group, placement_group_bundle_index=i)} for i in range(ranks)]
        places = [json.loads(x) for x in ray.get([ray.remote(place).options(**one).remote() for one in here])]
        version = importlib.metadata.version("sheaf")
        self.tasks: dict[Any, int] = {}
        for rank, one in enumerate(here):
            environment = _environment(rank, places, int(bundle["CPU"]), "GPU" in bundle)
            request = {"run": str(run.folder), "environment": environment, "version": version}
            task = ray.remote(run_rank).options(name=f"sheaf rank {rank}", **one)
            self.tasks[task.remote(json.dumps(request).encode())] = rank

    def wait(self, signals: StopSignals, moved: Callable[[int], None]) -> Ended:
        """Until all ranks have ended, or were ended because one failed."""
        answers: dict[int, dict[str, Any]] = {}
        running, deadline, asked, told = dict(self.tasks), float("inf"), False, False
        while running and time.monotonic() < deadline:
            for reference in self.ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)[0]:
                answers[running.pop(reference)] = self._answer(reference)
            if signals.received and not asked:
                asked, deadline = True, time.monotonic() + STOP_SECONDS
                for reference in running:
                    self.ray.cancel(reference)
            if any(one["code"] not in (0, *STOPPED) for one in answers.values()) and not asked:
                deadline = min(deadline, time.monotonic() + FAILURE_SECONDS)
            if not told and self._has_moved():
                told = True
                moved(self.began)
        for reference in running:
            self.ray.cancel(reference, force=True)
        if signals.received:
            return Ended(signal=signals.received)
        codes = {rank: answers.get(rank, {"code": -signal.SIGKILL})["code"] for rank in self.tasks.values()}
        if not any(codes.values()):
            return Ended()
        words = {rank: answers.get(rank, {"words": None})["words"] for rank in codes}
        rank = blamed(codes, words)
        lost = tuple(rank for rank, one in answers.items() if one["code"] == -signal.SIGKILL)
        return Ended(failed=Failed(rank, codes[rank] or 0, journal.steps_done(self.run.folder), words[rank], (), lost))

    def _answer(self, reference: Any) -> dict[str, Any]:
        try:
            return json.loads(self.ray.get(reference))
        except self.ray.exceptions.RayError:  # its worker or its node is gone, or was cancelled
            return {"code": -signal.SIGKILL, "words": None}

    def _has_moved(self) -> bool:
        """Whether these ranks have made a step: rank 0 cuts the journal back to the checkpoint before it goes on."""
        path = self.run.folder / journal.STEPS
        return path.exists() and path.stat().st_mtime > self.at and journal.steps_done(self.run.folder) > self.began


def _environment(rank: int, places: Sequence[dict[str, Any]], cpus: int, gpu: bool) -> dict[str, str]:
    """As torchrun would set it. With GPUs, Ray shows each rank its own alone."""
    addresses = [one["address"] for one in places]
    mine = addresses[rank]
    about = {
        "RANK": rank,
        "WORLD_SIZE": len(places),
        "LOCAL_RANK": 0 if gpu else addresses[:rank].count(mine),
        "LOCAL_WORLD_SIZE": addresses.count(mine),
        "GROUP_RANK": sorted(set(addresses), key=addresses.index).index(mine),
        "MASTER_ADDR": addresses[0],
        "MASTER_PORT": places[0]["port"],
        "OMP_NUM_THREADS": cpus,
    }
    if all(address.startswith("127.") for address in addresses):
        about |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    return {name: str(value) for name, value in about.items()}
