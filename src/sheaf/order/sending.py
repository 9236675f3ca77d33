"""An order on its way to another process: what is mapped from a file is named by its file, not copied.

Columns and packs of a large corpus are gigabytes; a spawned worker maps the same pages of the same files instead.
Arrays that live in memory are sent as they are. How the bytes travel is Python's affair (`multiprocessing`), and only
between our own processes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheaf.corpus.documents import Documents
from sheaf.order.order import Order
from sheaf.order.pack import Pack


@dataclass(frozen=True)
class Mapped:
    """A view of a mapped file: what `np.ndarray` needs to make it again."""

    path: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def open(self) -> NDArray[Any]:
        last = sum(step * (n - 1) for step, n in zip(self.strides, self.shape, strict=True))
        size = last + np.dtype(self.dtype).itemsize
        flat = np.memmap(self.path, np.uint8, "r", offset=self.offset, shape=(size,))
        return np.ndarray(self.shape, self.dtype, flat, 0, self.strides)


@dataclass(frozen=True)
class Sent:
    """An object whose fields are arrays, or such objects."""

    kind: type
    values: dict[str, Any]


def sent(order: Order) -> Sent:
    return _sent(order)


def received(order: Sent) -> Order:
    return _received(order)


def _sent(value: Any) -> Any:
    if isinstance(value, (Order, Documents, Pack)):
        return Sent(type(value), {f.name: _sent(getattr(value, f.name)) for f in fields(value)})
    if isinstance(value, np.ndarray):
        return _mapped(value) or value
    return value


def _received(value: Any) -> Any:
    if isinstance(value, Sent):
        return value.kind(**{name: _received(one) for name, one in value.values.items()})
    return value.open() if isinstance(value, Mapped) else value


def _mapped(array: NDArray[Any]) -> Mapped | None:
    """None for an array that is no view of a mapped file."""
    base: Any = array
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    while isinstance(base, np.memmap) and isinstance(base.base, np.memmap):
        base = base.base
    if not isinstance(base, np.memmap) or base.filename is None or not array.size:
        return None
    offset = base.offset + array.ctypes.data - base.ctypes.data
    return Mapped(str(base.filename), array.dtype.str, offset, array.shape, array.strides)
