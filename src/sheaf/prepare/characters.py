"""What kind of character each Unicode code point is: two bytes of flags a code point, for kernels to look up.

The table is 4 MiB of address space of which only the pages of the scripts in a text are ever touched; it is built once
a process, in some 30 ms, from Python's own Unicode tables. A four-byte UTF-8 sequence can spell at most 0x1FFFFF, so no
sequence of bytes, valid or not, indexes beyond the table.

The marks that end a sentence follow Unicode's Sentence_Terminal property as far as living scripts use it; quotation
marks count where C4 counts them (a line may end with one), whatever their side.
"""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
from numpy.typing import NDArray

BLANK = 1  # str.isspace
LETTER = 2  # str.isalpha: categories L*
WORD = 4  # letters, marks and digits: categories L*, M*, N*
SPACELESS = 8  # those of them in a script written without spaces
STOP = 16  # ends a sentence
WIDE_STOP = 32  # a STOP after which no blank follows
CLOSER = 64  # quotation marks and brackets that may stand behind a stop
BULLET = 128  # begins a line of a list
QUOTE = 256  # a quotation mark, of either side

# Hangul is written with spaces. Ranges hold punctuation too; only letters, marks and digits of them are SPACELESS.
SPACELESS_RANGES: tuple[tuple[int, int], ...] = (
    (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # radicals
    (0x3005, 0x3007),  # 々〆〇
    (0x3021, 0x302D),  # Hangzhou digits, tone marks
    (0x3031, 0x30FF),  # kana and their repeat marks
    (0x31F0, 0x31FF),  # small kana
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),  # Myanmar
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # halfwidth kana
    (0x1AFF0, 0x1B16F),  # kana
    (0x20000, 0x3FFFD),  # Han, planes 2 and 3
)
NARROW_STOPS = ".!?…‼‽⁇⁈⁉؟۔।॥։՜՞።፧፨။၊៕។༎༏᠃᠉᥄᥅"
WIDE_STOPS = "。！？｡．"
QUOTES = "\"'”’“‘»«›‹」』„‟＂＇〞〟"
CLOSERS = QUOTES + ")]）］】〉》〕｝}"
BULLETS = "-*•‣⁃◦●○■□▪▫▶►◆◇·・–—"

_MEMBERS = {STOP: NARROW_STOPS + WIDE_STOPS, WIDE_STOP: WIDE_STOPS, CLOSER: CLOSERS, BULLET: BULLETS, QUOTE: QUOTES}
_TABLE_SIZE = 0x200000
_ASSIGNED = (range(0x40000), range(0xE0000, 0xE0200))  # the planes between and behind hold nothing but private use


@cache
def classes() -> NDArray[np.uint16]:
    """uint16 (0x200000,): the flags of each code point; 0 for one that is none of these."""
    table = np.zeros(_TABLE_SIZE, np.uint16)
    for block in _ASSIGNED:
        major = np.frombuffer("".join(unicodedata.category(chr(code))[0] for code in block).encode(), np.uint8)
        view = table[block.start : block.stop]
        view[major == ord("L")] |= LETTER | WORD
        view[(major == ord("M")) | (major == ord("N"))] |= WORD
    for low, high in SPACELESS_RANGES:
        view = table[low : high + 1]
        view[view & WORD != 0] |= SPACELESS
    blanks = [code for code in range(0x3001) if chr(code).isspace()]  # U+3000 is the last one
    table[blanks] |= BLANK
    for flag, members in _MEMBERS.items():
        table[[ord(c) for c in members]] |= flag
    return table
