"""The signals of `sheaf.corpus.signals` in plain Python, straight from their papers: what the kernels are held against.

Slow and simple; nothing of it is shared with the kernels but the lists of characters and phrases.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from sheaf.prepare.characters import BULLETS, CLOSERS, NARROW_STOPS, QUOTES, WIDE_STOPS

WITHOUT_SPACES = (
    "CJK UNIFIED",
    "CJK COMPATIBILITY IDEOGRAPH",
    "IDEOGRAPHIC ITERATION",
    "IDEOGRAPHIC CLOSING",
    "IDEOGRAPHIC NUMBER",
    "IDEOGRAPHIC LEVEL",
    "IDEOGRAPHIC RISING",
    "IDEOGRAPHIC DEPARTING",
    "IDEOGRAPHIC ENTERING",
    "VERTICAL IDEOGRAPHIC",
    "HANGZHOU",
    "MASU MARK",
    "HIRAGANA",
    "KATAKANA",
    "COMBINING KATAKANA",
    "HALFWIDTH KATAKANA",
    "VERTICAL KANA",
    "HENTAIGANA",
    "THAI ",
    "LAO ",
    "TIBETAN",
    "MYANMAR",
    "KHMER",
)
STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
STOPS = re.escape(NARROW_STOPS + WIDE_STOPS)
FULL_STOP = re.compile(f"[{STOPS}][{STOPS}{re.escape(CLOSERS)}]*")
Gram = tuple[str, ...]


def signals(text: str) -> dict[str, int | float]:
    words = words_of(text)
    stripped = [line.strip() for line in text.split("\n")]
    lines = [line for line in stripped if line]
    line_words = [tuple(words_of(line)) for line in lines]
    paragraph_words = paragraphs(stripped)
    solid = sum(map(len, words))
    letters = [c for c in text if c.isalpha()]
    kept = [line for line, parts in zip(lines, line_words, strict=True) if c4_keeps(line, parts)]
    dots = text.count("...") + text.count("…")
    return {
        "characters": len(text),
        "bytes": len(text.encode()),
        "words": len(words),
        "lines": text.count("\n") + 1,
        "spaceless": share(sum(map(spaceless, letters)), len(letters)),
        "mean_word_length": share(solid, len(words)),
        "hash_word_ratio": share(text.count("#"), len(words)),
        "ellipsis_word_ratio": share(dots, len(words)),
        "bullet_lines": share(sum(line[0] in BULLETS for line in lines), len(lines)),
        "ellipsis_lines": share(sum(line.endswith(("...", "…")) for line in lines), len(lines)),
        "alpha_words": share(sum(any(c.isalpha() for c in word) for word in words), len(words)),
        "stop_words": len(STOP_WORDS & {core(word) for word in words}),
        "duplicate_lines": share(len(repeats(line_words)), len(lines)),
        "duplicate_paragraphs": share(len(repeats(paragraph_words)), len(paragraph_words)),
        "duplicate_line_characters": share(characters(repeats(line_words)), solid),
        "duplicate_paragraph_characters": share(characters(repeats(paragraph_words)), solid),
        **{f"top_{n}gram": share(top(words, n), solid) for n in (2, 3, 4)},
        **{f"duplicate_{n}gram": share(duplicate(words, n), solid) for n in range(5, 11)},
        "terminal_lines": share(sum(map(terminal, lines)), len(lines)),
        "short_lines": share(sum(len(line) < 30 for line in lines), len(lines)),
        "newline_word_ratio": share(text.count("\n"), len(words)),
        "c4_lines": len(kept),
        "c4_sentences": sum(map(sentences, kept)),
        "lorem_ipsum": lower(text).count("lorem ipsum"),
        "curly_brackets": text.count("{"),
        "javascript_lines": sum("javascript" in lower(line) for line in lines),
        "policy_lines": sum(any(phrase in lower(line) for phrase in POLICY) for line in lines),
    }


def share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def spaceless(c: str) -> bool:
    return unicodedata.category(c)[0] in "LMN" and unicodedata.name(c, "").startswith(WITHOUT_SPACES)


def words_of(text: str) -> list[str]:
    words: list[str] = []
    for run in text.split():
        alone = True  # whether the next character begins a word
        for c in run:
            if alone or spaceless(c):
                words.append(c)
            else:
                words[-1] += c
            alone = spaceless(c)
    return words


def core(word: str) -> str:
    """The word without what is not a letter, mark or digit at its ends; only ASCII letters have a lower case here."""
    solid = [n for n, c in enumerate(word) if unicodedata.category(c)[0] in "LMN"]
    return lower(word[solid[0] : solid[-1] + 1]) if solid else ""


def lower(text: str) -> str:
    return re.sub("[A-Z]+", lambda found: found.group().lower(), text)


def paragraphs(stripped: Sequence[str]) -> list[Gram]:
    blocks = re.split(r"\n{2,}", "\n".join(stripped).strip("\n"))
    return [tuple(words_of(block)) for block in blocks if block]


def repeats(units: Sequence[Gram]) -> list[Gram]:
    """Those that equal an earlier one."""
    return [unit for n, unit in enumerate(units) if unit in units[:n]]


def characters(units: Sequence[Gram]) -> int:
    return sum(len(word) for unit in units for word in unit)


def places(words: Sequence[str], n: int) -> list[Gram]:
    return [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]


def covered(words: Sequence[str], starts: Sequence[int], n: int) -> int:
    """The characters of the words in the runs of n that begin there, each once."""
    return sum(len(words[k]) for k in {start + i for start in starts for i in range(n)})


def top(words: Sequence[str], n: int) -> int:
    grams = places(words, n)
    most = max(Counter(grams).values(), default=0)
    if most < 2:
        return 0
    frequent = [gram for gram, count in Counter(grams).items() if count == most]
    return max(covered(words, [k for k, g in enumerate(grams) if g == gram], n) for gram in frequent)


def duplicate(words: Sequence[str], n: int) -> int:
    seen: set[Gram] = set()
    later: list[int] = []
    for k, gram in enumerate(places(words, n)):
        if gram in seen:
            later.append(k)
        seen.add(gram)
    return covered(words, later, n)


def terminal(line: str) -> bool:
    return line[-1] in NARROW_STOPS + WIDE_STOPS + QUOTES


def c4_keeps(line: str, words: Sequence[str]) -> bool:
    said = lower(line)
    return (
        terminal(line)
        and not line.endswith(("...", "…"))
        and len(words) >= 5
        and "javascript" not in said
        and not any(phrase in said for phrase in POLICY)
    )


def sentences(line: str) -> int:
    """Pieces of a line that end with a full stop: one before a blank, or a wide one, each with what closes it."""
    pieces, start = 0, 0
    for found in FULL_STOP.finditer(line):
        wide = any(c in WIDE_STOPS for c in found.group())
        rest = line[found.end() :]
        if wide or rest[:1].isspace() or not rest:
            pieces += 1
            start = found.end()
    return pieces + bool(line[start:].strip())
