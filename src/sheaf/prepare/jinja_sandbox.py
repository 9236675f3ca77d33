"""The language of chat templates: Jinja in its sandbox, as transformers sets it up, and with `{% generation %}`.

Templates come with downloaded checkpoints: they run without files, imports, clock and randomness, and nothing is
computed while they are read. Cost: 60 ms to import, which is why only who has a template imports it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sheaf.errors import RecipeError

_OPEN, _CLOSE = "_sheaf_open", "_sheaf_close"


def compiled(source: str) -> Callable[[Mapping[str, Any], str, str], str]:
    """A function of a template's variables and of two marks, which go out around each `{% generation %}` block.

    Raises RecipeError for a template that is no Jinja; the function raises what the template raises.
    """
    try:
        template = _environment().from_string(source, globals={"raise_exception": _raise})
    except TemplateSyntaxError as error:
        raise RecipeError(
            "the chat template cannot be read", where=f"line {error.lineno} of the template", why=str(error)
        ) from error
    except (TemplateError, RecursionError, MemoryError, OverflowError) as error:
        raise RecipeError("the chat template cannot be read", why=str(error) or type(error).__name__) from error

    def write(variables: Mapping[str, Any], opened: str, closed: str) -> str:
        return template.render(**variables, **{_OPEN: opened, _CLOSE: closed})

    return write


class _Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}`: what is inside goes out between two marks."""

    tags = {"generation"}  # noqa: RUF012  (Jinja declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        opened, closed = (
            nodes.Output([nodes.Name(name, "load", lineno=line)], lineno=line) for name in (_OPEN, _CLOSE)
        )
        return [opened, *body, closed]


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    # Jinja computes constants ("a" * 10**10) while it reads a template, where nothing bounds them: not optimised, and
    # with a `finalize` that needs the context, it does not.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
        optimized=False,
        finalize=_as_it_is,
    )
    environment.filters["tojson"] = _to_json
    environment.globals.pop("lipsum", None)  # random words
    environment.filters.pop("random", None)
    return environment


@pass_context
def _as_it_is(_context: object, value: Any) -> Any:
    return value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in transformers: no escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)
