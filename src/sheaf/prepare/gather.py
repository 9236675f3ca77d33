"""Gathering: list every source, and read what no shard holds yet.

One item or one place that fails for now stops nothing else. An item that cannot be had after its source's retries is
*deferred*: it is in the ledger of this version, with the reason, and the next run asks for it again. A place that
cannot be listed leaves nobody knowing what it holds, so no version is made without it: the others are read, what they
gave is kept, and then the run ends with TryAgain.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sheaf.console import Console
from sheaf.corpus import forgotten
from sheaf.corpus.workspace import Workspace
from sheaf.engine.base import Engine
from sheaf.errors import DataRefused, TryAgain
from sheaf.prepare import read
from sheaf.prepare.known import known
from sheaf.prepare.listing import found_in
from sheaf.prepare.read import Keys, Listed
from sheaf.privacy import without_secrets
from sheaf.recipe import Recipe, SourceSpec
from sheaf.sources.base import Item, Refusal
from sheaf.sources.reasons import DEFERRED

ROUNDS = 3  # of listing and reading, while items change under our eyes


@dataclass(frozen=True)
class Listing:
    """What the sources hold now. failed: places that could not be listed."""

    items: list[Listed] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    failed: list[TryAgain] = field(default_factory=list)

    @property
    def keys(self) -> set[bytes]:
        return {x.key for x in self.items}


@dataclass(frozen=True)
class Unread:
    """Keys of listed items that gave nothing, with (reason, detail)."""

    changed: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    refused: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    deferred: dict[bytes, tuple[str, str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.changed) + len(self.refused) + len(self.deferred)


def gather(workspace: Workspace, recipe: Recipe, pool: Engine, console: Console) -> tuple[Listing, int]:
    """List and read until everything listed is read, refused by its place, or deferred; and how many items were read.

    What changes meanwhile is tried again. Refused, restless and deferred items are in the listing's refusals, for this
    version only: the next run asks again. Raises TryAgain if a place could not be listed, DataRefused for one that
    holds nothing.
    """
    listing, unread, read_now, rounds = Listing(), Unread(), 0, 0
    while rounds == 0 or (unread.changed and rounds < ROUNDS):
        listing = list_sources(recipe, console, forgotten.read(workspace))
        wanted, unread = _read(workspace, recipe, listing, pool, console)
        read_now += wanted - len(unread)
        rounds += 1
    if listing.failed:
        raise _first(listing.failed)
    if unread.changed:
        console.note(f"{len(unread.changed)} items kept changing while they were read; the next run tries them again")
    if unread.deferred:
        console.note(f"{len(unread.deferred)} items could not be had now; the same command asks only for them again")
    reasons = unread.changed | unread.refused | unread.deferred
    gone = [(x.item, *reasons[x.key]) for x in listing.items if x.key in reasons]
    gone_now = [Refusal(i.source, i.path, i.uri, max(i.size, 0), reason, detail) for i, reason, detail in gone]
    refusals = [replace(r, detail=without_secrets(r.detail)) for r in (*listing.refusals, *gone_now)]
    return Listing([x for x in listing.items if x.key not in reasons], refusals), read_now


def list_sources(recipe: Recipe, console: Console, gone: forgotten.Forgotten | None = None) -> Listing:
    """List every source. gone: what is not to be read again. Raises DataRefused for a source that holds nothing."""
    gone = gone or forgotten.Forgotten()
    keys = Keys(recipe)
    listing = Listing()
    with console.stage("list", None, "items") as advance:
        for spec in recipe.sources:
            before = len(listing.items) + len(listing.refusals)
            try:
                for found in found_in(spec, recipe):
                    if gone.has_item(found.source, found.path):
                        listing.refusals.append(forgotten_refusal(found))
                    elif isinstance(found, Item):
                        listing.items.append(keys.listed(found))
                    else:
                        listing.refusals.append(found)
                    advance(1)
            except TryAgain as error:
                listing.failed.append(error)
                console.note(f"the source '{spec.name}' cannot be listed now; the others are read meanwhile")
                continue
            if len(listing.items) + len(listing.refusals) == before:
                raise _empty(spec)
    return listing


def forgotten_refusal(found: Item | Refusal) -> Refusal:
    """Its line in the ledger, which has its bytes and not its name."""
    name = f"{forgotten.REASON}:{forgotten.item_digest(found.source, found.path)}"
    return Refusal(found.source, name, "", max(found.size, 0), forgotten.REASON, "")


def _empty(spec: SourceSpec) -> DataRefused:
    return DataRefused(
        f"the source '{spec.name}' holds nothing",
        where=spec.uri,
        why=_wanted(spec),
        fix="correct the source, or take it out of the recipe",
    )


def _wanted(spec: SourceSpec) -> str:
    if spec.query is not None:
        return "the query gives no row"
    less = f" and not {', '.join(spec.exclude)}" if spec.exclude else ""
    split = f" and names the split '{spec.split}', as in data/{spec.split}-00000.parquet" if spec.split else ""
    return f"no path matches {', '.join(spec.include)}{less}{split}"


def _first(failed: list[TryAgain]) -> TryAgain:
    error = failed[0]
    for other in failed[1:]:
        error.add_note(f"another source failed as well: {other}")
    return error


def _read(workspace: Workspace, recipe: Recipe, listing: Listing, pool: Engine, console: Console) -> tuple[int, Unread]:
    """Read the items that no shard holds: how many those were, and which gave nothing."""
    have = known(workspace, listing.keys).keys
    new = [x for x in listing.items if x.key not in have]
    unread = Unread()
    if not new:
        return 0, unread
    specs = {s.name: s for s in recipe.sources}
    tasks = [read.task(workspace, recipe, specs[b[0].item.source], b) for b in read.batches(new)]
    with console.stage("read", sum(t.weight for t in tasks), "B") as advance:
        for _, result in pool.run(tasks, advance):
            changed = ("changed", "it was written to at every try")
            unread.changed.update((bytes.fromhex(key), changed) for key in result["changed"])
            unread.deferred.update((bytes.fromhex(key), (DEFERRED, why)) for key, why in result["unavailable"])
            unread.refused.update((bytes.fromhex(key), (reason, detail)) for key, reason, detail in result["refused"])
    return len(new), unread
