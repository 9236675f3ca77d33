"""A recipe as a file: read with file:line in every error, overridden from the command line, written back resolved.

`recipe_yaml` reads the text and remembers lines, the overrides are put into the tree, pydantic judges it, and
`recipe_errors` turns all complaints into sentences. What comes back has absolute paths: relative ones start at the
recipe's folder. `python -m sheaf.recipe_file` writes the JSON schema that editors use. Cost: a few milliseconds.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sheaf import recipe_yaml
from sheaf.errors import EnvironmentProblem, RecipeError
from sheaf.recipe import TEMPLATES, Recipe, Secret, SourceSpec, TokenizerSpec
from sheaf.recipe_errors import Problem, dotted, explain, keys_at, literal_secrets, nearest, refuse
from sheaf.recipe_marks import Mark, marks_in, refusals, with_open_values, with_values
from sheaf.recipe_yaml import KeyPath, Tree

SCHEMA_FILE = Path(__file__).with_name("recipe.schema.json")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+._-]*://")
SQLITE = "sqlite:///"
UNITS = {"k": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
OPTIONS_WITH_PATHS = ("known_hosts", "key_file")  # of sftp
# Keys of which one only may be given: overriding one takes the others out.
EITHER: dict[KeyPath, tuple[str, ...]] = {
    ("train", "budget"): ("tokens", "epochs", "hours", "steps"),
    ("prepare", "tokenizer"): ("train", "from"),
    ("model",): ("preset", "from"),
}


# What is wrong with a recipe whose keys are right: the key path and the error of each mistake.
Judge = Callable[[Recipe], Iterable[tuple[KeyPath, RecipeError]]]


@dataclass(frozen=True)
class OpenRecipe:
    """A recipe that may leave values open (`recipe_marks`). name: what errors call it."""

    tree: Tree
    marks: tuple[Mark, ...]
    base: Path
    name: str = "<recipe>"
    judge: Judge | None = None

    def filled(self, values: Mapping[KeyPath, Any] | None = None) -> Recipe:
        """The recipe with these values, and what is usual in the other open places. Raises RecipeError."""
        chosen = {mark.path: mark.usual for mark in self.marks} | dict(values or {})
        tree = Tree(with_values(self.tree, chosen), self.tree.places)
        return _validated(tree, [], self.base, self.name, self.judge)


def load(path: Path, overrides: Sequence[str] = (), judge: Judge | None = None) -> Recipe:
    """Read a recipe file. overrides: "train.seed=8", "sources.wiki.uri=./x". judge: of a room that knows more than the
    keys; what it finds is told with file:line like the rest. Raises RecipeError."""
    return loads(_text(path), path.absolute().parent, str(path), overrides, judge)


def load_open(path: Path, overrides: Sequence[str] = (), judge: Judge | None = None) -> OpenRecipe:
    """As `load`, for who puts values in the places that are left open. Every choice must be one that can be, with the
    usual values of the others. Raises RecipeError."""
    name = str(path)
    tree, problems = _tree(_text(path), name, overrides)
    marks, odd = marks_in(tree)
    found = OpenRecipe(tree, tuple(marks), path.absolute().parent, name, judge)
    if problems + odd:
        refuse(problems + odd, name)
    for mark in marks:
        for value in mark.ends:
            found.filled({mark.path: value})
    found.filled()
    return found


def loads(
    text: str,
    base: Path,
    name: str = "<recipe>",
    overrides: Sequence[str] = (),
    judge: Judge | None = None,
) -> Recipe:
    """Read a recipe from text. base: the folder that relative paths start at. name: what errors call the file."""
    tree, problems = _tree(text, name, overrides)
    marks, odd = marks_in(tree)
    if odd:
        refuse(problems + odd, name)
    usual = Tree(with_values(tree, {mark.path: mark.usual for mark in marks}), tree.places)
    return _validated(usual, problems + refusals(tree, marks), base, name, judge)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise _no_recipe(path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError("the recipe cannot be read", where=str(path), why=str(error)) from None


def _tree(text: str, name: str, overrides: Sequence[str]) -> tuple[Tree, list[Problem]]:
    """What is written, with the overrides in it, and what is wrong with that as YAML."""
    tree = recipe_yaml.read(text, name)
    if not isinstance(tree.value, dict):
        raise RecipeError(
            "a recipe is a mapping of keys",
            where=f"{name}:1",
            why=f"this is {'empty' if tree.value is None else 'a ' + type(tree.value).__name__}",
            fix=f"keys: {', '.join(keys_at(()))}",
        )
    problems = [Problem(place, f"the key '{dotted(path)}' is given twice") for place, path in tree.twice]
    for override in overrides:
        problems += _override(tree, override)
    return tree, problems


def _validated(tree: Tree, problems: list[Problem], base: Path, name: str, judge: Judge | None) -> Recipe:
    """The recipe that a tree without open places means."""
    secrets = literal_secrets(tree)
    told = {p.place for p in secrets}
    problems = problems + secrets + _disagreements(tree)
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(tree.value)
    except ValidationError as error:
        problems += [p for p in explain(error, tree) if p.place not in told and "two sources are named" not in p.why]
    if recipe is not None and judge is not None:
        problems += [Problem(tree.place(path), e.what, e.why, e.fix) for path, e in judge(recipe)]
    if recipe is None or problems:  # raised out here: pydantic's error quotes values, and would be its context
        refuse(problems, name)
    return _absolute(recipe, base)


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, defaults filled in; secrets stay references. `loads` of it gives an equal recipe."""
    return recipe_yaml.write(recipe.model_dump(mode="json", by_alias=True, exclude_none=True))


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe file, for editors."""
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Sheaf recipe"}
    return {**with_open_values(Recipe.model_json_schema(by_alias=True)), **about}


def schema_text() -> str:
    return json.dumps(json_schema(), indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def resolve_secret(secret: Secret) -> str:
    """The secret's value, for use at once. Raises EnvironmentProblem, which names the place and never the value.

    Of a file, one line end at its end is no part of the secret. Control characters are refused: no protocol takes them,
    and some quote what they refuse.
    """
    if secret.env is not None:
        value, place = os.environ.get(secret.env, ""), f"environment variable {secret.env}"
    else:
        place = f"file {secret.file}"
        try:
            raw = Path(str(secret.file)).read_bytes()
        except OSError as error:
            raise EnvironmentProblem("a secret cannot be read", where=place, why=str(error.strerror)) from None
        # Not strict: the error would hold the value.
        value = re.sub(r"\r?\n\Z", "", raw.decode("utf-8", "surrogateescape"))
    if not value:
        raise EnvironmentProblem("a secret is not set", where=place, fix=f"set the {place}, then run again")
    if any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in value):
        why = "it holds a line break, another control character or a byte that is not UTF-8"
        raise EnvironmentProblem("a secret cannot be used", where=place, why=why, fix=f"correct the {place}")
    return value


def parse_tokens(text: str | int) -> int:
    """A number of tokens: 20000000, "20M", "1.5B", "1T" (k, M, B or G, T). Raises RecipeError for anything else."""
    match = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?) ?([kKMBGT]?)", str(text).strip())
    count = Decimal(match[1].replace("_", "")) * UNITS.get(match[2].replace("K", "k"), 1) if match else Decimal(0)
    if count < 1 or count != int(count):
        raise RecipeError(
            f"'{text}' is not a number of tokens", fix="write a number such as 20000000, 500k, 20M, 1.5B or 1T"
        )
    return int(count)


def _no_recipe(path: Path) -> RecipeError:
    folder = path if path.is_dir() else path.absolute().parent
    found = sorted(p.name for p in folder.glob("*.y*ml")) if folder.is_dir() else []
    near = nearest(path.name, found)
    fix = f"recipes in {folder}: {', '.join(found[:8])}" if found else "write one with `sheaf init FOLDER`"
    what = "this is a folder, not a recipe" if path.is_dir() else "there is no such recipe"
    return RecipeError(what, where=str(path), fix=f"{near} {fix}".strip())


def _override(tree: Tree, override: str) -> list[Problem]:
    """Put one KEY=VALUE into the tree. Whether the key exists is for the model to say, except names of sources."""
    key, equals, text = override.partition("=")
    place = f"override of {key}"  # the value may be a secret
    if not equals or not key:
        return [Problem(place, f"'{override}' is not an override", fix="write KEY=VALUE, such as train.seed=8")]
    value = recipe_yaml.read(text, place).value
    path = _override_path(tree.value, key)
    if isinstance(path, Problem):
        return [Problem(place, path.what, path.why, path.fix)]
    return _put(tree, path, value, place)


def _put(tree: Tree, path: KeyPath, value: Any, place: str) -> list[Problem]:
    """Set the value at a key path, making the mappings above it where there are none."""
    parent: Any = tree.value
    for number, part in enumerate(path):
        key: Any = part
        if isinstance(parent, list):
            if not str(part).isdigit() or int(part) >= len(parent):
                what = f"'{dotted(path[:number])}' has no entry '{part}'"
                return [Problem(place, what, why=f"it has {len(parent)}, counted from 0")]
            key = int(part)
        if number == len(path) - 1:
            either = EITHER.get(path[:-1], ())
            if key in either and isinstance(parent, dict):
                _drop(parent, either)
            parent[key] = value
        elif not isinstance(below := parent[key] if isinstance(parent, list) else parent.get(key), (dict, list)):
            parent[key] = {}  # absent, or a word such as `auto` that gives way
            tree.places.setdefault(path[: number + 1], place)
            parent = parent[key]
        else:
            parent = below
    for below in [p for p in tree.places if p[: len(path)] == path]:
        del tree.places[below]  # lines of what was there before
    tree.places[path] = place
    return []


def _drop(mapping: dict[str, Any], keys: Sequence[str]) -> None:
    for key in keys:
        mapping.pop(key, None)


def _override_path(value: Any, key: str) -> KeyPath | Problem:
    """The key path that a dotted key means. Sources go by name or number; names may contain dots."""
    head, _, rest = key.partition(".")
    if head == "sources" and rest and isinstance(value.get("sources"), list):
        sources: list[Any] = value["sources"]
        names = [str(s.get("name")) if isinstance(s, dict) else "" for s in sources]
        numbers = [*names, *map(str, range(len(names)))]
        fits = [n for n in numbers if n and (rest == n or rest.startswith(n + "."))]
        if not fits:
            known = f"sources: {', '.join(names)}"
            return Problem("", f"there is no source '{rest.split('.')[0]}'", known, nearest(rest.split(".")[0], names))
        name = max(fits, key=len)
        index = names.index(name) if name in names else int(name)
        return ("sources", index, *_words(rest[len(name) + 1 :]))
    if head == "mixture" and rest:
        names = [
            s["name"] for s in value.get("sources") or () if isinstance(s, dict) and isinstance(s.get("name"), str)
        ]
        fits = [n for n in names if rest == n or rest.startswith(n + ".")]
        name = max(fits, key=len) if fits else rest.split(".")[0]
        return ("mixture", name, *_words(rest[len(name) + 1 :]))
    return _words(key)


def _words(key: str) -> tuple[str, ...]:
    return tuple(key.split(".")) if key else ()


def _disagreements(tree: Tree) -> list[Problem]:
    """What keys say to each other: names of sources unique, the mixture's names among them, a readable budget."""
    sources, problems = tree.value.get("sources"), list[Problem]()
    names: list[str] = []
    for number, source in enumerate(sources if isinstance(sources, list) else []):
        name = source.get("name") if isinstance(source, dict) else None
        if name in names:
            place = tree.place(("sources", number, "name"))
            problems.append(Problem(place, f"two sources are named '{name}'", fix="give each source its own name"))
        elif isinstance(name, str):
            names.append(name)
    for path in _weighted(tree.value):
        if path[-1] not in names:
            name, place = str(path[-1]), tree.place(path)
            what = f"the {path[0]} names '{name}', which is no source"
            problems.append(Problem(place, what, f"sources: {', '.join(names)}", nearest(name, names)))
    return problems + _budget(tree)


