"""Gopher's repetition signals: lines, paragraphs and runs of words that occur more than once (Rae et al. 2021, A.1.1).

It sees words as hashes of 64 bits and counts characters in integers. Words get numbers, then level n gives a number to
each run of n words from the numbers of the two runs of n-1 in it, so runs are compared exactly. The trick: a run occurs
twice only if both runs in it do, so each level keeps only the places whose runs of the level below occur twice. Of a
natural text a few percent are left at five words, and levels 5 to 10 cost next to nothing; of a text that repeats
itself all are left, but their table is small. Time O(words) a level, no sort; memory about 50 bytes a word of the
longest text.

Where peers differ. Each character counts once, as the paper asks: datatrove goes on behind a repeated run, so of twelve
repeated words it sees ten at n = 10; it also multiplies the most frequent run's length by its count, which exceeds the
text for "ha ha ha". Of runs equally frequent we take the one that covers most; one that occurs once is no repetition,
and its share is 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sheaf.kernel import kernel

# Columns of the tally.
(
    PARAGRAPHS,
    DUPLICATE_LINES,
    DUPLICATE_PARAGRAPHS,
    DUPLICATE_LINE_CHARACTERS,
    DUPLICATE_PARAGRAPH_CHARACTERS,
    TOP,  # of 2, 3, 4 words
    _,
    _,
    DUPLICATE,  # of 5 … 10 words
    *_,
    COLUMNS,
) = range(15)
TOP_SIZES = (2, 3, 4)
DUPLICATE_SIZES = (5, 6, 7, 8, 9, 10)
_LARGEST = 10

_MIX = np.uint64(0x9E3779B97F4A7C15)


@kernel
def repetition(
    word_hash: NDArray[np.uint64],
    word_length: NDArray[np.int32],
    line_end: NDArray[np.int64],
    line_opens: NDArray[np.bool_],
    ends: NDArray[np.int64],
    tally: NDArray[np.int64],
) -> None:
    """Count the repeats in a block of texts, from what `measure` left, in tally: int64 (rows, COLUMNS), zero before."""
    widest = lines = before = lines_before = 0
    for row in range(len(ends)):
        widest, lines = max(widest, ends[row, 0] - before), max(lines, ends[row, 1] - lines_before)
        before, lines_before = ends[row, 0], ends[row, 1]
    bits = 1
    while 1 << bits < 2 * widest:
        bits += 1
    slots = np.empty(1 << bits, np.int32)
    keys = np.empty(widest, np.uint64)
    place, number = np.empty(widest, np.int32), np.empty(widest, np.int32)
    seen, cover_end = np.empty(widest, np.int32), np.empty(widest, np.int32)
    covered = keys.view(np.int64)  # once places are numbered their keys are done with
    reach = np.empty(widest + 1, np.int64)
    weights = np.empty(lines, np.int64)
    word = line = np.int64(0)  # of a literal 0 numba makes a second version of what it is given to
    for row in range(len(ends)):
        words, last_line, count = ends[row, 0] - word, ends[row, 1], tally[row]
        if words == 0:
            continue
        reach[0] = 0
        for n in range(words):
            reach[n + 1] = reach[n] + word_length[word + n]
        _lines(
            word_hash,
            line_end[line:last_line],
            line_opens[line:last_line],
            word,
            reach,
            keys,
            weights,
            slots,
            number,
            count,
        )
        # level 1: every word is a place
        for n in range(words):
            keys[n], place[n] = word_hash[word + n], n
        alive = words
        _number(keys[:alive], slots, number, seen)
        for size in range(2, _LARGEST + 1):
            alive = _next_level(alive, place, number, seen, keys)
            if alive < 2:
                break
            _number(keys[:alive], slots, number, seen)
            if size <= 4:
                count[TOP + size - 2] = _top(alive, size, place, number, seen, reach, covered, cover_end)
            else:
                count[DUPLICATE + size - 5] = _duplicate(alive, size, place, number, reach)
        word, line = ends[row, 0], last_line


@kernel
def _number(
    keys: NDArray[np.uint64], slots: NDArray[np.int32], number: NDArray[np.int32], seen: NDArray[np.int32]
) -> None:
    """number[n]: where the key of n occurs first; seen[that]: how often. slots: room for a 2^k ≥ 2 len(keys)."""
    bits = 1
    while 1 << bits < 2 * len(keys):
        bits += 1
    mask, shift = (1 << bits) - 1, np.uint64(64 - bits)
    slots[: mask + 1] = -1
    for n in range(len(keys)):
        key = keys[n]
        slot = np.int64((key * _MIX) >> shift)
        first = slots[slot]
        while first >= 0 and keys[first] != key:
            slot = (slot + 1) & mask
            first = slots[slot]
        if first < 0:
            slots[slot] = first = n
            seen[n] = 0
        number[n] = first
        seen[first] += 1


@kernel
def _next_level(
    alive: int,
    place: NDArray[np.int32],
    number: NDArray[np.int32],
    seen: NDArray[np.int32],
    keys: NDArray[np.uint64],
) -> int:
    """Keep the places where this run and the one a word later both occur twice; their keys are both numbers."""
    kept = 0
    for n in range(alive - 1):
        if place[n + 1] == place[n] + 1 and seen[number[n]] > 1 and seen[number[n + 1]] > 1:
            keys[kept] = np.uint64(number[n]) << np.uint64(32) | np.uint64(number[n + 1])
            place[kept] = place[n]
            kept += 1
    return kept


@kernel
def _top(
    alive: int,
    size: int,
    place: NDArray[np.int32],
    number: NDArray[np.int32],
    seen: NDArray[np.int32],
    reach: NDArray[np.int64],
    covered: NDArray[np.int64],
    cover_end: NDArray[np.int32],
) -> int:
    """The characters in the occurrences of the most frequent run, each once; 0 if none occurs twice."""
    most, best = 1, 0
    for n in range(alive):
        run, at = number[n], place[n]
        if run == n:
            covered[run], cover_end[run] = 0, 0
        covered[run] += reach[at + size] - reach[max(at, cover_end[run])]
        cover_end[run] = at + size
    for n in range(alive):
        if number[n] == n and (seen[n] > most or (seen[n] == most > 1 and covered[n] > best)):
            most, best = seen[n], covered[n]
    return int(best)


@kernel
def _duplicate(
    alive: int, size: int, place: NDArray[np.int32], number: NDArray[np.int32], reach: NDArray[np.int64]
) -> int:
    """The characters in runs that occurred before, each once."""
    total = covered = 0
    for n in range(alive):
        if number[n] != n:
            at = place[n]
            total += int(reach[at + size] - reach[max(at, covered)])
            covered = at + size
    return total


@kernel
def _lines(
    word_hash: NDArray[np.uint64],
    line_end: NDArray[np.int64],
    line_opens: NDArray[np.bool_],
    first_word: int,
    reach: NDArray[np.int64],
    keys: NDArray[np.uint64],
    weights: NDArray[np.int64],
    slots: NDArray[np.int32],
    number: NDArray[np.int32],
    count: NDArray[np.int64],
) -> None:
    """Count lines that repeat an earlier one, then paragraphs. keys, weights: room for a hash and a length each."""
    for paragraphs in range(2):
        units = 0
        at = first_word
        for line in range(len(line_end)):
            if line == 0 or not paragraphs or line_opens[line]:
                keys[units], weights[units] = 0, 0
                units += 1
            h = keys[units - 1]
            weights[units - 1] += reach[line_end[line] - first_word] - reach[at - first_word]
            while at < line_end[line]:
                h = ((h ^ word_hash[at]) + np.uint64(1)) * _MIX
                h ^= h >> np.uint64(29)
                at += 1
            keys[units - 1] = h
        _count_repeats(keys[:units], weights, slots, number, count, paragraphs)


@kernel
def _count_repeats(
    keys: NDArray[np.uint64],
    weights: NDArray[np.int64],
    slots: NDArray[np.int32],
    number: NDArray[np.int32],
    count: NDArray[np.int64],
    paragraphs: int,
) -> None:
    seen = np.empty(len(keys), np.int32)
    _number(keys, slots, number, seen)
    for n in range(len(keys)):
        if number[n] != n:
            count[DUPLICATE_LINES + paragraphs] += 1
            count[DUPLICATE_LINE_CHARACTERS + paragraphs] += weights[n]
    if paragraphs:
        count[PARAGRAPHS] = len(keys)
