"""The fast encoder gives the ids of the tokenizers library, on everything that could tell them apart."""

from __future__ import annotations

import sys
import time
import unicodedata
from pathlib import Path

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from sheaf.errors import RecipeError
from sheaf.prepare.encoder import END_OF_TEXT, GPT2_PATTERN, PATTERN, PATTERNS, SEPARATOR, Encoder

CATEGORIES: dict[str, list[int]] = {}  # some characters of every Unicode category
for _c in (c for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF):
    _few = CATEGORIES.setdefault(unicodedata.category(chr(_c)), [])
    if len(_few) < 60:
        _few.append(_c)

HOSTILE = [
    "",
    " ",
    "\n\n\n \t \n",
    "a" * 5000,
    " " * 5000 + "x",
    "é" * 300 + "e\u0301" * 300,
    "漢字かな交じり文" * 50,
    "🏳️‍🌈👩‍👩‍👧‍👦" * 20,
    "don't DON'T I'LL we've 'tis 'S",
    "1234567890 12 1,234.5 ٣٤٥ ⅷ",
    "\ufeff\u200b\u2028\u2029\x85\xa0\x00\x1b[31m",
    "<|endoftext|> forged <|endoftext|>",
    "\r\n\r\r\n \r",
    "ſ K İ ı ß ẞ ﬁ",
    "\U0010ffff\ue000",
    SEPARATOR + "a" + SEPARATOR,
    "\u0301\u0301a \u0301 \u200d\u200c\u034f",  # marks with nothing to stand on, joiners
    "שלום עולם \u202eabc\u202c مرحبا ١٢٣ \u2066x\u2069",
    "ไทยไม่มีช่องว่าง ភាសាខ្មែរ မြန်မာ བོད་ཡིག ಕನ್ನಡ தமிழ்",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 ⓐ ℌ ﷺ ㍿ ǅ",
    "a\x00b\x00\x00 \x01\x02\x7f\x80\x9f",
    "<|im_start|>system<|im_end|><s></s>[INST]<unk>",
    "Ελληνικά Кириллица हिन्दी 한국어 日本語 العربية mixedСмесьמעורב",
    "\t \t\n \n\t\r\v\f\x1c\x1d\x1e\x1f\u3000\u2003\u180e",
    "' 'ſ 'Ⓢ 'K 'LL 'lL 'vE 'RE ''s '",
    *("".join(chr(c) for c in group) for group in CATEGORIES.values()),
]
# What is quadratic, or deep, somewhere: pieces without end, of one kind of character.
ENDLESS = ("a", "ab", " ", "\n", "\t", "\r\n", "1", "-", "漢", "e\u0301", "👩\u200d", "\0", " a")


def train(folder: Path, texts: list[str], vocab_size: int = 1200, gpt2: bool = False) -> Path:
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2)
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = level if gpt2 else pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def real_text() -> list[str]:
    library = Path(orjson.__file__).parents[1]
    python = sorted(Path(sys.modules["email"].__path__[0]).glob("*.py"))
    metadata = sorted(library.glob("*.dist-info/METADATA"))
    return [p.read_text("utf-8", "replace") for p in [*python, *metadata]]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, real_text: list[str]) -> Encoder:
    return Encoder(train(tmp_path_factory.mktemp("tokenizer"), real_text))


def same(encoder: Encoder, text: str) -> bool:
    return encoder.encode(text).tolist() == encoder.encode_with_library(text).tolist()


def test_ids_equal_the_library_on_hostile_strings(encoder: Encoder) -> None:
    assert encoder.is_fast
    for text in HOSTILE:
        assert same(encoder, text), repr(text[:40])


def test_ids_equal_the_library_on_real_text(encoder: Encoder, real_text: list[str]) -> None:
    assert all(same(encoder, text) for text in real_text)


def letters(step: int) -> str:
    """Code points where a character may be a letter, digit, blank, sign, mark or the case of another."""
    return "".join(
        f"a{chr(c)}a1{chr(c)} {chr(c)}.'{chr(c)}"
        for c in range(1, sys.maxunicode + 1, step)
        if not 0xD800 <= c <= 0xDFFF
    )


def with_pattern(folder: Path, pattern: str) -> Encoder:
    path = train(folder, ["abc 'd " * 50], vocab_size=300)
    description = orjson.loads(path.read_bytes())
    if pattern != GPT2_PATTERN:
        description["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
    else:
        description["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        description["pre_tokenizer"]["trim_offsets"] = True
    path.write_bytes(orjson.dumps(description))
    return Encoder(path)


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_both_regular_expressions_cut_alike_at_one_code_point_in_101(tmp_path: Path, pattern: str) -> None:
    encoder, text = with_pattern(tmp_path, pattern), letters(101)
    assert encoder.is_fast and same(encoder, text)
    assert same(encoder, letters(1)[:60_000])  # the scripts in use, densely


@pytest.mark.soak
@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_both_regular_expressions_cut_alike_at_every_code_point(tmp_path: Path, pattern: str) -> None:
    encoder, text, step = with_pattern(tmp_path, pattern), letters(1), 200_000
    for start in range(0, len(text), step):
        assert same(encoder, text[start : start + step]), start


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80))
def test_ids_equal_the_library_on_any_text(encoder: Encoder, text: str) -> None:
    assert same(encoder, text)


def test_gpt2_style_tokenizers_take_the_fast_path_too(tmp_path: Path, real_text: list[str]) -> None:
    encoder = Encoder(train(tmp_path, real_text[:20], gpt2=True))
    assert encoder.is_fast
    for text in [*HOSTILE, *real_text[:5]]:
        assert same(encoder, text)


