"""Near duplicates: speed of MinHash, planted truth, long works with a shared licence, and cost.

Text is the source code and documentation of this Python, so every installation has it. Planted truth: copies of it with
a known share of words replaced, left out or added; the judge compares sets of word 5-grams of lower-cased `\\w+` words
as strings, pair by pair, and shares nothing with Sheaf. Records by number are made-up words, 300 to 900 characters, one
in fifty a copy with a word changed. Memory is this process' peak above what it had after importing.

Bars: MinHash 20 MB/s a core; recall 0.97 and precision 0.995 at 0.8; no long work lost; memory below 2 GB and not
growing with the number of records, time a record the same within 15%.

Use: python bench/near.py [--records 10000 100000 1000000]
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import platform
import random
import re
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sheaf.console import Silent
from sheaf.corpus.shards import ROW_GROUP
from sheaf.corpus.workspace import Workspace
from sheaf.files import digest_of, task_folder
from sheaf.prepare import near, words
from sheaf.prepare.near import candidates, minhash

THRESHOLD = 0.8
SHARD_ROWS = 65536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    options = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, numba {numba.__version__}, one core")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    texts = library()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        speed(Path(folder), texts)
        planted(Path(folder), texts)
        long_works(Path(folder), texts)
        forms(Path(folder))
        print("CPU time a record, and memory above that after importing:")
        print("  records     minhash   candidates  decide    peak: minhash  the rest   dropped")
        for n in options.records:
            write_made_up(Path(folder), n)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                print(fresh.submit(scale, Path(folder), n).result())
            shutil.rmtree(Path(folder) / str(n))


def library() -> list[str]:
    """Files of Python's own library, each once."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*")):
        if path.suffix in (".py", ".txt", ".rst") and "site-packages" not in path.parts:
            text = path.read_bytes().decode(errors="replace")
            if len(text.split()) >= 50:
                found[text] = None
    return list(found)


def speed(folder: Path, texts: Sequence[str]) -> None:
    array = pa.array(texts, pa.large_string())
    megabytes = sum(len(t.encode()) for t in texts) / 1e6
    workspace, shards, _, _ = stored(folder / "speed", [array])
    minhash.hash_shard(workspace.where, shards[0], 0.5)  # compiles, under another name
    stage = [timed(lambda: again(workspace, shards[0])) for _ in range(3)]
    word = [timed(lambda: words.hashes(array)) for _ in range(3)]
    print(f"{megabytes:.0f} MB of {len(texts)} files, by seconds of CPU: words {megabytes / min(word):.0f} MB/s")
    print(f"MinHash stage {megabytes / min(stage):.0f} MB/s: Parquet in, keys out")


def again(workspace: Workspace, shard: str) -> None:
    shutil.rmtree(workspace.scores(shard, minhash.stage(THRESHOLD)), ignore_errors=True)
    minhash.hash_shard(workspace.where, shard, THRESHOLD)


def timed(work: Callable[[], object]) -> float:
    """Seconds of CPU: the machine may be busy with something else."""
    start = time.process_time()
    work()
    return time.process_time() - start


@dataclass(frozen=True)
class Copy:
    text: str
    of: str


def planted(folder: Path, texts: Sequence[str]) -> None:
    rng = random.Random(1)
    pieces = [piece for text in texts for piece in cut(text, rng)]
    vocabulary = sorted({w for piece in rng.sample(pieces, 200) for w in re.findall(r"[A-Za-z]{3,12}", piece)})
    copies = [Copy(edited(p, rng.uniform(0.002, 0.05), rng, vocabulary), p) for p in rng.sample(pieces, 3000)]
    distinct = sorted({*pieces, *(c.text for c in copies)}, key=identity)
    of = decided(folder / "planted", distinct)
    gone = {distinct[i]: distinct[k] for i, k in enumerate(of) if k >= 0}
    similar = [c for c in copies if c.text != c.of and jaccard(c.text, c.of) >= THRESHOLD]
    both_stay = sum(c.text not in gone and c.of not in gone for c in similar)
    right = sum(jaccard(a, b) >= THRESHOLD for a, b in gone.items())
    recall, precision = 1 - both_stay / len(similar), right / len(gone)
    print(f"planted: {len(similar)} of {len(distinct)} records are copies at {THRESHOLD} or more: recall {recall:.4f}")
    print(f"{len(gone)} dropped: precision {precision:.4f}")


def cut(text: str, rng: random.Random) -> Iterable[str]:
    """Pieces of a text of 60 to 1,200 words."""
    runs = re.findall(r"\S+\s*", text)
    while len(runs) >= 60:
        size = rng.randint(60, 1200)
        yield "".join(runs[:size]).strip()
        runs = runs[size:]


def edited(text: str, share: float, rng: random.Random, vocabulary: Sequence[str]) -> str:
    """This share of the words replaced (3 of 5), left out (1) or followed by another (1)."""

    def one(word: str) -> str:
        if word.isspace() or rng.random() >= share:
            return word
        return rng.choice([rng.choice(vocabulary)] * 3 + ["", f"{word} {rng.choice(vocabulary)}"])

    return "".join(map(one, re.findall(r"\s+|\S+", text)))


def jaccard(a: str, b: str) -> float:
    x, y = grams(a), grams(b)
    return len(x & y) / len(x | y)


def grams(text: str) -> set[tuple[str, ...]]:
    found = re.findall(r"\w+", text.lower())
    return {tuple(found[i : i + 5]) for i in range(max(1, len(found) - 4))}


