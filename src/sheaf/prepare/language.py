"""Which language a text is in, and how sure that is: py3langid's model, run over bytes in a kernel.

The model is in py3langid's wheel (BSD; langid.py by Lui and Baldwin 2012, its model renewed): an automaton over bytes
that meets one of 100,053 features on its way, and naive Bayes over log(1 + how often each was met). The kernel does
what `LanguageIdentifier.classify` does with `norm_probs`, without an object per record; a test holds them equal. Of a
long text it reads SAMPLE bytes in PIECES evenly spread: a licence header in English does not decide for a Finnish book.
What has no lower-case letter is lower-cased first, as there (the model knows few capitals), here below U+0800 only.

Confidence is the model's probability at the temperature that its author fitted, √bytes. Only classes with a code of
ISO 639-1 take part: varieties are counted to the language that they belong to (`VARIETIES`), and what has no code
(Nigerian Pidgin, Ligurian) is left out, for on short texts it takes English and Italian away. "No linguistic content",
a class that was trained for numbers, code and markup, is "" here, as is a text without any feature (confidence 0).

Cost: 0.7 s to unpack the model, once a machine: its arrays are kept in the user's cache folder, where that can be
written. Then 0.1 s and 70 MB a process, and some 40 ns a byte read, nearly all of it waiting for memory. The arrays are
read, not mapped: mapped they have no large pages, and a file that is cut short would kill. Chosen over eldc, which is
faster but knows 60 languages where this one knows 115: bench/language.py, docs/benchmarks.md.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sheaf.errors import CorruptStore, EnvironmentProblem
from sheaf.files import checked, digest_file, digest_json, read_done, remove_folder, task_folder, user_cache
from sheaf.kernel import kernel

SAMPLE = 1024  # bytes
PIECES = 4
FRACTION = 512  # the weights are float16 between -15 and -2: over 512 they are whole numbers, in half the memory
NOTHING = "zxx"  # the model's class of what is no language
FORM = 1  # of `Model` and what makes it: a change makes a new name in the cache
ARRAYS = ("code_of", "moves", "states", "weights_fc", "priors")
# Class of the model → the code of ISO 639-1 that it is counted to: members of macrolanguages, and languages that have
# a code of two letters beside the one of three.
VARIETIES = {
    "bs": "hr",  # the model tells them apart no better than a coin: 54% of either is called its own
    "ary": "ar",
    "arz": "ar",
    "yue": "zh",
    "wuu": "zh",
    "nn": "no",
    "sdh": "ku",
    "uzs": "uz",
    "hbo": "he",
    "grc": "el",
    "gug": "gn",
    "kik": "ki",
    "ext": "es",
    "fuv": "ff",
}


@dataclass(frozen=True)
class Model:
    """py3langid's model as arrays. F features, C classes, S states of the automaton, R distinct rows of its table."""

    codes: tuple[str, ...]  # of languages, sorted; the first is "", for none
    code_of: NDArray[np.int64]  # (C,): index into codes
    moves: NDArray[np.uint32]  # (R · 256,): the next state
    states: NDArray[np.int64]  # (S,): the row of each state, and above bit 32 one more than the feature met there
    weights_fc: NDArray[np.int16]  # log probability of a feature in a class, in units of 1/FRACTION
    priors: NDArray[np.float32]  # (C,)


def code_of(label: str) -> str | None:
    """The code that a class of the model is counted to; None if ISO 639-1 has none."""
    code = "" if label == NOTHING else VARIETIES.get(label, label)
    return code if len(code) < 3 else None


@cache
def codes() -> tuple[str, ...]:
    """Of the languages that are told apart, sorted; the first is "", for none."""
    return _kept_codes(_kept()) or model().codes


@cache
def model() -> Model:
    kept = _kept()
    if kept is not None:
        with suppress(CorruptStore, OSError, ValueError):  # it is not there, or not what was written
            return _read(kept)
    unpacked = _unpacked()
    if kept is not None:
        with suppress(EnvironmentProblem, OSError):  # nothing can be kept here
            _keep(unpacked, kept)
    return unpacked


@cache
def _kept() -> Path | None:
    """The folder in the cache for the arrays of this model."""
    try:
        return user_cache("language") / digest_json([FORM, FRACTION, VARIETIES, digest_file(_model_file())])
    except RuntimeError:  # no home
        return None


def _kept_codes(kept: Path | None) -> tuple[str, ...]:
    try:
        done: dict[str, Any] = (read_done(kept) if kept is not None else None) or {}
    except (OSError, ValueError):
        return ()
    return tuple(done.get("codes", ()))


def _read(kept: Path) -> Model:
    """Raises CorruptStore."""
    arrays = {name: np.load(checked(kept / f"{name}.npy"), allow_pickle=False) for name in ARRAYS}
    return Model(codes=_kept_codes(kept), **arrays)


def _keep(unpacked: Model, kept: Path) -> None:
    remove_folder(kept)
    with task_folder(kept, codes=unpacked.codes) as folder:
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", getattr(unpacked, name), allow_pickle=False)


def _model_file() -> Path:
    spec = find_spec("py3langid")  # its import takes a while
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "data" / "model.npz.xz"


