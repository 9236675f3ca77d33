"""The words of many texts as 64-bit hashes: what near-duplicate removal and decontamination compare texts by.

A word is a maximal run of letters, marks and digits (Unicode categories L, M, N), lower-cased character by character;
all else separates, but underscores between two of them join (`snake_case` is one word, `_stress_` is `stress`). A
character of a script written without spaces (Han, kana, Thai, Lao, Khmer, Myanmar, Tibetan) is a word by itself: five
words of Chinese are five characters. Final and other sigma are one letter, as one upper-case letter stands for both.

A word's hash is a multiplicative hash of its code points, mixed by the finaliser of MurmurHash3 (Appleby, public
domain). It is not keyed: who writes texts to collide can do so. By chance two of a billion distinct words collide with
probability 0.03.

Cost: one pass over the UTF-8 bytes, no Python object a record or a word; some 300 MB/s a core (`bench/near.py`).
Memory: 8 bytes a word, so texts are given in pieces (`pieces`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sheaf.kernel import kernel, read_only
from sheaf.prepare.characters import SPACELESS, WORD, classes

PIECE = 1 << 23  # bytes: their words and all that is made of them fit in some 50 MB
_ALONE = 1 << 30  # flag of a folded code point: a word by itself
_JOINS = 1 << 29  # flag of the underscore
_CODE = _JOINS - 1
_PRIME = np.uint64(0x9E3779B97F4A7C15)  # odd, without structure: 2^64 / golden ratio
_MIX_1, _MIX_2, _SHIFT = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53), np.uint64(33)


def hashes(texts: pa.LargeStringArray) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """uint64 (words,) of all texts, one after another, and int64 (texts + 1,): text i has [first[i], first[i + 1]).

    texts: of type large_string. A null has no words.
    """
    data, offsets = _buffers(texts)
    size = int(offsets[-1] - offsets[0])
    # A word takes two bytes at least, a separator or its own second byte included; but for the last of a text.
    found = np.empty((size + len(texts)) // 2 + 1, np.uint64)
    first = np.zeros(len(texts) + 1, np.int64)
    count = _hash_words(data, offsets, _folded(), found, first)
    return found[:count], first


def pieces(texts: pa.LargeStringArray) -> Iterator[tuple[int, int]]:
    """[start, stop) of the pieces in which many texts are gone through: one text, or as many as have `PIECE` bytes."""
    _, offsets = _buffers(texts)
    start = 0
    while start < len(texts):
        stop = max(int(np.searchsorted(offsets, offsets[start] + PIECE, "right")) - 1, start + 1)
        yield start, stop
        start = stop


def _buffers(texts: pa.LargeStringArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """UTF-8 bytes, and int64 (texts + 1,), where each text begins in them."""
    buffers: list[Any] = texts.buffers()
    if buffers[1] is None or buffers[2] is None:
        return read_only(np.zeros(0, np.uint8)), read_only(np.zeros(len(texts) + 1, np.int64))
    offsets = np.frombuffer(buffers[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return read_only(np.frombuffer(buffers[2], np.uint8)), read_only(offsets)


@cache
def _folded() -> NDArray[np.int32]:
    """int32 (0x200000,): the lower case of each code point, and flags; 0: a separator."""
    flags = classes()
    table = np.zeros(len(flags), np.int32)
    members = np.flatnonzero(flags & WORD)
    table[members] = [_lower(code) for code in members.tolist()]
    table[flags & SPACELESS != 0] |= _ALONE
    table[ord("_")] = _JOINS
    return table


def _lower(code: int) -> int:
    """The one code point that stands for this one: "İ" lowers to two, whose first is the letter."""
    lowered = ord(chr(code).lower()[0])
    return ord("σ") if lowered == ord("ς") else lowered


@kernel
def _mixed(h: np.uint64) -> np.uint64:
    h = (h ^ (h >> _SHIFT)) * _MIX_1
    h = (h ^ (h >> _SHIFT)) * _MIX_2
    return h ^ (h >> _SHIFT)


@kernel
def _hash_words(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    folded: NDArray[np.int32],
    found: NDArray[np.uint64],
    first: NDArray[np.int64],
) -> int:
    """Fill `found` and `first`; returns the number of words."""
    count = 0
    for row in range(len(first) - 1):
        at, end = offsets[row], offsets[row + 1]
        h = np.uint64(0)
        inside, joins = False, 0
        while at < end:
            code = np.int64(data[at])
            at += 1
            if code >= 0xC0:
                more = 1 if code < 0xE0 else (2 if code < 0xF0 else 3)
                code &= 0x3F >> more
                while more > 0 and at < end:  # `at < end`: not even a torn sequence leads out of its text
                    code = code << 6 | np.int64(data[at]) & 0x3F
                    at += 1
                    more -= 1
            letter = np.int64(folded[code])
            if letter & _ALONE:
                if inside:
                    found[count] = _mixed(h)
                    count += 1
                    inside = False
                found[count] = _mixed(np.uint64(letter & _CODE) * _PRIME)
                count += 1
                h, joins = np.uint64(0), 0
            elif letter & _JOINS:
                joins += inside
            elif letter:
                while joins > 0:
                    h = (h ^ np.uint64(_JOINS)) * _PRIME
                    joins -= 1
                h = (h ^ np.uint64(letter)) * _PRIME
                inside = True
            elif inside:
                found[count] = _mixed(h)
                count += 1
                h, joins = np.uint64(0), 0
                inside = False
        if inside:
            found[count] = _mixed(h)
            count += 1
        first[row + 1] = count
    return count
