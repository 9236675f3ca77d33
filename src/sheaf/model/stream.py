"""Write a safetensors file tensor by tensor, so that no more than one of them need exist.

The format (github.com/huggingface/safetensors, "Format"): 8 bytes of header length, a JSON header, the raw tensors.
Writing it here rather than with the library takes no copy of a model, can hash the bytes as they go (no second reading
of gigabytes), and lets a full disk be an OSError with its errno. Reading is the library's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import torch
from torch import Tensor

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.int64: "I64"}


def write_stream(
    path: Path,
    described: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    tensor: Callable[[str], Tensor],
    watch: Callable[[memoryview | bytes], object] = lambda _: None,
) -> None:
    """Write a file, synced to disk. described: shape and dtype by name. tensor: of a name, contiguous and on CPU; asked
    for when its turn has come. watch: gets all bytes in their order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (shape, dtype) in described.items():
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:

        def write(part: memoryview | bytes) -> None:
            watch(part)
            view = memoryview(part)
            while view:
                view = view[file.write(view) :]

        write(len(text).to_bytes(8, "little"))
        write(text)
        for name, (shape, dtype) in described.items():
            found = tensor(name)
            if (tuple(found.shape), found.dtype) != (shape, dtype):
                raise ValueError(f"{name} is not what was described")
            write(_bytes_of(found))
        os.fsync(file.fileno())


def _bytes_of(tensor: Tensor) -> memoryview:
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError("only contiguous CPU tensors are written")
    array: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()  # numpy's stubs do not know the buffer protocol
    return memoryview(array)
