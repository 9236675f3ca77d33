"""Values that a recipe leaves open: `{tune: [a, b, c]}`, or `{tune: {from: a, to: b, scale: log}}`.

A mark may stand for any value under `train`, `mixture` and `prepare`. `sheaf tune` puts values there; everything else
refuses a recipe that has one. A source that is called tune is no mark: `mixture: {tune: {weight: 2}}`.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sheaf.recipe_errors import Problem, dotted
from sheaf.recipe_yaml import KeyPath, Tree

KEY = "tune"
PLACES = ("train", "mixture", "prepare")
SCALES = ("linear", "log")
HOW = "write {tune: [a, b, c]}, or {tune: {from: a, to: b}} for numbers, with scale: log where factors count"


@dataclass(frozen=True)
class Mark:
    """One open value. choices: what it may be; or none, and it is a number between low and high (both may be, and both
    are whole numbers where it is one). usual: what the first trial takes."""

    path: KeyPath
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    first: Any = None

    @property
    def name(self) -> str:
        return dotted(self.path)

    @property
    def usual(self) -> Any:
        """What the recipe has there; the first choice; the middle of a range."""
        if self.first is not None:
            return self.first
        if self.choices:
            return self.choices[0]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return round(middle) if isinstance(self.low, int) else middle

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values of which each must be possible."""
        return self.choices or (self.low, self.high)

    def to_json(self) -> dict[str, Any]:
        if self.choices:
            return {"tune": list(self.choices)}
        return {"tune": {"from": self.low, "to": self.high, "scale": SCALES[self.log]}}


def marks_in(tree: Tree) -> tuple[list[Mark], list[Problem]]:
    """The marks of a recipe's tree in the order of the file, and what is wrong with them."""
    marks, problems = list[Mark](), list[Problem]()
    for path, said in _found(tree.value, ()):
        if path[0] not in PLACES:
            why = f"values under {', '.join(PLACES)} may be left open"
            problems.append(Problem(tree.place(path), f"'{dotted(path)}' cannot be tuned", why, "write one value"))
            continue
        mark = _mark(path, said)
        if isinstance(mark, Mark):
            marks.append(mark)
        else:
            problems.append(Problem(tree.place(path), f"'{dotted(path)}' is marked in no known way", mark, HOW))
    return marks, problems


def refusals(tree: Tree, marks: list[Mark]) -> list[Problem]:
    """What a reader says that needs every value."""
    fix = "`sheaf tune RECIPE` searches for it; or write one value in its place, such as {}"
    return [
        Problem(tree.place(m.path), f"'{m.name}' is left open", "it is marked with `tune`", fix.format(_text(m.usual)))
        for m in marks
    ]


def with_values(tree: Tree, values: Mapping[KeyPath, Any]) -> Any:
    """The tree's value with these in place, mappings above them made where there are none."""
    value = copy.deepcopy(tree.value)
    for path, wanted in values.items():
        parent: Any = value
        for part in path[:-1]:
            if isinstance(parent, dict) and not isinstance(parent.get(part), (dict, list)):
                parent[part] = {}
            parent = parent[part]
        parent[path[-1]] = wanted
    return value


def _found(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, dict):
        if path and set(value) == {KEY} and (isinstance(value[KEY], list) or _is_range(value[KEY])):
            yield path, value[KEY]
            return
        for key, below in value.items():
            yield from _found(below, (*path, key))
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from _found(below, (*path, number))


def _is_range(said: Any) -> bool:
    return isinstance(said, dict) and ("from" in said or "to" in said)


def _mark(path: KeyPath, said: Any) -> Mark | str:
    """The mark, or what is wrong with it."""
    if isinstance(said, list):
        if len(said) < 2:
            return "a choice needs two values"
        texts = [_text(one) for one in said]
        twice = next((t for t in texts if texts.count(t) > 1), None)
        return Mark(path, tuple(said)) if twice is None else f"{twice} is there twice"
    if odd := sorted(said.keys() - {"from", "to", "scale"}):
        return f"a range has from, to and scale, not '{odd[0]}'"
    low, high, scale = said.get("from"), said.get("to"), said.get("scale", "linear")
    if not (_is_number(low) and _is_number(high) and low < high):
        return "a range goes from a number to a larger one"
    if scale not in SCALES:
        return f"scale is one of {', '.join(SCALES)}"
    if scale == "log" and low <= 0:
        return "on a logarithmic scale a range begins above 0"
    if isinstance(low, int) != isinstance(high, int):
        low, high = float(low), float(high)
    return Mark(path, low=low, high=high, log=scale == "log")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> str:
    return json.dumps(value)


def with_open_values(schema: dict[str, Any]) -> dict[str, Any]:
    """A recipe's JSON schema in which a mark may stand for any value that may be left open."""
    definitions: dict[str, Any] = schema["$defs"]
    reached = list[str]()
    todo = [schema["properties"][section] for section in PLACES]
    while todo:
        names = [n for n in _references(todo.pop()) if n not in reached]
        reached += names
        todo += [definitions[n] for n in names]
    for name in reached:
        below: dict[str, Any] = definitions[name].get("properties", {})
        definitions[name]["properties"] = {key: _or_open(said) for key, said in below.items()}
    definitions["Tune"] = {
        "title": "Tune",
        "description": "a value that `sheaf tune` searches for: choices, or a range of numbers",
        "type": "object",
        "additionalProperties": False,
        "required": [KEY],
        "properties": {KEY: {"anyOf": [{"type": "array", "minItems": 2}, _RANGE]}},
    }
    return schema


_RANGE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["from", "to"],
    "properties": {"from": {"type": "number"}, "to": {"type": "number"}, "scale": {"enum": list(SCALES)}},
}


def _references(said: Any) -> Iterator[str]:
    if isinstance(said, dict):
        if isinstance(said.get("$ref"), str):
            yield said["$ref"].rpartition("/")[2]
        for below in said.values():
            yield from _references(below)
    elif isinstance(said, list):
        for below in said:
            yield from _references(below)


def _or_open(said: dict[str, Any]) -> dict[str, Any]:
    if isinstance(said.get("items"), dict):
        said = {**said, "items": {"anyOf": [said["items"], {"$ref": "#/$defs/Tune"}]}}
    about = {key: said[key] for key in ("title", "description", "default") if key in said}
    rest = {key: value for key, value in said.items() if key not in about}
    return {**about, "anyOf": [rest, {"$ref": "#/$defs/Tune"}]}
