"""The language of a record: what py3langid's model says, on any text, in any case, of the whole of a long one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prose import DECLARATION
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from sheaf.prepare import language, score


def named(*texts: str) -> list[tuple[str, float]]:
    """Language and confidence of each."""
    columns = score.signals(pa.array(texts, pa.large_string()))
    return list(zip(columns["language"].to_pylist(), columns["language_confidence"].tolist(), strict=True))


@cache
def identifier() -> LanguageIdentifier:
    """py3langid itself, told to consider the languages that take part."""
    whole = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    whole.set_languages([label for label in whole.labels if language.code_of(label) is not None])
    return whole


def according_to_py3langid(text: str) -> dict[str, float]:
    shares: dict[str, float] = defaultdict(float)
    for label, share in identifier().rank(text):
        code = language.code_of(label)
        assert code is not None
        shares[code] += share
    return shares


def clipped(text: str) -> str:
    return text.encode()[: language.SAMPLE].decode(errors="ignore")


@pytest.mark.parametrize("code", DECLARATION)
def test_the_kernel_says_what_py3langid_says(code: str) -> None:
    text = clipped(DECLARATION[code])
    for part in (text, text[:30], text[40:60], text.upper()):
        ((said, confidence),) = named(part)
        shares = according_to_py3langid(part)
        assert said == max(shares, key=lambda c: shares[c])
        assert confidence == pytest.approx(shares[said], abs=2e-4)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_the_kernel_says_what_py3langid_says_of_any_string(text: str) -> None:
    ((said, confidence),) = named(text)
    assert 0 <= confidence <= 1
    normal = text.encode() == identifier()._encode(text)  # py3langid composes marks; records are composed already
    cased = any("a" <= c <= "z" for c in text) or not any(c.isupper() or c.istitle() for c in text)  # below U+0800
    if normal and cased and said:
        assert confidence == pytest.approx(according_to_py3langid(text)[said], abs=2e-4)


@pytest.mark.parametrize("code", DECLARATION)
def test_prose_is_known_by_a_sentence_and_in_capitals(code: str) -> None:
    text = DECLARATION[code]
    for part in (text, text[:60], text.upper()):
        ((said, confidence),) = named(part)
        assert said == code
        assert confidence > 0.85


@pytest.mark.parametrize(
    "text", ["", " \n", "123 456\n78", "1,2,3\n" * 50, "=====", "😀😀", '{"a": [1, 2, {"b": null}]}']
)
def test_what_is_in_no_language_has_none(text: str) -> None:
    ((said, _),) = named(text)
    assert said == ""


@pytest.mark.parametrize(
    "text", ["John Smith, 12 Main St", "SELECT id, name FROM users WHERE id = 3;", "example.com/a/b?c=d"]
)
def test_names_and_code_have_low_confidence(text: str) -> None:
    ((_, confidence),) = named(text)
    assert confidence < 0.3


def test_a_header_in_another_language_does_not_decide_for_a_long_text() -> None:
    header = DECLARATION["en"] * 2
    ((said, _),) = named(header + "\n" + DECLARATION["es"] * 20)
    assert said == "es"
    assert len(header) > language.SAMPLE


def test_a_text_one_byte_longer_than_the_sample_is_cut_between_characters() -> None:
    for size in range(language.SAMPLE // 3, language.SAMPLE // 3 + 5):
        assert named("日本語の文章です。" * 50, "ก" * size, "語" * size)[0][0] == "ja"
    assert [said for said, _ in named("это очень длинный русский текст о погоде " * 40)] == ["ru"]


def test_varieties_are_counted_to_a_code_of_two_letters() -> None:
    codes = language.model().codes
    assert codes[0] == "" and all(len(code) == 2 for code in codes[1:])
    assert list(codes) == sorted(set(codes))
    assert set(language.VARIETIES) <= set(LanguageIdentifier.from_model_file(MODEL_FILE).nb_classes)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder of the user, and a process that has loaded nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget_what_is_loaded()
    yield tmp_path
    forget_what_is_loaded()


def forget_what_is_loaded() -> None:
    for loaded in (language.model, language.codes, language._kept):
        loaded.cache_clear()


def loaded_anew() -> dict[str, tuple[str, bytes]]:
    forget_what_is_loaded()
    model = language.model()
    assert model.codes == language.codes()
    return {name: (str(getattr(model, name).dtype), getattr(model, name).tobytes()) for name in language.ARRAYS}


def test_the_model_is_unpacked_once_and_a_damaged_copy_is_made_again(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = loaded_anew()
    with monkeypatch.context() as patch:
        patch.setattr(language, "_unpacked", lambda: pytest.fail("it is kept"))
        assert loaded_anew() == unpacked
    (weights,) = cached.rglob("weights_fc.npy")
    whole = weights.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        weights.write_bytes(damaged)
        assert loaded_anew() == unpacked
        assert weights.read_bytes() == whole


@pytest.mark.parametrize("surroundings", [{"XDG_CACHE_HOME": "/dev/null"}, {"XDG_CACHE_HOME": "", "HOME": "/proc"}])
def test_where_nothing_can_be_kept_languages_are_told_all_the_same(
    cached: Path, monkeypatch: pytest.MonkeyPatch, surroundings: dict[str, str]
) -> None:
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    forget_what_is_loaded()
    assert named(DECLARATION["ru"])[0][0] == "ru"
