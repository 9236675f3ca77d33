"""Which language a text is in, and how sure that is: py3langid's model, run over bytes in a kernel.

The model is in py3langid's wheel (BSD; langid.py by Lui and Baldwin 2012, its model renewed): an automaton over bytes
that meets one of 100,053 features on its way, and naive Bayes over log(1 + how often each was met). The kernel does
what `LanguageIdentifier.classify` does with `norm_probs`, without an object per record; a test holds them equal. Of a
long text it reads SAMPLE bytes in PIECES evenly spread: a licence header in English does not decide for a Finnish book.

Confidence is the model's probability at the temperature that its author fitted, √bytes. Only classes with a code of
ISO 639-1 take part: varieties are counted to the language that they belong to (`VARIETIES`), and what has no code at all
(Nigerian Pidgin, Ligurian) is left out, for on short texts it takes English and Italian away. "No linguistic content",
a class that was trained for numbers, code and markup, is "" here, as is a text without any feature (confidence 0).

Cost: 0.7 s to load, once a process, and 110 MB; then some 25 ns a byte read and 10 µs a record. Chosen over eldc by
the figures in docs/benchmarks.md (bench/language.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sheaf.kernel import kernel

SAMPLE = 1024  # bytes
PIECES = 4
FRACTION = (
    512  # the weights are float16 between -15 and -2: as integers over 512 they are exact, and half as much memory
)
NOTHING = "zxx"  # the model's class of what is no language
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
def model() -> Model:
    import py3langid
    from py3langid.langid import MODEL_FILE
    from py3langid.modelio import load_model

    weights, priors, classes, moves, rows, features = load_model(Path(py3langid.__file__).parent / MODEL_FILE)
    named = [code_of(str(label)) for label in classes]
    used = [n for n, name in enumerate(named) if name is not None]
    codes = tuple(sorted({name for name in named if name is not None}))
    return Model(
        codes=codes,
        code_of=np.array([codes.index(str(named[n])) for n in used], np.int64),
        moves=np.frombuffer(moves, f"u{moves.itemsize}").astype(np.uint32, copy=False),
        states=np.frombuffer(rows, f"u{rows.itemsize}").astype(np.int64) | (np.array(features, np.int64) + 1) << 32,
        weights_fc=np.ascontiguousarray(np.asarray(weights, np.float32)[:, used] * FRACTION).astype(np.int16),
        priors=np.asarray(priors, np.float32)[used],
    )


def classify(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> tuple[pa.Array, NDArray[np.float64]]:
    """The code of each text and its confidence, 0 to 1, rounded to 4 digits so that machines agree.

    data, offsets: the texts' UTF-8 bytes, int64 (rows + 1,) into them.
    """
    known = model()
    best, confidence = np.zeros(len(offsets) - 1, np.int32), np.zeros(len(offsets) - 1, np.float64)
    tables = (known.code_of, known.moves, known.states, known.weights_fc, known.priors)
    _classify(data, offsets, SAMPLE, PIECES, *tables, best, confidence)
    codes = pa.DictionaryArray.from_arrays(pa.array(best), pa.array(known.codes, pa.string()))
    return codes.cast(pa.string()), np.round(confidence, 4)


@kernel
def _classify(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    sample: int,
    pieces: int,
    code_of: NDArray[np.int64],
    moves: NDArray[np.uint32],
    states: NDArray[np.int64],
    weights_fc: NDArray[np.int16],
    priors: NDArray[np.float32],
    best: NDArray[np.int32],
    confidence: NDArray[np.float64],
) -> None:
    met_f = np.zeros(len(weights_fc), np.int32)  # how often; zero again after each text
    met = np.empty(sample + 4, np.int32)  # which
    score_c = np.empty(len(priors), np.float32)
    share = np.empty(code_of.max() + 1, np.float64)
    for text in range(len(offsets) - 1):
        start, size = offsets[text], offsets[text + 1] - offsets[text]
        count = length = 0
        parts = pieces if size > sample else 1
        for part in range(parts):
            at = start + (size - sample // pieces) * part // (parts - 1) if parts > 1 else start
            end = at + sample // pieces if parts > 1 else start + size
            while at < end and data[at] & 0xC0 == 0x80:
                at += 1
            length += end - at
            state = states[0]
            while at < end:
                state = states[moves[((state & 0xFFFFFFFF) << 8) + data[at]]]
                feature = (state >> 32) - 1
                if feature >= 0:
                    if met_f[feature] == 0:
                        met[count] = feature
                        count += 1
                    met_f[feature] += 1
                at += 1
        if count == 0:
            best[text], confidence[text] = 0, 0.0
            continue
        score_c[:] = priors
        for n in range(count):
            times = np.float32(np.log1p(np.float32(met_f[met[n]]))) / np.float32(FRACTION)
            weights = weights_fc[met[n]]
            for c in range(len(score_c)):
                score_c[c] += times * np.float32(weights[c])
            met_f[met[n]] = 0
        share[:] = 0
        top = score_c.max()
        for c in range(len(score_c)):
            share[code_of[c]] += np.exp(np.float64(score_c[c] - top) / np.sqrt(length))
        best[text] = share.argmax()
        confidence[text] = share[best[text]] / share.sum()
