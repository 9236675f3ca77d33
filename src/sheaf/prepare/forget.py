"""`sheaf forget`: take records out of the corpus and of what is stored, and say what that changes.

What goes is found in the newest version: by source, licence, item, record id, or an expression over the texts. A trial
of the selecting stage then says exactly what the next version would be: which records go, and which copy or near copy
takes the place of one that goes. Carried out, the touched shards are written anew (`corpus/forgotten.py`), the rest of
the preparation runs over them as it does after any change, and the difference is written to `forgotten/NNN.json`.
No source is asked. Cost: one pass over ids and origins, or over all texts for an expression; then as much as preparing
the touched shards.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sheaf import engine as engines
from sheaf.console import Console, Silent
from sheaf.corpus import forgotten as store
from sheaf.corpus import shards, versions
from sheaf.corpus.forgotten import REASON, Forgotten
from sheaf.corpus.ledger import bad_pattern, matching
from sheaf.corpus.version import CorpusVersion
from sheaf.corpus.vocabulary import Vocabulary
from sheaf.corpus.workspace import Workspace
from sheaf.errors import SheafError, UsageError
from sheaf.files import checked, is_mirror, remove_folder, write_json
from sheaf.prepare import pipeline, select, stages, tokenizer
from sheaf.prepare.gather import Listing, forgotten_refusal
from sheaf.prepare.known import known
from sheaf.prepare.read import Listed
from sheaf.prepare.rendering import Rendering
from sheaf.recipe import Prepare, Recipe, SourceSpec
from sheaf.runs import read_record, runs_of
from sheaf.sources.base import Item, Refusal

Json = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What to forget; several together mean all of what any of them names.

    item: part of a URI, or a regular expression. matching: a regular expression (RE2) over texts, messages and meta.
    """

    source: str | None = None
    license: str | None = None
    item: str | None = None
    records: tuple[str, ...] = ()
    matching: str | None = None

    def __bool__(self) -> bool:
        return any((self.source, self.license, self.item, self.records, self.matching))


@dataclass(frozen=True)
class Found:
    """What that is in one version. items: (source, path) of those that are not in a source that goes as a whole."""

    sources: frozenset[str] = frozenset()
    items: frozenset[tuple[str, str]] = frozenset()
    records: frozenset[bytes] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.sources or self.items or self.records)

    def forgotten(self) -> Forgotten:
        return Forgotten(self.sources, frozenset(store.item_digest(*i) for i in self.items), self.records)


@dataclass(frozen=True)
class Change:
    """What a new version is without, and with instead.

    gone: S16 (n,), sorted ids that were kept and are not any more. promoted: S16 (m,), sorted ids that another copy
    speaks for now, in another source, or that were a near copy of one that is gone; by: int (m,), the source's number.
    """

    gone: np.ndarray
    promoted: np.ndarray
    by: np.ndarray


def find(corpus: CorpusVersion, wanted: Wanted) -> Found:
    """Raises UsageError for a source, licence, id or expression that names nothing or cannot be read."""
    sources = _sources(corpus, wanted)
    items: set[tuple[str, str]] = set()
    if wanted.item is not None:
        ledger = corpus.ledger()
        table = ledger.filter(matching(ledger, wanted.item))
        items = {i for i in zip(table["source"].to_pylist(), table["path"].to_pylist(), strict=True)}
    records = {_id(text) for text in wanted.records}
    unknown = records - _present(corpus, records)
    if unknown:
        raise UsageError(
            "there is no such record", where=sorted(unknown)[0].hex(), fix="`sheaf trace` shows record ids"
        )
    if wanted.matching is not None:
        records |= _matching_records(corpus, wanted.matching)
    return Found(frozenset(sources), frozenset(i for i in items if i[0] not in sources), frozenset(records))


def preview(corpus: CorpusVersion, recipe: Recipe, found: Found) -> Change:
    """What `carry_out` would change; nothing is written."""
    new = found.forgotten()
    listing, before = _without(_listing(corpus), new), _recipe_of(corpus, recipe)
    with select.select(
        *(corpus.workspace, corpus.shard_names, listing.keys, listing.refusals, before, _asked(corpus, before)),
        forgotten=new.records | store.read(corpus.workspace).records,
        rendering=Rendering.from_json(corpus.manifest["rendering"]),
    ) as selection:
        return _change(corpus, selection.decided.tables())


