"""Can this machine do the work? A list of checks, each tried for real, with stable ids that scripts may rely on.

`fail` means that some verb cannot work here, `warn` that something will be slower or weaker than it could be. Nothing
leaves the machine, and nothing is left behind. Cost: about ten seconds, most of it starting torch three times (here,
and in the two ranks that exchange a tensor).
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sheaf import __version__, allowance
from sheaf.console import Console, size
from sheaf.files import write_file

Status = Literal["ok", "warn", "fail"]

COLLECTIVE_SECONDS = 120.0  # two ranks start torch and exchange a tensor; a slow disk needs most of it


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `fix` says what to do; empty when nothing is to be done."""

    id: str
    status: Status
    detail: str
    fix: str = ""


def examine(workspace: Path) -> Iterator[Check]:
    """Every check, as it is done. A check that itself breaks is a `fail` that quotes the error."""
    looks: list[tuple[str, Callable[[], Check]]] = [
        ("python.version", _python_version),
        ("python.encoding", _python_encoding),
        ("platform", _platform),
        ("memory", _memory),
        ("files.open", _open_files),
        ("disk.space", lambda: _disk_space(workspace)),
        ("disk.atomic", lambda: _disk_atomic(workspace)),
        ("disk.shm", _shared_memory),
        ("network.loopback", _loopback),
        ("sandbox", _sandbox),
        ("torch.version", _torch_version),
        ("torch.device", _torch_device),
        ("torch.threads", _torch_threads),
        ("torch.bf16", _torch_bf16),
        ("torch.compile", _compiler),
        ("train.collective", _collective),
    ]
    for identity, look in looks:
        try:
            yield look()
        except Exception as error:  # noqa: BLE001 - whatever broke is exactly what doctor is there to report
            yield Check(identity, "fail", f"{type(error).__name__}: {error}")


def summary(checks: Iterable[Check], console: Console) -> dict[str, Any]:
    """{"checks": [{"id", "status", "detail", "fix"}], "ok": n, "warn": n, "fail": n, "version"}."""
    done: list[Check] = []
    with console.stage("checks", None, "checks") as advance:
        for check in checks:
            done.append(check)
            advance(1)
    counts = {status: sum(c.status == status for c in done) for status in ("ok", "warn", "fail")}
    return {"checks": [asdict(c) for c in done], **counts, "version": __version__}


def _python_version() -> Check:
    # An older one cannot have installed us; what is said here goes into bug reports.
    return Check("python.version", "ok", platform.python_version())


def _python_encoding() -> Check:
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        return Check("python.encoding", "warn", f"file names are {encoding}", "set LANG=C.UTF-8")
    return Check("python.encoding", "ok", encoding)


def _platform() -> Check:
    detail = f"{platform.system()} {platform.release()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    if platform.system() != "Linux":
        return Check("platform", "warn", detail, "Sheaf is tested on Linux")
    return Check("platform", "ok", detail)


def _memory() -> Check:
    free = allowance.free_memory()
    if free < 1e9:
        return Check("memory", "fail", f"{size(free)} available", "free some memory: training `tiny` takes about 2 GB")
    if free < 4e9:
        return Check("memory", "warn", f"{size(free)} available", "set `train.micro_batch_tokens` low")
    return Check("memory", "ok", f"{size(free)} available")


def _open_files() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < 512:
        return Check("files.open", "warn", f"{soft} at once", "ulimit -n 4096")
    return Check("files.open", "ok", "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} at once")


def _disk_space(workspace: Path) -> Check:
    place = _nearest_existing(workspace)
    free = shutil.disk_usage(place).free
    detail = f"{size(free)} free at {place}"
    if free < 200e6:
        return Check("disk.space", "fail", detail, "free some space, or set `workspace:` to a larger disk")
    if free < 5e9:
        return Check("disk.space", "warn", detail, "a corpus takes about three times the text that it keeps")
    return Check("disk.space", "ok", detail)


def _disk_atomic(workspace: Path) -> Check:
    """What the store stands on: write, sync, rename over an older file, in the disk that the workspace will be on."""
    place = _nearest_existing(workspace)
    with tempfile.TemporaryDirectory(prefix=".sheaf-doctor-", dir=place) as folder:
        path = Path(folder) / "probe"
        write_file(path, b"old")
        start = time.perf_counter()
        write_file(path, b"new")
        milliseconds = 1000 * (time.perf_counter() - start)
        if path.read_bytes() != b"new":
            return Check("disk.atomic", "fail", f"a rename was lost at {place}", "set `workspace:` to a local disk")
    if milliseconds > 200:
        return Check("disk.atomic", "warn", f"sync and rename take {milliseconds:.0f} ms", "a local disk is faster")
    return Check("disk.atomic", "ok", f"sync and rename in {milliseconds:.1f} ms")


