"""What the verbs of the command line share: the application, words that several of them take, small helpers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter, validators

from sheaf import __version__
from sheaf.errors import UsageError
from sheaf.shell import Common

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
Weights = Annotated[str, Parameter(help="New weights from here on, as in `mixture.wiki.weight=3`.", show_default=False)]
AtLeastOne = validators.Number(gte=1)
Workers = Annotated[int | None, Parameter(validator=AtLeastOne, help="Processes that prepare; default: one a core.")]
Engine = Annotated[
    str, Parameter(help="Where it runs: local (this machine's processes), or ray (RAY_ADDRESS, or one started here).")
]
Processes = Annotated[
    int | None,
    Parameter(validator=AtLeastOne, help="Training processes on this machine; default: as many as the layout has."),
]
MachineCount = Annotated[
    str | None,
    Parameter(help="Machines that are given this same command: 2, or 1:2 for one or two; --nproc is then of each."),
]
Rendezvous = Annotated[str | None, Parameter(help="HOST:PORT where the machines meet; HOST prepares.")]
SameProcesses = Annotated[
    int | None, Parameter(validator=AtLeastOne, help="Training processes; default: as many as it had.")
]
NewLayout = Annotated[str | None, Parameter(help='How to spread the model from now on, such as "{tensor: 2}".')]
Step = Annotated[int | None, Parameter(help="The checkpoint to use; default: the newest.")]
Strict = Annotated[bool, Parameter(negative=(), help="End with 5 if something was quarantined.")]


def load(recipe: str, words: Sequence[str]) -> Recipe:
    from sheaf import api

    return api.load(recipe, words)


def split(recipe: str, overrides: Sequence[str]) -> tuple[str, list[str]]:
    """`sheaf train train.seed=8`: a first word with a = that is no file is an override of the recipe here."""
    if "=" in recipe and not Path(recipe).exists():
        return RECIPE, [recipe, *overrides]
    return recipe, list(overrides)


def unless_default(recipe: str) -> list[str]:
    return [] if recipe == RECIPE else [recipe]


def strictly(strict: bool, prepared: dict[str, Any]) -> int:
    """Any quarantined region counts; an item refused whole is one of them."""
    return 5 if strict and prepared["records"]["quarantined"] else 0


def load_unjudged(recipe: str, words: Sequence[str]) -> Recipe:
    """For verbs that look at what was prepared: a scorer that the filters name need not be registered here."""
    from sheaf import recipe_file

    return recipe_file.load(Path(recipe), list(words))


def numbers(words: str, of: str) -> tuple[int, ...]:
    """`1,2,4` as numbers above 0."""
    parts = [word.strip() for word in words.split(",") if word.strip()]
    if any(not part.isdecimal() or int(part) < 1 for part in parts):
        raise UsageError(f"these are no numbers above 0: {words}", where=of, fix=f"write them as in {of} 1,2,4")
    return tuple(map(int, parts))
