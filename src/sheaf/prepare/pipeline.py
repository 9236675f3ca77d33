"""`prepare`: from the sources of a recipe to a version of the corpus, doing only what is not done yet.

list → read → score, and what else the recipe asks for (`stages.py`) → select → tokenise → commit. Each stage asks the
workspace which of its tasks' outputs are there and gives the engine the others; so a second run does nothing, one new
file costs one file, a changed threshold only selects anew, and a killed run goes on where it was. Only listing and
selecting see everything at once, and they see names and numbers, not texts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sheaf import engine as engines
from sheaf.console import Console, Silent
from sheaf.corpus import forgotten
from sheaf.corpus.commit import commit
from sheaf.corpus.ledger import by_source, sums
from sheaf.corpus.version import CorpusVersion
from sheaf.corpus.workspace import Workspace
from sheaf.engine.base import Engine
from sheaf.errors import CorruptStore, DataRefused, TryAgain
from sheaf.files import checked, digest_json
from sheaf.formats import READER_VERSION
from sheaf.formats.reasons import explain
from sheaf.formats.schema import CHATS
from sheaf.prepare import encode, rendering, select, stages, tokenizer
from sheaf.prepare.encoder import Encoder
from sheaf.prepare.gather import Listing, gather
from sheaf.prepare.known import known
from sheaf.prepare.read import READ_VERSION
from sheaf.prepare.rendering import Rendering, find_template
from sheaf.prepare.stages import Asked
from sheaf.recipe import Recipe
from sheaf.sources.base import Refusal
from sheaf.sources.reasons import DEFERRED

SELECT_VERSION = 3


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
    asked = stages.asked(recipe)
    workspace = Workspace.at(recipe.workspace)
    workspace.create()
    with workspace.locked(console), closing(engines.make(engine, workers)) as pool:
        asked = stages.with_exams(asked, workspace, recipe, console)
        listing, read_now = gather(workspace, recipe, pool, console)
        for rule in select.idle_rules(recipe.prepare.admit, [(x.item.source, x.item.path) for x in listing.items]):
            console.note(f"prepare.admit: no item matches the path {rule.path}")
        live = list(known(workspace, listing.keys).rows)
        corpus = _unchanged(workspace, recipe, asked, live, listing, new_tokenizer)
        if corpus is None:
            corpus = derive(workspace, recipe, asked, live, listing, pool, console, new_tokenizer)
        workspace.tidy()  # workers of a run that was just killed may have been dying when this one began
    return summary(corpus, read_now=read_now, seconds=time.monotonic() - started)


def _select_key(workspace: Workspace, recipe: Recipe, asked: Asked, live: Sequence[str], listing: Listing) -> str:
    """Digest of all that selecting and what follows depend on."""
    refused = [[r.source, r.path, r.uri, r.size, r.reason, r.detail] for r in listing.refusals]
    settings = recipe.prepare.model_dump(mode="json", by_alias=True)
    names = [s.name for s in recipe.sources]
    keys = sorted(x.key.hex() for x in listing.items)
    made = [wanted_tokenizer(recipe, "").key, *_template(recipe)]
    gone = sorted(record.hex() for record in forgotten.read(workspace).records)
    return digest_json([_stages(asked), made, gone, names, settings, list(live), keys, refused])


def _unchanged(
    workspace: Workspace, recipe: Recipe, asked: Asked, live: Sequence[str], listing: Listing, new_tokenizer: bool
) -> CorpusVersion | None:
    """HEAD, if it was made from exactly this."""
    if new_tokenizer or not workspace.head.exists():
        return None
    try:
        corpus = CorpusVersion.open(workspace)
    except CorruptStore:  # it is made again
        return None
    tokens = [workspace.tokens(corpus.rendering, shard) for shard in corpus.shard_names]
    whole = all([encode.sound(folder) for folder in tokens])
    own_tokenizer = recipe.prepare.tokenizer.from_ is None  # a given file may have changed: look at it
    same = corpus.manifest["key"] == _select_key(workspace, recipe, asked, live, listing)
    return corpus if whole and own_tokenizer and same else None


def derive(
    workspace: Workspace,
    recipe: Recipe,
    asked: Asked,
    live: list[str],
    listing: Listing,
    pool: Engine,
    console: Console,
    new_tokenizer: bool = False,
) -> CorpusVersion:
    """Score, select, tokenise, commit."""
    if not live:
        raise _nothing(listing)
    stages.run(workspace, asked, live, pool, console)
    with _selected(workspace, recipe, asked, live, listing, console) as selection:
        made = _tokenise(workspace, recipe, asked, live, listing, selection, pool, console, new_tokenizer)
        if not encode.keeps_refused(workspace, made.how, live, selection.decided):
            return _commit(workspace, recipe, asked, live, listing, selection, made)
    # Only now it is known that the template does not take some conversations. Selected once more without them, what was
    # dropped for being like them stays, and "kept" means trained.
    with _selected(workspace, recipe, asked, live, listing, console, made.how) as selection:
        return _commit(workspace, recipe, asked, live, listing, selection, made)


@contextmanager
def _selected(
    workspace: Workspace,
    recipe: Recipe,
    asked: Asked,
    live: list[str],
    listing: Listing,
    console: Console,
    how: Rendering | None = None,
) -> Generator[select.Selection]:
    gone = forgotten.read(workspace).records
    with select.select(
        *(workspace, live, listing.keys, listing.refusals, recipe, asked),
        forgotten=gone,
        rendering=how,
        console=console,
    ) as selection:
        _refuse_if_too_much(recipe, selection)
        yield selection


@dataclass(frozen=True)
class _Tokenised:
    chosen: tokenizer.Chosen
    encoder: Encoder
    how: Rendering


def _tokenise(
    workspace: Workspace,
    recipe: Recipe,
    asked: Asked,
    live: list[str],
    listing: Listing,
    selection: select.Selection,
    pool: Engine,
    console: Console,
    new_tokenizer: bool,
) -> _Tokenised:
    """Every shard's tokens, by the rendering that follows from what was selected."""
    template, variables = _template(recipe) if selection.kinds & set(CHATS) else ("", {})
    with console.stage("tokenizer", None, "tokens") as advance:
        chosen = tokenizer.ensure(
            workspace,
            wanted_tokenizer(recipe, template),
            live,
            selection.decided,
            selection.content,
            new=new_tokenizer,
            provisional=any(r.reason == DEFERRED for r in listing.refusals),
            note=console.note,
        )
        encoder = Encoder(checked(workspace.tokenizer(chosen.digest) / "tokenizer.json"))
        advance(encoder.vocab_size)
    how = Rendering(chosen.digest, template, variables, asked.masked)
    rendering.check(how, encoder, console.note)
    missing = [s for s in live if not encode.sound(workspace.tokens(how.digest, s))]
    stages.run_tasks(pool, console, "encode", [encode.task(workspace, how, s) for s in missing])
    return _Tokenised(chosen, encoder, how)


