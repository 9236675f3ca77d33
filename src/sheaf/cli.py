"""The command line: a verb is a function that parses, calls, and says what to print. No work is done here.

Data goes to stdout, messages and progress to stderr; `--json` on every verb. How a verb is run, its outcome printed
and its errors told is in `shell.py`, what a person sees in `show.py`. Cost: `sheaf --help` loads neither pydantic nor
torch; a verb loads what it needs when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter, validators

from sheaf import __version__
from sheaf.console import printable
from sheaf.errors import UsageError
from sheaf.shell import Common, Outcome, command_line, run, write

if TYPE_CHECKING:
    from sheaf.recipe import Recipe

RECIPE = "sheaf.yaml"
DEFAULT = Common()

app = App(
    name="sheaf",
    help="From scattered data to a trained model: one recipe, one command, every training token traceable.",
    help_epilogue="First steps: `sheaf demo`, or `sheaf init FOLDER` and then `sheaf train`.",
    help_format="plaintext",
    version=__version__,
)

Overrides = Annotated[str, Parameter(help="Keys of the recipe to change, as in `train.seed=8`.", show_default=False)]
RecipeFile = Annotated[str, Parameter(help="The recipe file.")]
RunFolder = Annotated[str | None, Parameter(help="A run's folder or name; default: the newest run here.")]
AtLeastOne = validators.Number(gte=1)
Workers = Annotated[int | None, Parameter(validator=AtLeastOne, help="Processes that prepare; default: one a core.")]
Engine = Annotated[
    str, Parameter(help="Where tasks run: local (this machine's processes), or ray (RAY_ADDRESS, or one started here).")
]
Processes = Annotated[int, Parameter(validator=AtLeastOne, help="Data-parallel training processes on this machine.")]
SameProcesses = Annotated[
    int | None, Parameter(validator=AtLeastOne, help="Training processes; default: as many as it had.")
]
Step = Annotated[int | None, Parameter(help="The checkpoint to use; default: the newest.")]
Strict = Annotated[bool, Parameter(negative=(), help="End with 5 if something was quarantined.")]


def main(argv: Sequence[str] | None = None) -> int:
    """The `sheaf` command. Returns the exit code."""
    return run(app, sys.argv[1:] if argv is None else argv)


@app.command
def init(
    folder: Path = Path(),
    /,
    *,
    to: Annotated[Path, Parameter(help="Where to write the recipe.")] = Path(RECIPE),
    force: Annotated[bool, Parameter(negative=(), help="Overwrite a recipe that is there.")] = False,
    common: Common = DEFAULT,
) -> Outcome:
    """Look at a folder and write a commented recipe for it."""
    from sheaf import init as room
    from sheaf import show

    return Outcome(
        room.init(folder, to, force=force), show.init, command_line("sheaf prepare", *_unless_default(str(to)))
    )


@app.command
def scan(
    what: Annotated[str, Parameter(help="A recipe file, or a folder.")] = RECIPE,
    /,
    *overrides: Overrides,
    share: Annotated[float, Parameter(help="Of the bytes that may be read, above 20 items of each kind.")] = 0.02,
    to: Annotated[Path, Parameter(help="Where to write the page.")] = Path("scan.html"),
    workers: Workers = None,
    common: Common = DEFAULT,
) -> Outcome:
    """Survey the sources and change nothing: types, schemas, duplicates, personal data, what prepare will cost."""
    from sheaf import api, show

    what, words = _split(what, overrides)
    if not Path(what).exists() and not what.endswith((".yaml", ".yml")):
        raise UsageError("there is no such folder, and no such recipe", where=what)
    if words and Path(what).is_dir():
        raise UsageError("a folder has no keys to change", where=" ".join(words), fix="write a recipe by `sheaf init`")
    recipe = Path(what) if Path(what).is_dir() else _load(what, words)
    data = api.scan(recipe, share=share, workers=workers, page=to, console=common.console())
    following = ["sheaf init", what] if Path(what).is_dir() else ["sheaf prepare", *_unless_default(what)]
    return Outcome(data, show.scanned, command_line(*following), data["exit_code"])


@app.command
def prepare(
    recipe: RecipeFile = RECIPE,
    /,
    *overrides: Overrides,
    workers: Workers = None,
    engine: Engine = "local",
    new_tokenizer: Annotated[
        bool, Parameter(negative=(), help="Train the tokenizer anew on what is there now.")
    ] = False,
    strict: Strict = False,
    common: Common = DEFAULT,
) -> Outcome:
    """Gather the sources: read, select, tokenise, and account for every byte."""
    from sheaf import show
    from sheaf.prepare.pipeline import prepare as run_pipeline

    recipe, words = _split(recipe, overrides)
    loaded, console = _load(recipe, words), common.console()
    data = run_pipeline(loaded, workers=workers, engine=engine, console=console, new_tokenizer=new_tokenizer)
    deferred = data["items"]["deferred"]
    following = command_line("sheaf prepare" if deferred else "sheaf train", *_unless_default(recipe), *words)
    return Outcome(data, show.prepared, following, 75 if deferred else _strictly(strict, data))


@app.command
def train(
    recipe: RecipeFile = RECIPE,
    /,
    *overrides: Overrides,
    nproc: Processes = 1,
    workers: Workers = None,
    engine: Engine = "local",
    strict: Strict = False,
    common: Common = DEFAULT,
) -> Outcome:
    """Prepare what is not prepared yet, then train."""
    from sheaf import show
    from sheaf.corpus.version import CorpusVersion
    from sheaf.prepare.pipeline import prepare as run_pipeline
    from sheaf.prepare.pipeline import refuse_deferred

    recipe, words = _split(recipe, overrides)
    loaded, console = _load(recipe, words), common.console()
    prepared = run_pipeline(loaded, workers=workers, engine=engine, console=console)
    if not common.json and not common.quiet:
        write(sys.stderr, show.render(show.prepared(prepared), sys.stderr))
    refuse_deferred(prepared)
    # Only now: torch takes seconds to load, and a mistake in the recipe should be told at once.
    from sheaf.train.launch import train as launch

    corpus = CorpusVersion.open(loaded.workspace, prepared["corpus"])
    trained = launch(loaded, corpus, nproc=nproc, console=console)
    following = command_line("sheaf generate", trained["run"])
    return Outcome({**trained, "prepare": prepared}, show.trained, following, _strictly(strict, prepared))


@app.command
def resume(
    run: RunFolder = None,
    /,
    *,
    nproc: SameProcesses = None,
    common: Common = DEFAULT,
) -> Outcome:
    """Go on with a run from its newest checkpoint, on any number of processes."""
    from sheaf import api, show

    done = api.resume(run, nproc=nproc, console=common.console())
    return Outcome(done.result or {}, show.trained, command_line("sheaf generate", done.path))


@app.command
def evaluate(run: RunFolder = None, /, *, step: Step = None, common: Common = DEFAULT) -> Outcome:
    """Measure a run's model on the held-out records."""
    from sheaf import api, show

    opened = api.open_run(run)
    return Outcome(opened.evaluate(step=step), show.pairs, command_line("sheaf generate", opened.path))


