"""Compile the block once and use it for every layer.

The blocks of a decoder differ in their weights only, and weights are inputs of the graph: torch.compile traces the
first, and the others find its code. So the time to the first step does not grow with depth. Shapes are static: a
training run has one. The compiled code is kept in the user's cache folder, not under /tmp as by default, so that the
second run on a machine starts warm (TORCHINDUCTOR_CACHE_DIR, if set, is respected).

On a processor torch writes C++ and needs a compiler with OpenMP and Python's headers: `compiler_problem` tries them.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Literal

import torch
from torch.utils import cpp_extension

from sheaf.model.decoder import Decoder
from sheaf.model.families import Model

PROBE = "#include <Python.h>\n#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n"


def compile_decoder(model: Model, mode: Literal["on", "off"]) -> None:
    """Compile the blocks in place ("on"), or leave the model eager ("off"). The first step does the compiling."""
    if mode == "off" or not isinstance(model, Decoder):
        return
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_cache_folder()))
    # torch 2.13 writes this folder unquoted into a command line that it then splits like a shell: without this, an
    # environment in a folder with a space in its name could not link.
    cpp_extension.TORCH_LIB_PATH = shlex.quote(str(Path(torch.__file__).parent / "lib"))
    torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())  # tells the compiler
    for block in model.blocks():
        block.compile(fullgraph=True, dynamic=False)


def compiler_problem() -> str:
    """Why torch.compile cannot work on this machine's processor; "" if it can. Builds a program of three lines."""
    compiler = next((c for c in (os.environ.get("CXX"), "g++", "clang++") if c and shutil.which(c)), None)
    if compiler is None:
        return "there is no C++ compiler"
    with tempfile.TemporaryDirectory(prefix="sheaf-compiler-") as folder:
        program = Path(folder) / "probe.cpp"
        program.write_text(PROBE)
        headers = f"-I{sysconfig.get_path('include')}"
        command = [compiler, "-fopenmp", headers, "-c", str(program), "-o", str(Path(folder) / "probe.o")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = done.stderr.strip().splitlines() or ["no message"]
    lines = [line for line in said if "error" in line] or said[-1:]
    return "" if done.returncode == 0 else f"{compiler} cannot build for it: {lines[0].strip()}"


def _cache_folder() -> Path:
    """In the user's cache, or a temporary one if that has a blank in its name: torch's command lines bear none."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    if any(c.isspace() for c in base):
        base = f"{tempfile.gettempdir()}/sheaf-{os.getuid()}"
    return Path(base) / "sheaf" / "inductor"
