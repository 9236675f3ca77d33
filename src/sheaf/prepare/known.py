"""Which rows of which shards hold the wanted items: each item once, and whole.

Most items lie in one shard. A long one lies in several, its parts 0, 1, … up to the one marked as last, and counts only
when all of them are there: a run that was killed between two parts has not read it. Where an item was read twice (in
one part and in several, or by two runs at once), one reading counts. Cost: one look at the key of every item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sheaf.corpus import forgotten, shards
from sheaf.corpus.workspace import Workspace

Place = tuple[str, int]  # shard, row of its items


@dataclass(frozen=True)
class Known:
    """rows: for each shard that holds any, the rows of its items that count, ascending. keys: of the whole items."""

    rows: dict[str, list[int]]
    keys: set[bytes]


@dataclass
class _Parts:
    places: dict[int, Place] = field(default_factory=dict)
    last: int = -1

    def whole(self) -> bool:
        return self.last >= 0 and all(n in self.places for n in range(self.last + 1))


def known(workspace: Workspace, wanted: set[bytes], names: Sequence[str] | None = None) -> Known:
    """Look through the shards (default: all that are finished)."""
    rows: dict[str, list[int]] = {}
    keys: set[bytes] = set()
    several: dict[bytes, _Parts] = {}
    gone = forgotten.read(workspace)
    for name in workspace.finished_shards() if names is None else names:
        if not forgotten.counts(workspace, name, gone):
            continue
        table = shards.read(workspace.shard(name), "items", ["key", "part", "last"])
        own = rows.setdefault(name, [])
        columns = (table[c].to_pylist() for c in ("key", "part", "last"))
        for row, (key, part, last) in enumerate(zip(*columns, strict=True)):
            if key not in wanted or key in keys:
                continue
            if last and part == 0:
                keys.add(key)
                own.append(row)
                continue
            parts = several.setdefault(key, _Parts())
            parts.places.setdefault(part, (name, row))
            parts.last = part if last else parts.last
    for key, parts in several.items():
        if key not in keys and parts.whole():
            keys.add(key)
            for number in range(parts.last + 1):
                name, row = parts.places[number]
                rows[name].append(row)
    return Known({name: sorted(own) for name, own in rows.items() if own}, keys)