def carry_out(
    corpus: CorpusVersion,
    recipe: Recipe,
    found: Found,
    told: Json,
    *,
    workers: int | None = None,
    console: Console | None = None,
) -> CorpusVersion:
    """Write the touched shards anew, remember what is forgotten, and commit a version without it.

    told: what was said of it before (`summary`, the runs that saw it); it is written down with the difference.
    """
    workspace, console = corpus.workspace, console or Silent()
    with workspace.locked(console), closing(engines.make("local", workers)) as pool:
        new = found.forgotten()
        replaced = _written_anew(corpus, new, console)
        entry = {"sources": sorted(new.sources), "items": sorted(new.items)}
        store.add(workspace, entry | {"records": sorted(r.hex() for r in new.records), "replaced": replaced})
        listing = _without(_listing(corpus), new)
        live = list(known(workspace, listing.keys).rows)
        before = _recipe_of(corpus, recipe)
        made = pipeline.derive(workspace, before, _asked(corpus, before), live, listing, pool, console)
    difference = versions.compare(corpus, made)
    del difference["items"]["examples"]  # names of what is forgotten
    write_json(_next_name(workspace), told | {"replaced": replaced, "difference": difference})
    return made


def ids_gone(version: CorpusVersion, wanted: Wanted, change: Change, head: CorpusVersion) -> np.ndarray:
    """S16: ids of a version's records that are forgotten, and that the newest version is, or will be, without."""
    if version.digest == head.digest:
        return change.gone
    try:
        found = find(version, wanted)
    except UsageError:  # it had no such source, or no such record
        return change.gone
    forgotten, ids = found.forgotten(), set(found.records)
    for shard in version.shard_names:
        ids |= store.records_in(version.workspace, shard, forgotten)
    stays = np.setdiff1d(np.union1d(_kept([head.decisions()])[0], change.promoted), change.gone)
    return np.union1d(np.setdiff1d(np.array(sorted(ids), "S16"), stays), change.gone)


def summary(corpus: CorpusVersion, found: Found, change: Change) -> Json:
    """{"of": digest, "sources", "items", "records": those named, "gone": {"records", "tokens", "by_source", "ids"},
    "promoted": {"records", "by_source", "ids"}}."""
    ids = np.ascontiguousarray(corpus.documents.id).view("S16").reshape(-1)
    going = np.isin(ids, change.gone)
    source, length = np.asarray(corpus.documents.source)[going], np.asarray(corpus.documents.length)[going]
    names = corpus.source_names
    had, was = _kept([corpus.decisions()])  # pictures and sounds are kept, and no documents
    records = np.bincount(was[np.isin(had, change.gone)], minlength=len(names))
    by_source = {
        name: {"records": int(records[n]), "tokens": int(length[source == n].sum())}
        for n, name in enumerate(names)
        if records[n]
    }
    promoted = np.bincount(change.by, minlength=len(names))
    return {
        "of": corpus.digest,
        "sources": sorted(found.sources),
        "items": len(found.items),
        "records": len(found.records),
        "gone": {
            **{"records": len(change.gone), "tokens": int(length.sum())},
            **{"by_source": by_source, "ids": _hex(change.gone)},
        },
        "promoted": {
            "records": len(change.promoted),
            "by_source": {name: int(promoted[n]) for n, name in enumerate(names) if promoted[n]},
            "ids": _hex(change.promoted),
        },
    }


