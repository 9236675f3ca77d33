"""The YAML that a recipe is written in: values with the line of every key, and nothing that surprises.

A subset: no tags, no anchors, no aliases, one document, no key twice. Plain words mean what YAML 1.2's core schema
says: `on`, `off`, `yes` and dates stay text and 1e-4 is a number; PyYAML's YAML 1.1 reads all of these the other way.
Cost: milliseconds; a recipe is at most 1 MB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from sheaf.errors import RecipeError

KeyPath = tuple[str | int, ...]
MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 32
INTEGER = re.compile(r"[-+]?[0-9][0-9_]*")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass
class Tree:
    """value: dicts, lists and scalars. places: "file:line" of each key path. twice: (place, key path) of repeats."""

    value: Any
    places: dict[KeyPath, str] = field(default_factory=dict)
    twice: list[tuple[str, KeyPath]] = field(default_factory=list)

    def place(self, path: KeyPath) -> str:
        """Where a key stands, or its nearest parent that stands anywhere."""
        while path not in self.places and path:
            path = path[:-1]
        return self.places.get(path, "")


def read(text: str, name: str) -> Tree:
    """Parse a text; `name` is what places call the file. Raises RecipeError at the first thing that is not allowed."""
    if len(text) > MAX_CHARACTERS:
        raise RecipeError("the recipe is too large", where=name, why=f"{len(text):,} characters of {MAX_CHARACTERS:,}")
    try:
        node = _Loader(text, name).get_single_node()
    except yaml.MarkedYAMLError as error:
        # Only the parser's own words: its snippet would quote the line, and the line may hold a secret.
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        what = ", ".join(str(part) for part in (error.context, error.problem) if part)
        raise RecipeError("the recipe is not YAML", where=where, why=what, fix="check indentation and quotes") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError("the recipe is not YAML", where=f"{name}:{line}", why=str(error.reason)) from None
    tree = Tree(None, {(): f"{name}:1"})
    tree.value = None if node is None else _value(node, (), tree, name)
    return tree


def plain(text: str) -> Any:
    """What an unquoted word means: null, a boolean, a number, or itself."""
    if text in WORDS:
        return WORDS[text]
    if INTEGER.fullmatch(text) and len(text) < 64:
        return int(text)
    if FLOAT.fullmatch(text) and len(text) < 64:
        return float(text)
    return text


def write(value: Any) -> str:
    """YAML of a JSON value that `read` gives back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Loader(yaml.SafeLoader):
    """Refuses, while composing, what a recipe does not need and an attack does."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.recipe, self.depth = name, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        where = f"{self.recipe}:{event.start_mark.line + 1}"
        if getattr(event, "anchor", None) is not None:
            raise RecipeError("anchors and aliases (& and *) are not allowed", where=where, fix="write the value out")
        if getattr(event, "tag", None) is not None:
            raise RecipeError("tags (!) are not allowed", where=where, fix="write plain values; quote a leading !")
        if self.depth >= MAX_DEPTH:
            raise RecipeError("the recipe is nested too deeply", where=where, why=f"more than {MAX_DEPTH} levels")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes each text that `plain` would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # Line separators such as U+0085 would be folded into a space if they stood there as they are.
    style = None if plain(text) == text and text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _write_text)


def _value(node: yaml.Node, path: KeyPath, tree: Tree, name: str) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return plain(node.value) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_child(n, (*path, i), tree, name, n.start_mark.line) for i, n in enumerate(node.value)]
    assert isinstance(node, yaml.MappingNode)
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line
        if not isinstance(key_node, yaml.ScalarNode):
            raise RecipeError("a key must be a word", where=f"{name}:{line + 1}")
        key = key_node.value
        if key in mapping:
            tree.twice.append((f"{name}:{line + 1}", (*path, key)))
            continue
        mapping[key] = _child(value_node, (*path, key), tree, name, line)
    return mapping


def _child(node: yaml.Node, path: KeyPath, tree: Tree, name: str, line: int) -> Any:
    tree.places[path] = f"{name}:{line + 1}"
    return _value(node, path, tree, name)
