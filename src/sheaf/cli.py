"""The command line: a verb is a function that parses, calls, and says what to print. No work is done here.

Data goes to stdout, messages and progress to stderr; `--json` on every verb. How a verb is run, its outcome printed
and its errors told is in `shell.py`, what a person sees in `show.py`; the verbs about a corpus are in
`cli_corpus.py`, the forecast in `cli_plan.py`. Cost: `sheaf --help` loads neither pydantic nor
torch; a verb loads what it needs when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from sheaf import cli_corpus, cli_tune  # their verbs are the application's by being imported
from sheaf.cli_plan import plan
from sheaf.cli_words import (
    DEFAULT,
    RECIPE,
    AtLeastOne,
    Engine,
    MachineCount,
    NewLayout,
    Overrides,
    Processes,
    RecipeFile,
    Rendezvous,
    RunFolder,
    SameProcesses,
    Step,
    Strict,
    Weights,
    Workers,
    app,
    load,
    split,
    strictly,
    unless_default,
)
from sheaf.console import printable
from sheaf.errors import UsageError
from sheaf.shell import Common, Outcome, command_line, run, write

__all__ = ["app", "cli_corpus", "cli_tune", "main", "plan"]


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
        room.init(folder, to, force=force), show.init, command_line("sheaf prepare", *unless_default(str(to)))
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

    what, words = split(what, overrides)
    if not Path(what).exists() and not what.endswith((".yaml", ".yml")):
        raise UsageError("there is no such folder, and no such recipe", where=what)
    if words and Path(what).is_dir():
        raise UsageError("a folder has no keys to change", where=" ".join(words), fix="write a recipe by `sheaf init`")
    recipe = Path(what) if Path(what).is_dir() else load(what, words)
    data = api.scan(recipe, share=share, workers=workers, page=to, console=common.console())
    following = ["sheaf init", what] if Path(what).is_dir() else ["sheaf prepare", *unless_default(what)]
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

    recipe, words = split(recipe, overrides)
    loaded, console = load(recipe, words), common.console()
    data = run_pipeline(loaded, workers=workers, engine=engine, console=console, new_tokenizer=new_tokenizer)
    deferred = data["items"]["deferred"]
    following = command_line("sheaf prepare" if deferred else "sheaf train", *unless_default(recipe), *words)
    return Outcome(data, show.prepared, following, 75 if deferred else strictly(strict, data))


@app.command
def train(
    recipe: RecipeFile = RECIPE,
    /,
    *overrides: Overrides,
    nproc: Processes = None,
    start_only: Annotated[
        bool, Parameter(negative=(), help="Make the run and train nothing: torchrun starts its ranks on many machines.")
    ] = False,
    nnodes: MachineCount = None,
    rdzv: Rendezvous = None,
    workers: Workers = None,
    engine: Engine = "local",
    strict: Strict = False,
    common: Common = DEFAULT,
) -> Outcome:
    """Prepare what is not prepared yet, then train."""
    from sheaf import api, show
    from sheaf.corpus.version import CorpusVersion
    from sheaf.prepare.pipeline import prepare as run_pipeline
    from sheaf.prepare.pipeline import refuse_deferred
    from sheaf.train.machines import Machines

    recipe, words = split(recipe, overrides)
    loaded, console = load(recipe, words), common.console()
    machines = Machines.of(nnodes, rdzv, nproc or 1)
    if machines is not None and not machines.here_is_host:
        machines.train(None, loaded)
        return Outcome({"run": None}, show.joined)
    prepared = run_pipeline(loaded, workers=workers, engine=engine, console=console)
    if not common.json and not common.quiet:
        write(sys.stderr, show.render(show.prepared(prepared), sys.stderr))
    refuse_deferred(prepared)
    # Only now: torch takes seconds to load, and a mistake in the recipe should be told at once.
    from sheaf.train.launch import train as launch

    corpus = CorpusVersion.open(loaded.workspace, prepared["corpus"])
    elsewhere = start_only or machines is not None or engine != "local"  # its machines are not this one
    trained = launch(
        loaded,
        corpus,
        nproc=nproc,
        start_only=start_only,
        engine=engine,
        machines=machines,
        forecast=None if elsewhere else api.forecast_of(loaded, corpus.digest, nproc),
        console=console,
    )
    if start_only:
        following = command_line("torchrun …", *trained["worker"])
        return Outcome({**trained, "prepare": prepared}, show.started, following, strictly(strict, prepared))
    following = command_line("sheaf generate", trained["run"])
    code = 5 if strict and trained["replaced"] else strictly(strict, prepared)
    return Outcome({**api.with_facts(trained), "prepare": prepared}, show.trained, following, code)


@app.command
def resume(
    run: RunFolder = None,
    /,
    *weights: Weights,
    nproc: SameProcesses = None,
    layout: NewLayout = None,
    nnodes: MachineCount = None,
    rdzv: Rendezvous = None,
    engine: Engine = "local",
    common: Common = DEFAULT,
) -> Outcome:
    """Go on with a run from its newest checkpoint, on any number of processes, in any layout."""
    from sheaf import api, show
    from sheaf.train.machines import Machines

    if run is not None and "=" in run and not Path(run).exists():
        run, weights = None, (run, *weights)
    machines, found = Machines.of(nnodes, rdzv, nproc or 1), api.open_run(run)
    if machines is not None and not machines.here_is_host:
        from sheaf.train.run import Run

        machines.train(found.path, Run.open(found.path).recipe)
        return Outcome({"run": str(found.path)}, show.joined)
    from sheaf.train.curriculum import weights_of  # only now: it loads torch

    changes, console = weights_of(weights), common.console()
    done = api.resume(
        found, nproc=nproc, layout=layout, weights=changes, engine=engine, machines=machines, console=console
    )
    return Outcome(done.result or {}, show.trained, command_line("sheaf generate", done.path))


@app.command
def verify(
    recipe: RecipeFile = RECIPE,
    /,
    *overrides: Overrides,
    layout: Annotated[
        tuple[str, ...], Parameter(help='A layout to try, such as "{tensor: 2}"; default: all of --ranks that can be.')
    ] = (),
    ranks: Annotated[
        tuple[int, ...], Parameter(validator=AtLeastOne, help="How many processes to try, without --layout.")
    ] = (2,),
    steps: Annotated[int, Parameter(validator=AtLeastOne, help="Steps to compare.")] = 3,
    precision: Annotated[Literal["fp32", "bf16"], Parameter(help="What to compute in.")] = "fp32",
    workers: Workers = None,
    common: Common = DEFAULT,
) -> Outcome:
    """Prove that layouts compute what one process computes, for this recipe's model and data."""
    from sheaf import api, show

    recipe, words = split(recipe, overrides)
    data = api.verify(
        load(recipe, words),
        layouts=layout,
        ranks=ranks,
        steps=steps,
        precision=precision,
        workers=workers,
        console=common.console(),
    )
    following = command_line("sheaf train", *unless_default(recipe), *words)
    return Outcome(data, show.verified, following, 0 if data["holds"] else 1)


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
    what: Annotated[
        str | None, Parameter(help="A run's folder or name, default the newest; --preview: a recipe.")
    ] = None,
    /,
    *overrides: Overrides,
    step: Annotated[int | None, Parameter(help="Which step's samples to lead back to their sources.")] = None,
    rank: Annotated[int | None, Parameter(help="Only what this rank had of the step.")] = None,
    sample: Annotated[int | None, Parameter(help="Only this sample of the step; with --rank, of the rank's.")] = None,
    token: Annotated[int | None, Parameter(help="Only the token at this position of the sample.")] = None,
    item: Annotated[
        str | None, Parameter(help="Items whose URI contains or matches this, or a record's id: which steps saw them.")
    ] = None,
    preview: Annotated[
        int | None, Parameter(help="The first samples of a recipe as they will be trained; needs no run.")
    ] = None,
    verify: Annotated[bool, Parameter(negative=(), help="Read every origin again; end with 3 if one differs.")] = False,
    common: Common = DEFAULT,
) -> Outcome:
    """Lead a step back to source bytes, an item forward to the steps that saw it, or show what will be trained."""
    from sheaf import api, show

    if sum(asked is not None for asked in (step, item, preview)) != 1:
        fix = "sheaf trace --step 0, or sheaf trace --item URI, or sheaf trace --preview 3"
        raise UsageError("trace wants a step, an item or a preview", fix=fix)
    if step is None and (verify or any(part is not None for part in (rank, sample, token))):
        raise UsageError("--rank, --sample, --token and --verify go with --step", fix="sheaf trace --step 0 --sample 0")
    if preview is not None:
        from sheaf.show_preview import previewed

        recipe, words = split(what or RECIPE, overrides)
        following = command_line("sheaf train", *unless_default(recipe), *words)
        return Outcome(api.preview(load(recipe, words), preview), previewed, following)
    if overrides:
        raise UsageError("a run's recipe cannot be changed", where=" ".join(overrides))
    opened = api.open_run(what)
    following = command_line("sheaf report", opened.path)
    if item is not None:
        return Outcome(opened.trace_item(item), show.item_traced, following)
    data = opened.trace(step=step or 0, rank=rank, sample=sample, token=token, verify=verify)
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
    merge: Annotated[bool, Parameter(negative=(), help="Add a run's adapters to its model's weights.")] = False,
    common: Common = DEFAULT,
) -> Outcome:
    """Write the model as a folder that transformers loads; of a run with adapters, these alone, for peft."""
    from sheaf import api, show

    opened = api.open_run(run)
    folder = opened.export(to, step=step, dtype=dtype, merge=merge)
    data = {"run": str(opened.path), "folder": str(folder), "files": sorted(p.name for p in folder.iterdir())}
    return Outcome(data, show.exported, command_line("sheaf generate", opened.path))


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
    nproc: Processes = None,
    common: Common = DEFAULT,
) -> Outcome:
    """Collect real text from this machine, scatter it, and go all the way to a traced model."""
    from sheaf import show
    from sheaf.demo.main import run_demo

    data = run_demo(
        folder, megabytes=megabytes, minutes=minutes, nproc=nproc or 1, console=common.console(), overrides=overrides
    )
    return Outcome(data, show.demo, command_line("sheaf generate", data["run"], "--prompt", "import "))


@app.command
def schema(*, common: Common = DEFAULT) -> Outcome:
    """Print the JSON schema of the recipe."""
    from sheaf.recipe_file import json_schema

    return Outcome(json_schema(), None, "sheaf init")
