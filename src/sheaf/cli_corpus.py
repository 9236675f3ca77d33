"""The verbs that ask a prepared corpus, or change it: ledger, show, corpus, forget. No work is done here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from sheaf.cli_words import (
    DEFAULT,
    RECIPE,
    AtLeastOne,
    Overrides,
    RecipeFile,
    Workers,
    app,
    load,
    load_unjudged,
    split,
    unless_default,
)
from sheaf.errors import UsageError
from sheaf.shell import Common, Outcome, command_line


@app.command
def ledger(
    recipe: RecipeFile = RECIPE,
    /,
    *overrides: Overrides,
    item: Annotated[str | None, Parameter(help="Items whose URI contains or matches (as a regex) this.")] = None,
    reason: Annotated[str | None, Parameter(help="List what was refused or dropped for this reason.")] = None,
    source: Annotated[str | None, Parameter(help="List what this source lost.")] = None,
    contents: Annotated[
        bool, Parameter(name="--show", negative=(), help="Print the first 2 kB of each thing listed.")
    ] = False,
    most: Annotated[int, Parameter(validator=AtLeastOne, help="List at most so many of a kind.")] = 100,
    corpus: Annotated[str | None, Parameter(help="Digest of an older version; default: the newest.")] = None,
    common: Common = DEFAULT,
) -> Outcome:
    """Show what became of the items: in sum, one by one with --item, or what was lost with --reason or --source."""
    from sheaf import show
    from sheaf.corpus.ledger import items_of, summary
    from sheaf.corpus.version import CorpusVersion

    recipe, words = split(recipe, overrides)
    version = CorpusVersion.open(load_unjudged(recipe, words).workspace, corpus)
    if reason is not None or source is not None or contents:
        from sheaf.corpus.refused import refused

        lost = refused(version, item=item, reason=reason, source=source, show=contents, most=most)
        return Outcome(lost, show.refused, command_line("sheaf ledger", *unless_default(recipe)))
    if item is not None:
        return Outcome(
            items_of(version, item), show.ledger_items, command_line("sheaf ledger", *unless_default(recipe))
        )
    return Outcome(summary(version), show.ledger, command_line("sheaf train", *unless_default(recipe)))


@app.command
def forget(
    recipe: RecipeFile = RECIPE,
    /,
    *overrides: Overrides,
    source: Annotated[str | None, Parameter(help="Everything of this source.")] = None,
    license: Annotated[str | None, Parameter(help="Everything of the sources with this licence.")] = None,
    item: Annotated[str | None, Parameter(help="Items whose URI contains or matches (as a regex) this.")] = None,
    record: Annotated[tuple[str, ...], Parameter(help="A record by its id; may be given again.")] = (),
    matching: Annotated[str | None, Parameter(help="Records whose text matches this regular expression.")] = None,
    yes: Annotated[bool, Parameter(negative=(), help="Do it; otherwise only what it would change is shown.")] = False,
    purge: Annotated[bool, Parameter(negative=(), help="Also remove every older version.")] = False,
    workers: Workers = None,
    common: Common = DEFAULT,
) -> Outcome:
    """Take something out of the corpus for good, and say which runs and checkpoints have seen it."""
    from sheaf import api, show

    recipe, words = split(recipe, overrides)
    named: dict[str, Any] = {"source": source, "license": license, "item": item, "records": record}
    loaded, console = load(recipe, words), common.console()
    data = api.forget(loaded, **named, matching=matching, yes=yes, purge=purge, workers=workers, console=console)
    following = "sheaf corpus" if data["done"] else "the same with --yes"
    return Outcome(data, show.forgotten, command_line(following, *(unless_default(recipe) if data["done"] else [])))


@app.command
def corpus(
    recipe: RecipeFile = RECIPE,
    /,
    *overrides: Overrides,
    compare: Annotated[
        tuple[str, ...], Parameter(help="Digests of one or two versions: what changed; one is compared to the newest.")
    ] = (),
    common: Common = DEFAULT,
) -> Outcome:
    """List the versions of the corpus, or say what changed between two."""
    from sheaf import api, show

    recipe, words = split(recipe, overrides)
    loaded = load_unjudged(recipe, words)
    following = command_line("sheaf ledger", *unless_default(recipe))
    if len(compare) > 2:
        raise UsageError("two versions are compared, not more", where=" ".join(compare))
    if compare:
        return Outcome(api.compare(loaded, *compare), show.compared, following)
    return Outcome({"versions": api.versions(loaded)}, show.versions, following)


@app.command
def show(
    recipe: RecipeFile = RECIPE,
    /,
    *overrides: Overrides,
    dropped: Annotated[str | None, Parameter(help="Examples of what this reason dropped: gopher, too-short, …")] = None,
    source: Annotated[str | None, Parameter(help="Examples of this source alone.")] = None,
    limit: Annotated[int, Parameter(validator=AtLeastOne, help="At most so many examples.")] = 5,
    what_if: Annotated[
        bool, Parameter(negative=(), help="What each source would gain or lose at other thresholds.")
    ] = False,
    page: Annotated[
        Path | None, Parameter(name="--report", help="Write all of it, with histograms and overlaps, as one HTML file.")
    ] = None,
    corpus: Annotated[str | None, Parameter(help="Digest of an older version; default: the newest.")] = None,
    common: Common = DEFAULT,
) -> Outcome:
    """Show what the rules did: examples with --dropped, other thresholds with --what-if; else a count by reason."""
    from sheaf import api, show_rules

    recipe, words = split(recipe, overrides)
    version = api.Corpus.open(load_unjudged(recipe, words).workspace, corpus)
    file = unless_default(recipe)
    if dropped is not None:
        found = version.examples(dropped, source=source, limit=limit)
        return Outcome(found, show_rules.examples, command_line("sheaf show", *file, "--what-if"))
    if what_if:
        return Outcome(version.what_if(), show_rules.what_if, command_line("sheaf prepare", *file))
    if page is not None:
        told = {"corpus": version.digest, "report": str(version.report(page))}
        return Outcome(told, show_rules.page, command_line("sheaf train", *file))
    if source is not None:
        raise UsageError("--source goes with --dropped", fix=command_line("sheaf show", "--dropped", "REASON"))
    counts = version.dropped()
    largest = show_rules.largest(counts)
    following = command_line("sheaf show", *file, *(("--dropped", largest) if largest else ("--what-if",)))
    return Outcome(counts, show_rules.counts, following)
