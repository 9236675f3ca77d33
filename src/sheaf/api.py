"""Sheaf in Python: what the command line does, as functions and two objects (`api_objects.py`), so that a part can be
used alone.

Nothing here computes: every function finds its place (a recipe, a workspace, a run) and calls the room that does the
work. Rooms are imported when they are called, so that asking for a ledger never waits for torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import ValidationError

from sheaf.api_objects import Corpus, Json, Run
from sheaf.console import Console, Silent, telling
from sheaf.corpus.version import CorpusVersion
from sheaf.corpus.workspace import Workspace
from sheaf.errors import EnvironmentProblem, RecipeError, UsageError
from sheaf.recipe import Layout, Recipe, SourceSpec
from sheaf.runs import find_run

if TYPE_CHECKING:
    from sheaf.prepare.scorers import ScoreFunction
    from sheaf.train.machines import Machines


def load(recipe: Recipe | str | Path = "sheaf.yaml", overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file. overrides: `key=value` words, as on the command line. Raises RecipeError with file:line."""
    from sheaf.recipe_file import load as load_file

    return recipe if isinstance(recipe, Recipe) else load_file(Path(recipe), list(overrides), _judge)


def _judge(recipe: Recipe) -> Iterable[tuple[tuple[str | int, ...], RecipeError]]:
    """What the rooms know to be wrong with a recipe; a recipe that asks nothing of them does not wait for them."""
    if not recipe.prepare.filters and not recipe.prepare.languages:
        return ()
    from sheaf.prepare.rules import problems

    return problems(recipe.prepare)


def scan(
    recipe: Recipe | str | Path,
    *,
    share: float = 0.02,
    workers: int | None = None,
    page: Path | None = None,
    console: Console | None = None,
) -> Json:
    """Survey a recipe's sources, or a folder, and change nothing: what `sheaf scan --json` prints.

    share: of the bytes that may be read, above 20 items of each source and suffix. page: where to write it as HTML.
    """
    from sheaf.scan.page import write_page
    from sheaf.scan.survey import scan as survey

    if not 0 < share <= 1:
        raise UsageError(f"share is {share}", why="it is a part of the bytes: above 0, at most 1")
    if page is not None:
        _make_folder_of(page)
    folder = None if isinstance(recipe, Recipe) or not Path(recipe).is_dir() else Path(recipe)
    wanted = load(recipe) if folder is None else folder_recipe(folder)
    console = console or Silent()
    with telling(console.note):
        data = survey(wanted, share=share, workers=workers, console=console, propose=folder is not None)
    if page is None:
        return data
    write_page(data, page)
    return {**data, "page": str(page)}


def _make_folder_of(page: Path) -> None:
    """Before the work rather than after it, should it fail."""
    try:
        page.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem("the page cannot be written there", where=str(page), why=str(error)) from error


