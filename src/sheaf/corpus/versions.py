"""The versions of a workspace: which there are, what they take on the disk, and what changed between two of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from sheaf.corpus import shards
from sheaf.corpus.version import CorpusVersion
from sheaf.corpus.workspace import Workspace
from sheaf.files import checked

Json = dict[str, Any]
SHOWN = 1000  # items and settings that a comparison names; the counts are of all


def list_versions(workspace: Workspace) -> list[Json]:
    """Newest last: {"corpus", "name", "made", "head", "documents", "tokens", "sources", "bytes", "own_bytes"}.

    bytes: on the disk, with the shards and tokens that it reads; own_bytes: of those, what no other version needs.
    """
    head = workspace.head.read_text().strip() if workspace.head.exists() else ""
    found = [_opened(workspace, name) for name in workspace.versions()]
    needed = {corpus.root.name: set(folders_of(corpus)) for corpus in found}
    users = Counter(folder for folders in needed.values() for folder in folders)
    sizes = {folder: _size(folder) for folder in users}
    listed = [
        {
            "corpus": corpus.digest,
            "name": corpus.root.name,
            "made": datetime.fromtimestamp((corpus.root / "DONE").stat().st_mtime, UTC).isoformat(timespec="seconds"),
            "head": corpus.root.name == head,
            "documents": corpus.manifest["documents"],
            "tokens": corpus.manifest["tokens"],
            "sources": corpus.source_names,
            "bytes": sum(sizes[f] for f in needed[corpus.root.name]),
            "own_bytes": sum(sizes[f] for f in needed[corpus.root.name] if users[f] == 1),
            "tool": corpus.manifest["tool"],
        }
        for corpus in found
    ]
    return sorted(listed, key=lambda v: (v["made"], v["head"], v["name"]))


def folders_of(corpus: CorpusVersion) -> Iterable[Path]:
    """The version's own folder and those of the shards, scores, evaluation files and tokens that it was made of."""
    yield corpus.root
    exams = corpus.manifest["stages"].get("evaluation", {}).get("files")
    live = {*corpus.shard_names, exams}
    for number, shard in enumerate(corpus.shard_names):
        yield corpus.shard_path(number)
        yield corpus.workspace.tokens(corpus.rendering, shard)
    yield from (folder for folder in corpus.workspace.folders("scores") if folder.name.partition(".")[0] in live)


def compare(old: CorpusVersion, new: CorpusVersion) -> Json:
    """What changed from one version to the other.

    {"old", "new", "tokens": [old, new], "sources": {NAME: {"stayed", "came", "went", "why": {REASON: n}}}, "items":
    {"came", "went", "changed", "examples"}, "settings": {KEY: [old, new]}}. Records are counted as kept ones; why: what
    the new version says of those that went ("not there" if nothing). Memory: some 40 bytes a record of both.
    """
    before, after = _Decided.of(old), _Decided.of(new)
    names = dict.fromkeys([*old.source_names, *new.source_names])
    return {
        "old": old.digest,
        "new": new.digest,
        "tokens": [old.manifest["tokens"], new.manifest["tokens"]],
        "sources": {name: _records(before, after, name) for name in names},
        "items": _items(old, new),
        "settings": _settings(old.manifest, new.manifest),
    }


@dataclass(frozen=True)
class _Decided:
    """All distinct records of a version. id: S16. name: of the source that speaks for it."""

    id: np.ndarray
    name: np.ndarray
    kept: np.ndarray
    reason: np.ndarray

    @staticmethod
    def of(corpus: CorpusVersion) -> _Decided:
        table = corpus.decisions().select(["id", "source", "kept", "reason"]).combine_chunks()
        names = np.array(corpus.source_names, object)[table["source"].to_numpy()]
        ids = shards.id_bytes(table["id"]).view("S16")
        return _Decided(ids, names, table["kept"].to_numpy(zero_copy_only=False), table["reason"].to_numpy())


def _records(before: _Decided, after: _Decided, name: str) -> Json:
    had, has = (d.id[d.kept & (d.name == name)] for d in (before, after))
    went = np.setdiff1d(had, has, assume_unique=True)
    here = np.isin(after.id, went)
    why = Counter(
        "in another source" if kept else reason
        for kept, reason in zip(after.kept[here], after.reason[here], strict=True)
    )
    if n := len(went) - int(here.sum()):
        why["not there"] = n
    came = len(np.setdiff1d(has, had, assume_unique=True))
    return {"stayed": len(had) - len(went), "came": came, "went": len(went), "why": dict(sorted(why.items()))}


def _items(old: CorpusVersion, new: CorpusVersion) -> Json:
    before, after = (_versions_of_items(corpus) for corpus in (old, new))
    came, went = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    changed = sorted(name for name in before.keys() & after.keys() if before[name] != after[name])
    kinds = (("came", came), ("went", went), ("changed", changed))
    examples = [{"source": s, "path": p, "change": kind} for kind, names in kinds for s, p in names]
    return {**{kind: len(names) for kind, names in kinds}, "examples": examples[:SHOWN]}


def _versions_of_items(corpus: CorpusVersion) -> dict[tuple[str, str], str]:
    ledger = corpus.ledger()
    names = zip(ledger["source"].to_pylist(), ledger["path"].to_pylist(), strict=True)
    return dict(zip(names, ledger["version"].to_pylist(), strict=True))


def _settings(old: Json, new: Json) -> Json:
    before, after = (
        _flat({"prepare": m["prepare"], "tool": m["tool"], "tokenizer": m["tokenizer"]}) for m in (old, new)
    )
    keys = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    return {key: [before.get(key), after.get(key)] for key in keys[:SHOWN]}


def _flat(value: Any, prefix: str = "") -> Json:
    if isinstance(value, dict):
        parts = (_flat(inner, f"{prefix}.{key}" if prefix else str(key)) for key, inner in value.items())
        return {key: inner for part in parts for key, inner in part.items()}
    return {prefix: value}


def _opened(workspace: Workspace, name: str) -> CorpusVersion:
    root = workspace.corpus(name)
    return CorpusVersion(workspace, root, orjson.loads(checked(root / "manifest.json").read_bytes()))


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