@app.command
def generate(
    run: RunFolder = None,
    /,
    *,
    prompt: Annotated[str, Parameter(help="Text to continue; default: from nothing.")] = "",
    chat: Annotated[bool, Parameter(negative=(), help="The prompt is what a user says; an answer follows.")] = False,
    max_tokens: Annotated[int, Parameter(help="At most so many new tokens.")] = 128,
    temperature: Annotated[float, Parameter(help="0 takes the likeliest token each time.")] = 0.8,
    top_p: Annotated[float, Parameter(help="Draw from the likeliest tokens of this total probability.")] = 0.95,
    seed: Annotated[int, Parameter(help="The same seed draws the same text.")] = 0,
    step: Step = None,
    common: Common = DEFAULT,
) -> Outcome:
    """Continue a text with a run's model."""
    from sheaf import api, show

    opened = api.open_run(run)
    pieces = opened.generate(
        prompt, chat=chat, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, step=step
    )
    text: list[str] = []
    for piece in pieces:
        text.append(piece)
        if not common.json:  # as it comes: the first word should not wait for the last
            write(sys.stdout, printable(piece if chat or len(text) > 1 else prompt + piece))
    data = {"run": str(opened.path), "prompt": prompt, "text": "".join(text)}
    return Outcome(data, show.end_of_line, command_line("sheaf trace", opened.path, "--step", "0"))