def purge(workspace: Workspace, recipe: Recipe, console: Console | None = None) -> Json:
    """Remove every version but the newest, and all that only they needed: {"versions", "shards", "bytes", "tokenizer"}.

    Reports of runs go too, as they quote texts, and what killed processes left half-written. Runs and checkpoints stay;
    one that was trained on a version that is gone can still generate and be exported, but neither resumed nor traced.
    tokenizer: whether the one that stays was trained on other records than those that stay.
    """
    removed: Json = {"versions": 0, "shards": 0, "bytes": 0}
    with workspace.locked(console or Silent()):  # what a prepare has just made is in no version yet
        workspace.create()
        head = CorpusVersion.open(workspace)
        for name in workspace.versions():
            with contextlib.suppress(SheafError):  # of a damaged one there is nothing to keep
                Vocabulary.of(CorpusVersion.open(workspace, name.partition(".")[0])).keep()
        own = tokenizer.trained(workspace, pipeline.wanted_tokenizer(_recipe_of(head, recipe)))
        removed["tokenizer"] = own is not None and not head.holds(own["records"])
        digests = _tokenizers_of_runs(workspace) | {head.manifest["tokenizer"]} | ({own["tokenizer"]} if own else set())
        needed = {workspace.tokenizer(digest).resolve() for digest in digests}
        needed |= {path.resolve() for path in versions.folders_of(head)}
        for folder in _all_folders(workspace):
            if folder.resolve() in needed:
                continue
            removed["bytes"] += sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            removed["versions"] += folder.parent.name == "corpora"
            removed["shards"] += folder.parent.name == "shards"
            remove_folder(folder)
        for report in workspace.runs.glob("*/report.html"):
            removed["bytes"] += report.stat().st_size
            report.unlink()
    return removed


def _tokenizers_of_runs(workspace: Workspace) -> set[str]:
    """Digests of those that runs need. Of a workspace in a store other machines have runs: all that are there."""
    if is_mirror(workspace.root):
        return {folder.name for folder in workspace.folders("tokenizers")}
    found: set[str] = set()
    for run in runs_of(workspace.root):
        with contextlib.suppress(SheafError):  # of a version that nobody knows any more
            found.add(Vocabulary.open(workspace, read_record(run)["corpus"]).tokenizer)
    return found


def _all_folders(workspace: Workspace) -> Iterator[Path]:
    """Every folder that holds something made of texts: versions, shards, scores, tokenizers, tokens, caches."""
    for name in ("corpora", "shards", "scores", "tokenizers", "packs", "near", "exams"):
        yield from workspace.folders(name)
    for tokens in workspace.folders("tokens"):
        yield from workspace.folders(f"tokens/{tokens.name}")


def _sources(corpus: CorpusVersion, wanted: Wanted) -> set[str]:
    specs = corpus.manifest["sources"]
    found = {s["name"] for s in specs if wanted.source == s["name"]}
    if wanted.source is not None and not found:
        raise UsageError(
            f"no source is called '{wanted.source}'", fix=f"the sources are {', '.join(corpus.source_names)}"
        )
    licensed = {s["name"] for s in specs if wanted.license is not None and s["license"] == wanted.license}
    if wanted.license is not None and not licensed:
        known_ones = sorted({s["license"] for s in specs if s["license"]})
        raise UsageError(
            f"no source has the licence '{wanted.license}'",
            why=f"the recipe names {', '.join(known_ones)}" if known_ones else "the recipe names no licence",
        )
    return found | licensed


def _id(text: str) -> bytes:
    if not re.fullmatch(r"[0-9a-f]{32}", text):
        raise UsageError(f"'{text}' is no record id", why="an id is 32 hexadecimal digits", fix="see `sheaf trace`")
    return bytes.fromhex(text)


def _present(corpus: CorpusVersion, ids: set[bytes]) -> set[bytes]:
    found: set[bytes] = set()
    for number in range(len(corpus.shard_names) if ids else 0):
        column = shards.read(corpus.shard_path(number), "records", ["id"])["id"].combine_chunks()
        found |= set(column.filter(pc.is_in(column, pa.array(sorted(ids), column.type))).to_pylist())
    return found


def _matching_records(corpus: CorpusVersion, pattern: str) -> set[bytes]:
    found: set[bytes] = set()
    for number in range(len(corpus.shard_names)):
        file = pq.ParquetFile(checked(corpus.shard_path(number) / "records.parquet"))
        for batch in file.iter_batches(shards.ROW_GROUP, columns=["id", "text", "messages", "meta"]):
            try:
                hits = [pc.match_substring_regex(batch[name], pattern) for name in ("text", "messages", "meta")]
            except pa.ArrowInvalid as error:
                raise bad_pattern(pattern, re.error(str(error))) from error
            found |= set(batch["id"].filter(pc.or_(pc.or_(hits[0], hits[1]), hits[2])).to_pylist())
    return found


