"""The evaluation files of a recipe as a table of word sequences that no training record may hold.

Files are named by globs and read as sources are: same listing, same sandbox, any format. Of rows every string counts,
whatever its column, because questions lie in `question`, `input` or `ctx`. A *piece* is 13 words in a row, as in the
contamination study of GPT-3 (Brown et al. 2020, appendix C); in scripts written without spaces a word is a character,
and a piece is 24 of them: a Chinese word has 1.7 on average, so that is about as much as 13 words say. A shorter string
is a piece as a whole if it has 8 words (14 characters): below that, chance makes it.

A piece in more than 10 records and a tenth of a file's is its form ("Choose the right answer …"), which is no exam
question, and is left out; but not where a record has no other piece. (GPT-3 ignored pieces found too often in the
*training* data instead, which lets a much-copied exam pass.) A file that cannot be read whole is an error: what is
missed in silence here makes every later score a lie.

  keys.npy       uint64 (pieces,), sorted: a piece's hash, of `hash_pieces`
  owners.npy     int32 (pieces,): the first record that has it, a row of records.parquet
  widths.npy     int64: the numbers of words that pieces have
  records.parquet  name ("evals/gsm.jsonl row 17"), pieces (how many it has)
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sheaf.console import Console
from sheaf.corpus.columns import save_array
from sheaf.corpus.workspace import Workspace
from sheaf.errors import DataRefused, RecipeError
from sheaf.files import checked, digest_file, digest_json, read_done, task_folder
from sheaf.formats import READER_VERSION
from sheaf.formats.normalise import normalise
from sheaf.formats.reasons import explain
from sheaf.formats.sandbox import ItemInput, ParseOptions, Sandbox
from sheaf.kernel import kernel
from sheaf.prepare import words
from sheaf.prepare.characters import SPACELESS, classes
from sheaf.privacy import hidden
from sheaf.recipe import Recipe, SourceSpec
from sheaf.sources.base import Item
from sheaf.sources.folder import real_path
from sheaf.sources.registry import open_source

EXAMS = "exams-1"  # name and version of what lies in the folder
WORDS, SHORTEST = 13, 8
SPACELESS_WORDS, SPACELESS_SHORTEST = 24, 14
COMMON_RECORDS, COMMON_SHARE = 10, 0.1

_BASE = np.uint64(0x9E3779B97F4A7C15 | 1)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)


@dataclass(frozen=True)
class Exams:
    """The table, opened."""

    keys: NDArray[np.uint64]
    owners: NDArray[np.int32]
    widths: NDArray[np.int64]
    records: pa.Table

    @staticmethod
    def open(workspace: Workspace, exams: str) -> Exams:
        folder = workspace.scores(exams, EXAMS)
        keys, owners, widths = (
            np.load(checked(folder / f"{name}.npy"), allow_pickle=False) for name in ("keys", "owners", "widths")
        )
        return Exams(keys, owners, widths, pq.read_table(checked(folder / "records.parquet")))


def build(workspace: Workspace, recipe: Recipe, console: Console) -> str | None:
    """The digest of the recipe's evaluation files, after their table is made; None if it names none.

    Costs a digest of the files if the table is there. Raises RecipeError for a glob that no file matches, DataRefused
    for a file that cannot be read whole, or that holds nothing to look for.
    """
    files = [file for pattern in recipe.prepare.decontaminate for file in _matching(pattern)]
    if not files:
        return None
    files = sorted({file.path: file for file in files}.values(), key=lambda file: (file.name, file.path))
    digests = [digest_file(Path(file.path)) for file in files]
    how = [EXAMS, READER_VERSION, recipe.prepare.mojibake]
    exams = digest_json([*how, [[f.name, digest] for f, digest in zip(files, digests, strict=True)]])
    if read_done(workspace.scores(exams, EXAMS)) is None:
        with console.stage("evaluation files", len(files), "files") as advance:
            _write(workspace, exams, _Read.of(files, recipe, advance), console)
    return exams


@dataclass(frozen=True)
class _File:
    """name: as it is shown, the same on every machine. path: where it lies here."""

    name: str
    path: str
    spec: SourceSpec
    item: Item


def _matching(pattern: str) -> Iterator[_File]:
    """The files that a glob means, as a source lists them."""
    if "://" in pattern:
        raise RecipeError(
            "evaluation files are read from this machine's folders",
            where=f"prepare.decontaminate: {pattern}",
            fix="copy them into a folder beside the recipe",
        )
    parts = Path(pattern).parts
    fixed = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    base = Path(*parts[:fixed])
    rest = "/".join(parts[fixed:])
    include = rest if glob.has_magic(rest) else glob.escape(rest)
    spec = SourceSpec(name="evaluation", uri=str(base), include=(include,))
    found = 0
    for item in open_source(spec).list_items() if base.is_dir() else ():
        if not isinstance(item, Item):
            raise _unreadable(f"{base.name}/{item.path}", item.reason, item.detail)
        found += 1
        yield _File(f"{base.name}/{item.path}".lstrip("/"), str(base / real_path(item.path)), spec, item)
    if not found:
        raise RecipeError(
            "no evaluation file is there",
            where=f"prepare.decontaminate: {pattern}",
            why="it is a folder" if pattern and Path(pattern).is_dir() else "no file's path matches",
            fix="name files, such as ./evals/*.jsonl or ./evals/**/*, relative to the recipe, or take it out",
        )


def _unreadable(name: str, reason: str, detail: str) -> DataRefused:
    return DataRefused(
        "an evaluation file cannot be read whole, so training records could hold parts of it unseen",
        where=name,
        why=f"{reason}: {hidden(detail) or explain(reason)}",
        fix="mend the file, or take it out of prepare.decontaminate",
    )


@dataclass(frozen=True)
class _Read:
    """texts: every string, normalised. owner: the record of each. names, file: of each record."""

    texts: list[str]
    owner: list[int]
    names: list[str]
    file: list[int]

    @staticmethod
    def of(files: Sequence[_File], recipe: Recipe, advance: Any) -> _Read:
        read = _Read([], [], [], [])
        with Sandbox(recipe.prepare.limits) as sandbox:
            for number, file in enumerate(files):
                read._take(number, file, sandbox, recipe.prepare.mojibake)
                advance(1)
        return read

    def _take(self, number: int, file: _File, sandbox: Sandbox, mojibake: bool) -> None:
        with open_source(file.spec).open_item(file.item) as opened:
            size = os.fstat(opened.fileno()).st_size
            parsed = sandbox.parse([ItemInput(opened, file.item.path, size)], ParseOptions(raw_rows=True))
        for region in parsed.regions.slice(0, 1).to_pylist():
            member = f"!/{region['member']}" if region["member"] else ""
            raise _unreadable(f"{file.name}{member}", region["reason"], region["detail"])
        columns = (parsed.records[name].to_pylist() for name in ("kind", "text", "meta", "member"))
        place = ("", 0)
        before = len(self.texts)
        for kind, text, meta, member in zip(*columns, strict=True):
            place = (member, place[1] + 1 if member == place[0] else 1)
            inside = f"!/{member}" if member else ""
            self.names.append(f"{file.name}{inside} {'row' if kind == 'row' else 'record'} {place[1]}")
            self.file.append(number)
            said = list(_strings(orjson.loads(meta))) if kind == "row" else [text]
            self.texts.extend(normalise(one, mojibake)[0] for one in said)
            self.owner.extend([len(self.names) - 1] * len(said))
        if before == len(self.texts):
            raise _unreadable(file.name, "no-text", "there is no text in it")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)


def _write(workspace: Workspace, exams: str, read: _Read, console: Console) -> None:
    keys, record, widths = _pieces(read)
    file = np.array(read.file, np.int32)
    common = _common(keys, record, file)
    kept = ~common
    bare = np.setdiff1d(record[common], record[kept])  # records that the form is all of
    kept |= np.isin(record, bare)
    left_out = len(np.unique(keys[~kept]))
    keys, record = keys[kept], record[kept]
    numbers = np.bincount(record, minlength=len(read.names)).astype(np.int32)
    _tell(read, numbers, left_out, console)
    unique, first = np.unique(keys, return_index=True)  # pieces come sorted by record: the first owns it
    with task_folder(workspace.scores(exams, EXAMS), stage="evaluation files") as out:
        save_array(out / "keys.npy", unique)
        save_array(out / "owners.npy", record[first])
        save_array(out / "widths.npy", widths)
        records = pa.table({"name": pa.array(read.names, pa.string()), "pieces": numbers})
        pq.write_table(records, out / "records.parquet", compression="zstd")


def _tell(read: _Read, numbers: NDArray[np.int32], left_out: int, console: Console) -> None:
    short = np.flatnonzero(numbers == 0)
    if len(short) == len(numbers):
        raise DataRefused(
            "the evaluation files hold nothing to look for",
            where=f"{read.names[0]} is the first of {len(numbers)} records",
            why=f"no text in them has {SHORTEST} words, or {SPACELESS_SHORTEST} characters of a script without spaces",
            fix="take them out of prepare.decontaminate",
        )
    if len(short):
        example = read.names[int(short[0])]
        console.note(f"{len(short)} of {len(numbers)} evaluation records are too short to look for: {example}, …")
    if left_out:
        console.note(f"{left_out} pieces of evaluation files are left out, since a tenth of a file's records has them")


def _pieces(read: _Read) -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.int64]]:
    """The pieces of all records, each once a record: hash and record, sorted by record; and the widths there are."""
    hashes, first = words.hashes(pa.array(read.texts, pa.large_string()))
    count = np.diff(first)
    spaceless = np.fromiter(map(_spaceless, read.texts), np.int64, len(read.texts)) * 2 > count
    whole = np.where(spaceless, SPACELESS_WORDS, WORDS)
    width = np.where(count < np.where(spaceless, SPACELESS_SHORTEST, SHORTEST), 0, np.minimum(count, whole))
    number = np.where(width > 0, count - width + 1, 0)
    keys = np.empty(int(number.sum()), np.uint64)
    hash_pieces(hashes, first, width.astype(np.int64), keys)
    record = np.repeat(np.array(read.owner, np.int32), number)
    order = np.lexsort((keys, record))
    keys, record = keys[order], record[order]
    new = np.ones(len(keys), bool)
    new[1:] = (keys[1:] != keys[:-1]) | (record[1:] != record[:-1])
    return keys[new], record[new], np.unique(width[width > 0]).astype(np.int64)


def _spaceless(text: str) -> int:
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return int(np.count_nonzero(classes()[codes] & SPACELESS))


def _common(keys: NDArray[np.uint64], record: NDArray[np.int32], file: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which of the pieces are in very many records of their file."""
    pair = np.empty(len(keys), [("key", np.uint64), ("file", np.int32)])
    pair["key"], pair["file"] = keys, file[record]
    _, group, times = np.unique(pair, return_inverse=True, return_counts=True)
    share = COMMON_SHARE * np.bincount(file)[file[record]]
    return (times[group] > COMMON_RECORDS) & (times[group] > share)


@kernel
def hash_pieces(
    hashes: NDArray[np.uint64], first: NDArray[np.int64], width: NDArray[np.int64], keys: NDArray[np.uint64]
) -> None:
    """The hash of every sequence of width[t] words of text t: Σ h[i+j] B^(width-1-j) mod 2^64, with the width mixed in.

    hashes, first: as `words.hashes` gives them. width 0: none of this text.
    """
    n = 0
    for text in range(len(width)):
        k = width[text]
        if k == 0:
            continue
        power = np.uint64(1)
        for _ in range(k):
            power *= _BASE
        h = np.uint64(0)
        for i in range(first[text], first[text + 1]):
            h = h * _BASE + hashes[i]
            if i >= first[text] + k:
                h -= hashes[i - k] * power
            if i >= first[text] + k - 1:
                mixed = (h + np.uint64(k)) * _MIX
                keys[n] = mixed ^ (mixed >> _SHIFT)
                n += 1
