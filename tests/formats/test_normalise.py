"""One text has one form."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf.formats.normalise import is_plain, normalise, record_id

MOJIBAKE = "".join(chr(c) for c in range(0x80, 0x100)) + "€‚ƒ„…†‡ˆ‰Š‹Œ–—˜™š›œРСâÃÂ√├Γ"
texts = st.text() | st.text(alphabet=st.sampled_from(MOJIBAKE + "aé\r\n\0\ufeff\u0301 "))


@settings(max_examples=300, deadline=None)
@given(texts, st.booleans())
def test_normalising_twice_changes_nothing_more(text: str, mojibake: bool) -> None:
    once, _ = normalise(text, mojibake)
    assert normalise(once, mojibake) == (once, "")


@settings(max_examples=200, deadline=None)
@given(texts)
def test_the_form_is_nfc_with_plain_line_ends_and_can_be_stored(text: str) -> None:
    form, _ = normalise(text)
    assert unicodedata.is_normalized("NFC", form)
    assert not any(c < " " and c not in "\t\n" for c in form)
    assert form.encode().decode() == form


@pytest.mark.parametrize(
    ("text", "form", "repairs"),
    [
        ("plain\n", "plain", ""),
        ("a\r\nb\rc", "a\nb\nc", "newlines"),
        ("\ufeffa", "a", "bom"),
        ("a\0b\x07", "ab", "controls"),
        ("e\u0301", "é", "nfc"),
        ("ami\ud800", "ami\ufffd", "surrogates"),
        ("schÃ¶n und grÃ¼n", "schön und grün", "mojibake"),
        ("itâ€™s", "it’s", "mojibake"),
        ("РџСЂРёРІРµС‚, РјРёСЂ", "Привет, мир", "mojibake"),
        ("one\r\nÃ© two", "one\né two", "newlines,mojibake"),
    ],
)
def test_each_repair_is_made_and_named(text: str, form: str, repairs: str) -> None:
    assert normalise(text) == (form, repairs)


@pytest.mark.parametrize(
    "text",
    [
        "Ângela e São João",
        "Čeština, žluťoučký kůň",
        "Съешь ещё этих булок",
        "naïve café – “quoted”",
        "维基百科",
        "¡Olé! ¿Qué?",
    ],
)
def test_clean_text_is_left_alone(text: str) -> None:
    assert normalise(text) == (text, "")


def test_mojibake_stays_where_the_recipe_wants_no_repair() -> None:
    assert normalise("schÃ¶n", mojibake=False) == ("schÃ¶n", "")


def test_the_id_is_the_text_s_and_nothing_else_s() -> None:
    assert record_id("a") == record_id("a") != record_id("b")
    assert len(record_id("a")) == 16


@settings(deadline=None)
@given(st.text(st.sampled_from("ab \t\n\r\x00\x0b\x1b\x1f\x7fé\ud55c"), max_size=40))
def test_bytes_called_plain_are_what_decoding_and_normalising_leaves(text: str) -> None:
    data = text.encode()
    for raw in (data, b"plain words\n" * 20_000 + data):
        odd = not text.isascii() or any(c < " " and c not in "\t\n" for c in text) or "\x7f" in text
        assert is_plain(raw) != odd
        assert odd or normalise(raw.decode()) == (raw.rstrip().decode(), "")