def long_works(folder: Path, texts: Sequence[str]) -> None:
    """Works of 20,000 words or so, with 3,000 words of licence in each: as Project Gutenberg's are."""
    licence, *rest = (t.split() for t in sorted(texts, key=len, reverse=True))
    licence, runs = licence[:3000], [word for run in rest for word in run]
    works = [" ".join([*licence[:500], *runs[i : i + 20_000], *licence[500:]]) for i in range(0, len(runs), 20_000)]
    short = [" ".join([*licence[:500], *runs[i : i + 2_000], *licence[500:]]) for i in range(0, 400_000, 2_000)]
    for name, those in (("works", works), ("leaflets", short)):
        lost = sum(k >= 0 for k in decided(folder / name, sorted(set(those), key=identity)))
        print(f"{len(those)} long {name} with a shared licence: {lost} lost")


def forms(folder: Path, n: int = 100_000) -> None:
    """One form filled in n times: 150 words that all have, 32 of its own each."""
    rng = random.Random(1)
    form = " ".join(f"form{i}" for i in range(150))
    made = [f"{form} {' '.join(str(rng.getrandbits(40)) for _ in range(32))}" for _ in range(n)]
    alike = jaccard(made[0], made[1])
    result: list[near.Near] = []
    seconds = timed(lambda: result.append(outcome(folder / "forms", made)))
    print(f"{n} forms, pairwise at {alike:.2f}: MinHash and all in {seconds:.1f} s; "
          f"{result[0].compared} pairs compared, {int((result[0].of >= 0).sum())} dropped")  # fmt: skip


def identity(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def decided(folder: Path, texts: Sequence[str]) -> list[int]:
    return outcome(folder, texts).of.tolist()


def outcome(folder: Path, texts: Sequence[str]) -> near.Near:
    """texts: by rank."""
    array = pa.array(texts, pa.large_string())
    parts = [array.slice(i, SHARD_ROWS) for i in range(0, len(array), SHARD_ROWS)]
    workspace, shards, shard, row = stored(folder, parts)
    for name in shards:
        minhash.hash_shard(workspace.where, name, THRESHOLD)
    return near.decide(workspace, shards, shard, row, np.ones(len(texts), bool), THRESHOLD)


def stored(folder: Path, parts: Iterable[pa.LargeStringArray]) -> tuple[Workspace, list[str], np.ndarray, np.ndarray]:
    workspace, names, sizes = Workspace(folder), [], []
    for number, texts in enumerate(parts):
        names.append(digest_of(number))
        sizes.append(len(texts))
        with task_folder(workspace.shard(names[-1])) as out:
            pq.write_table(
                pa.table({"text": texts}),
                out / "records.parquet",
                compression="zstd",
                row_group_size=ROW_GROUP,
                write_page_checksum=True,
            )
    shard = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return workspace, names, shard, np.concatenate([np.arange(n, dtype=np.int32) for n in sizes])


def write_made_up(folder: Path, n: int) -> None:
    stored(folder / str(n), (made_up(start, min(SHARD_ROWS, n - start)) for start in range(0, n, SHARD_ROWS)))


def scale(folder: Path, n: int) -> str:
    """A line of the table. In a process of its own: memory that another one freed is not always given back."""
    decided(folder / "warm", ["one text", "ONE TEXT"])  # compiles
    workspace = Workspace(folder / str(n))
    shards = [digest_of(number) for number in range(-(-n // SHARD_ROWS))]
    rank = np.random.default_rng(1).permutation(n).astype(np.int32)  # each shard's records are spread over all ranks
    shard, row, eligible = rank // SHARD_ROWS, rank % SHARD_ROWS, np.ones(n, bool)
    base = memory("VmRSS")
    stage = timed(lambda: [minhash.hash_shard(workspace.where, name, THRESHOLD) for name in shards])
    hashed = memory("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    found = timed(lambda: candidates.find(workspace, shards, shard, row, THRESHOLD, Silent()))
    decide = timed(lambda: near.decide(workspace, shards, shard, row, eligible, THRESHOLD))
    peak = memory("VmHWM")
    dropped = int((near.decide(workspace, shards, shard, row, eligible, THRESHOLD).of >= 0).sum())
    micro = [f"{seconds / n * 1e6:9.2f} µs" for seconds in (stage, found, decide)]
    return f"{n:9} {' '.join(micro)} {hashed - base:8.0f} MB {peak - base:8.0f} MB {dropped / n:8.2%}"


def memory(what: str) -> float:
    """Megabytes. what: VmRSS (now) or VmHWM (at most)."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1000


def made_up(seed: int, n: int) -> pa.LargeStringArray:
    """Texts of 50 to 150 words; one in fifty is a copy of an earlier one with a word changed."""
    rng = np.random.default_rng(seed)
    vocabulary = pa.array([f"{'aeiou'[i % 5]}{np.base_repr(i * 7919, 36).lower()}" for i in range(30_000)])
    lengths = rng.integers(50, 150, n)
    copies = np.arange(50, n, 50)
    lengths[copies] = lengths[copies - 7]
    starts = np.append(0, np.cumsum(lengths))
    chosen = rng.integers(0, len(vocabulary), starts[-1])
    for start, of, length in zip(starts[copies], starts[copies - 7], lengths[copies], strict=True):
        chosen[start : start + length - 1] = chosen[of : of + length - 1]
    lists = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), vocabulary.take(pa.array(chosen)))
    return pc.binary_join(lists, " ").cast(pa.large_string())


if __name__ == "__main__":
    main()
