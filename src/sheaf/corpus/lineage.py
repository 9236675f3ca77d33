"""From a document back to the places where it was seen, and from a place to its documents.

Nothing is logged for this: every row keeps its origins, and a record that lies in several shards is found in each by
bisection over sorted ids. Cost: one bisection a shard, one row group read a hit; ids are cached (16 bytes a row).
`reread` is the proof: it opens the origin's item again, takes it apart in the same sandbox, and gives the text.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sheaf.corpus import shards
from sheaf.corpus.documents import Documents
from sheaf.corpus.reading import Manners, parse_options
from sheaf.corpus.version import CorpusVersion, read_rows
from sheaf.errors import DataRefused, SheafError
from sheaf.files import checked
from sheaf.formats.reread import reread as reread_record
from sheaf.formats.sandbox import ItemInput, ParseOptions, Sandbox
from sheaf.recipe import Limits, Prepare, SourceSpec
from sheaf.sources.base import Item, ItemChanged, ItemRefused, ItemUnavailable
from sheaf.sources.registry import open_source


class SourceChanged(SheafError):
    """The item that an origin names is gone or has another version now; it cannot prove anything."""

    exit_code = 3


def origins(corpus: CorpusVersion, number: int) -> list[dict[str, Any]]:
    """Every live place where this document's record was seen: {source, uri, path, version, member, locator, …}."""
    wanted = np.frombuffer(bytes(corpus.documents.id[number]), "S16")[0]
    live = _live(corpus)
    found: list[dict[str, Any]] = []
    for shard in range(len(corpus.shard_names)):
        ids = _ids(checked(corpus.shard_path(shard) / "records.parquet"))
        rows = range(*(int(np.searchsorted(ids, wanted, side)) for side in ("left", "right")))
        for record in read_rows(corpus.shard_path(shard), rows, ["origins"]):
            found += [o for o in record["origins"] if (o["source"], o["path"], o["version"]) in live]
    rank = {name: i for i, name in enumerate(corpus.source_names)}
    found.sort(key=lambda o: (rank[o["source"]], o["path"], o["member"], o["locator"]))
    return [_public(o, _spec(corpus, o["source"]).license) for o in found]


def reread(corpus: CorpusVersion, origin: dict[str, Any]) -> str:
    """The normalised text that the origin's bytes give now. Raises SourceChanged if they are not what was read."""
    with Rereader(corpus) as again:
        return again.text(origin)


class Rereader:
    """Reads origins again, many with one sandbox. Use as a context manager."""

    def __init__(self, corpus: CorpusVersion) -> None:
        self._corpus = corpus
        self._prepare = Prepare.model_validate(corpus.manifest["prepare"])
        self._manners = Manners(self._prepare)
        self._sandboxes: dict[Limits, Sandbox] = {}

    def __enter__(self) -> Rereader:
        return self

    def __exit__(self, *_: object) -> None:
        for sandbox in self._sandboxes.values():
            sandbox.close()

    def text(self, origin: dict[str, Any]) -> str:
        """As `reread`."""
        corpus, spec = self._corpus, _spec(self._corpus, origin["source"])
        claimed, about = _live(corpus).get((origin["source"], origin["path"], origin["version"]), ("", ""))
        item = Item(spec.name, origin["path"], origin["uri"], origin["version"], -1, claimed, about)
        manner = self._manners.of(spec.name, item.path)
        options = parse_options(spec, mojibake=self._prepare.mojibake, manner=manner)
        sandbox = self._sandbox(manner.limits or self._prepare.limits)
        member, locator = origin["member"], origin["locator"]
        try:
            with open_source(spec, corpus.workspace.spool).open_item(item) as file:
                text = reread_record(file, item.path, member, locator, options, sandbox, claimed, about)
        except (ItemChanged, ItemUnavailable, ItemRefused, DataRefused) as error:
            raise SourceChanged("the origin is not what it was", where=origin["uri"], why=str(error)) from error
        if text is None:
            raise SourceChanged(
                "the record is no longer there", where=origin["uri"], why="reading it again gave others"
            )
        return text

    def bytes_of(self, place: dict[str, Any], start: int, length: int) -> bytes:
        """The bytes [start, start + length) of {source, path, uri, version, member}, expanded but not decoded.

        Raises SourceChanged.
        """
        corpus, spec = self._corpus, _spec(self._corpus, place["source"])
        claimed, about = _live(corpus).get((place["source"], place["path"], place["version"]), ("", ""))
        item = Item(spec.name, place["path"], place["uri"], place["version"], -1, claimed, about)
        options = ParseOptions(excerpt=(place["member"], start, length))
        sandbox = self._sandbox(self._manners.of(spec.name, item.path).limits or self._prepare.limits)
        try:
            with open_source(spec, corpus.workspace.spool).open_item(item) as file:
                size = os.fstat(file.fileno()).st_size
                found = sandbox.parse([ItemInput(file, item.path, size, claimed)], options).records["payload"]
        except (ItemChanged, ItemUnavailable, ItemRefused, DataRefused) as error:
            raise SourceChanged("the item is not what it was", where=place["uri"], why=str(error)) from error
        if not len(found):
            raise SourceChanged("it cannot be reached", where=place["uri"], why="its archive is refused before it")
        return found[0].as_py()

    def _sandbox(self, limits: Limits) -> Sandbox:
        if limits not in self._sandboxes:
            self._sandboxes[limits] = Sandbox(limits)
        return self._sandboxes[limits]


