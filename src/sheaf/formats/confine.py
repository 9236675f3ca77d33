"""What the child gives up before it sees a byte of data: memory, files, processes, privileges, network.

Limits are the kernel's (setrlimit, prctl, namespaces, Landlock, seccomp), set from inside, after the imports and before
the first item. Each that the system refuses is skipped and reported: the parent's watchdog and the process border
remain. Of the file system only the interpreter's library folders stay readable, for modules that are imported late (a
rare encoding); so /proc, where the parent's environment lies, is out of reach. Without Landlock ("files") it is not.
Network, processes and signals each end twice: by their own means, and because `syscalls` has no call for them.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

from sheaf.formats.landlock import deny_files
from sheaf.formats.syscalls import deny_calls

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
FILE_BYTES = 1 << 20  # the largest file that the child may write: its own error output
CPU_SLACK_SECONDS = 10


def confine(memory_mb: int, parent: int) -> dict[str, bool]:
    """Give it all up; what holds, by name."""
    libc = ctypes.CDLL(None, use_errno=True)
    holds = {
        "network": _no_network(libc),
        "privileges": libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0,
        "parent-death": libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0,
        "memory": _limit(resource.RLIMIT_AS, _mapped_bytes() + (memory_mb << 20)),
        "file-size": _limit(resource.RLIMIT_FSIZE, FILE_BYTES),
        "descriptors": _limit(resource.RLIMIT_NOFILE, 600),
        "core": _limit(resource.RLIMIT_CORE, 0),
        "processes": _limit(resource.RLIMIT_NPROC, 0) and os.geteuid() != 0,  # the kernel spares root
    }
    holds["files"] = deny_files(sys.path)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    if os.getppid() != parent:  # it died before the death signal was set
        os._exit(1)
    calls = holds["syscalls"] = deny_calls()
    for name in ("network", "processes"):
        holds[name] = holds[name] or calls
    return holds


def allow_cpu(seconds: float) -> None:
    """A backstop behind the parent's watch: SIGXCPU after this much more CPU time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + CPU_SLACK_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def _limit(kind: int, value: int) -> bool:
    try:
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    except (OSError, ValueError):
        return False
    return True


def _no_network(libc: ctypes.CDLL) -> bool:
    """An empty network namespace; as an ordinary user inside a user namespace, where the kernel allows those."""
    return libc.unshare(CLONE_NEWNET) == 0 or libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0


def _mapped_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
