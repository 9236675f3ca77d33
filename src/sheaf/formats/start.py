"""Start the sandbox's child: a fresh interpreter with nothing of ours but its socket, and sweep up after dead ones."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa

from sheaf.formats.piece import ParserLimits

FOLDER = "sheaf-sandbox-"
_OWNED = re.compile(FOLDER + r"([0-9]+)-\w+")
_MAIN = (  # our own package first, if the interpreter would not find it by itself: it may know another one
    "import sys; own, *others = sys.argv[6:]; sys.path.extend(others); own in sys.path or sys.path.insert(0, own); "
    "from sheaf.formats.child import main; main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:6])"
)


def start(
    theirs: socket.socket, begun: int, limits: ParserLimits, extra: Path | None, folder: str, errors: IO[bytes]
) -> subprocess.Popen[bytes]:
    """begun: the child's end of `wire.Begun`."""
    own = theirs.fileno(), begun
    arguments = [*map(str, own), str(os.getpid()), orjson.dumps(asdict(limits)).decode(), str(extra or "")]
    return subprocess.Popen(
        [sys.executable, "-IB" if _files_are_cut() else "-I", "-c", _MAIN, *arguments, *_roots()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        cwd=folder,
        env=_environment(folder),
        pass_fds=own,
        start_new_session=True,
    )


def sweep() -> None:
    """Remove the folders of processes that were killed before they could."""
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as found:
        for entry in found:
            owner = _OWNED.fullmatch(entry.name)
            if owner and not Path(f"/proc/{owner[1]}").exists() and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)


def _files_are_cut() -> bool:
    """Whether a file-size limit holds: Python would write half a .pyc, not notice, and never start again."""
    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY


def _roots() -> list[str]:
    """Where our package and its dependencies are: an isolated interpreter does not look at the parent's path."""
    modules: list[Any] = [sys.modules["sheaf"], pa, orjson]
    return list(dict.fromkeys(str(Path(module.__file__).parent.parent) for module in modules))


def _environment(folder: str) -> dict[str, str]:
    """Nothing of ours: no credentials, no proxies; one thread, and memory that is given back."""
    return {
        "LC_ALL": "C.UTF-8",
        "TMPDIR": folder,
        "PYTHONHASHSEED": "0",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",  # Landlock holds one thread only
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        # Memory in pages of 2 MB where the kernel has them, and kept for the next block: pages that are given back are
        # filled with zeros when they come again, which took a third of the time of long texts.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=67108864"
        ":glibc.malloc.mmap_threshold=33554432",
    }
