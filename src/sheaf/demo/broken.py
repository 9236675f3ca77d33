"""What is broken in the demo's data, and what must be said of it: one file for each way in which files break."""

from __future__ import annotations

import sys
import sysconfig
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from sheaf.demo import write
from sheaf.demo.collect import Text, normal
from sheaf.demo.truth import Planted, key_of

if TYPE_CHECKING:
    from sheaf.demo.scatter import Planter

BOMB_BYTES = 64_000_000
_LOCAL_HEADER = 30  # bytes before a zip member's name (APPNOTE 4.3.7)


def plant(planter: Planter, docstrings: Sequence[Text], code: Sequence[Text]) -> None:
    """Real texts, damaged. A demo that found none of a kind does without the files made of it."""
    _whole(planter, "broken/empty.txt", b"", "empty")
    _whole(planter, "broken/bomb.zip", _bomb(), "bomb")
    _whole(planter, "broken/program", _program(), "unsupported")
    plain = [t for t in code if t.text.isascii()]
    if plain:
        longest = max(plain, key=lambda t: (len(t.text), t.name))
        _truncated(planter, longest)
        _whole(planter, "broken/undecodable.txt", _garbled(longest.text), "undecodable")
    rows = [t for t in docstrings if len(t.text) >= 80][:6]
    if rows:
        _bad_lines(planter, rows)


def _whole(planter: Planter, path: str, data: bytes, reason: str) -> None:
    planter.item(Planted("files", path, len(data), reasons={reason: 1}, lost=len(data)), data)


def _truncated(planter: Planter, text: Text) -> None:
    """A zip whose download broke off. Two things are cut short: its only member, whose beginning can still be read, and
    the archive, which has no directory any more."""
    data = write.zipped({text.name: text.text.encode()})
    data = data[: len(data) // 2]
    beginning = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[_LOCAL_HEADER + len(text.name.encode()) :])
    key = key_of(normal(beginning.decode()))
    path = "broken/truncated.zip"
    planter.item(Planted("files", path, len(data), (key,), reasons={"truncated": 2}, lost=None), data)


def _bad_lines(planter: Planter, rows: Sequence[Text]) -> None:
    """A log whose writer was killed now and then: every second line stops in the middle."""
    data, lost, bad = b"", 0, 0
    for row in rows:
        line = orjson.dumps({"name": row.name, "text": row.text})
        cut = line[: len(line) // 2] + b"\n"
        data += line + b"\n" + cut
        lost, bad = lost + len(cut), bad + 1
    keys = tuple(key_of(row.text) for row in rows)
    planted = Planted("files", "broken/lines.jsonl", len(data), keys, reasons={"bad-json": bad}, lost=lost)
    planter.item(planted, data)


def _bomb() -> bytes:
    """A zip of a few dozen kilobytes that opens to 64 MB."""
    return write.zipped({"zeros": bytes(BOMB_BYTES)})


def _garbled(text: str) -> bytes:
    """Text that a failing disk gave back: bytes that no encoding of text has, all over it."""
    data = bytearray(text.encode()[:20_000])
    data = data[: len(data) - 1 + len(data) % 2]  # an odd number of bytes is no UTF-16 either
    for at in range(0, len(data), 7):
        data[at] = (0x00, 0xFF, 0x81, 0x01, 0xFE)[at // 7 % 5]
    return bytes(data)


def _program() -> bytes:
    """Machine code: an extension module of Python, or the interpreter's own first part."""
    found = sorted(
        Path(sysconfig.get_path("platstdlib"), "lib-dynload").glob("*.so"), key=lambda p: (p.stat().st_size, p)
    )
    path = found[0] if found else Path(sys.executable)
    with path.open("rb") as f:
        return f.read(100_000)
