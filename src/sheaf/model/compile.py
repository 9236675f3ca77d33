"""Compile the block once and use it for every layer.

The blocks of a decoder differ in their weights only, and weights are inputs of the graph: torch.compile traces the
first, and the others find its code. So the time to the first step does not grow with depth. Shapes are static: a
training run has one. The compiled code is kept in the user's cache folder, not under /tmp as by default, so that the
second run on a machine starts warm (TORCHINDUCTOR_CACHE_DIR, if set, is respected).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from sheaf.model.decoder import Decoder


def compile_decoder(model: Decoder, mode: Literal["on", "off"]) -> None:
    """Compile the blocks in place ("on"), or leave the model eager ("off"). The first step does the compiling."""
    if mode == "off":
        return
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_cache_folder()))
    for block in model.model.layers:
        block.compile(fullgraph=True, dynamic=False)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "sheaf" / "inductor"