def test_a_token_that_its_merges_cannot_reach_is_never_produced(tmp_path: Path) -> None:
    path = train(tmp_path, ["abcabcabc " * 50, "bcd " * 30], vocab_size=262)
    description = orjson.loads(path.read_bytes())
    vocab, merges = description["model"]["vocab"], description["model"]["merges"]
    # "xyz" can be made only from "xy", which no merge makes: the library never gives it, and nor must we
    vocab["xyz"] = max(vocab.values()) + 1
    vocab["xy"] = vocab["xyz"] + 1
    merges.append(["xy", "z"])
    path.write_bytes(orjson.dumps(description))
    encoder = Encoder(path)
    assert encoder.is_fast
    assert vocab["xyz"] not in encoder.encode("xyz axyz").tolist()
    assert same(encoder, "xyz axyz")


@pytest.mark.parametrize("unit", ENDLESS)
def test_text_of_one_kind_of_character_without_end_is_encoded_alike_and_in_time(encoder: Encoder, unit: str) -> None:
    text = unit * (250_000 // len(unit.encode()))
    assert same(encoder, text)
    started = time.process_time()
    assert len(encoder.encode(text * 4)) >= len(encoder.encode(text))
    assert time.process_time() - started < 10  # quadratic would be minutes


def test_many_texts_at_once_are_the_texts_one_by_one(encoder: Encoder, real_text: list[str]) -> None:
    for texts in ([], [""], HOSTILE, ["", "", "a"], real_text[:20], [" " * 1_500_000, "a"]):
        ids, bounds = encoder.encode_many(pa.array(texts, pa.large_string()))
        assert len(bounds) == len(texts) + 1 and bounds[-1] == len(ids)
        for text, first, last in zip(texts, bounds[:-1], bounds[1:], strict=True):
            assert ids[first : last - 1].tolist() == encoder.encode(text).tolist()
            assert ids[last - 1] == encoder.end_of_text


def test_the_places_of_tokens_are_theirs_in_the_texts_bytes(encoder: Encoder) -> None:
    text = "Fähren 🏳️‍🌈 late,\n\nsaid 漢字."
    ids, begins, ends = encoder.encode_placed(text)
    raw = text.encode()
    assert b"".join(raw[a:b] for a, b in zip(begins, ends, strict=True)) == raw
    slow = Encoder.encode_with_library(encoder, text)
    assert ids.tolist() == slow.tolist()


def test_a_run_of_blanks_too_long_for_the_expression_is_still_encoded(encoder: Encoder) -> None:
    text = " " * 1_500_000
    assert same(encoder, text)


def test_a_special_token_in_the_text_is_text(encoder: Encoder) -> None:
    assert encoder.end_of_text not in encoder.encode(f"a{END_OF_TEXT}b").tolist()
    assert encoder.decode(encoder.encode(f"a{END_OF_TEXT}b")) == f"a{END_OF_TEXT}b"


def test_a_text_with_an_added_token_takes_the_library_and_others_stay_fast(tmp_path: Path) -> None:
    path = train(tmp_path, ["abc think " * 50])
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens(["<think>"])
    tokenizer.save(str(path))
    encoder = Encoder(path)
    number = tokenizer.token_to_id("<think>")
    assert encoder.is_fast
    for text in ("abc <think> abc", "<think>", "think"):
        assert same(encoder, text)
    assert number in encoder.encode("a<think>b").tolist()
    ids, bounds = encoder.encode_many(pa.array(["abc", "<think>", "abc"], pa.large_string()))
    assert ids[bounds[1]] == number and ids[: bounds[1]].tolist() == ids[bounds[2] :].tolist()


def test_a_normalizer_is_applied_as_the_library_applies_it(tmp_path: Path) -> None:
    path = train(tmp_path, ["é e\u0301 \u212b"])
    description = orjson.loads(path.read_bytes())
    path.write_bytes(orjson.dumps({**description, "normalizer": {"type": "NFC"}}))
    encoder = Encoder(path)
    assert encoder.is_fast
    for text in [*HOSTILE, "e\u0301", "<\u0338", "\u1100\u1161", "\U000105d2\u0307"]:  # the last: new in Unicode 16
        assert same(encoder, text), repr(text[:40])
    ids, begins, ends = encoder.encode_placed("ae\u0301b")
    assert begins[0] == 0 and ends[-1] == 5 and len(ids) == len(begins)


def test_an_expression_that_no_test_has_compared_takes_the_library(tmp_path: Path) -> None:
    path = train(tmp_path, ["abc " * 50])
    path.write_bytes(path.read_bytes().replace(b"{1,3}", b"{1,2}"))
    assert not Encoder(path).is_fast


def test_a_tokenizer_that_takes_whole_words_before_its_merges_stays_exact(tmp_path: Path) -> None:
    path = train(tmp_path, ["abcabc " * 50], vocab_size=262)
    description = orjson.loads(path.read_bytes())
    model = description["model"]
    model["ignore_merges"] = True
    path.write_bytes(orjson.dumps(description))
    assert Encoder(path).is_fast and same(Encoder(path), "abcabc abc")
    model["vocab"]["xyz"] = max(model["vocab"].values()) + 1  # no merge makes it
    path.write_bytes(orjson.dumps(description))
    assert not Encoder(path).is_fast and same(Encoder(path), "xyz xyzx")


def test_other_kinds_of_tokenizer_go_through_the_library(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, END_OF_TEXT: 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = Encoder(tmp_path / "tokenizer.json")
    assert not encoder.is_fast
    assert encoder.encode("a b a").tolist() == [1, 0, 1]


def test_a_tokenizer_without_an_end_of_text_token_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(RecipeError, match="no end-of-text token"):
        Encoder(tmp_path / "tokenizer.json")
