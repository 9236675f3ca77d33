"""Encoding: ids of Sheaf's encoder against the tokenizers library, over real text in many scripts.

Text of this machine: translations of programs (.mo), their manuals in all languages, definitions of locales, the
documentation of packages, the standard library; a folder more by `--also`. Equal texts count once. Three tokenizers
are trained on a part of it: with our regular expression, with that of cl100k and Llama 3, with that of Qwen. Every
document is encoded by both, on one core and on two (the library with its own threads, ours a process a core), and the
ids are compared, document by document. The bar is 3 times the library, and no document that differs. Printed are both
clocks: the one on the wall, and the processor's (of all cores together), which a busy machine blurs less.

    python bench/encode_scripts.py [--megabytes 200] [--also FOLDER] [--cores 1] [--cores 2]
"""

from __future__ import annotations

import argparse
import gettext
import gzip
import hashlib
import os
import platform
import sysconfig
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

VOCABULARY = 32768
SLICE = 2048  # documents that are held encoded
TRAINED_BYTES = 12 << 20
MESSAGES = 50  # translated messages that make a document
LARGEST = 64 << 10  # characters of a document; longer ones are cut, as an item's records are


def translations(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*.mo")):
        try:
            with path.open("rb") as f:
                said = gettext.GNUTranslations(f)._catalog.values()  # pyright: ignore[reportAttributeAccessIssue]
        except (OSError, UnicodeDecodeError, ValueError, LookupError):
            continue  # not all are in an encoding that Python has
        texts = (text for text in said if isinstance(text, str))
        while some := list(islice(texts, MESSAGES)):
            yield "\n".join(some)


def files(root: Path, *patterns: str) -> Iterator[str]:
    for path in sorted(p for pattern in patterns for p in root.rglob(pattern)):
        try:
            data = path.read_bytes()
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
        except (OSError, UnicodeDecodeError, EOFError, gzip.BadGzipFile):
            continue
        for start in range(0, len(text), LARGEST):
            yield text[start : start + LARGEST]


def gather(megabytes: float, also: Path | None) -> dict[str, list[str]]:
    """Documents by where they are from, the ones in many scripts first; equal ones once."""
    share, library = Path("/usr/share"), Path(sysconfig.get_path("stdlib"))
    places: dict[str, Iterator[str]] = {
        "translations": translations(share),
        "manuals": files(share / "man", "*.gz"),
        "locales": files(share / "i18n" / "locales", "*"),
        **({"also": files(also, "*")} if also else {}),
        "package documentation": files(share / "doc", "*.txt", "*.html", "*.gz", "README*"),
        "vim": files(share / "vim", "*.txt", "*.vim"),
        "standard library": files(library, "*.py", "*.txt"),
        "packages": files(Path(sysconfig.get_path("purelib")), "*.py", "*.md", "*.txt", "*.json"),
        "perl": files(share / "perl", "*.pm", "*.pl", "*.pod"),
        "headers": files(Path("/usr/include"), "*.h"),
    }
    seen: set[bytes] = set()
    found: dict[str, list[str]] = {}
    size = 0
    for place, texts in places.items():
        own = found[place] = list[str]()
        for text in texts:
            data = text.encode()
            digest = hashlib.blake2b(data, digest_size=16).digest()
            if size < megabytes * 1e6 and data and digest not in seen:
                seen.add(digest)
                own.append(text)
                size += len(data)
    return {place: own for place, own in found.items() if own}


def scripts(documents: list[str]) -> dict[str, float]:
    """Megabytes of letters by the first word of their Unicode name."""
    characters: Counter[str] = Counter()
    for text in documents:
        characters.update(text)
    sizes: Counter[str] = Counter()
    for character, n in characters.items():
        if unicodedata.category(character)[0] in "LM":
            sizes[unicodedata.name(character, "UNNAMED").partition(" ")[0]] += n * len(character.encode())
    return {name: n / 1e6 for name, n in sizes.most_common()}


def patterns() -> dict[str, str]:
    from sheaf.prepare.encoder import PATTERN, PATTERNS

    def with_numbers(numbers: str) -> str:
        (found,) = (p for p in PATTERNS if p.startswith("(?i:") and f"|{numbers}|" in p)
        return found

    return {"ours": PATTERN, "cl100k, Llama 3": with_numbers(r"\p{N}{1,3}"), "Qwen": with_numbers(r"\p{N}")}


def train(path: Path, pattern: str, documents: list[str]) -> None:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    from sheaf.prepare.tokenizer import END_OF_TEXT

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    same: dict[str, Any] = {"special_tokens": [END_OF_TEXT], "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(documents, trainers.BpeTrainer(vocab_size=VOCABULARY, **same))
    tokenizer.save(str(path))


@lru_cache
def _ours(path: str) -> Any:
    from sheaf.prepare.encoder import Encoder

    encoder = Encoder(Path(path))
    assert encoder.is_fast, "the fast encoder does not take this tokenizer"
    return encoder


@lru_cache
def _library(path: str) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.encode_special_tokens = True
    return tokenizer


Seconds = np.ndarray  # on the wall, of the processor


def clocks() -> Seconds:
    return np.array([time.perf_counter(), time.process_time()])


def encode(which: str, path: str, store: str, part: int, parts: int) -> tuple[Seconds, int, bytes]:
    """Seconds of encoding alone, tokens, and eight bytes a document that say its ids; of every so-manyth slice."""
    with pa.memory_map(store) as f:
        texts = pa.ipc.open_file(f).read_all()["text"].combine_chunks()
    seconds, tokens, told = np.zeros(2), 0, list[bytes]()
    _of_slice(which, path, texts.slice(0, 4))
    for start in range(part * SLICE, len(texts), parts * SLICE):
        here = texts.slice(start, SLICE)
        spent, ids, bounds = _of_slice(which, path, here)
        seconds += spent
        tokens += len(ids)
        told += [hashlib.blake2b(ids[a:b].tobytes(), digest_size=8).digest() for a, b in pairwise(bounds)]
    return seconds, tokens, b"".join(told)


def _of_slice(which: str, path: str, texts: pa.LargeStringArray) -> tuple[Seconds, np.ndarray, np.ndarray]:
    """Seconds, ids, bounds of the documents."""
    if which == "sheaf":
        encoder = _ours(path)
        start = clocks()
        ids, bounds = encoder.encode_many(texts)
        spent = clocks() - start
        keep = np.ones(len(ids), bool)
        keep[bounds[1:] - 1] = False  # the end of each text
        return spent, ids[keep], bounds - np.arange(len(bounds))
    tokenizer, documents = _library(path), texts.to_pylist()
    start = clocks()
    batch = [np.array(e.ids, np.uint32) for e in tokenizer.encode_batch_fast(documents, add_special_tokens=False)]
    spent = clocks() - start
    return spent, np.concatenate(batch), np.cumsum([0, *map(len, batch)])


def measure(name: str, path: str, store: str, documents: int, megabytes: float, cores: int) -> int:
    """Prints a line; returns how many documents differ."""
    available = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, available[:cores])
    os.environ["RAYON_NUM_THREADS"] = str(cores)
    with ProcessPoolExecutor(1) as one:  # fresh processes: the library fixes its number of threads at first use
        theirs, tokens, reference = one.submit(encode, "library", path, store, 0, 1).result()
    with ProcessPoolExecutor(cores) as many:
        work = [many.submit(encode, "sheaf", path, store, part, cores) for part in range(cores)]
        found = [w.result() for w in work]
    os.sched_setaffinity(0, available)
    digests = np.frombuffer(reference, "V8")
    part = np.arange(documents) // SLICE % cores
    differ = sum(int((np.frombuffer(f[2], "V8") != digests[part == n]).sum()) for n, f in enumerate(found))
    ours = np.array([max(f[0][0] for f in found), sum(f[0][1] for f in found)])
    print(f"{name}, {cores} core(s): {documents:,} documents, {tokens:,} tokens, {differ} differ")
    for clock, a, b in zip(("wall", "processor"), theirs, ours, strict=True):
        speeds = f"tokenizers {megabytes / a:.2f} MB/s, sheaf {megabytes / b:.2f} MB/s, ratio {a / b:.2f}"
        print(f"  by the {clock}'s clock: {speeds}", flush=True)
    return differ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--also", type=Path)
    parser.add_argument("--cores", type=int, action="append")
    options = parser.parse_args()
    import tiktoken
    import tokenizers

    versions = f"tokenizers {tokenizers.__version__}, tiktoken {tiktoken.__version__}"
    print(f"{versions}, Python {platform.python_version()}, {platform.machine()}")
    places = gather(options.megabytes, options.also)
    sizes = {place: sum(len(t.encode()) for t in texts) / 1e6 for place, texts in places.items()}
    documents = [text for texts in places.values() for text in texts]
    print(f"{sum(sizes.values()):.1f} MB: {', '.join(f'{place} {n:.1f}' for place, n in sizes.items())}")
    found = scripts(documents)
    print(f"letters of {len(found)} scripts, MB: {', '.join(f'{s} {n:.2g}' for s, n in found.items() if n >= 0.001)}")
    differ = 0
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "texts.arrow")
        table = pa.table({"text": pa.array(documents, pa.large_string())})
        with pa.OSFile(store, "wb") as f, pa.ipc.new_file(f, table.schema) as writer:
            writer.write_table(table)
        total, trained = sum(sizes.values()), documents[:: max(1, int(sum(sizes.values()) * 1e6 // TRAINED_BYTES))]
        for name, pattern in patterns().items():
            path = Path(folder) / "tokenizer.json"
            train(path, pattern, trained)
            own = path.rename(Path(folder) / f"{hashlib.blake2b(pattern.encode(), digest_size=4).hexdigest()}.json")
            for cores in options.cores or [1, 2]:
                differ += measure(name, str(own), store, len(documents), total, cores)
    raise SystemExit(int(differ > 0))


if __name__ == "__main__":
    main()
