"""`sheaf scan`: see what lies in the sources, change nothing, read little. What `--json` prints is described by `scan`.

Every source is listed; of each kind of item a sample is read in the sandbox (`sample`, `look`); what it shows is scaled
to the whole with its error (`estimate`, `copies`). Nothing is written but the page that is asked for, and a source that
cannot be listed is told beside those that can. Cost: the listing, and a stated share of the bytes, on all cores.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import orjson

from sheaf import engine as engines
from sheaf.console import Console, Silent
from sheaf.corpus.reading import USUAL, Manner, Manners
from sheaf.engine.base import Engine, Json, Task
from sheaf.errors import DataRefused, EnvironmentProblem, RecipeError, SheafError, TryAgain
from sheaf.formats.sandbox import Sandbox
from sheaf.prepare.listing import found_in
from sheaf.recipe import Limits, Recipe, SourceSpec
from sheaf.scan import copies, look
from sheaf.scan.estimate import NOTHING, Estimate, total
from sheaf.scan.forecast import forecast, tokens_in
from sheaf.scan.mappings import bucket, mappings, sure_keys
from sheaf.scan.sample import Stratum, choose
from sheaf.sources.base import Item, Refusal

SHARE = 0.02
REMOTE_WHOLE = 64 << 20  # a remote item comes whole, or not at all
TASK_ITEMS = 200
SECONDS = 5.0  # of processor time on one item without progress
EXAMPLES = 5


@dataclass
class Place:
    """A source, its listing, and what the sample showed: strata[i].chosen[k] gave looks[i][k]."""

    spec: SourceSpec
    items: list[Item] = field(default_factory=list[Item])
    refusals: list[Refusal] = field(default_factory=list[Refusal])
    problem: SheafError | None = None
    strata: list[Stratum] = field(default_factory=list[Stratum])
    looks: list[list[Json]] = field(default_factory=list[list[Json]])

    def looked(self) -> Iterator[tuple[Item, Json]]:
        """Every item of the sample that could be had, with what it showed."""
        for stratum, looks in zip(self.strata, self.looks, strict=True):
            yield from ((i, x) for i, x in zip(stratum.chosen, looks, strict=True) if "failed" not in x)

    def slots(self) -> Iterator[tuple[Item, int, Json]]:
        """Every item of the sample, how much text to read of it, and where what it shows belongs."""
        for stratum, looks in zip(self.strata, self.looks, strict=True):
            yield from ((i, stratum.look, x) for i, x in zip(stratum.chosen, looks, strict=True))


def scan(
    recipe: Recipe,
    *,
    share: float = SHARE,
    workers: int | None = None,
    console: Console | None = None,
    propose: bool = False,
) -> dict[str, Any]:
    """Survey the sources of a recipe: what `sheaf scan --json` prints.

    ABOUT is {"value", "error"}, an estimate and two standard errors of it; PART is {"share", "error"}, shares from 0 to
    1. Fields are stable; more may be added.

        sources     {NAME: {
          uri, items, bytes,         of its listing, exactly
          looked_at, unavailable,    items of the sample, and those of it that could not be had
          records, tokens            ABOUT
          types                      {MEDIA: {"items", "bytes"}}, estimated; largest first
          encodings, languages, kinds   {WORD: share} of what the sample holds
          copies                     PART: items that repeat another one of this source
          privacy                    {KIND: ABOUT and "examples": [path]}: finds, never what was found
          licences                   {SPDX: items of the sample that name it}
          broken                     {REASON: {"items", "bytes": ABOUT, "examples": [{"path", "detail"}]}}
          refused                    {REASON: items} that were refused when listed
          notes                      {NOTE: items of the sample} }}
        problems    [why a source could not be listed]; exit_code: 0, or that of the first kind of problem
        between     [{"sources": [A, B], "of_first": PART, "of_second": PART}]: items that the other has too
        repeated    [{"bytes", "count", "items": [[SOURCE, path]]}]: copies in the sample, the costliest first
        shared_records  [{"sources", "records", "of"}]: equal records of two samples
        mappings    {NAME: [{"files", "rows", "proposals": [{"recipe", "confidence", "fits", "rows", "why", …}]}]}
        forecast    {"tokens", "text_bytes", "disk_bytes", "memory_bytes", "seconds": ABOUT, "workers"}: what `prepare`
                    would make and take
        sample      {"share", "items", "bytes", "of_items", "of_bytes"};  seconds: that the survey took

    share: of the bytes that may be read, above at least 20 items of each source and suffix. propose: read rows by the
    mapping that is proposed for them, where it is sure, as the recipe would that `sheaf init` writes.
    Raises DataRefused if no source could be listed.
    """
    begun = time.monotonic()
    console = console or Silent()
    recipe = _hasty(recipe)
    manners = Manners(recipe.prepare)
    places = [_list(spec, recipe, console) for spec in recipe.sources]
    problems = [place.problem for place in places if place.problem]
    if len(problems) == len(places):
        raise problems[0] if len(problems) == 1 else _none_of(places)
    with closing(engines.make("local", workers)) as pool:
        _look(places, recipe, manners, share, pool, console)
        seen = [place for place in places if not place.problem]
        with Sandbox(recipe.prepare.limits) as sandbox:  # its process starts when the first table is read
            proposed = {p.spec.name: mappings(p.spec, list(p.looked()), sandbox) for p in seen}
        if propose:
            _look_mapped(seen, proposed, recipe, pool, console)
        return _report(places, proposed, share, pool.workers, begun)


def _hasty(recipe: Recipe) -> Recipe:
    """The recipe with less patience: an item that a parser stumbles over is known as such after seconds."""
    prepare = recipe.prepare
    admit = tuple(
        rule.model_copy(update={"limits": rule.limits and _hasty_limits(rule.limits)}) for rule in prepare.admit
    )
    hasty = prepare.model_copy(update={"limits": _hasty_limits(prepare.limits), "admit": admit})
    return recipe.model_copy(update={"prepare": hasty})


def _hasty_limits(limits: Limits) -> Limits:
    return limits.model_copy(update={"seconds": min(limits.seconds, SECONDS)})


def _list(spec: SourceSpec, recipe: Recipe, console: Console) -> Place:
    place = Place(spec)
    try:
        with console.stage(f"list {spec.name}", None, "items") as advance:
            for found in found_in(spec, recipe):
                if isinstance(found, Item):
                    place.items.append(found)
                else:
                    place.refusals.append(found)
                advance(1)
    except (DataRefused, TryAgain, RecipeError, EnvironmentProblem) as error:
        place.problem = error
    return place


def _told(place: Place) -> str:
    """On one line: who, what, where, why, and what to do."""
    problem = place.problem or SheafError("")
    parts = (problem.what, problem.where, problem.why, problem.fix)
    return f"{place.spec.name}: {'; '.join(part for part in parts if part)}"


def _none_of(places: Sequence[Place]) -> SheafError:
    kind = TryAgain if all(isinstance(place.problem, TryAgain) for place in places) else DataRefused
    return kind("no source could be listed", why=" | ".join(map(_told, places)))


def _look(
    places: Sequence[Place], recipe: Recipe, manners: Manners, share: float, pool: Engine, console: Console
) -> None:
    """Fill in the looks of every place."""
    jobs: list[tuple[Task, list[Json]]] = []
    for place in places:
        local = "://" not in place.spec.uri or place.spec.uri.startswith(("file://", "git+file://"))
        place.strata = choose(place.items, share, whole_only_below=None if local else REMOTE_WHOLE)
        place.looks = [[{} for _ in stratum.chosen] for stratum in place.strata]
        alike: dict[Manner, list[tuple[Item, int, Json]]] = {}
        for item, most, slot in place.slots():
            alike.setdefault(manners.of(item.source, item.path), []).append((item, most, slot))
        for manner, wanted in alike.items():
            jobs += _jobs(recipe, place.spec, wanted, manner)
    _run(jobs, "look", pool, console)


def _look_mapped(
    places: Sequence[Place], proposed: dict[str, list[Json]], recipe: Recipe, pool: Engine, console: Console
) -> None:
    """Look again at the files of rows with a sure mapping, and at those beside them, through it."""
    jobs: list[tuple[Task, list[Json]]] = []
    for place in places:
        keys_of = sure_keys(proposed[place.spec.name])
        by_keys: dict[str, list[tuple[Item, int, Json]]] = {}
        for item, most, slot in place.slots():
            keys = keys_of.get(bucket(item.path))
            if keys is not None and "failed" not in slot:
                by_keys.setdefault(orjson.dumps(keys).decode(), []).append((item, most, slot))
        for keys, wanted in by_keys.items():
            spec = SourceSpec.model_validate({**place.spec.model_dump(by_alias=True), **orjson.loads(keys)})
            jobs += _jobs(recipe, spec, wanted, USUAL)
    if jobs:
        _run(jobs, "look at rows as mapped", pool, console)


def _jobs(
    recipe: Recipe, spec: SourceSpec, wanted: Sequence[tuple[Item, int, Json]], manner: Manner
) -> Iterator[tuple[Task, list[Json]]]:
    for start in range(0, len(wanted), TASK_ITEMS):  # a task starts a sandbox: not one for each suffix
        part = wanted[start : start + TASK_ITEMS]
        yield look.task(recipe, spec, [(item, most) for item, most, _ in part], manner), [slot for *_, slot in part]


def _run(jobs: Sequence[tuple[Task, list[Json]]], name: str, pool: Engine, console: Console) -> None:
    where = {id(task): looks for task, looks in jobs}
    with console.stage(name, sum(task.weight for task, _ in jobs), "items") as advance:
        for task, result in pool.run([task for task, _ in jobs], advance):
            for slot, known in zip(where[id(task)], result["items"], strict=True):
                slot.update(known)


def _report(places: Sequence[Place], proposed: dict[str, list[Json]], share: float, workers: int, begun: float) -> Json:
    seen = [place for place in places if not place.problem]
    sources = {place.spec.name: _source(place) for place in seen}
    read = sum(known["read"] for place in seen for _, known in place.looked())
    return {
        "sources": sources,
        "problems": [_told(place) for place in places if place.problem],
        # What is wrong for good (2, 3, 4) says more than what may be right later (75).
        "exit_code": min((place.problem.exit_code for place in places if place.problem), default=0),
        "between": _between(seen),
        "repeated": copies.examples({p.spec.name: {i.path: (i.size, x["ends"]) for i, x in p.looked()} for p in seen}),
        "shared_records": copies.shared_records(
            {p.spec.name: [i for _, known in p.looked() for i in known["ids"]] for p in seen}
        ),
        "forecast": forecast(
            [(s, looks) for place in seen for s, looks in zip(place.strata, place.looks, strict=True)],
            items=sum(len(place.items) for place in seen),
            workers=workers,
        ),
        "sample": {
            "share": share,
            "items": sum(1 for place in seen for _ in place.looked()),
            "bytes": read,
            "of_items": sum(len(place.items) for place in seen),
            "of_bytes": sum(s["bytes"] for s in sources.values()),
        },
        "mappings": proposed,
        "seconds": round(time.monotonic() - begun, 3),
    }


def _source(place: Place) -> Json:
    looks = [known for _, known in place.looked()]
    digests = {item.path: known["ends"] for item, known in place.looked()}
    return {
        "uri": place.spec.uri,
        "items": len(place.items),
        "bytes": sum(max(i.size, 0) for i in place.items),
        "looked_at": len(looks),
        "unavailable": sum("failed" in x for group in place.looks for x in group),
        "records": _total(place, lambda x: x["records"]).as_json(),
        "tokens": _total(place, tokens_in).as_json(),
        "types": _types(place),
        "encodings": _shares(looks, "encodings"),
        "languages": _shares(looks, "languages"),
        "kinds": _shares(looks, "kinds"),
        "copies": _percent(copies.within(place.items, digests)),
        "privacy": _privacy(place),
        "licences": dict(Counter(name for x in looks for name in x["licences"]).most_common(12)),
        "broken": _broken(place),
        "refused": dict(Counter(r.reason for r in place.refusals)),
        "notes": dict(Counter(x["notes"].partition("; ")[0] for x in looks if x["notes"]).most_common(EXAMPLES)),
    }


def _total(place: Place, amount: Any) -> Estimate:
    """An amount over all strata of a source. amount: of what one item showed."""
    whole = NOTHING
    for stratum, looks in zip(place.strata, place.looks, strict=True):
        known = [x for x in looks if "failed" not in x]
        of, seen, sizes = ([f(x) for x in known] for f in (amount, lambda x: x["read"], lambda x: x["size"]))
        whole += total(of, seen, sizes, stratum.items, stratum.bytes)
    return whole


def _types(place: Place) -> Json:
    """Items and bytes by type: the sample's shares in each stratum, over all that is in it."""
    items, sizes = defaultdict[str, float](float), defaultdict[str, float](float)
    for stratum, looks in zip(place.strata, place.looks, strict=True):
        known = [x for x in looks if "failed" not in x]
        weight = sum(x["size"] for x in known)
        for x in known:
            media = x["media"] or "unknown"
            items[media] += stratum.items / len(known)
            sizes[media] += stratum.bytes * x["size"] / weight if weight else 0.0
    return {m: {"items": round(items[m]), "bytes": round(sizes[m])} for m in sorted(sizes, key=lambda m: -sizes[m])}


