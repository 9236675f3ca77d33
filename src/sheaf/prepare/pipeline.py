"""`prepare`: from the sources of a recipe to a version of the corpus, doing only what is not done yet.

list → read → score → select → tokenise → commit. Each stage asks the workspace which of its tasks' outputs are there
and gives the engine the others; so a second run does nothing, one new file costs one file, and a killed run goes on
where it was. Only listing and selecting see everything at once, and they see names and numbers, not texts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sheaf import engine as engines
from sheaf.console import Console, Silent
from sheaf.corpus import version
from sheaf.corpus.ledger import by_source, sums
from sheaf.corpus.version import CorpusVersion
from sheaf.corpus.workspace import Workspace
from sheaf.engine.base import Engine, Json, Task
from sheaf.errors import CorruptStore, DataRefused, TryAgain
from sheaf.files import checked, digest_json, read_done
from sheaf.formats.reasons import explain
from sheaf.prepare import encode, score, select, tokenizer
from sheaf.prepare.encoder import Encoder
from sheaf.prepare.gather import Listing, gather
from sheaf.prepare.known import known
from sheaf.recipe import Recipe
from sheaf.sources.base import Refusal
from sheaf.sources.reasons import DEFERRED

SELECT_VERSION = 1


def prepare(
    recipe: Recipe,
    *,
    workers: int | None = None,
    engine: str = "local",
    console: Console | None = None,
    new_tokenizer: bool = False,
) -> dict[str, Any]:
    """Prepare the corpus of a recipe and return what became of everything, as `sheaf prepare --json` prints it.

    Raises DataRefused if a source is missing or empty or nothing is kept, TryAgain if a source could not be listed now
    or nothing of it could be had. Items that could not be had now are `items.deferred`: the version is without them,
    and the next run reads only what is missing.
    """
    started = time.monotonic()
    console = console or Silent()
    select.check_admit(recipe.prepare.admit, [s.name for s in recipe.sources])
    workspace = Workspace(Path(recipe.workspace))
    workspace.create()
    with workspace.locked(console), closing(engines.make(engine, workers)) as pool:
        listing, read_now = gather(workspace, recipe, pool, console)
        for rule in select.idle_rules(recipe.prepare.admit, [(x.item.source, x.item.path) for x in listing.items]):
            console.note(f"prepare.admit: no item matches the path {rule.path}")
        live = list(known(workspace, listing.keys).rows)
        corpus = _unchanged(workspace, recipe, live, listing, new_tokenizer)
        if corpus is None:
            corpus = _derive(workspace, recipe, live, listing, pool, console, new_tokenizer)
    return summary(corpus, read_now=read_now, seconds=time.monotonic() - started)


def _select_key(recipe: Recipe, live: Sequence[str], listing: Listing) -> str:
    """Digest of all that selecting and what follows depend on."""
    refused = [[r.source, r.path, r.uri, r.size, r.reason, r.detail] for r in listing.refusals]
    settings = recipe.prepare.model_dump(mode="json", by_alias=True)
    names = [s.name for s in recipe.sources]
    keys = sorted(x.key.hex() for x in listing.items)
    return digest_json([SELECT_VERSION, score.STAGE, tokenizer.VERSION, names, settings, list(live), keys, refused])


def _unchanged(
    workspace: Workspace, recipe: Recipe, live: Sequence[str], listing: Listing, new_tokenizer: bool
) -> CorpusVersion | None:
    """HEAD, if it was made from exactly this."""
    if new_tokenizer or not workspace.head.exists():
        return None
    try:
        corpus = CorpusVersion.open(workspace)
    except CorruptStore:  # it is made again
        return None
    tokens = [workspace.tokens(corpus.manifest["tokenizer"], shard) for shard in corpus.shard_names]
    whole = all(read_done(folder) is not None for folder in tokens)
    own_tokenizer = recipe.prepare.tokenizer.from_ is None  # a given file may have changed: look at it
    same = corpus.manifest["key"] == _select_key(recipe, live, listing)
    return corpus if whole and own_tokenizer and same else None


def _derive(
    workspace: Workspace,
    recipe: Recipe,
    live: list[str],
    listing: Listing,
    pool: Engine,
    console: Console,
    new_tokenizer: bool,
) -> CorpusVersion:
    """Score, select, tokenise, commit."""
    deferred = [r for r in listing.refusals if r.reason == DEFERRED]
    if not live and deferred:
        raise nothing_yet(deferred[0])
    if not live:
        counts = Counter(r.reason for r in listing.refusals)
        first = listing.refusals[0] if listing.refusals else None
        raise DataRefused(
            "none of the sources' items could be had",
            where=f"{first.uri} is the first" if first else "",
            why="; ".join(f"{reason}: {n}" for reason, n in sorted(counts.items())) or "there are no items",
            fix=f"{explain(first.reason)} Correct the sources." if first else "correct the sources",
        )
    missing = [s for s in live if read_done(workspace.scores(s, score.STAGE)) is None]
    _run(pool, console, "score", [score.task(workspace, s) for s in missing])
    selection = select.select(workspace, live, listing.keys, listing.refusals, recipe)
    _refuse_if_too_much(recipe, selection)
    with console.stage("tokenizer", None, "tokens") as advance:
        chosen = tokenizer.ensure(
            workspace,
            recipe.prepare.tokenizer,
            live,
            selection,
            new=new_tokenizer,
            provisional=bool(deferred),
            note=console.note,
        )
        encoder = Encoder(checked(workspace.tokenizer(chosen) / "tokenizer.json"))
        advance(encoder.vocab_size)
    missing = [s for s in live if read_done(workspace.tokens(chosen, s)) is None]
    _run(pool, console, "encode", [encode.task(workspace, chosen, s) for s in missing])
    return version.commit(
        workspace,
        sources=[s.model_dump(mode="json", by_alias=True) for s in recipe.sources],
        prepare=recipe.prepare.model_dump(mode="json", by_alias=True),
        live_shards=live,
        key=_select_key(recipe, live, listing),
        tokenizer=chosen,
        encoder={
            "vocab_size": encoder.vocab_size,
            "end_of_text": encoder.end_of_text,
            "token_dtype": encoder.dtype.__name__,
        },
        content=selection.content,
        decisions=selection.decisions,
        text_bytes=selection.text_bytes,
        ledger=selection.ledger,
        quarantine=selection.quarantine,
        exact=recipe.prepare.dedup.exact,
    )


def _run(pool: Engine, console: Console, title: str, tasks: Sequence[Task]) -> None:
    if tasks:
        with console.stage(title, sum(t.weight for t in tasks), "shards") as advance:
            _drain(pool.run(tasks, advance))


def _drain(results: Iterable[tuple[Task, Json]]) -> None:
    for _ in results:
        pass


def nothing_yet(first: Refusal) -> TryAgain:
    return TryAgain(
        "none of the items could be had now",
        where=first.uri,
        why=first.detail,
        fix="run the same command again: it asks only for what is missing",
    )


def refuse_deferred(prepared: dict[str, Any]) -> None:
    """Raise TryAgain if items are missing for now: a model should not be trained on what happened to answer."""
    n = prepared["items"]["deferred"]
    if n:
        raise TryAgain(
            f"{n} items could not be had now, so nothing is trained",
            why="the corpus that was made is without them; `sheaf ledger --reason deferred` lists them",
            fix="run the same command again: it asks only for what is missing; or exclude them in the recipe",
        )


def _refuse_if_too_much(recipe: Recipe, selection: select.Selection) -> None:
    """Before anything is made of it, so that a refused corpus is never the newest one."""
    total, quarantine = sums(selection.ledger), _by_reason(selection.quarantine)
    lost = ", ".join(f"{reason}: {n['regions']}" for reason, n in quarantine.items())
    deferred = quarantine.get(DEFERRED, {"regions": 0, "bytes": 0})
    if not pc.any(selection.decisions["kept"]).as_py():
        dropped = ", ".join(f"{reason}: {n}" for reason, n in _dropped(selection.decisions).items())
        first = selection.quarantine.slice(0, 1).to_pylist()
        example = f"for example {first[0]['uri']}: {first[0]['detail'] or explain(first[0]['reason'])}" if first else ""
        raise DataRefused(
            "no record is left to train on",
            where=example,
            why="; ".join(x for x in (dropped and f"dropped {dropped}", lost and f"quarantined {lost}") if x),
            fix=f"{'relax prepare.length, or ' if dropped else ''}mend the sources, or how the recipe reads them",
        )
    share = (total["quarantined"] - deferred["bytes"]) / max(total["in"], 1)
    if share > recipe.prepare.refuse_above:
        largest = selection.quarantine.sort_by([("bytes", "descending")])["uri"].to_pylist()[0]
        raise DataRefused(
            f"{share:.1%} of the bytes were quarantined; the recipe allows {recipe.prepare.refuse_above:.1%}",
            where=f"{largest} is the largest",
            why=lost,
            fix="mend the sources, exclude what is broken, or raise prepare.refuse_above",
        )


def summary(corpus: CorpusVersion, *, read_now: int, seconds: float) -> dict[str, Any]:
    """What became of everything: the contract of `prepare --json`, and the same per source."""
    ledger, decisions, quarantine = corpus.ledger(), corpus.decisions(), _by_reason(corpus.quarantine())
    total = sums(ledger)
    deferred = quarantine.get(DEFERRED, {"regions": 0})["regions"]
    return {
        "corpus": corpus.digest,
        "items": {
            "seen": total["items"],
            "read": read_now,
            "unchanged": max(_readable(ledger) - read_now, 0),
            "quarantined": _wholly_quarantined(ledger) - deferred,
            "deferred": deferred,
        },
        "bytes": {name: total[name] for name in ("in", "kept", "dropped", "quarantined")},
        "records": {
            "read": total["records"] + total["regions"],
            "kept": total["records_kept"],
            "duplicate": total["duplicate"],
            "quarantined": total["regions"],
            "dropped": _dropped(decisions),
        },
        "tokens": corpus.manifest["tokens"],
        "seconds": round(seconds, 3),
        "documents": len(corpus.documents),
        "sources": by_source(corpus),
        "quarantine": quarantine,
        "workspace": str(corpus.workspace.root),
    }


def _readable(ledger: pa.Table) -> int:
    return int(np.sum(np.array(ledger["version"].to_pylist(), object) != ""))


def _wholly_quarantined(ledger: pa.Table) -> int:
    return int(np.sum((ledger["records"].to_numpy() == 0) & (ledger["quarantined"].to_numpy() > 0)))


def _dropped(decisions: pa.Table) -> dict[str, int]:
    """Occurrences dropped, by reason."""
    dropped = decisions.filter(pc.invert(decisions["kept"]))
    counts = dropped.group_by("reason").aggregate([("occurrences", "sum")]).to_pylist()
    return {c["reason"]: c["occurrences_sum"] for c in sorted(counts, key=lambda c: c["reason"])}


def _by_reason(quarantine: pa.Table) -> dict[str, dict[str, int]]:
    counts = quarantine.group_by("reason").aggregate([("bytes", "sum"), ("bytes", "count")]).to_pylist()
    return {
        c["reason"]: {"regions": c["bytes_count"], "bytes": c["bytes_sum"]}
        for c in sorted(counts, key=lambda c: c["reason"])
    }
