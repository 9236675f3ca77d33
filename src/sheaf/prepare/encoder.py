"""Encode text by the fastest exact path: tiktoken's byte-pair merging, with the ids of a byte-level BPE tokenizer.json.

When is tiktoken exact? The tokenizers library merges only the pairs of its merge list; tiktoken merges whatever
adjacent pair joins to a token of the lowest rank. Let rank be the position in the merge list, and let T = A+B be the
token that a merge makes. Suppose the two differ first at T: some X|Y with XY = T stands side by side, (X, Y) ≠ (A, B).
The merges of lower rank, applied to the text T alone, give the same cut X|Y (a byte-pair cut between two final tokens
does not depend on what lies outside them), so the library does not encode T alone as [T]. Hence: *if every token that
tiktoken is given encodes to itself alone, both give the same ids on every text.* Tokens that fail this can never be
produced by the library in any context and are left out. `Encoder` checks each token once (a few ms per thousand);
a tokenizer that is no plain byte-level BPE, a text on which the regular expression gives up, and one that holds an
added token which is no control token (Qwen3's "<think>") take the library.

The two cut texts with different engines for regular expressions, so only expressions that a test has found to cut
alike at every code point take the fast path: PATTERNS.

Many texts are encoded at once, joined by a separator that no text holds: no Python object per record. Measured on
source code and manuals, one core: 10–12 MB/s against 3 MB/s of the library (`bench/encode.py`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import tiktoken
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from sheaf.errors import RecipeError

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Ours; words with a leading blank or sign, numbers in groups of three, signs, line ends, blanks.
PATTERN = rf"'(?:[sdmtSDMT]|ll|LL|ve|VE|re|RE)|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
PATTERNS = frozenset(
    {
        PATTERN,
        GPT2_PATTERN,
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",  # cl100k, Llama 3
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_WORDS}|\p{{N}}|{_REST}",  # Qwen 2 to 3
    }
)
SEPARATOR = "\U0010ff5a"  # private use: hardly any text holds it, and those that do are encoded one by one

# What looks like this is a control token, also where tokenizer.json does not say so (DeepSeek's "<｜User｜>").
CONTROL = re.compile(r"<[|｜][^\s|｜<>]{1,64}[|｜]>")
END_OF_TEXT = "<|endoftext|>"  # of the tokenizers that we train
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "<|im_end|>")


class Encoder:
    """tokenizer.json → ids. Special tokens written in a text are text: data cannot forge a document's end."""

    def __init__(self, tokenizer_json: Path) -> None:
        self._library = _library(_with_controls(orjson.loads(tokenizer_json.read_bytes())))
        self.vocab_size: int = max(self._library.get_vocab(with_added_tokens=True).values()) + 1
        self.end_of_text = self._find_end_of_text(tokenizer_json)
        description = orjson.loads(self._library.to_str())
        inner = _without_prefix(description)
        self._inner = self._library if inner is None else _library(inner)
        added: list[dict[str, Any]] = description["added_tokens"]
        control = [t for t in added if t["special"]]
        self.control_ids: dict[str, int] = {t["content"]: t["id"] for t in control}
        self.blanks_before = frozenset(t["content"] for t in control if t["lstrip"])
        self.blanks_after = frozenset(t["content"] for t in control if t["rstrip"])
        self._found_in_texts: dict[str, int] = {t["content"]: t["id"] for t in added if not t["special"]}
        self._normalizer = self._library.normalizer
        self._fast, self._id_of_rank = _fast_path(description)

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """The narrowest type that holds every id."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    @property
    def is_fast(self) -> bool:
        return self._fast is not None

    def encode(self, text: str, *, first: bool = True) -> NDArray[np.uint32]:
        """Ids of one text, without any control token. uint32 (tokens,). first: nothing stands before it, not even a
        control token; some tokenizers put a blank there."""
        ready = self._normal(text)
        if self._fast is None or self._holds_added(ready):
            return self.encode_with_library(text, first=first)
        try:
            ranks = self._fast.encode_to_numpy(ready, disallowed_special=())
        except ValueError:  # the regular expression's stack: a run of about a million blanks
            return self.encode_with_library(text, first=first)
        return self._id_of_rank[ranks]

    def encode_many(self, texts: pa.LargeStringArray) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Ids of some texts, each with the end-of-text token at its end: uint32 (tokens,), and where each begins and
        the last one ends: int64 (texts + 1,)."""
        if self._fast is not None and len(texts):
            one = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts)
            joined = self._normal(pc.binary_join(one, pa.scalar(SEPARATOR, pa.large_string()))[0].as_py())
            if not self._holds_added(joined) and joined.count(SEPARATOR) == len(texts) - 1:
                with contextlib.suppress(ValueError):  # as in `encode`: one text by itself then
                    return self._encode_joined(joined)
        parts = [self.encode(text) for text in texts.to_pylist()]
        end = np.array([self.end_of_text], np.uint32)
        bounds = np.cumsum([0, *(len(part) + 1 for part in parts)])
        return np.concatenate([x for part in parts for x in (part, end)] or [end[:0]]), bounds

    def encode_placed(
        self, text: str, *, first: bool = True
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
        """As `encode`, and where each token begins and ends in the text's UTF-8 bytes: int64 (tokens,) each."""
        ids = self.encode(text, first=first)
        ends = self.spans(ids)
        if ends is not None and int(ends[-1] if len(ends) else 0) == len(text.encode()):
            return ids, np.concatenate([[0], ends[:-1]]), ends
        encoded = self._by_library(text, first)
        places = np.array(encoded.offsets, np.int64).reshape(-1, 2)
        sizes = np.cumsum([0, *(len(c.encode()) for c in text)])
        return np.array(encoded.ids, np.uint32), sizes[places[:, 0]], sizes[places[:, 1]]

    def encode_with_library(self, text: str, *, first: bool = True) -> NDArray[np.uint32]:
        return np.array(self._by_library(text, first).ids, np.uint32)

    def _by_library(self, text: str, first: bool) -> Encoding:
        return (self._library if first else self._inner).encode(text, add_special_tokens=False)

    def decode(self, ids: Iterable[int]) -> str:
        return self._library.decode([int(i) for i in ids], skip_special_tokens=False)

    def spans(self, ids: NDArray[np.integer]) -> NDArray[np.int64] | None:
        """Where each token's UTF-8 bytes end in the text, int64 (tokens,); None if tokens are no pieces of bytes."""
        if self._fast is None:
            return None
        return np.cumsum(self._bytes_of_id[ids])

    def _normal(self, text: str) -> str:
        """The text as the tokenizer's own normalizer leaves it; it changes no ASCII (NFC)."""
        if self._fast is None or self._normalizer is None or text.isascii():
            return text
        return self._normalizer.normalize_str(text)

    def _holds_added(self, text: str) -> bool:
        return any(literal in text for literal in self._found_in_texts)

    def _encode_joined(self, joined: str) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        assert self._fast is not None
        ranks = self._fast.encode_to_numpy(joined, allowed_special={SEPARATOR})
        ids = np.append(self._id_of_rank, np.uint32(self.end_of_text))[ranks]
        borders = np.flatnonzero(ranks == len(self._id_of_rank)) + 1
        return np.append(ids, np.uint32(self.end_of_text)), np.concatenate([[0], borders, [len(ids) + 1]])

    @cached_property
    def _bytes_of_id(self) -> NDArray[np.int64]:
        """Bytes of each token's text; control tokens have those of their names."""
        sizes = np.zeros(self.vocab_size, np.int64)
        assert self._fast is not None
        sizes[self._id_of_rank] = [len(self._fast.decode_single_token_bytes(r)) for r in range(len(self._id_of_rank))]
        for literal, number in [*self.control_ids.items(), *self._found_in_texts.items()]:
            sizes[number] = len(literal.encode())
        return sizes

    def _find_end_of_text(self, path: Path) -> int:
        vocab: dict[str, int] = self._library.get_vocab(with_added_tokens=True)
        for name in END_OF_TEXT_NAMES:
            if name in vocab:
                return vocab[name]
        raise RecipeError(
            "the tokenizer has no end-of-text token",
            where=str(path),
            why="documents are separated by it; looked for " + ", ".join(END_OF_TEXT_NAMES),
            fix="add one of these as a special token to tokenizer.json",
        )


def _library(description: dict[str, Any]) -> Tokenizer:
    library = Tokenizer.from_str(orjson.dumps(description).decode())
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True
    return library


def _with_controls(description: dict[str, Any]) -> dict[str, Any]:
    """The same, where what looks like a control token is one."""
    added: list[dict[str, Any]] = description.get("added_tokens") or []
    marked = [{**t, "special": t["special"] or CONTROL.fullmatch(t["content"]) is not None} for t in added]
    return {**description, "added_tokens": marked}


def _without_prefix(description: dict[str, Any]) -> dict[str, Any] | None:
    """The tokenizer for texts behind a control token, if it puts a blank before the very first text only."""
    before: dict[str, Any] = description.get("pre_tokenizer") or {}
    several = before.get("type") == "Sequence"
    steps: list[dict[str, Any]] = before["pretokenizers"] if several else [before]
    changed = [{**s, "prepend_scheme": "never"} if s.get("prepend_scheme") == "first" else s for s in steps]
    if changed == steps:
        return None
    return {**description, "pre_tokenizer": {**before, "pretokenizers": changed} if several else changed[0]}


def _fast_path(description: dict[str, Any]) -> tuple[tiktoken.Encoding | None, NDArray[np.uint32]]:
    """tiktoken's encoder over merge ranks, and the array that maps ranks to ids; None if it would not be exact.

    It has one control token, SEPARATOR, of the rank after the last.
    """
    nothing = np.zeros(0, np.uint32)
    pattern = _pattern(description.get("pre_tokenizer"))
    model: dict[str, Any] = description["model"]
    added: list[dict[str, Any]] = description["added_tokens"]
    if pattern not in PATTERNS or not _plain_byte_level(description, model):
        return None, nothing
    vocab: dict[str, int] = model["vocab"]
    ordered = _tokens_by_rank(vocab, model["merges"])
    if ordered is None:
        return None, nothing
    reachable = _reachable(description, ordered, vocab)
    if model.get("ignore_merges") and len(reachable) < len(vocab) - sum(t["content"] in vocab for t in added):
        return None, nothing  # the library gives a word that is a token at once, whatever the merges say
    ranks = {_to_bytes(token): rank for rank, token in enumerate(reachable)}
    fast = tiktoken.Encoding(
        "sheaf", pat_str=pattern, mergeable_ranks=ranks, special_tokens={SEPARATOR: len(reachable)}
    )
    return fast, np.array([vocab[token] for token in reachable], np.uint32)


def _pattern(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """The splitting expression, if the pre-tokenizer is one split followed by the byte-level alphabet."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return GPT2_PATTERN
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
        case _:
            return None


def _plain_byte_level(description: dict[str, Any], model: dict[str, Any]) -> bool:
    unusual = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "fuse_unk")
    plain_model = model.get("type") == "BPE" and not any(model.get(name) for name in unusual)
    normalizer = description.get("normalizer")
    return plain_model and (normalizer is None or normalizer.get("type") == "NFC")


def _tokens_by_rank(vocab: dict[str, int], merges: list[Any]) -> list[str] | None:
    """The 256 bytes, then what each merge makes, in merge order; None if a byte is missing."""
    single = [_BYTE_TO_CHARACTER[b] for b in range(256)]
    if any(c not in vocab for c in single):
        return None
    pairs = (m.split(" ") if isinstance(m, str) else m for m in merges)
    # dict.fromkeys: a token that two merges make has the rank of the first
    return list(dict.fromkeys([*single, *("".join(pair) for pair in pairs)]))


def _reachable(description: dict[str, Any], tokens: list[str], vocab: dict[str, int]) -> list[str]:
    """Tokens that the library, given them alone, encodes as themselves."""
    bare = {**description, "normalizer": None, "pre_tokenizer": None, "post_processor": None, "added_tokens": []}
    bare["model"] = {**description["model"], "ignore_merges": False}
    library = Tokenizer.from_str(orjson.dumps(bare).decode())
    encoded = library.encode_batch_fast(tokens, add_special_tokens=False)
    return [token for token, e in zip(tokens, encoded, strict=True) if e.ids == [vocab[token]]]


def _byte_to_character() -> dict[int, str]:
    """The byte-level alphabet (GPT-2): printable bytes stand for themselves, the others for characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


_BYTE_TO_CHARACTER = _byte_to_character()
_CHARACTER_TO_BYTE = {c: b for b, c in _BYTE_TO_CHARACTER.items()}


def _to_bytes(token: str) -> bytes:
    return bytes(_CHARACTER_TO_BYTE[c] for c in token)