def _commit(
    workspace: Workspace,
    recipe: Recipe,
    asked: Asked,
    live: list[str],
    listing: Listing,
    selection: select.Selection,
    made: _Tokenised,
) -> CorpusVersion:
    chosen, encoder, how = made.chosen, made.encoder, made.how
    encode.settle(workspace, how, live, selection.decided)
    return commit(
        workspace,
        sources=[s.model_dump(mode="json", by_alias=True) for s in recipe.sources],
        prepare=recipe.prepare.model_dump(mode="json", by_alias=True),
        live_shards=live,
        key=_select_key(workspace, recipe, asked, live, listing),
        tokenizer=chosen.digest,
        rendering={"digest": how.digest, **how.to_json()},
        encoder={
            "vocab_size": encoder.vocab_size,
            "end_of_text": encoder.end_of_text,
            "token_dtype": encoder.dtype.__name__,
        },
        content=selection.content,
        decided=selection.decided,
        ledger=selection.ledger,
        quarantine=selection.quarantine,
        about={
            "stages": _stages(asked),
            "recipe": _recipe_digest(recipe),
            "sample": dict(chosen.sample),
            "counts": selection.counts,
        },
    )


def _template(recipe: Recipe) -> tuple[str, dict[str, str]]:
    return find_template(recipe.prepare.template, recipe.prepare.tokenizer.from_)


