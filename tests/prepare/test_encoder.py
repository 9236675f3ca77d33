"""The fast encoder gives the ids of the tokenizers library, on everything that could tell them apart."""

from __future__ import annotations

import sys
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from sheaf.errors import RecipeError
from sheaf.prepare.encoder import Encoder
from sheaf.prepare.tokenizer import END_OF_TEXT, PATTERN

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
]


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


def test_both_regular_expressions_cut_alike_at_every_code_point(encoder: Encoder) -> None:
    around = "".join(
        f"a{chr(c)}a1{chr(c)} {chr(c)}." for c in range(1, sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF
    )
    step = 200_000
    for start in range(0, len(around), step):
        assert same(encoder, around[start : start + step]), start


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


def test_a_run_of_blanks_too_long_for_the_expression_is_still_encoded(encoder: Encoder) -> None:
    text = " " * 1_500_000
    assert same(encoder, text)


def test_a_special_token_in_the_text_is_text(encoder: Encoder) -> None:
    assert encoder.end_of_text not in encoder.encode(f"a{END_OF_TEXT}b").tolist()
    assert encoder.decode(encoder.encode(f"a{END_OF_TEXT}b")) == f"a{END_OF_TEXT}b"


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