def _nearest_existing(path: Path) -> Path:
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def _shared_memory() -> Check:
    place = Path("/dev/shm")
    if not place.is_dir():
        return Check("disk.shm", "warn", "no /dev/shm", "mount a tmpfs there")
    free = shutil.disk_usage(place).free
    if free < 60e6:
        return Check("disk.shm", "warn", f"{size(free)} free in /dev/shm", "in a container: --shm-size=1g")
    return Check("disk.shm", "ok", f"{size(free)} free in /dev/shm")


def _loopback() -> Check:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 5):
        return Check("network.loopback", "ok", "a port on 127.0.0.1 can be opened and reached")


def _sandbox() -> Check:
    """Limits on memory, descriptors and core dumps hold everywhere; what else can be had depends on the kernel."""
    from sheaf.formats.sandbox import sandbox_level

    level = sandbox_level()
    missing = [name for name, held in level.items() if not held]
    held = ", ".join(name for name, has in level.items() if has)
    if not level.get("memory"):
        return Check("sandbox", "fail", f"parsers cannot be limited in: {', '.join(missing)}", "allow setrlimit")
    if not level.get("network"):
        return Check("sandbox", "warn", f"parsers are limited in {held}; not in {', '.join(missing)}", "a newer kernel")
    return Check(
        "sandbox", "ok", f"parsers are limited in {held}" + (f"; not in {', '.join(missing)}" if missing else "")
    )


def _torch_version() -> Check:
    import torch

    version = str(torch.__version__)
    if not version.startswith("2.13."):
        return Check("torch.version", "fail", version, "pip install 'torch>=2.13,<2.14'")
    return Check("torch.version", "ok", version)


def _torch_device() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("torch.device", "ok", "no GPU: training runs on the processor")
    names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return Check("torch.device", "ok", f"{torch.cuda.device_count()} × {', '.join(sorted(names))}")


def _torch_threads() -> Check:
    import torch

    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    detail = f"{threads} threads on {cores} cores"
    if threads > cores:
        return Check(
            "torch.threads", "warn", detail, f"OMP_NUM_THREADS={cores}: more threads than cores slow torch down"
        )
    return Check("torch.threads", "ok", detail)


def _torch_bf16() -> Check:
    """The default precision: where the processor has no bf16 instructions it is emulated, slower than fp32."""
    import torch

    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Check("torch.bf16", "ok", "the GPU has it")
        return Check("torch.bf16", "warn", "the GPU has none", "set `train.precision: fp32`")

    def seconds(kind: torch.dtype) -> float:
        a = torch.ones(512, 512, dtype=kind)
        times: list[float] = []
        for _ in range(5):
            start = time.perf_counter()
            torch.mm(a, a)
            times.append(time.perf_counter() - start)
        return min(times)

    ratio = seconds(torch.float32) / seconds(torch.bfloat16)
    detail = f"a matrix product takes {1 / ratio:.2f} times the fp32 time"
    if ratio < 0.8:
        return Check("torch.bf16", "warn", detail, "set `train.precision: fp32`")
    return Check("torch.bf16", "ok", detail)


def _compiler() -> Check:
    """torch.compile on a processor writes C++; the same headers and options are tried here."""
    from sheaf.model.compile import compiler_problem

    problem = compiler_problem()
    if problem:
        fix = "install g++ and Python's headers; until then training is not compiled"
        return Check("torch.compile", "warn", problem, fix)
    return Check("torch.compile", "ok", "C++ with OpenMP and Python's headers can be built")


def _collective() -> Check:
    """Two ranks in two processes add their numbers over gloo, as training with --nproc 2 does."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="sheaf-doctor-") as folder:
        command = [sys.executable, "-m", "sheaf.doctor", str(Path(folder) / "store")]
        ranks = [
            subprocess.Popen([*command, str(r)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for r in range(2)
        ]
        try:
            deadline = time.monotonic() + COLLECTIVE_SECONDS
            outputs = [rank.communicate(timeout=max(0.1, deadline - time.monotonic())) for rank in ranks]
        except subprocess.TimeoutExpired:
            return Check("train.collective", "fail", "two processes could not meet in time", "check the firewall of lo")
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    answers = [out.strip() for out, _ in outputs]
    if answers != ["3", "3"]:
        last = (outputs[0][1].strip().splitlines() or [f"answers {answers}"])[-1]
        return Check("train.collective", "fail", last, "training with --nproc needs gloo over the loopback interface")
    seconds = time.perf_counter() - start
    return Check("train.collective", "ok", f"two processes met over gloo in {seconds:.1f} s, starting included")


def _rank(store: str, rank: int) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=Path(store).as_uri(), rank=rank, world_size=2)
    number = torch.tensor([rank + 1])
    dist.all_reduce(number)
    sys.stdout.write(f"{int(number.item())}\n")
    sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    _rank(sys.argv[1], int(sys.argv[2]))
