"""Hosts with a wire between them that has a given rate: two network namespaces of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import pytest

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"),
    reason="network namespaces need root, ip and tc",
)
PORT = 29_511


@contextmanager
def two_hosts(rate: str = "") -> Generator[tuple[str, str]]:
    """Names of two namespaces. rate: of the wire, in words of tc; "": any. Skips where they cannot be made."""
    hosts = f"sheaf-{os.getpid()}-a", f"sheaf-{os.getpid()}-b"
    ends = end_of(hosts[0]), end_of(hosts[1])
    try:
        for host in hosts:
            if subprocess.run(["ip", "netns", "add", host], capture_output=True).returncode:
                pytest.skip("network namespaces cannot be made here")
        _do("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for number, (host, end) in enumerate(zip(hosts, ends, strict=True)):
            _do("ip", "link", "set", end, "netns", host)
            _do("ip", "-n", host, "addr", "add", f"10.98.0.{number + 1}/24", "dev", end)
            _do("ip", "-n", host, "link", "set", end, "up")
            _do("ip", "-n", host, "link", "set", "lo", "up")
            if rate:
                shape = ("rate", rate, "burst", "32kbit", "latency", "400ms")
                _do("tc", "-n", host, "qdisc", "add", "dev", end, "root", "tbf", *shape)
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host], capture_output=True)
        subprocess.run(["ip", "link", "del", ends[0]], capture_output=True)


def end_of(host: str) -> str:
    """A host's interface."""
    return f"s{host.split('-')[1]}{host[-1]}"


def start(hosts: Sequence[str], command: Sequence[str]) -> list[subprocess.Popen[str]]:
    """This Python with a command as ranks 0 …, each on one of these hosts."""
    names = sorted(set(hosts))
    started: list[subprocess.Popen[str]] = []
    for rank, host in enumerate(hosts):
        about = {
            "RANK": rank, "WORLD_SIZE": len(hosts), "LOCAL_RANK": hosts[:rank].count(host),
            "LOCAL_WORLD_SIZE": hosts.count(host), "MASTER_ADDR": "10.98.0.1", "MASTER_PORT": PORT,
            "GLOO_SOCKET_IFNAME": end_of(host), "OMP_NUM_THREADS": 1, "GROUP_RANK": names.index(host),
        }  # fmt: skip
        told = {**os.environ, **{name: str(value) for name, value in about.items()}}
        words = ["ip", "netns", "exec", host, sys.executable, *command]
        started.append(subprocess.Popen(words, env=told, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return started


def ended(processes: Sequence[subprocess.Popen[str]], seconds: float = 120) -> list[str]:
    """What each of them printed; fails with what it complained of if one did not end well."""
    found: list[str] = []
    try:
        for process in processes:
            said, complained = process.communicate(timeout=seconds)
            assert process.returncode == 0, complained
            found.append(said)
    finally:
        for process in processes:
            process.kill()
    return found


def _do(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