@app.command
def trace(
    run: RunFolder = None,
    /,
    *,
    step: Annotated[int | None, Parameter(help="Which step's samples to lead back to their sources.")] = None,
    sample: Annotated[int | None, Parameter(help="Only this sample of the step.")] = None,
    item: Annotated[
        str | None, Parameter(help="Items whose URI contains or matches this: which steps saw them.")
    ] = None,
    verify: Annotated[bool, Parameter(negative=(), help="Read every origin again; end with 3 if one differs.")] = False,
    common: Common = DEFAULT,
) -> Outcome:
    """Lead a step back to source bytes, or a source item forward to the steps that saw it."""
    from sheaf import api, show

    if (step is None) == (item is None):
        raise UsageError("trace wants a step or an item", fix="sheaf trace --step 0, or sheaf trace --item URI")
    opened = api.open_run(run)
    following = command_line("sheaf report", opened.path)
    if item is not None:
        return Outcome(opened.trace_item(item), show.item_traced, following)
    data = opened.trace(step=step or 0, sample=sample, verify=verify)
    return Outcome(data, show.traced, following, 3 if verify and not show.all_verified(data) else 0)


@app.command
def report(run: RunFolder = None, /, *, common: Common = DEFAULT) -> Outcome:
    """Write a run's report: one HTML file."""
    from sheaf import api, show

    opened = api.open_run(run)
    path = opened.report()
    return Outcome(
        {"run": str(opened.path), "report": str(path)}, show.report, command_line("sheaf export", opened.path)
    )


@app.command
def export(
    run: RunFolder = None,
    /,
    *,
    to: Annotated[Path | None, Parameter(help="Folder to write; default: RUN/export.")] = None,
    step: Step = None,
    dtype: Annotated[Literal["bf16", "fp32"], Parameter(help="Of the weights written.")] = "fp32",
    common: Common = DEFAULT,
) -> Outcome:
    """Write the model as a folder that transformers loads."""
    from sheaf import api, show

    opened = api.open_run(run)
    folder = opened.export(to, step=step, dtype=dtype)
    data = {"run": str(opened.path), "folder": str(folder), "files": sorted(p.name for p in folder.iterdir())}
    return Outcome(data, show.exported, command_line("sheaf generate", opened.path))


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

    recipe, words = _split(recipe, overrides)
    version = CorpusVersion.open(_unjudged(recipe, words).workspace, corpus)
    if reason is not None or source is not None or contents:
        from sheaf.corpus.refused import refused

        lost = refused(version, item=item, reason=reason, source=source, show=contents, most=most)
        return Outcome(lost, show.refused, command_line("sheaf ledger", *_unless_default(recipe)))
    if item is not None:
        return Outcome(
            items_of(version, item), show.ledger_items, command_line("sheaf ledger", *_unless_default(recipe))
        )
    return Outcome(summary(version), show.ledger, command_line("sheaf train", *_unless_default(recipe)))


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

    recipe, words = _split(recipe, overrides)
    named: dict[str, Any] = {"source": source, "license": license, "item": item, "records": record}
    loaded, console = _load(recipe, words), common.console()
    data = api.forget(loaded, **named, matching=matching, yes=yes, purge=purge, workers=workers, console=console)
    following = "sheaf corpus" if data["done"] else "the same with --yes"
    return Outcome(data, show.forgotten, command_line(following, *(_unless_default(recipe) if data["done"] else [])))


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

    recipe, words = _split(recipe, overrides)
    loaded = _unjudged(recipe, words)
    following = command_line("sheaf ledger", *_unless_default(recipe))
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
    corpus: Annotated[str | None, Parameter(help="Digest of an older version; default: the newest.")] = None,
    common: Common = DEFAULT,
) -> Outcome:
    """Show what the rules did: examples with --dropped, other thresholds with --what-if; else a count by reason."""
    from sheaf import api, show_rules

    recipe, words = _split(recipe, overrides)
    version = api.Corpus.open(_unjudged(recipe, words).workspace, corpus)
    file = _unless_default(recipe)
    if dropped is not None:
        found = version.examples(dropped, source=source, limit=limit)
        return Outcome(found, show_rules.examples, command_line("sheaf show", *file, "--what-if"))
    if what_if:
        return Outcome(version.what_if(), show_rules.what_if, command_line("sheaf prepare", *file))
    if source is not None:
        raise UsageError("--source goes with --dropped", fix=command_line("sheaf show", "--dropped", "REASON"))
    counts = version.dropped()
    largest = show_rules.largest(counts)
    following = command_line("sheaf show", *file, *(("--dropped", largest) if largest else ("--what-if",)))
    return Outcome(counts, show_rules.counts, following)