def _weighted(value: Any) -> Iterable[KeyPath]:
    """The key paths of all names that are given a weight."""
    mixture: Any = value.get("mixture")
    curriculum: Any = value.get("curriculum")
    for name in mixture if isinstance(mixture, dict) else ():
        yield ("mixture", name)
    changes: list[Any] = curriculum if isinstance(curriculum, list) else []
    for number, change in enumerate(changes):
        weights: Any = change.get("weights") if isinstance(change, dict) else None
        for name in weights if isinstance(weights, dict) else ():
            yield ("curriculum", number, "weights", name)


def _budget(tree: Tree) -> list[Problem]:
    value = tree.value
    for part in ("train", "budget", "tokens"):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return []
    try:
        parse_tokens(value)
    except RecipeError as error:
        return [Problem(tree.place(("train", "budget", "tokens")), error.what, fix=error.fix)]
    return []


def _absolute(recipe: Recipe, base: Path) -> Recipe:
    """The recipe with every path absolute, so that it means the same from any working folder."""
    tokenizer, model = recipe.prepare.tokenizer, recipe.model
    if tokenizer.from_ is not None:
        tokenizer = tokenizer.model_copy(update={"from_": _path(tokenizer.from_, base)})
    if model.from_ is not None:
        folder = _path(model.from_, base)
        model = model.model_copy(update={"from_": folder})
        if "tokenizer" not in recipe.prepare.model_fields_set and (Path(folder) / "tokenizer.json").is_file():
            tokenizer = TokenizerSpec.model_validate({"from": folder})  # what is not said is the model's own
    if model.lora is not None and model.lora.from_ is not None:
        lora = model.lora.model_copy(update={"from_": _path(model.lora.from_, base)})
        model = model.model_copy(update={"lora": lora})
    return recipe.model_copy(
        update={
            "workspace": _path(recipe.workspace, base),
            "sources": tuple(_absolute_source(s, base) for s in recipe.sources),
            "prepare": recipe.prepare.model_copy(
                update={
                    "tokenizer": tokenizer,
                    "template": _template(recipe.prepare.template, base),
                    "decontaminate": tuple(_path(glob, base) for glob in recipe.prepare.decontaminate),
                }
            ),
            "model": model,
        }
    )


