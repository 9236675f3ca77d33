"""Write docs/recipe.md from the recipe's models, so that the page cannot say what the code does not know.

Use: python scripts/recipe_page.py          (a test fails while the page is not what this writes)
"""

from __future__ import annotations

import types
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from sheaf import recipe, recipe_data

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipe.md"
HEAD = """# The recipe

One YAML file says where the data lies and what to train. Only `name` and `sources` are required. A key that is not
on this page is an error that names the nearest one; any key can be set on the command line (`train.seed=8`,
`sources.wiki.uri=./other`). Paths are relative to the recipe. Secrets are references and are never written anywhere.
"""
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def models() -> list[type[BaseModel]]:
    """Recipe first, then whatever it names, in the order of the files."""
    both = vars(recipe_data) | vars(recipe)
    found = [m for m in both.values() if isinstance(m, type) and issubclass(m, recipe.Strict)]
    rest = [m for m in found if m not in (recipe.Strict, recipe.Recipe)]
    return [recipe.Recipe, *rest]


def value(annotation: object) -> str:
    """What a key takes, in words."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return value(inside[0])
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in inside)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(value(part) for part in inside if part is not type(None))
    if origin is tuple:
        return f"list of {value(inside[0])}" if inside[-1] is Ellipsis else f"{len(inside)} of {value(inside[0])}"
    if origin is dict:
        return f"name: {value(inside[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return WORDS[annotation]  # type: ignore[index]


def default(field: object) -> str:
    given = field.default  # type: ignore[attr-defined]
    if given is PydanticUndefined:
        return "required"
    if given is None or isinstance(given, BaseModel):
        return ""
    return f"`{list(given) if isinstance(given, tuple) else given}`"


def section(model: type[BaseModel]) -> str:
    lines = [f"## {model.__name__}", ""]
    if model.__doc__:
        lines += [" ".join(model.__doc__.split()), ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{field.alias or name}` | {value(field.annotation)} | {default(field)} | {meaning} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    return "\n".join([HEAD, *(section(m) for m in models())])


if __name__ == "__main__":
    PAGE.write_text(page())
