"""One pass over the UTF-8 bytes of many texts: whatever can be counted while reading them, and the words they hold.

`measure` walks each text once, code point by code point, and keeps three automata: of the word it is in, of the line it
is in, and of the phrases that C4 looks for (Aho and Corasick 1975; letter case of ASCII ignored). It counts in integers
only (`tally`); shares are divided later. It also leaves a hash and a length for every word and says where lines and
paragraphs end, so that `repetition` need not see the bytes again.

Cost: some 5 ns a byte; no memory but the caller's arrays. Invalid UTF-8 is counted somehow and harms nothing. What the
counts mean is said in `corpus.signals`; what counts as which character in `characters`.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from sheaf.kernel import kernel
from sheaf.prepare.characters import BLANK, BULLET, CLOSER, LETTER, QUOTE, SPACELESS, STOP, WIDE_STOP, WORD

# Columns of the tally.
(
    CHARACTERS,
    LINE_FEEDS,
    WORDS,
    SOLID,  # characters that are not blank
    LETTERS,
    SPACELESS_LETTERS,
    HASH_SIGNS,
    ELLIPSES,
    CURLY_BRACKETS,
    ALPHA_WORDS,
    STOP_WORDS,
    LINES,  # that are not blank
    BULLET_LINES,
    ELLIPSIS_LINES,
    TERMINAL_LINES,
    SHORT_LINES,
    C4_LINES,
    C4_SENTENCES,
    LOREM_IPSUM,
    JAVASCRIPT_LINES,
    POLICY_LINES,
    COLUMNS,
) = range(22)

ENGLISH_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
SHORT_LINE = 30  # characters
C4_WORDS = 5  # a line
# What C4 looks for, as (phrase, mark). The policy phrases are in C4's code (TensorFlow Datasets), not in its paper.
JAVASCRIPT, POLICY, LOREM = 1, 2, 4
PHRASES: tuple[tuple[str, int], ...] = (
    ("javascript", JAVASCRIPT),
    ("terms of use", POLICY),
    ("privacy policy", POLICY),
    ("cookie policy", POLICY),
    ("uses cookies", POLICY),
    ("use of cookies", POLICY),
    ("use cookies", POLICY),
    ("lorem ipsum", LOREM),
)

_SEED, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)  # FNV-1a, over code points
_MIX = np.uint64(0x9E3779B97F4A7C15)
_STOP_WORD_CODES = np.array([int.from_bytes(word.encode(), "big") for word in ENGLISH_STOP_WORDS], np.uint64)
_LONGEST_STOP_WORD = max(map(len, ENGLISH_STOP_WORDS))


@cache
def phrase_automaton() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """uint8 (states, 128): the state after an ASCII character; uint8 (states,): marks of the phrases that end there."""
    children: list[dict[int, int]] = [{}]
    marks = [0]
    for phrase, mark in PHRASES:
        state = 0
        for byte in phrase.encode():
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
                marks.append(0)
            state = children[state][byte]
        marks[state] |= mark
    table = np.zeros((len(children), 128), np.uint8)
    queue = [(0, 0)]  # states by depth, each with the state of its longest suffix that begins a phrase
    for state, suffix in queue:
        marks[state] |= marks[suffix]
        table[state] = table[suffix] if state else 0
        for byte, child in children[state].items():
            queue.append((child, int(table[state, byte])))
        for byte, child in children[state].items():
            table[state, byte] = child
    for low, high in zip(b"abcdefghijklmnopqrstuvwxyz", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", strict=True):
        table[:, high] = table[:, low]
    return table, np.array(marks, np.uint8)


@kernel
def measure(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    classes: NDArray[np.uint16],
    phrases: NDArray[np.uint8],
    marks: NDArray[np.uint8],
    tally: NDArray[np.int64],
    word_hash: NDArray[np.uint64],
    word_length: NDArray[np.int32],
    line_end: NDArray[np.int64],
    line_opens: NDArray[np.bool_],
    ends: NDArray[np.int64],
) -> None:
    """Count one block of texts.

    data, offsets: the texts' bytes, int64 (rows + 1,) into them. classes: `characters.classes()`. phrases, marks:
    `phrase_automaton()`. Written: tally int64 (rows, COLUMNS), zero before. Of words, at least bytes/2 + rows of room:
    word_hash, word_length (characters). Of lines that are not blank, as much room: line_end, one past the last word;
    line_opens, whether a paragraph begins there. ends int64 (rows, 2): one past the row's last word and last line.
    """
    word = line = 0
    for row in range(len(offsets) - 1):
        count = tally[row]
        at, stop = offsets[row], offsets[row + 1]
        h, length, single, alpha = _SEED, 0, False, 0  # of the word
        core, core_length = np.uint64(0), 0  # its letters and digits, lower-cased; -1 once it can be no stop word
        core_open, found_stop_words = True, 0
        line_first_word, first, last, last_dots = word, 0, 0, 0  # of the line: where its solid characters begin and end
        first_class = last_class = 0
        hits, sentences, pending, stopped = 0, 0, False, 0
        opens, state, dots = True, 0, 0
        while at <= stop:  # behind the last byte stands a line feed that is not counted
            code, size = _code_point(data, at, stop)
            at += size
            kind = classes[code]
            # the word before this character
            if length and (single or kind & (BLANK | SPACELESS)):
                word_hash[word] = (h ^ (h >> np.uint64(32))) * _MIX
                word_length[word] = length
                word += 1
                count[ALPHA_WORDS] += alpha
                if 0 < core_length <= _LONGEST_STOP_WORD:
                    found_stop_words |= _stop_word(core)
                h, length, single, alpha = _SEED, 0, False, 0
                core, core_length, core_open = np.uint64(0), 0, True
            # this character
            count[CHARACTERS] += 1
            if code < 128:
                state = phrases[state, code]
                mark = marks[state]
                if mark:
                    hits |= mark
                    count[LOREM_IPSUM] += (mark & LOREM) != 0
            else:
                state = 0
            if code == 46:
                dots += 1
            elif dots:
                count[ELLIPSES] += dots // 3
                dots = 0
            if not kind & BLANK:
                h = (h ^ np.uint64(code)) * _PRIME
                length += 1
                count[SOLID] += 1
                if kind & LETTER:
                    alpha = 1
                    count[LETTERS] += 1
                if kind & SPACELESS:
                    single = True
                    count[SPACELESS_LETTERS] += (kind & LETTER) != 0
                if kind & WORD:
                    if core_open and code < 128 and core_length >= 0:
                        core = (core << np.uint64(8)) | np.uint64(code | 32)
                        core_length += 1
                    else:
                        core_length = -1
                elif core_length:
                    core_open = False
                count[HASH_SIGNS] += code == 35
                count[CURLY_BRACKETS] += code == 123
                count[ELLIPSES] += code == 0x2026
                if last == 0:
                    first, first_class = count[CHARACTERS], kind
                last, last_class = count[CHARACTERS], kind
                last_dots = 3 if code == 0x2026 else dots
                if kind & STOP:
                    stopped |= 2 if kind & WIDE_STOP else 1
                elif stopped and not kind & CLOSER:
                    sentences += stopped >> 1
                    stopped = 0
                pending = True
                continue
            if stopped:
                sentences += 1
                stopped, pending = 0, False
            if code != 10:
                continue
            # the line before this line feed
            count[LINE_FEEDS] += 1
            if word > line_first_word:
                line_end[line], line_opens[line] = word, opens
                line += 1
                ellipsis = last_dots >= 3
                terminal = (last_class & (STOP | QUOTE)) != 0
                count[LINES] += 1
                count[BULLET_LINES] += (first_class & BULLET) != 0
                count[ELLIPSIS_LINES] += ellipsis
                count[TERMINAL_LINES] += terminal
                count[SHORT_LINES] += last - first + 1 < SHORT_LINE
                count[JAVASCRIPT_LINES] += (hits & JAVASCRIPT) != 0
                count[POLICY_LINES] += (hits & POLICY) != 0
                if (
                    terminal
                    and not ellipsis
                    and word - line_first_word >= C4_WORDS
                    and not hits & (JAVASCRIPT | POLICY)
                ):
                    count[C4_LINES] += 1
                    count[C4_SENTENCES] += sentences + pending
            opens = word == line_first_word
            line_first_word, first, last, last_dots = word, 0, 0, 0
            hits, sentences, pending, stopped = 0, 0, False, 0
        count[CHARACTERS] -= 1
        count[LINE_FEEDS] -= 1
        count[WORDS] = word - (ends[row - 1, 0] if row else 0)
        while found_stop_words:
            count[STOP_WORDS] += found_stop_words & 1
            found_stop_words >>= 1
        ends[row, 0], ends[row, 1] = word, line


@kernel
def _code_point(data: NDArray[np.uint8], at: int, stop: int) -> tuple[int, int]:
    """The code point at a byte and how many bytes it takes; behind the last byte, a line feed."""
    if at == stop:
        return 10, 1
    lead = int(data[at])
    if lead < 0x80:
        return lead, 1
    if lead < 0xE0 and at + 1 < stop:
        return (lead & 0x1F) << 6 | int(data[at + 1] & 0x3F), 2
    if lead < 0xF0 and at + 2 < stop:
        return (lead & 0x0F) << 12 | int(data[at + 1] & 0x3F) << 6 | int(data[at + 2] & 0x3F), 3
    if at + 3 < stop:
        high = (lead & 0x07) << 18 | int(data[at + 1] & 0x3F) << 12
        return high | int(data[at + 2] & 0x3F) << 6 | int(data[at + 3] & 0x3F), 4
    return 0xFFFD, 1


@kernel
def _stop_word(core: int) -> int:
    """A bit for the English stop word that these letters are, 0 if none."""
    for n in range(len(_STOP_WORD_CODES)):
        if _STOP_WORD_CODES[n] == core:
            return 1 << n
    return 0
