"""The table of signals: what is measured of every record's text, and which paper it comes from.

A signal is a fact ("a fifth of the lines are repeats"), never a judgement: what follows from it is a rule of the recipe
(`prepare.rule_sets`, or an expression). The schema of scores, the kernel that fills it and docs/scores.md are all made
from this table.

What the words in it mean, for every signal alike:
  blank      a character that Python's `str.isspace` calls so.
  word       a maximal run of characters that are not blank; in it every letter, mark and digit of a script written
             without spaces (Han, Kana, Thai, Lao, Khmer, Myanmar, Tibetan) is a word by itself.
  line       what lies between line feeds, blanks at both ends left out; a blank one counts only in `lines`.
  paragraph  lines without a blank line between them.
  share of characters   of those that are not blank: a repeat of ten letters weighs the same however it is indented.
Two words are equal when their characters are; two lines, paragraphs or n-grams when their words are. A share or mean
of nothing is 0, so every score is finite.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

GOPHER_QUALITY = "Gopher quality: Rae et al. 2021 (arXiv 2112.11446), A.1.1"
GOPHER_REPETITION = "Gopher repetition: Rae et al. 2021 (arXiv 2112.11446), A.1.1, table A1"
C4 = "C4: Raffel et al. 2020 (JMLR 21/140), 2.2"
FINEWEB = "FineWeb: Penedo et al. 2024 (arXiv 2406.17557), 3.6"
SIZE = "size"
LANGUAGE = "language"


@dataclass(frozen=True)
class Signal:
    """One column of scores: its name, its Arrow type, what it says, whose it is and what the paper does with it."""

    name: str
    type: pa.DataType
    meaning: str
    paper: str
    bound: str = ""  # what the paper keeps, in its own figures; "" if it is not a paper's


def _count(name: str, meaning: str, paper: str, bound: str = "") -> Signal:
    return Signal(name, pa.int64(), meaning, paper, bound)


def _ratio(name: str, meaning: str, paper: str, bound: str = "") -> Signal:
    # float64: as float32 a share of exactly 0.1 is greater than the 0.1 of a rule.
    return Signal(name, pa.float64(), meaning, paper, bound)


_TOP = {2: 0.20, 3: 0.18, 4: 0.16}
_DUPLICATE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}

SIGNALS: tuple[Signal, ...] = (
    _count("characters", "Unicode characters", SIZE),
    _count("bytes", "bytes as UTF-8", SIZE),
    _count("words", "words", GOPHER_QUALITY, "50 to 100,000"),
    _count("lines", "line feeds plus one", SIZE),
    _ratio("spaceless", "share of the letters that are of a script written without spaces", SIZE),
    Signal(
        "language",
        pa.string(),
        'ISO 639-1 code of the likeliest language; "" for none: no letters, numbers, markup, much code',
        LANGUAGE,
    ),
    _ratio(
        "language_confidence", "how sure that is, 0 to 1: low for names, mixtures, code, very short texts", LANGUAGE
    ),
    _ratio("mean_word_length", "characters a word", GOPHER_QUALITY, "3 to 10"),
    _ratio("hash_word_ratio", "hash signs a word", GOPHER_QUALITY, "at most 0.1"),
    _ratio("ellipsis_word_ratio", 'ellipses ("..." or "…") a word', GOPHER_QUALITY, "at most 0.1"),
    _ratio("bullet_lines", "share of the lines that begin with a bullet", GOPHER_QUALITY, "at most 0.9"),
    _ratio("ellipsis_lines", "share of the lines that end with an ellipsis", GOPHER_QUALITY, "at most 0.3"),
    _ratio("alpha_words", "share of the words with at least one letter", GOPHER_QUALITY, "at least 0.8"),
    _count(
        "stop_words",
        'how many of the eight words "the be to of and that have with" occur, in any case and beside any punctuation',
        GOPHER_QUALITY,
        "at least 2",
    ),
    _ratio("duplicate_lines", "share of the lines that repeat an earlier one", GOPHER_REPETITION, "at most 0.30"),
    _ratio(
        "duplicate_paragraphs", "share of the paragraphs that repeat an earlier one", GOPHER_REPETITION, "at most 0.30"
    ),
    _ratio(
        "duplicate_line_characters",
        "share of characters in lines that repeat an earlier one",
        GOPHER_REPETITION,
        "at most 0.20; FineWeb: less than 0.1",
    ),
    _ratio(
        "duplicate_paragraph_characters",
        "share of characters in paragraphs that repeat an earlier one",
        GOPHER_REPETITION,
        "at most 0.20",
    ),
    *(
        _ratio(
            f"top_{n}gram",
            f"share of characters in the occurrences of the most frequent run of {n} words; 0 if none occurs twice",
            GOPHER_REPETITION,
            f"at most {bound:.2f}",
        )
        for n, bound in _TOP.items()
    ),
    *(
        _ratio(
            f"duplicate_{n}gram",
            f"share of characters in runs of {n} words that occurred before, each character counted once",
            GOPHER_REPETITION,
            f"at most {bound:.2f}",
        )
        for n, bound in _DUPLICATE.items()
    ),
    _ratio("terminal_lines", "share of the lines that end with terminal punctuation", FINEWEB, "more than 0.12"),
    _ratio("short_lines", "share of the lines shorter than 30 characters", FINEWEB, "less than 0.67"),
    _ratio("newline_word_ratio", "line feeds a word", FINEWEB, "at most 0.3 (datatrove's addition)"),
    _count(
        "c4_lines",
        "lines that C4 would keep: 5 words or more, terminal punctuation at the end, no javascript, no policy",
        C4,
    ),
    _count("c4_sentences", "sentences in the lines that C4 would keep", C4, "at least 3"),
    _count("lorem_ipsum", 'occurrences of "lorem ipsum", in any case', C4, "none"),
    _count("curly_brackets", 'occurrences of "{"', C4, "none"),
    _count("javascript_lines", 'lines with "javascript", in any case', C4, "the line goes"),
    _count(
        "policy_lines",
        "lines that speak of terms of use, privacy or cookie policy, use of cookies",
        C4,
        "the line goes",
    ),
)

SIGNAL: dict[str, Signal] = {signal.name: signal for signal in SIGNALS}


def fields() -> list[pa.Field]:
    """The columns of scores, in order."""
    return [pa.field(signal.name, signal.type) for signal in SIGNALS]
