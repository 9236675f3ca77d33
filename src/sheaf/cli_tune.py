"""The verb that searches for what a recipe leaves open. No work is done here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from sheaf.cli_words import (
    DEFAULT,
    RECIPE,
    AtLeastOne,
    Overrides,
    RecipeFile,
    Workers,
    app,
    split,
    unless_default,
)
from sheaf.shell import Common, Outcome, command_line


@app.command
def tune(
    recipe: RecipeFile = RECIPE,
    /,
    *overrides: Overrides,
    trials: Annotated[
        int | None,
        Parameter(validator=AtLeastOne, help="In all; default: all combinations where they are at most 16, else 8."),
    ] = None,
    hours: Annotated[
        float | None, Parameter(validator=validators.Number(gt=0), help="Stop after so long; the same command goes on.")
    ] = None,
    jobs: Annotated[
        int | None,
        Parameter(validator=AtLeastOne, help="Trials at a time; default: one a core, at most 4; on a GPU 1."),
    ] = None,
    on: Annotated[
        tuple[str, ...], Parameter(negative=(), help="A source whose held-out records judge; default: all of them.")
    ] = (),
    tokens: Annotated[
        str | None, Parameter(help="Tokens of a whole trial, such as 2M; default: the recipe's budget.")
    ] = None,
    width: Annotated[
        int | None,
        Parameter(validator=AtLeastOne, help="Try a model of this hidden size; carry the rate over to the recipe's."),
    ] = None,
    out: Annotated[Path | None, Parameter(help="Write the recipe with what was found here.")] = None,
    workers: Workers = None,
    common: Common = DEFAULT,
) -> Outcome:
    """Search for the values that the recipe marks with {tune: …}, by small runs of which the better half goes on."""
    from sheaf import api, show_tune

    recipe, words = split(recipe, overrides)
    data = api.tune(
        recipe,
        words,
        trials=trials,
        hours=hours,
        jobs=jobs,
        on=on,
        tokens=tokens,
        width=width,
        out=out,
        workers=workers,
        console=common.console(),
    )
    target = [str(out)] if out is not None else [*unless_default(recipe), *words, *data["overrides"]]
    return Outcome(data, show_tune.tuned, command_line("sheaf train", *target))