def _listing(corpus: CorpusVersion) -> Listing:
    """The version's items and refusals, as they were listed when it was made."""
    ledger = corpus.ledger()
    read = ledger.filter(pc.is_valid(ledger["key"]))
    columns = ("source", "path", "uri", "version", "size", "claimed", "about")
    items = [Item(*row) for row in zip(*(read[c].to_pylist() for c in columns), strict=True)]
    quarantine = corpus.quarantine()
    whole = quarantine.filter(pc.equal(quarantine["version"], "")).to_pylist()
    refusals = [Refusal(r["source"], r["path"], r["uri"], r["bytes"], r["reason"], r["detail"]) for r in whole]
    taken = ledger.filter(pc.equal(ledger["notes"], REASON)).to_pylist()
    refusals += [Refusal(r["source"], r["path"], r["uri"], r["size"], REASON, "") for r in taken]
    keys = read["key"].to_pylist()
    return Listing([Listed(item, key) for item, key in zip(items, keys, strict=True)], refusals)


def _without(listing: Listing, forgotten: Forgotten) -> Listing:
    items = [x for x in listing.items if not forgotten.has_item(x.item.source, x.item.path)]
    gone = [forgotten_refusal(x.item) for x in listing.items if forgotten.has_item(x.item.source, x.item.path)]
    refusals = [
        forgotten_refusal(r) if r.reason != REASON and forgotten.has_item(r.source, r.path) else r
        for r in listing.refusals
    ]
    return Listing(items, [*refusals, *gone])


def _recipe_of(corpus: CorpusVersion, recipe: Recipe) -> Recipe:
    """The recipe as it was when the version was made: forgetting changes nothing else."""
    sources = tuple(SourceSpec.model_validate(s) for s in corpus.manifest["sources"])
    return recipe.model_copy(update={"sources": sources, "prepare": Prepare.model_validate(corpus.manifest["prepare"])})


def _asked(corpus: CorpusVersion, recipe: Recipe) -> stages.Asked:
    """What the recipe asks for, with the evaluation files of that time: they may be gone, what was in them is not."""
    return replace(stages.asked(recipe), exams=corpus.manifest["stages"].get("evaluation", {}).get("files"))


def _written_anew(corpus: CorpusVersion, forgotten: Forgotten, console: Console) -> dict[str, str]:
    replaced: dict[str, str] = {}
    with console.stage("forget", len(corpus.shard_names), "shards") as advance:
        for shard in corpus.shard_names:
            name = store.write_anew(corpus.workspace, shard, forgotten)
            if name != shard:
                replaced[shard] = name
            advance(1)
    return replaced


def _change(corpus: CorpusVersion, decisions: Iterable[pa.Table]) -> Change:
    """From the version's decisions to the new ones. The sources are the same."""
    had, was = _kept([corpus.decisions()])
    has, now = _kept(decisions)
    gone = np.setdiff1d(had, has, assume_unique=True)
    before = np.minimum(np.searchsorted(had, has), max(len(had) - 1, 0))
    stayed = (had[before] == has) & (was[before] == now) if len(had) else np.zeros(len(has), bool)
    return Change(gone, has[~stayed], now[~stayed])


def _kept(decisions: Iterable[pa.Table]) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the kept records, sorted, and the number of the source of each."""
    kept = [table.filter(table["kept"]).select(["id", "source"]).combine_chunks() for table in decisions]
    ids = np.concatenate([np.zeros(0, "S16"), *(shards.id_bytes(t["id"]).view("S16") for t in kept if len(t))])
    source = np.concatenate([np.zeros(0, np.int32), *(t["source"].to_numpy() for t in kept)])
    order = np.argsort(ids, kind="stable")
    return ids[order], source[order].astype(np.int64)


def _hex(ids: np.ndarray) -> list[str]:
    return [bytes(row).hex() for row in ids.view(np.uint8).reshape(-1, 16)]


def _next_name(workspace: Workspace) -> Path:
    folder = workspace.root / "forgotten"
    folder.mkdir(exist_ok=True)
    return folder / f"{len(list(folder.glob('*.json'))):03d}.json"