def folder_recipe(folder: Path) -> Recipe:
    """A recipe for everything in a folder, to look at it before one is written."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name).strip("-._") or "data"
    source = SourceSpec(name=name, uri=str(folder.resolve()), exclude=("**/.*", "**/.*/**"))
    return Recipe(name=name, sources=(source,), workspace=str(folder.resolve() / "workspace"))


def register_scorer(name: str, function: ScoreFunction, version: str = "1") -> None:
    """Make `score.NAME` of what a function of yours gives: one finite number for each text of an Arrow array.

    Register before `load` or `prepare`. It runs in workers, which import it by module and name. version: change it when
    the function would give other numbers. Raises UsageError for a name or a function that cannot be.
    """
    from sheaf.prepare import scorers

    scorers.register(name, function, version)


def prepare(
    recipe: Recipe | str | Path,
    *,
    workers: int | None = None,
    engine: str = "local",
    console: Console | None = None,
    new_tokenizer: bool = False,
) -> Corpus:
    """Gather, select and tokenise what the recipe names; what was done before is not done again.

    new_tokenizer: train it anew on what is there now, instead of keeping the one of earlier versions.
    """
    from sheaf.prepare.pipeline import prepare as run_pipeline

    recipe, console = load(recipe), console or Silent()
    with telling(console.note):
        result = run_pipeline(recipe, workers=workers, engine=engine, console=console, new_tokenizer=new_tokenizer)
    return Corpus.open(recipe.workspace, result["corpus"])


def plan(
    recipe: Recipe | str | Path,
    *,
    nproc: int | None = None,
    machine: str | None = None,
    nodes: Sequence[int] = (),
    price: float | None = None,
    budget: str | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> Json:
    """Forecast what preparing and training will take, before anything runs: what `sheaf plan --json` prints.

    nproc: ranks, by default as many as the recipe's layout has. machine: of published figures, such as "h100", instead
    of measuring this one, and nodes: numbers of its hosts to compare. price: of an hour of one rank. budget: such as
    "6 hours" or "100 EUR": which model, tokens and layout that is best spent on. Nothing is written.
    """
    from sheaf.forecast.plan import plan as room

    recipe, console = load(recipe), console or Silent()
    with telling(console.note):

        def looked() -> Json:
            from sheaf.scan.survey import scan as survey

            return survey(recipe, workers=workers, console=console)

        return room(
            recipe,
            nproc=nproc,
            machine=machine,
            nodes=nodes,
            price=price,
            budget=budget,
            survey=looked,
            console=console,
        )


def calibrate(recipe: Recipe | str | Path = "sheaf.yaml") -> Json:
    """Let forecasts in this workspace learn from its finished runs: what `sheaf plan --calibrate` prints."""
    from sheaf.forecast.calibrate import calibrate as room

    return room(load(recipe))


def train(
    recipe: Recipe | str | Path,
    *,
    nproc: int | None = None,
    start_only: bool = False,
    workers: int | None = None,
    engine: str = "local",
    console: Console | None = None,
) -> Run:
    """Prepare, then train. nproc: training processes on this machine, by default as many as the recipe's layout has;
    workers: processes of the preparation. start_only: make the run and train nothing: torchrun starts its ranks,
    `nproc` of them in all, on many machines.

    Raises TryAgain if items could not be had now: the corpus without them is made, and nothing is trained on it;
    Doomed, with changes that would help, if the run could not be finished on this machine.
    """
    from sheaf.prepare.pipeline import refuse_deferred
    from sheaf.prepare.pipeline import summary as prepared
    from sheaf.train.launch import train as launch

    recipe = load(recipe)
    corpus = prepare(recipe, workers=workers, engine=engine, console=console)
    refuse_deferred(prepared(corpus, read_now=0, seconds=0.0))
    forecast = forecast_of(recipe, corpus.digest, nproc) if engine == "local" and not start_only else None
    result = launch(
        recipe,
        corpus,
        nproc=nproc,
        start_only=start_only,
        engine=engine,
        forecast=forecast,
        console=console or Silent(),
    )
    return Run(Path(result["run"]), None if start_only else with_facts(result))


def forecast_of(recipe: Recipe, digest: str, nproc: int | None) -> Json | None:
    """What a run will take that is about to start here. Raises Doomed (exit code 4) if it could not be finished."""
    from sheaf.forecast.doomed import forecast_of_run

    return forecast_of_run(recipe, CorpusVersion.open(recipe.workspace, digest), nproc)


def with_facts(result: Json) -> Json:
    """The result of a run, its forecast beside it."""
    from sheaf.forecast.fact import against_fact

    return {**result, "forecast": against_fact(Path(result["run"]))}


def resume(
    run: Run | str | Path | None = None,
    *,
    nproc: int | None = None,
    layout: Layout | str | None = None,
    weights: Mapping[str, float] | None = None,
    engine: str = "local",
    machines: Machines | None = None,
    console: Console | None = None,
) -> Run:
    """Go on from the newest checkpoint of a run (default: the newest run here), on any number of processes.

    nproc: default as many as the run had. layout: how to spread the model from now on, as in a recipe; default as it
    was. weights: of sources of its mixture, from here on; the others keep theirs. Raises UsageError if the run is
    finished or being trained, or the layout cannot be.
    """
    from sheaf.train.launch import resume as launch

    path = open_run(run).path
    chosen = _layout(layout) if isinstance(layout, str) else layout
    told = console or Silent()
    return Run(
        path,
        launch(path, nproc=nproc, layout=chosen, weights=weights, engine=engine, machines=machines, console=told),
    )


def verify(
    recipe: Recipe | str | Path,
    *,
    layouts: Sequence[Layout | str] = (),
    ranks: Sequence[int] = (2,),
    steps: int = 3,
    precision: Literal["fp32", "bf16"] = "fp32",
    workers: int | None = None,
    console: Console | None = None,
) -> Json:
    """Prepare, then run a few steps under each layout and on one process, and compare losses, gradients and weights.

    layouts: as in a recipe; without, all that can be on each of these numbers of ranks, on this machine's processes.
    Returns {"holds", "steps", "precision", "tolerance", "layouts": [{"layout", "ranks", "holds", "loss", "gradient",
    "change"}]}, the last three {"error", "where"}: the largest relative error.
    """
    from sheaf.train import verify as room

    recipe, console = load(recipe), console or Silent()
    corpus = prepare(recipe, workers=workers, console=console)
    opened = CorpusVersion.open(recipe.workspace, corpus.digest)
    chosen = [_layout(one) if isinstance(one, str) else one for one in layouts]
    chosen = chosen or room.layouts_to_try(ranks, room.facts_of_verify(recipe, opened, []))
    verdicts = room.verify(recipe, opened, chosen, steps=steps, precision=precision, console=console)
    return {
        "holds": all(one.holds for one in verdicts),
        "steps": steps,
        "precision": precision,
        "tolerance": room.tolerance(precision, recipe.train.communication),
        "layouts": [one.to_json() for one in verdicts],
    }


def tune(
    recipe: Recipe | str | Path = "sheaf.yaml",
    overrides: Sequence[str] = (),
    *,
    trials: int | None = None,
    hours: float | None = None,
    jobs: int | None = None,
    on: Sequence[str] = (),
    tokens: str | int | None = None,
    width: int | None = None,
    out: Path | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> Json:
    """Search for what a recipe marks with `{tune: …}`, or for learning rate, weight decay and tokens of a batch; go on
    with a search that was stopped. Returns what `sheaf tune --json` prints.

    trials: in all; hours: of this call; jobs: trials at a time. on: sources whose held-out records judge. tokens: of a
    whole trial, in place of the recipe's budget. width: try a model of this hidden size, and carry its learning rate
    over to the recipe's. out: write the recipe with what was found there.
    """
    from sheaf.recipe_file import OpenRecipe, load_open
    from sheaf.recipe_yaml import Tree
    from sheaf.tune.search import Limits
    from sheaf.tune.search import tune as search

    if isinstance(recipe, Recipe):
        tree = Tree(recipe.model_dump(mode="json", by_alias=True, exclude_none=True))
        opened = OpenRecipe(tree, (), Path.cwd(), judge=_judge)
    else:
        opened = load_open(Path(recipe), list(overrides), _judge)
    if out is not None:
        _make_folder_of(out)
    console, limits = console or Silent(), Limits(trials, hours, jobs)
    with telling(console.note):
        return search(opened, limits, on=on, tokens=tokens, width=width, out=out, workers=workers, console=console)


def trace(run: Run | str | Path | None = None, *, step: int, sample: int | None = None) -> Json:
    """What a step was made of, down to source bytes: {"step", "samples": [{"sample", "documents": […]}]}."""
    return open_run(run).trace(step=step, sample=sample)


def preview(recipe: Recipe | str | Path = "sheaf.yaml", samples: int = 3) -> Json:
    """The first samples of a recipe as they will be trained on the newest version of its corpus: see order.preview."""
    from sheaf.order.preview import preview as room
    from sheaf.train.setup import order_of

    recipe = load(recipe)
    corpus = CorpusVersion.open(recipe.workspace)
    return room(order_of(recipe, corpus, "train"), corpus, samples)


def open_run(run: Run | str | Path | None = None) -> Run:
    """A run by its folder or its name; None is the newest run of the workspace that ./sheaf.yaml names."""
    return run if isinstance(run, Run) else Run(find_run(run))


def forget(
    recipe: Recipe | str | Path = "sheaf.yaml",
    *,
    source: str | None = None,
    license: str | None = None,
    item: str | None = None,
    records: Sequence[str] = (),
    matching: str | None = None,
    yes: bool = False,
    purge: bool = False,
    workers: int | None = None,
    console: Console | None = None,
) -> Json:
    """Take out of the newest version what any of these names; without `yes` only say what that would change.

    item: part of a URI, or a regular expression. records: ids in hex. matching: a regular expression over texts.
    purge: also remove every older version, so that nothing in the workspace holds what is forgotten. Returns what
    `sheaf forget --json` prints. Raises UsageError if nothing is named, or what is named is not there.
    """
    from sheaf.prepare import forget as room
    from sheaf.train.exposure import runs_that_saw

    recipe = load(recipe)
    wanted = room.Wanted(source, license, item, tuple(records), matching)
    corpus = CorpusVersion.open(recipe.workspace)
    told: Json = {"done": False}
    if wanted:
        found = room.find(corpus, wanted)
        change = room.preview(corpus, recipe, found)
        runs = runs_that_saw(corpus.workspace, lambda version: room.ids_gone(version, wanted, change, corpus))
        told = room.summary(corpus, found, change) | {"runs": runs, "done": yes and bool(found)}
        if told["done"]:
            made = room.carry_out(corpus, recipe, found, told, workers=workers, console=console)
            told["corpus"] = made.digest
    elif not purge:
        raise UsageError("nothing is named", fix="give --source, --license, --item, --record or --matching")
    if purge and (told["done"] or not wanted):
        told |= {"purged": room.purge(corpus.workspace, recipe, console), "done": True}
    return told


def versions(recipe: Recipe | str | Path = "sheaf.yaml") -> list[Json]:
    """The versions of a recipe's workspace, newest last: digest, when it was made, sizes."""
    from sheaf.corpus.versions import list_versions

    return list_versions(Workspace.at(load(recipe).workspace))


def compare(recipe: Recipe | str | Path, old: str, new: str | None = None) -> Json:
    """What changed between two versions, by their digests; new: default the newest."""
    from sheaf.corpus.versions import compare as compare_versions

    workspace = load(recipe).workspace
    return compare_versions(CorpusVersion.open(workspace, old), CorpusVersion.open(workspace, new))


def _layout(text: str) -> Layout:
    """A layout as a recipe writes it."""
    try:
        return Layout.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        known = ", ".join(Layout.model_fields)
        raise UsageError(
            f"this is no layout: {text}",
            why=str(error).splitlines()[0],
            fix=f'write it as in a recipe, such as "{{data: 2, tensor: 2}}"; the keys are {known}',
        ) from error
