"""The command line's forecast: `sheaf plan`."""

from __future__ import annotations

from typing import Annotated

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
    numbers,
    split,
    unless_default,
)
from sheaf.shell import Common, Outcome, command_line


@app.command
def plan(
    recipe: RecipeFile = RECIPE,
    /,
    *overrides: Overrides,
    nproc: Annotated[
        int | None, Parameter(validator=AtLeastOne, help="Training processes; default: as many as the layout has.")
    ] = None,
    machine: Annotated[
        str | None, Parameter(help="h100, h200, a100 or l40s: published figures, instead of measuring this machine.")
    ] = None,
    nodes: Annotated[str, Parameter(help="Of --machine, such as 1,2,4,8: how time and cost scale.")] = "",
    price: Annotated[float | None, Parameter(help="Of an hour of one process or GPU.")] = None,
    budget: Annotated[str | None, Parameter(help="Such as '6 hours' or '100 EUR': what it is best spent on.")] = None,
    calibrate: Annotated[bool, Parameter(negative=(), help="Learn from this workspace's finished runs.")] = False,
    workers: Workers = None,
    common: Common = DEFAULT,
) -> Outcome:
    """Forecast time, memory, disk and cost of a recipe before anything runs, and which layouts fit."""
    from sheaf import api
    from sheaf.show_plan import calibrated, planned

    recipe, words = split(recipe, overrides)
    if calibrate:
        return Outcome(
            api.calibrate(load(recipe, words)), calibrated, command_line("sheaf plan", *unless_default(recipe), *words)
        )
    data = api.plan(
        load(recipe, words),
        nproc=nproc,
        machine=machine,
        nodes=numbers(nodes, "--nodes"),
        price=price,
        budget=budget,
        workers=workers,
        console=common.console(),
    )
    return Outcome(data, planned, command_line("sheaf train", *unless_default(recipe), *words))