def _template(name: str, base: Path) -> str:
    return name if name in TEMPLATES else _path(name, base)


def _absolute_source(spec: SourceSpec, base: Path) -> SourceSpec:
    headers = {k: v if isinstance(v, str) else _absolute_secret(v, base) for k, v in spec.headers.items()}
    password = None if spec.password is None else _absolute_secret(spec.password, base)
    options = {k: _absolute_option(k, v, base) for k, v in spec.options.items()}
    changed = {"uri": _path(spec.uri, base), "headers": headers, "password": password, "options": options}
    return spec.model_copy(update=changed)


def _absolute_option(name: str, value: Secret | str, base: Path) -> Secret | str:
    if isinstance(value, str):
        return _path(value, base) if name in OPTIONS_WITH_PATHS else value
    return _absolute_secret(value, base)


def _absolute_secret(secret: Secret, base: Path) -> Secret:
    return secret if secret.file is None else secret.model_copy(update={"file": _path(secret.file, base)})


def _path(text: str, base: Path) -> str:
    if text.startswith(SQLITE):
        return SQLITE + _path(text.removeprefix(SQLITE), base)
    if SCHEME.match(text):
        return text
    path = Path(text).expanduser() if text.startswith("~/") else Path(text)
    return os.path.normpath(base.absolute() / path)


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