def _shares(looks: Sequence[Json], name: str) -> dict[str, float]:
    """Each value's share of what the sample counted under the name, largest first."""
    counted = Counter[str]()
    for x in looks:
        counted.update(x[name])
    whole = sum(counted.values())
    return {value: round(n / whole, 4) for value, n in counted.most_common(20)} if whole else {}


def _privacy(place: Place) -> Json:
    """Finds by kind, and the items of the sample with the most of them."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for item, known in place.looked():
        for kind, n in known["privacy"].items():
            found[kind][item.path] = n
    return {
        kind: {
            **_total(place, lambda x, kind=kind: x["privacy"].get(kind, 0.0)).as_json(),
            "examples": sorted(found[kind], key=lambda path, of=found[kind]: (-of[path], path))[:EXAMPLES],
        }
        for kind in sorted(found)
    }


def _broken(place: Place) -> Json:
    """Items with refused parts by reason: how many there may be, and some of them."""
    found: dict[str, list[Json]] = defaultdict(list)
    expected: dict[str, float] = defaultdict(float)
    for stratum, looks in zip(place.strata, place.looks, strict=True):
        known = [(i, x) for i, x in zip(stratum.chosen, looks, strict=True) if "failed" not in x]
        for item, x in known:
            for reason in {reason for reason, _ in x["refused"]}:
                detail = next(d for r, d in x["refused"] if r == reason)
                expected[reason] += stratum.items / len(known)
                if len(found[reason]) < EXAMPLES:
                    found[reason].append({"path": item.path, "detail": detail})
    return {
        reason: {
            "items": round(expected[reason]),
            "bytes": _total(place, lambda x, reason=reason: x["lost"].get(reason, 0)).as_json(),
            "examples": found[reason],
        }
        for reason in sorted(found, key=lambda reason: (-expected[reason], reason))
    }


def _between(places: Sequence[Place]) -> list[Json]:
    """For each pair of sources with common items: the share of each that the other has too."""
    pairs: list[Json] = []
    for a, b in combinations(places, 2):
        known = [{item.path: x["ends"] for item, x in place.looked()} for place in (a, b)]
        first = copies.between(a.items, b.items, known[0], known[1])
        second = copies.between(b.items, a.items, known[1], known[0])
        if first.value or second.value:
            names = [a.spec.name, b.spec.name]
            pairs.append({"sources": names, "of_first": _percent(first), "of_second": _percent(second)})
    return pairs


def _percent(estimate: Estimate) -> dict[str, float]:
    return {"share": round(estimate.value, 4), "error": round(estimate.error, 4)}
