"""Every signal is what its paper says, on real text in many scripts and on whatever else a text can be."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path

import numpy as np
import plain_signals
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prose import DECLARATION

from sheaf.corpus.schema import SCORES
from sheaf.corpus.signals import SIGNAL
from sheaf.prepare import score
from sheaf.prepare.characters import LETTER, SPACELESS, WORD, classes

PAGE = (
    "- Home\n- Terms of Use\n• About us…\n\n"
    'He said "No." Then he left. (He did!) Was it so?\n'
    "JavaScript must be on. This site uses cookies, see our Privacy Policy.\n\n"
    'Lorem ipsum dolor sit amet. LOREM IPSUM dolor... # ## {"a": {}}\n'
    "To be, or not to be: that is the question.\n   To be,  or not to be: that is the question.\n\t\n"
    "Home | About | Home | About | Home | About | Home | About\n"
)
PARTS = (
    *(
        "the",
        "The",
        "to-do",
        "have",
        "with.",
        "“and”",
        "of",
        "#",
        "...",
        "....",
        "…",
        ".",
        "?!",
        '."',
        "。",
        "！」",
        "。a",
    ),
    *(
        "-",
        "•",
        "{",
        "}",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "\u2028",
        "\u00a0",
        "\u3000",
        "\x1c",
        "a",
        "b",
        "cookie policy",
    ),
    *(
        "javascript",
        "uses cookies",
        "lorem ipsum",
        "lorem",
        "語",
        "日本",
        "ก็",
        "ๆ",
        "한국",
        "é",
        "e\u0301",
        "\u0301",
        "😀",
        "𠮷",
        "🏳️‍🌈",
    ),
    *("١٢", "12", "\x00", "\u200b", "\ufeff", "\U0010ffff", "\u0e33", "ﷺ", "ß", "İ", "K"),
)
hostile = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=3)), max_size=60).map("".join)


def measured(*texts: str) -> list[dict[str, int | float]]:
    columns = score.signals(pa.array(texts, pa.large_string()))
    rows = pa.table({name: columns[name] for name in SIGNAL}).to_pylist()
    assert all(math.isfinite(v) for row in rows for v in row.values() if not isinstance(v, str))
    return [{k: v for k, v in row.items() if not k.startswith("language")} for row in rows]


@pytest.mark.parametrize("language", DECLARATION)
def test_every_signal_of_prose_is_what_plain_python_counts(language: str) -> None:
    text = DECLARATION[language]
    twice = f"{text}\n\n{text}\n{text[: len(text) // 2]}"
    assert measured(text, twice) == [plain_signals.signals(text), plain_signals.signals(twice)]


def test_every_signal_of_a_web_page_is_what_plain_python_counts() -> None:
    (row,) = measured(PAGE)
    assert row == plain_signals.signals(PAGE)
    assert row["stop_words"] == 5  # of, to, be, that, the
    assert (row["lorem_ipsum"], row["curly_brackets"], row["javascript_lines"], row["policy_lines"]) == (2, 2, 1, 2)
    assert row["c4_sentences"] == 6  # No. | Then he left. | He did! | Was it so? | and Hamlet, twice


def test_every_signal_of_other_peoples_files_is_what_plain_python_counts() -> None:
    folder = Path(__file__).resolve().parents[3] / "shared" / "testdata" / "charset-normalizer" / "data"
    texts = [data.decode(name) for data, name in _samples(folder)]
    if not texts:
        pytest.skip(f"no test files at {folder}")
    assert measured(*texts) == [plain_signals.signals(text) for text in texts]


def _samples(folder: Path) -> list[tuple[bytes, str]]:
    names = {"arabic-1": "cp1256", "french-1": "cp1252", "korean": "cp949", "turkish": "cp1254", "russian-3": "utf-8"}
    paths = {folder / f"sample-{name}.txt": encoding for name, encoding in names.items()}
    return [(path.read_bytes()[:20_000], encoding) for path, encoding in paths.items() if path.exists()]


@settings(max_examples=300, deadline=None)
@given(st.lists(hostile, max_size=4))
def test_every_signal_of_any_string_is_what_plain_python_counts(texts: list[str]) -> None:
    assert measured(*texts) == [plain_signals.signals(text) for text in texts]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "ab", "語", "\n", "\n\n"]), min_size=20, max_size=120))
def test_repeats_of_few_words_are_what_plain_python_counts(words: list[str]) -> None:
    text = " ".join(words)
    assert measured(text) == [plain_signals.signals(text)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n" * 1000,
        "\u3000 \t",
        "x" * 1_000_000,
        "語" * 300_000,
        "\u0301" * 1000,
        "....." * 1000,
        "a\x00b",
        "{" * 999,
    ],
    ids=[
        "empty",
        "blank",
        "line feeds",
        "wide blanks",
        "one word",
        "one line of Han",
        "marks",
        "dots",
        "NUL",
        "brackets",
    ],
)
def test_degenerate_texts_have_finite_scores(text: str) -> None:
    (row,) = measured(text)
    assert row["characters"] == len(text) and row["bytes"] == len(text.encode())
    assert row["newline_word_ratio"] == 0.0  # a thousand line feeds over no word, too
    assert all(
        0 <= row[name] <= 1
        for name in row
        if name.startswith(("top_", "duplicate_")) or (name.endswith("_lines") and isinstance(row[name], float))
    )


def test_a_long_text_of_repeats_is_measured_in_time_that_grows_with_its_length() -> None:
    text = "spam ham eggs " * 200_000
    (row,) = measured(text)
    assert row["top_3gram"] == pytest.approx(1.0)
    assert row["duplicate_10gram"] == pytest.approx(1.0, abs=1e-4)


def test_bytes_that_are_no_utf8_harm_nothing() -> None:
    raw = [bytes([lead]) * n for lead in (0x80, 0xC3, 0xE2, 0xF0, 0xF8, 0xFF) for n in (1, 2, 3, 5)]
    offsets = pa.array(np.cumsum([0, *map(len, raw)]), pa.int64())
    texts = pa.LargeStringArray.from_buffers(len(raw), offsets.buffers()[1], pa.py_buffer(b"".join(raw)))
    columns = score.signals(texts)
    assert np.all(columns["words"] <= 2) and np.all(np.isfinite(columns["duplicate_5gram"]))


def test_a_slice_of_a_column_and_a_null_are_measured_like_any_text() -> None:
    column = pa.array(["left out", None, "语言 a b", "left out too"], pa.large_string())[1:3]
    words = score.signals(column)["words"]
    assert list(words) == [0, 4]


def test_texts_of_many_blocks_are_measured_as_if_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text[:n] for n in (10, 300, 50) for text in DECLARATION.values()]
    at_once = measured(*texts)
    monkeypatch.setattr(score, "BLOCK_BYTES", 100)
    assert measured(*texts) == at_once


def test_classes_of_characters_are_those_of_unicode() -> None:
    table = classes()
    for code in range(0x110000):
        c = chr(code)
        assert bool(table[code] & LETTER) == c.isalpha()
        assert bool(table[code] & WORD) == (unicodedata.category(c)[0] in "LMN")
        assert bool(table[code] & SPACELESS) == plain_signals.spaceless(c), hex(code)
        assert bool(table[code] & 1) == c.isspace()


def test_the_table_of_signals_has_a_column_each_and_no_other() -> None:
    columns = score.signals(pa.array(["a"], pa.large_string()))
    assert set(columns) == set(SIGNAL)
    assert SCORES.names == ["id", "kind", *SIGNAL]