@app.command
def doctor(
    *,
    workspace: Annotated[Path, Parameter(help="The folder whose disk is looked at.")] = Path("workspace"),
    common: Common = DEFAULT,
) -> Outcome:
    """Try what the work needs on this machine; ends with 4 if something cannot work."""
    from sheaf import doctor as room
    from sheaf import show

    data = room.summary(room.examine(workspace), common.console())
    return Outcome(data, show.doctor, "sheaf demo" if not data["fail"] else "", 4 if data["fail"] else 0)


@app.command
def demo(
    folder: Annotated[Path, Parameter(help="Where to work; it is made.")] = Path("sheaf-demo"),
    /,
    *overrides: Overrides,
    megabytes: Annotated[float, Parameter(help="Text to collect from this machine.")] = 30.0,
    minutes: Annotated[float, Parameter(help="Train so long.")] = 4.0,
    nproc: Processes = 1,
    common: Common = DEFAULT,
) -> Outcome:
    """Collect real text from this machine, scatter it, and go all the way to a traced model."""
    from sheaf import show
    from sheaf.demo.main import run_demo

    data = run_demo(
        folder, megabytes=megabytes, minutes=minutes, nproc=nproc, console=common.console(), overrides=overrides
    )
    return Outcome(data, show.demo, command_line("sheaf generate", data["run"], "--prompt", "import "))


@app.command
def schema(*, common: Common = DEFAULT) -> Outcome:
    """Print the JSON schema of the recipe."""
    from sheaf.recipe_file import json_schema

    return Outcome(json_schema(), None, "sheaf init")


def _unjudged(recipe: str, words: Sequence[str]) -> Recipe:
    """For verbs that look at what was prepared: a scorer that the filters name need not be registered here."""
    from sheaf.recipe_file import load

    return load(Path(recipe), list(words))


def _load(recipe: str, words: Sequence[str]) -> Recipe:
    from sheaf import api

    return api.load(recipe, words)


def _split(recipe: str, overrides: Sequence[str]) -> tuple[str, list[str]]:
    """`sheaf train train.seed=8`: a first word with a = that is no file is an override of the recipe here."""
    if "=" in recipe and not Path(recipe).exists():
        return RECIPE, [recipe, *overrides]
    return recipe, list(overrides)


def _unless_default(recipe: str) -> list[str]:
    return [] if recipe == RECIPE else [recipe]


def _strictly(strict: bool, prepared: dict[str, Any]) -> int:
    """Any quarantined region counts; an item refused whole is one of them."""
    return 5 if strict and prepared["records"]["quarantined"] else 0
