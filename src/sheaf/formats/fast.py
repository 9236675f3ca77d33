"""Whether the compiled readers of rows and texts (`kernel_rows`) are worth their start.

Loading their compiler takes 0.4 s a process, compiling them some 12 s once a machine. So whoever asks for items
compiles them before it asks for much (`prepared`), and says so to the child, which loads them once it has read much
itself. Without them everything reads the same, more slowly. The address space that they take is set aside at the
child's start: else the memory limit would hold less for the items that come after.
"""

from __future__ import annotations

import functools
import mmap
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

MUCH = 32 << 20  # bytes, after which loading pays
_ROOM = 512 << 20  # of address space
_KERNELS = "sheaf.formats.kernel_rows"

_allowed = False
_seen = 0
_reserve: mmap.mmap | None = None


def reserve() -> None:
    """Set the address space aside, before a limit is put on it."""
    global _reserve
    _reserve = mmap.mmap(-1, _ROOM, prot=0)


def allow(allowed: bool) -> None:
    """allowed: what `prepared` has answered where files can be written."""
    global _allowed
    _allowed = allowed


@functools.cache
def prepared() -> bool:
    """Compile what is not compiled yet; whether a child, which can write nothing, will find it."""
    from sheaf.formats import kernel_rows
    from sheaf.kernel_code import beside

    kernel_rows.warm()
    kept = beside(Path(__file__))
    return all(any(kept.glob(f"{name}-*.nbc")) for name in kernel_rows.ENTRIES)


def worth(size: int) -> bool:
    """Whether `kernel_rows` may be imported, with so many bytes more to read."""
    global _seen, _reserve
    _seen += size
    if not _allowed or _seen < MUCH:
        return False
    if _reserve is not None:
        _reserve.close()
        _reserve = None
    return True


def odd_values(column: pa.ChunkedArray, kind: str, usual: str) -> list[str]:
    """The texts of a column that are not known to be as they should be: those which differ from the usual one, or,
    where the kernels are loaded already, which the one of this kind does not know. kind: "objects" or "byte_places"."""
    if _KERNELS in sys.modules:
        from sheaf.formats import kernel_rows

        return kernel_rows.odd_values(column, kind, usual)
    return column.filter(pc.not_equal(column, usual)).to_pylist()