def documents_of(corpus: CorpusVersion, pattern: str) -> NDArray[np.int64]:
    """Numbers of the documents that have an origin whose URI contains or matches (regular expression) the pattern."""
    return _numbers(corpus.documents, ids_of(corpus, pattern))


def without_text(corpus: CorpusVersion, pattern: str) -> int:
    """How many kept records have such an origin and no text: pictures and sounds, which are no documents."""
    ids = ids_of(corpus, pattern)
    kept: set[bytes] = set()
    for batch in corpus.decision_batches(["id", "kept"]):
        kept |= ids.intersection(batch.filter(batch["kept"])["id"].to_pylist())
    return len(kept) - len({bytes(corpus.documents.id[n]) for n in _numbers(corpus.documents, kept)})


def ids_of(corpus: CorpusVersion, pattern: str) -> set[bytes]:
    """Ids of all records, kept or not, that have such an origin."""
    wanted = re.compile(pattern)
    ledger = corpus.ledger()
    rows = zip(*(ledger[c].to_pylist() for c in ("source", "path", "version", "uri")), strict=True)
    live = {(s, p, v) for s, p, v, uri in rows if pattern in uri or wanted.search(uri)}
    ids: set[bytes] = set()
    for shard in range(len(corpus.shard_names)):
        ids |= _ids_from(corpus.shard_path(shard), live)
    return ids


def _ids_from(shard: Path, live: set[tuple[str, str, str]]) -> set[bytes]:
    items = shards.read(shard, "items", ["source", "path", "version"])
    rows = zip(*(items[c].to_pylist() for c in ("source", "path", "version")), strict=True)
    wanted = {i for i, row in enumerate(rows) if row in live}
    if not wanted:
        return set()
    table = shards.read(shard, "records", ["id", "origins"])
    pairs = zip(table["id"].to_pylist(), table["origins"].to_pylist(), strict=True)
    return {i for i, places in pairs if any(o["item"] in wanted for o in places)}


def _numbers(documents: Documents, ids: set[bytes]) -> NDArray[np.int64]:
    if not ids:
        return np.zeros(0, np.int64)
    have = np.ascontiguousarray(documents.id).view("V16").reshape(-1)
    wanted = np.frombuffer(b"".join(sorted(ids)), "V16")
    return np.flatnonzero(np.isin(have.view("S16"), wanted.view("S16"))).astype(np.int64)


@lru_cache(maxsize=256)
def _ids(records: Path) -> NDArray[np.bytes_]:
    # "S16" sorts byte by byte; it ignores trailing zeros, but on both sides alike and all ids are 16 bytes long
    return shards.id_bytes(shards.read(records.parent, "records", ["id"])["id"]).view("S16")


@lru_cache(maxsize=4)
def _live_of(root: Path) -> dict[tuple[str, str, str], tuple[str, str]]:
    columns = ["source", "path", "version", "claimed", "about"]
    ledger = pq.read_table(checked(root / "ledger.parquet"), columns=columns)
    return {
        (s, p, v): (claimed, about)
        for s, p, v, claimed, about in zip(*(ledger[c].to_pylist() for c in columns), strict=True)
    }


def _live(corpus: CorpusVersion) -> dict[tuple[str, str, str], tuple[str, str]]:
    """(source, path, version) of every item of this version → what its place claimed: content type, and about."""
    return _live_of(corpus.root)


def _spec(corpus: CorpusVersion, name: str) -> SourceSpec:
    return SourceSpec.model_validate(next(s for s in corpus.manifest["sources"] if s["name"] == name))


def _public(origin: dict[str, Any], license: str | None) -> dict[str, Any]:
    """An origin as `trace` shows it: the contract's fields first, the locator as an object."""
    names = ("source", "uri", "version", "member", "path", "bytes", "media", "encoding", "confidence", "repairs")
    shown = {name: origin[name] for name in names}
    return {**shown, "locator": orjson.loads(origin["locator"])} | ({"license": license} if license else {})