def _unpacked() -> Model:
    from py3langid.modelio import load_model

    weights, priors, classes, moves, rows, features = load_model(_model_file())
    named = [code_of(str(label)) for label in classes]
    used = [n for n, name in enumerate(named) if name is not None]
    found = tuple(sorted({name for name in named if name is not None}))
    return Model(
        codes=found,
        code_of=np.array([found.index(str(named[n])) for n in used], np.int64),
        moves=np.frombuffer(moves, f"u{moves.itemsize}").astype(np.uint32, copy=False),
        states=np.frombuffer(rows, f"u{rows.itemsize}").astype(np.int64) | (np.array(features, np.int64) + 1) << 32,
        weights_fc=(np.asarray(weights)[:, used] * np.float16(FRACTION)).astype(np.int16, order="C"),
        priors=np.asarray(priors, np.float32)[used],
    )


def classify(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> tuple[pa.Array, NDArray[np.float64]]:
    """The code of each text and its confidence, 0 to 1, rounded to 4 digits so that machines agree.

    data, offsets: the texts' UTF-8 bytes, int64 (rows + 1,) into them.
    """
    known = model()
    best, confidence = np.zeros(len(offsets) - 1, np.int32), np.zeros(len(offsets) - 1, np.float64)
    tables = (known.code_of, known.moves, known.states, known.weights_fc, known.priors)
    _classify(data, offsets, SAMPLE, PIECES, _lowered(), *tables, len(known.codes), best, confidence)
    said = pa.DictionaryArray.from_arrays(pa.array(best), pa.array(known.codes, pa.string()))
    return said.cast(pa.string()), np.round(confidence, 4)


@cache
def _lowered() -> NDArray[np.uint16]:
    """uint16 (0x800,): the lower case of a code point, if it takes as many bytes; 0 for one that is lower case."""
    table = np.arange(0x800, dtype=np.uint16)
    for code in range(0x800):
        lower = chr(code).lower()
        if chr(code).islower():
            table[code] = 0
        elif len(lower) == 1 and len(lower.encode()) == len(chr(code).encode()):
            table[code] = ord(lower)
    return table


@kernel
def _classify(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    sample: int,
    pieces: int,
    lowered: NDArray[np.uint16],
    code_of: NDArray[np.int64],
    moves: NDArray[np.uint32],
    states: NDArray[np.int64],
    weights_fc: NDArray[np.int16],
    priors: NDArray[np.float32],
    codes: int,
    best: NDArray[np.int32],
    confidence: NDArray[np.float64],
) -> None:
    # Loops, not slices and methods of arrays: those take numba longer to compile than all the rest.
    part = np.empty(sample + pieces, np.uint8)
    times_f = np.zeros(len(weights_fc), np.int32)  # how often each feature was met; zero again after each text
    met = np.empty(len(part), np.int32)  # which
    score_c = np.empty(len(priors), np.float32)
    share = np.empty(codes, np.float64)
    for text in range(len(offsets) - 1):
        length = _sample(data, offsets[text], offsets[text + 1], sample, pieces, part)
        _lower(part[:length], lowered)
        count = 0
        state = states[0]
        for n in range(length):
            state = states[moves[((state & 0xFFFFFFFF) << 8) + part[n]]]
            feature = (state >> 32) - 1
            if feature >= 0:
                if times_f[feature] == 0:
                    met[count] = feature
                    count += 1
                times_f[feature] += 1
        if count == 0:
            best[text], confidence[text] = 0, 0.0
            continue
        for c in range(len(score_c)):
            score_c[c] = priors[c]
        for n in range(count):
            times = np.float32(np.log1p(np.float32(times_f[met[n]]))) / np.float32(FRACTION)
            weights = weights_fc[met[n]]
            for c in range(len(score_c)):
                score_c[c] += times * np.float32(weights[c])
            times_f[met[n]] = 0
        top = score_c[0]
        for c in range(1, len(score_c)):
            top = max(top, score_c[c])
        for code in range(codes):
            share[code] = 0
        for c in range(len(score_c)):
            share[code_of[c]] += np.exp(np.float64(score_c[c] - top) / np.sqrt(length))
        most, whole = 0, 0.0
        for code in range(codes):
            whole += share[code]
            if share[code] > share[most]:
                most = code
        best[text], confidence[text] = most, share[most] / whole


@kernel
def _sample(data: NDArray[np.uint8], start: int, stop: int, sample: int, pieces: int, part: NDArray[np.uint8]) -> int:
    """Copy what is read of a text, whole characters, a line feed between pieces. Returns its length."""
    if stop - start <= sample:
        for n in range(stop - start):
            part[n] = data[start + n]
        return stop - start
    size, length = sample // pieces, 0
    for piece in range(pieces):
        at = start + (stop - start - size) * piece // (pieces - 1)
        end = at + size
        while at < end and data[at] & 0xC0 == 0x80:
            at += 1
        while end > at and end < stop and data[end] & 0xC0 == 0x80:
            end -= 1
        for n in range(end - at):
            part[length + n] = data[at + n]
        part[length + end - at] = 10
        length += end - at + 1
    return length


@kernel
def _lower(part: NDArray[np.uint8], lowered: NDArray[np.uint16]) -> None:
    """Lower-case the letters below U+0800, if none of them is lower case already."""
    for rewrite in range(2):
        at = 0
        while at < len(part):
            code, size = int(part[at]), 1
            if 0xC0 <= code < 0xE0 and at + 1 < len(part):
                code, size = (code & 0x1F) << 6 | int(part[at + 1] & 0x3F), 2
            elif code >= 0x80:
                at += 1
                continue
            if lowered[code] == 0 and code:
                return
            if rewrite and size == 1:
                part[at] = lowered[code]
            elif rewrite:
                part[at], part[at + 1] = 0xC0 | lowered[code] >> 6, 0x80 | lowered[code] & 0x3F
            at += size