def wanted_tokenizer(recipe: Recipe, template: str = "") -> tokenizer.Wanted:
    names = [s.name for s in recipe.sources]
    return tokenizer.Wanted(recipe.prepare.tokenizer, names, recipe.heaviest, stages.masked(recipe), template)


def _stages(asked: Asked) -> dict[str, Any]:
    """For the manifest: what made this version, with versions and parameters."""
    read = {"read": READ_VERSION, "formats": READER_VERSION}
    return {**read, **asked.about(), "select": SELECT_VERSION, "tokenizer": tokenizer.VERSION}


def _recipe_digest(recipe: Recipe) -> str:
    return digest_json(recipe.model_dump(mode="json", by_alias=True, exclude={"workspace", "prices"}))


def _nothing(listing: Listing) -> TryAgain | DataRefused:
    deferred = [r for r in listing.refusals if r.reason == DEFERRED]
    if deferred:
        return nothing_yet(deferred[0])
    counts = Counter(r.reason for r in listing.refusals)
    first = listing.refusals[0] if listing.refusals else None
    return DataRefused(
        "none of the sources' items could be had",
        where=f"{first.uri} is the first" if first else "",
        why="; ".join(f"{reason}: {n}" for reason, n in sorted(counts.items())) or "there are no items",
        fix=f"{explain(first.reason)} Correct the sources." if first else "correct the sources",
    )


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
    records = selection.counts["records"]
    if not records["kept"]:
        dropped = ", ".join(f"{reason}: {n}" for reason, n in records["dropped"].items())
        raise DataRefused(
            "no record is left to train on",
            where=_example(selection),
            why="; ".join(x for x in (dropped and f"dropped {dropped}", lost and f"quarantined {lost}") if x),
            fix=f"{'relax these rules, or ' if dropped else ''}mend the sources, or how the recipe reads them",
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


def _example(selection: select.Selection) -> str:
    """One of what was lost: a quarantined region, else what the template said of a conversation."""
    for first in selection.quarantine.slice(0, 1).to_pylist():
        return f"for example {first['uri']}: {first['detail'] or explain(first['reason'])}"
    decided = selection.decided
    if select.TEMPLATE in decided.reasons:
        for rank in np.flatnonzero(decided.reason == decided.reasons.index(select.TEMPLATE))[:1]:
            return f"for example, the template says: {decided.details[decided.detail[rank]]}"
    return ""


def summary(corpus: CorpusVersion, *, read_now: int, seconds: float) -> dict[str, Any]:
    """What became of everything: the contract of `prepare --json`, and the same per source."""
    ledger, quarantine = corpus.ledger(), _by_reason(corpus.quarantine())
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
        "records": corpus.manifest["counts"]["records"],
        "tokens": corpus.manifest["tokens"],
        "seconds": round(seconds, 3),
        "documents": len(corpus.documents),
        "sources": by_source(corpus),
        "quarantine": quarantine,
        "privacy": corpus.manifest["counts"].get("privacy", {}),  # findings: {SOURCE: {KIND: {"kept", "all"}}}
        "workspace": str(corpus.workspace.root),
    }


def _readable(ledger: pa.Table) -> int:
    return int(np.sum(np.array(ledger["version"].to_pylist(), object) != ""))


def _wholly_quarantined(ledger: pa.Table) -> int:
    return int(np.sum((ledger["records"].to_numpy() == 0) & (ledger["quarantined"].to_numpy() > 0)))


def _by_reason(quarantine: pa.Table) -> dict[str, dict[str, int]]:
    counts = quarantine.group_by("reason").aggregate([("bytes", "sum"), ("bytes", "count")]).to_pylist()
    return {
        c["reason"]: {"regions": c["bytes_count"], "bytes": c["bytes_sum"]}
        for c in sorted(counts, key=lambda c: c["reason"])
    }
