"""Named sets of rules over signals, as their papers state them, with variants where the papers' figures mean English.

    gopher    quality and repetition rules of Gopher: Rae et al. 2021 (arXiv 2112.11446), A.1.1 and table A1
    c4        what makes C4 drop a whole page: Raffel et al. 2020 (JMLR 21/140), 2.2. C4 also takes lines out of pages;
              records are not edited here, but lines that C4 would take out count for nothing in its rules
    fineweb   the three filters that FineWeb adds to those two: Penedo et al. 2024 (arXiv 2406.17557), 3.6

Three variants of each rule: for text in English; for other languages that part words by blanks; and for scripts without
spaces (signal `spaceless` above one half), where a word is one character. The bounds of the latter two are not in those
papers: they lie at the generous end of what FineWeb-2 (Penedo et al. 2025, arXiv 2506.20920; `configs/` of its
repository) found language by language. None: the rule does not hold there. A set judges records of kind text: a chat
is no web page. A set's version changes whenever an outcome could.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ENGLISH, OTHER, SPACELESS = 0, 1, 2  # variants, in the order of `SignalRule.bounds`
VARIANTS = ("English", "other languages", "without spaces")


@dataclass(frozen=True)
class Bound:
    """What is kept: least ≤ value ≤ most; with `strict`, the bounds themselves are dropped."""

    least: float | None = None
    most: float | None = None
    strict: bool = False


@dataclass(frozen=True)
class SignalRule:
    """One signal and what is kept of it, by variant. never: languages that it does not judge. source: in the paper."""

    signal: str
    bounds: tuple[Bound | None, Bound | None, Bound | None]
    source: str
    note: str = ""
    never: tuple[str, ...] = ()


@dataclass(frozen=True)
class RuleSet:
    name: str
    version: int
    paper: str
    rules: tuple[SignalRule, ...]


def _alike(signal: str, bound: Bound, source: str, note: str = "") -> SignalRule:
    return SignalRule(signal, (bound, bound, bound), source, note)


def _at_most(signal: str, most: float, source: str) -> SignalRule:
    return _alike(signal, Bound(most=most), source)


def _with_spaces(signal: str, most: float, source: str, note: str = "") -> SignalRule:
    return SignalRule(signal, (Bound(most=most), Bound(most=most), None), source, note)


# Thai and Lao part sentences by blanks or not at all; Khmer, Burmese and Tibetan by marks that hardly end a line.
NO_FULL_STOP = ("bo", "km", "lo", "my", "th")
_QUALITY, _TABLE = "A.1.1, quality filtering", "A.1.1, table A1"

GOPHER = RuleSet(
    "gopher",
    1,
    "Rae et al. 2021 (arXiv 2112.11446)",
    (
        SignalRule(
            "words",
            (Bound(50, 100_000), Bound(50, 100_000), Bound(100, 500_000)),
            _QUALITY,
            "fifty words are about a hundred Chinese characters, and more Thai ones",
        ),
        SignalRule(
            "mean_word_length",
            (Bound(3, 10), Bound(2, 20), None),
            _QUALITY,
            "FineWeb-2 finds 0 to 4 as the least, and mostly 9 to 15, at times 68, as the most",
        ),
        SignalRule(
            "hash_word_ratio",
            (Bound(most=0.1), Bound(most=0.1), Bound(most=0.05)),
            _QUALITY,
            "a word is about two characters",
        ),
        SignalRule(
            "ellipsis_word_ratio",
            (Bound(most=0.1), Bound(most=0.1), Bound(most=0.05)),
            _QUALITY,
            "a word is about two characters",
        ),
        _at_most("bullet_lines", 0.9, _QUALITY),
        _at_most("ellipsis_lines", 0.3, _QUALITY),
        SignalRule(
            "alpha_words",
            (Bound(least=0.8), Bound(least=0.7), Bound(least=0.5)),
            _QUALITY,
            "FineWeb-2 finds 0.69 to 0.9; a full stop among Han characters is a word without a letter, and so is a "
            "Thai vowel sign: sentences go down to 0.59",
        ),
        SignalRule(
            "stop_words",
            (Bound(least=2), None, None),
            _QUALITY,
            "the eight stop words are English",
        ),
        _at_most("duplicate_lines", 0.30, _TABLE),
        _at_most("duplicate_paragraphs", 0.30, _TABLE),
        _at_most("duplicate_line_characters", 0.20, _TABLE),
        _at_most("duplicate_paragraph_characters", 0.20, _TABLE),
        _with_spaces("top_2gram", 0.20, _TABLE, "two characters are one word"),
        _with_spaces("top_3gram", 0.18, _TABLE),
        SignalRule(
            "top_4gram",
            (Bound(most=0.16), Bound(most=0.16), Bound(most=0.20)),
            _TABLE,
            "four characters are about two words, and get the bound of two",
        ),
        _with_spaces("duplicate_5gram", 0.15, _TABLE, "five characters are two or three words"),
        _with_spaces("duplicate_6gram", 0.14, _TABLE),
        _with_spaces("duplicate_7gram", 0.13, _TABLE),
        _with_spaces("duplicate_8gram", 0.12, _TABLE),
        _with_spaces("duplicate_9gram", 0.11, _TABLE),
        SignalRule(
            "duplicate_10gram",
            (Bound(most=0.10), Bound(most=0.10), Bound(most=0.40)),
            _TABLE,
            "ten characters are two to five words; of manuals in Thai, Japanese and Chinese "
            "95% have less than 0.33, 0.23 and 0.16",
        ),
    ),
)

C4 = RuleSet(
    "c4",
    1,
    "Raffel et al. 2020 (JMLR 21/140)",
    (
        _at_most("lorem_ipsum", 0, "2.2"),
        _at_most("curly_brackets", 0, "2.2"),
        SignalRule(
            "c4_sentences",
            (Bound(least=3), Bound(least=3), Bound(least=3)),
            "2.2",
            "in the lines that C4 would keep; no sentence can be told where nothing ends one",
            NO_FULL_STOP,
        ),
    ),
)

FINEWEB = RuleSet(
    "fineweb",
    1,
    "Penedo et al. 2024 (arXiv 2406.17557)",
    (
        SignalRule(
            "terminal_lines",
            (Bound(least=0.12, strict=True), Bound(least=0.05, strict=True), Bound(least=0.05, strict=True)),
            "3.6",
            "FineWeb-2 finds 0 to 0.33",
            NO_FULL_STOP,
        ),
        _alike("duplicate_line_characters", Bound(most=0.1, strict=True), "3.6"),
        SignalRule(
            "short_lines",
            (Bound(most=0.67, strict=True), None, None),
            "3.6",
            "FineWeb-2 does without it",
        ),
        SignalRule(
            "newline_word_ratio",
            (Bound(most=0.3), Bound(most=0.3), Bound(most=0.18)),
            "not in the paper: of datatrove's FineWebQualityFilter",
            "FineWeb-2 has 0.178 for Chinese",
        ),
    ),
)

RULE_SETS: dict[str, RuleSet] = {s.name: s for s in (GOPHER, C4, FINEWEB)}


def signals_of(sets: Sequence[RuleSet]) -> list[str]:
    """The signals that these sets read, each once, with those that choose a variant."""
    names = [rule.signal for rule_set in sets for rule in rule_set.rules]
    return list(dict.fromkeys([*names, *(("language", "spaceless") if sets else ())]))
