"""From a data model's errors to sentences that a reader of the recipe can act on: file:line, key, nearest key, choices.

All problems of one file are told at once. Literal secrets are recognised here, and their values are never quoted.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from sheaf.errors import RecipeError
from sheaf.recipe import Recipe, Secret
from sheaf.recipe_yaml import KeyPath, Tree

SECRET_HEADER = re.compile(r"auth|cookie|token|secret|password|key|credential", re.IGNORECASE)
SECRET_PARAMETER = re.compile(
    r"(access|auth|api|x-amz-security)?[-_]?(token|key|secret|password|signature|sig)|x-amz-signature", re.IGNORECASE
)
PLAIN_OPTION = re.compile(r"_(file|type|enabled|url|host)$|_credentials$|kms_key_id$", re.IGNORECASE)
OTHERS_NAMES = {  # of transformers' config.json and of other trainers
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "tie_word_embeddings": "tied",
    "lr": "learning_rate",
    "max_seq_length": "sequence_length",
    "seq_len": "sequence_length",
    "block_size": "sequence_length",
    "batch_size": "batch_tokens",
    "max_steps": "budget",
    "epochs": "budget",
    "num_train_epochs": "budget",
}
REFERENCE = "write a reference: {env: NAME} or {file: PATH}"


@dataclass(frozen=True, slots=True)
class Problem:
    place: str
    what: str
    why: str = ""
    fix: str = ""


def refuse(problems: Sequence[Problem], name: str) -> typing.NoReturn:
    """Raise one RecipeError that tells all problems, in the order of the file."""
    ordered = sorted(problems, key=lambda p: _line(p.place))
    first = ordered[0]
    if len(ordered) == 1:
        raise RecipeError(first.what, where=first.place, why=first.why, fix=first.fix)
    lines = [f"{p.place}: {'; '.join(part for part in (p.what, p.why, p.fix) if part)}" for p in ordered]
    what = "\n".join([f"{len(lines)} problems in {name}", *(f"  {line}" for line in lines)])
    raise RecipeError(what, where=first.place)


def explain(error: ValidationError, tree: Tree) -> list[Problem]:
    """One problem for each key path that pydantic complains about."""
    by_path: dict[tuple[KeyPath, str], list[Any]] = {}
    for one in error.errors(include_url=False, include_context=False):
        path, missing = _key_path(one["loc"], one["type"], tree.value)
        by_path.setdefault((path, missing), []).append(one)
    paths = [path + ((missing,) if missing else ()) for path, missing in by_path]
    problems: list[Problem] = []
    for (path, missing), errors in by_path.items():
        full = path + ((missing,) if missing else ())
        deeper = any(other[: len(full)] == full and len(other) > len(full) for other in paths)
        # Of a choice (a word or a mapping) the branch that the user took has the deeper complaint.
        if deeper and all(e["type"] != "value_error" for e in errors):
            continue
        problems.append(_problem(path, missing, errors, tree))
    return problems


def literal_secrets(tree: Tree) -> list[Problem]:
    """Passwords, tokens and the like that stand in the recipe itself. Their values are not repeated."""
    problems: list[Problem] = []
    sources = tree.value.get("sources") if isinstance(tree.value, dict) else None
    for number, source in enumerate(sources if isinstance(sources, list) else []):
        if isinstance(source, dict):
            problems += _secrets_of_source(source, ("sources", number), tree)
    return problems


def nearest(word: str, known: Iterable[str]) -> str:
    """ "did you mean 'x'?" or "" """
    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else ""


def dotted(path: KeyPath) -> str:
    return ".".join(map(str, path)) or "the recipe"


def keys_at(path: KeyPath) -> list[str]:
    """The keys that the mapping at a path may have, aliases included; empty where any name goes."""
    return sorted({key for model in _models_at(path) for key in _fields(model)})


def _line(place: str) -> tuple[str, int]:
    file, _, line = place.rpartition(":")
    return (file, int(line)) if line.isdigit() else (place, 0)


def _problem(path: KeyPath, missing: str, errors: list[Any], tree: Tree) -> Problem:
    kind, place = errors[0]["type"], tree.place(path)
    if missing:
        return Problem(place, f"the key '{missing}' is missing in '{dotted(path)}'", fix=_only(path))
    if kind == "extra_forbidden":
        known = keys_at(path[:-1])
        elsewhere = OTHERS_NAMES.get(str(path[-1]))
        fix = f"write '{elsewhere}'" if elsewhere in known else nearest(str(path[-1]), known) or "delete the line"
        allowed = f"allowed in '{dotted(path[:-1])}': {', '.join(known)}"
        return Problem(place, f"unknown key '{dotted(path)}'", why=allowed, fix=fix)
    if errors[0]["loc"][-1:] == ("[key]",):
        known = [str(word) for a in _annotations_at(path[:-1]) for word in _names(a)]
        fix = nearest(str(path[-1]), known) or f"use one of: {', '.join(known)}"
        return Problem(place, f"unknown key '{dotted(path)}'", why=f"allowed: {', '.join(known)}", fix=fix)
    errors = _of_the_branch_taken(errors, _value_at(path, tree))
    kind = errors[0]["type"]
    if kind == "tuple_type":
        given = _value_at(path, tree)
        fix = f"write [{given}]" if isinstance(given, (str, int, float)) else "write [a, b], or a line `- a` for each"
        return Problem(place, f"'{dotted(path)}' is a list", why=f"here stands {_kind_of(given)}", fix=fix)
    words = dict.fromkeys(e["msg"].removeprefix("Value error, ") for e in errors)
    why = " or ".join(words) + _given(path, kind, tree)
    what = f"'{dotted(path)}' says something impossible" if kind == "value_error" else f"'{dotted(path)}' is wrong"
    return Problem(place, what, why=why, fix=_choice(path, kind, _value_at(path, tree)) or _only(path))


def _kind_of(given: Any) -> str:
    return "nothing" if given is None else "a mapping" if isinstance(given, dict) else "a single value"


def _names(annotation: Any) -> Sequence[Any]:
    """The keys that a mapping may have, where these are a choice."""
    inner = typing.get_args(annotation) if typing.get_origin(annotation) is dict else ()
    return typing.get_args(inner[0]) if inner else ()


def _of_the_branch_taken(errors: list[Any], given: Any) -> list[Any]:
    """Of a choice between a word and a mapping, only what is wrong with what stands there."""
    if isinstance(given, dict):
        return [e for e in errors if e["type"] == "value_error"] or errors
    return [e for e in errors if e["type"] != "model_type"] or errors


def _choice(path: KeyPath, kind: str, given: Any) -> str:
    if kind == "string_type" and isinstance(given, (bool, int, float)):
        return "write it in quotes"
    words = [w for a in _annotations_at(path) if typing.get_origin(a) is typing.Literal for w in typing.get_args(a)]
    return nearest(given, map(str, words)) if kind == "literal_error" and isinstance(given, str) else ""


def _only(path: KeyPath) -> str:
    keys = keys_at(path)
    return f"allowed keys: {', '.join(keys)}" if keys else ""


def _given(path: KeyPath, kind: str, tree: Tree) -> str:
    """What stands there, if it is a short scalar."""
    value = _value_at(path, tree)
    if kind == "value_error" or isinstance(value, (dict, list)) or _is_secret(path):
        return ""
    text = "nothing" if value is None else repr(value)
    return f", not {text}" if len(text) <= 60 else ""


def _value_at(path: KeyPath, tree: Tree) -> Any:
    value: Any = tree.value
    for part in path:
        key: Any = part  # of a mapping or a list
        value = value[key]
    return value


def _key_path(loc: Sequence[str | int], kind: str, value: Any) -> tuple[KeyPath, str]:
    """The key path that an error's location means, and the missing key; pydantic mixes in names of union branches."""
    path: list[str | int] = []
    for number, part in enumerate(loc):
        inside: Any = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(inside, dict) and part in inside:
            value = inside[part]
            path.append(part)
        elif kind == "missing" and number == len(loc) - 1:
            return tuple(path), str(part)
    return tuple(path), ""


