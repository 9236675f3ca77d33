"""Words as hashes: the kernel finds the words that a plain Python twin finds, in any script."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from near_shards import plain_words

from sheaf.prepare import words

LANGUAGES = {
    "English": "The old house by the river wasn't sold; nobody knew why. THE OLD HOUSE!",
    "German": "Die Straße war naß, und ÜBER den Dächern lag Nebel. Straße, STRASSE.",
    "French": "L'été dernier, à Besançon : « c'était l’été ». E\u0301te\u0301.",
    "Turkish": "İstanbul'da ılık bir akşam; IĞDIR, ığdır, istanbul.",
    "Greek": "Ο Οδυσσεύς και η ΟΔΟΣ· ὁ ἄνθρωπος, οδος, οδός.",
    "Russian": "Ёлка стояла в углу, ёлка 2024-го года; ЕЛКА.",
    "Arabic": "كَتَبَ الولدُ الدرسَ في ٣ دفاتر، ثم كتب.",
    "Hindi": "हिन्दी में लिखा हुआ पाठ, और हिन्दी।",
    "Chinese": "我们在2024年的Beijing见面，我们走吧。々〇",
    "Japanese": "東京タワーでコーヒーを飲んだ。ﾊﾝｶｸも。",
    "Thai": "ฉันไปตลาดวันที่ ๕ กับ Anna2 ครับ",
    "Korean": "한국어는 띄어쓰기를 합니다. 한국어는!",
    "Code": "def __init__(self, snake_case=3): return self._private__name_ + __x + _",
}


def found(texts: list[str]) -> list[list[int]]:
    hashes, first = words.hashes(pa.array(texts, pa.large_string()))
    return [hashes[first[i] : first[i + 1]].tolist() for i in range(len(texts))]


def assert_same_words(texts: list[str]) -> None:
    """Each word has one hash and each hash one word."""
    pairs = []
    for text, hashes in zip(texts, found(texts), strict=True):
        expected = plain_words(text)
        assert len(hashes) == len(expected), text
        pairs += zip(expected, hashes, strict=True)
    distinct = set(pairs)
    assert len({w for w, _ in distinct}) == len({h for _, h in distinct}) == len(distinct)


def test_the_kernel_finds_the_words_of_the_plain_twin_in_many_languages() -> None:
    assert_same_words(list(LANGUAGES.values()))
    assert plain_words(LANGUAGES["Code"])[:6] == ["def", "init", "self", "snake_case", "3", "return"]
    assert plain_words("我们 ok见面") == ["我", "们", "ok", "见", "面"]


TRICKY = st.sampled_from("_aZ9 .\n\u0301ßſςσΣİıÅé́ก็ำ東ｶﾞ한\u200b\u3000\U0001f600\U00020000\U000e0100\x00")


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.text(st.one_of(TRICKY, st.characters(exclude_categories=["Cs"])), max_size=40), max_size=5))
def test_the_kernel_finds_the_words_of_the_plain_twin_in_any_text(texts: list[str]) -> None:
    assert_same_words(texts)


def test_case_and_final_sigma_make_no_difference() -> None:
    assert found(["ΟΔΟΣ Straße Été"]) == found(["οδος STRAẞE été"])


def test_a_word_keeps_its_hash() -> None:
    # What is stored was made with these: whoever changes them raises minhash.VERSION and candidates.VERSION.
    assert found(["Sheaf 束"]) == [[0xC3497D99FBCC1139, 0xBF2CA776879B3CDC]]


def test_a_part_of_an_array_has_the_words_of_its_texts_alone() -> None:
    texts = [*LANGUAGES.values()]
    hashes, first = words.hashes(pa.array(texts, pa.large_string()).slice(3, 4))
    assert [hashes[first[i] : first[i + 1]].tolist() for i in range(4)] == found(texts[3:7])


def test_nothing_has_no_words() -> None:
    assert found(["", "…!", "a"])[:2] == [[], []]
    assert words.hashes(pa.array([], pa.large_string()))[1].tolist() == [0]
    assert words.hashes(pa.array([None, "a b"], pa.large_string()))[1].tolist() == [0, 0, 2]


@pytest.mark.parametrize("torn", [b"ab \xf0", b"ab \xe4\xb8", b"ab \xf7\xbf\xbf\xbf", b"\x80\xbf\xff\xfe", b"\xc3"])
def test_bytes_that_are_no_utf_8_lead_nowhere(torn: bytes) -> None:
    """What lies behind a text in memory has no part in its words."""
    results = []
    for behind in (b"", b"\xbf\xbf\xbfzz"):
        buffers = [None, pa.py_buffer(np.array([0, len(torn)], np.int64)), pa.py_buffer(torn + behind)]
        results.append(words.hashes(pa.LargeStringArray.from_buffers(1, buffers[1], buffers[2]))[0].tolist())
    assert results[0] == results[1]


def test_alternating_scripts_fit_the_space_reserved_for_words() -> None:
    for text in ("a " * 1001, "a東" * 1001, "東" * 1001, "a", "東a" * 500 + "b"):
        assert len(found([text])[0]) == len(plain_words(text))


@given(st.lists(st.text(max_size=9), max_size=12), st.integers(1, 20), st.integers(0, 3))
def test_pieces_hold_every_text_once_and_few_bytes(texts: list[str], most: int, offset: int) -> None:
    array = pa.array(["x" * 30] * offset + texts, pa.large_string()).slice(offset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "PIECE", most)
        pieces = list(words.pieces(array))
    assert [i for start, stop in pieces for i in range(start, stop)] == list(range(len(texts)))
    for start, stop in pieces:
        assert stop == start + 1 or sum(len(text.encode()) for text in texts[start:stop]) <= most