def _models_at(path: KeyPath) -> list[type[BaseModel]]:
    return [a for a in _annotations_at(path) if isinstance(a, type) and issubclass(a, BaseModel)]


def _annotations_at(path: KeyPath) -> list[Any]:
    annotations: list[Any] = [Recipe]
    for part in path:
        annotations = [inner for a in annotations for inner in _step(a, part)]
    return annotations


def _step(annotation: Any, part: str | int) -> list[Any]:
    """The annotations under one key of a model, a mapping or a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        found = _fields(annotation).get(str(part))
        return _branches(found.annotation) if found else []
    if typing.get_origin(annotation) in (dict, tuple, list):
        inner = typing.get_args(annotation)
        return _branches(inner[1] if typing.get_origin(annotation) is dict else inner[0])
    return []


def _branches(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [b for a in typing.get_args(annotation) for b in _branches(a)]
    return [annotation]


def _fields(model: type[BaseModel]) -> Mapping[str, FieldInfo]:
    return {f.alias or name: f for name, f in model.model_fields.items()}


def _secrets_of_source(source: dict[str, Any], path: KeyPath, tree: Tree) -> list[Problem]:
    found: list[Problem] = []

    def complain(key: KeyPath, what: str, fix: str) -> None:
        found.append(Problem(tree.place(path + key), what, "a recipe is copied into every run and corpus", fix))

    if isinstance(source.get("password"), (str, int, float)):
        complain(("password",), "a password stands in the recipe", REFERENCE)
    headers = source.get("headers")
    for name, value in headers.items() if isinstance(headers, dict) else ():
        if isinstance(value, (str, int)) and SECRET_HEADER.search(name):
            complain(("headers", name), f"the header '{name}' holds a secret in the recipe", REFERENCE)
    options = source.get("options")
    for name, value in options.items() if isinstance(options, dict) else ():
        if isinstance(value, (str, int)) and SECRET_HEADER.search(name) and not PLAIN_OPTION.search(name):
            complain(("options", name), f"the option '{name}' holds a secret in the recipe", REFERENCE)
    urls = source.get("urls")
    places: list[tuple[KeyPath, Any]] = [(("uri",), source.get("uri"))]
    places += [(("urls", n), url) for n, url in enumerate(urls if isinstance(urls, list) else [])]
    for key, url in places:
        if isinstance(url, str) and _holds_secret(url):
            fix = "give user@host in the uri and `password: {env: NAME}`, or a header: {Authorization: {env: NAME}}"
            complain(key, f"'{dotted(path + key)}' holds a password or token", fix)
    return found


def _holds_secret(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool("://" in url and parts.password) or any(
            SECRET_PARAMETER.fullmatch(name) for name, _ in parse_qsl(parts.query) if "://" in url
        )
    except ValueError:  # not a URL; opening it will say so
        return False


def _is_secret(path: KeyPath) -> bool:
    """Whether a reference to a secret is expected here, so that what stands here may be one."""
    return Secret in _annotations_at(path)
