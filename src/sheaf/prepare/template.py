"""Write a conversation out as its template says, and know two things of every character of the result.

*Is it control?* A template's "<|im_start|>" is one token; the same characters inside a message are text, and must never
become that token (a record could else speak as the system). So before rendering every control token's literal inside
the messages gets a *guard* character after its first one; what matches a control token afterwards came from the
template, and the guards are taken out again. Guards and marks are characters that the conversation does not hold.

*Is it the assistant's?* Only that is trained. Templates say it with `{% generation %}` … `{% endgeneration %}`, as in
transformers. Where they do not, each of the assistant's messages is rendered once more with another content: what
differs is what the assistant said, and the control token right behind it ends the turn. (Rendering prefixes, as others
do, fails on templates that write old turns otherwise than the last one, such as Qwen3's.) Cost: one rendering, 20 to
100 µs, and another one for each of the assistant's messages where there are no markers.

Templates come with downloaded checkpoints: they run in Jinja's sandbox, without files, imports, clock and randomness,
and `limited` bounds processor time and memory. Variables are those of transformers: messages, tools, the special
tokens, add_generation_prompt, raise_exception; not strftime_now, for the same records must give the same tokens on
any day (templates that use it have a date for when it is missing).
"""

from __future__ import annotations

import itertools
import json
import re
import resource
import signal
import threading
from bisect import bisect_left
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sheaf.errors import RecipeError

Messages = Sequence[Mapping[str, Any]]
Span = tuple[int, int]

SECONDS = 10.0  # of processor time for one conversation; a usual one takes less than a thousandth
EXTRA_BYTES = 2 << 30  # of memory, beyond what the process has when rendering begins
_MARKS = tuple(chr(c) for c in range(0xF0000, 0xF0100))  # private use: of these three are taken that are not in use
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

# ChatML (OpenAI 2023) with tool calls as Hermes and Qwen write them.
CHATML = """\
{%- macro calls(message) -%}
{%- for call in message.tool_calls or [] -%}
{%- if not loop.first or message.content %}{{ "\\n" }}{% endif -%}
{{- '<tool_call>\\n{"name": ' ~ (call.function.name | tojson) ~ ', "arguments": ' -}}
{{- (call.function.arguments if call.function.arguments is string else call.function.arguments | tojson) -}}
{{- "}\\n</tool_call>" -}}
{%- endfor -%}
{%- endmacro -%}
{%- if tools -%}
{{- "<|im_start|>system\\n# Tools\\n<tools>" -}}
{%- for tool in tools %}{{ "\\n" ~ (tool | tojson) }}{% endfor -%}
{{- "\\n</tools><|im_end|>\\n" -}}
{%- endif -%}
{%- for message in messages -%}
{{- "<|im_start|>" ~ message.role ~ "\\n" -}}
{%- if message.role == "assistant" -%}
{% generation %}{{ message.content ~ calls(message) ~ "<|im_end|>" }}{% endgeneration %}{{ "\\n" }}
{%- else -%}
{{- message.content ~ "<|im_end|>\\n" -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif -%}
"""


class Refused(Exception):
    """The template does not take this conversation; the reason in its own words."""


@dataclass(frozen=True, slots=True)
class Written:
    """A conversation written out. controls: (start, end) of each control token. trained: what the assistant said, with
    the control token that ends a turn. Both in characters of the text, by place, not overlapping."""

    text: str
    controls: list[Span]
    trained: list[Span]


class Template:
    """source: Jinja. variables: the special tokens by name (bos_token, …). controls: a regular expression that matches
    the tokenizer's control tokens, or None if it has none. Raises RecipeError for a template that is no Jinja."""

    def __init__(self, source: str, variables: Mapping[str, str], controls: Controls) -> None:
        self._source, self._variables, self._controls = source, dict(variables), controls
        self._marked = _GENERATION.search(source) is not None
        try:
            self._template = _environment().from_string(source, globals={"raise_exception": _raise})
        except TemplateSyntaxError as error:
            raise RecipeError(
                "the chat template cannot be read", where=f"line {error.lineno} of the template", why=str(error)
            ) from error
        except (TemplateError, RecursionError, MemoryError, OverflowError) as error:
            raise RecipeError("the chat template cannot be read", why=str(error) or type(error).__name__) from error

    def write(self, messages: Messages, tools: Sequence[Any] | None = None) -> Written:
        """Raises Refused, with the template's reason, for a conversation that it does not take."""
        marks = _unused(self._source, messages, tools)
        given = _guarded([_opened(m) for m in messages], self._controls, marks.guard)
        with_tools = _guarded(list(tools), self._controls, marks.guard) if tools else None

        def render(some: list[Any]) -> str:
            return self._render(some, with_tools, marks, prompt=False)

        if self._marked:
            raw, trained = _take_marks(render(given), marks)
        else:
            raw = render(given)
            trained = self._said(raw, given, render, marks)
        said = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if len(said) == len(trained):  # "weight": 0, as in OpenAI's format: this turn is context only
            trained = [span for i, span in zip(said, trained, strict=True) if messages[i].get("weight") != 0]
        return _without_guards(raw, trained, self._controls, marks.guard)

    def prompt(self, messages: Messages) -> Written:
        """The conversation up to where the assistant's next words begin; nothing is trained."""
        marks = _unused(self._source, messages, None)
        given = _guarded([_opened(m) for m in messages], self._controls, marks.guard)
        raw, _ = _take_marks(self._render(given, None, marks, prompt=True), marks)
        return _without_guards(raw, [], self._controls, marks.guard)

    def _render(self, messages: list[Any], tools: list[Any] | None, marks: _Marks, *, prompt: bool) -> str:
        values = {"messages": messages, "tools": tools, "add_generation_prompt": prompt, "documents": None}
        try:
            return self._template.render(**self._variables, **values, **{_OPEN: marks.open, _CLOSE: marks.close})
        except TooDear:
            raise
        except MemoryError as error:
            raise _too_dear("memory") from error
        # A template is a program: it can fail in any way on a conversation that it does not foresee.
        except Exception as error:
            raise Refused(str(error) or type(error).__name__) from error

    def _said(self, raw: str, given: list[Any], render: Callable[[list[Any]], str], marks: _Marks) -> list[Span]:
        """Where each of the assistant's messages lies in `raw`, with the control token behind it."""
        spans: list[Span] = []
        for i, message in enumerate(given):
            if message["role"] != "assistant":
                continue
            probes = [{**message, "content": marks.open}]
            if message.get("tool_calls"):
                probes.insert(0, {"role": "assistant", "content": marks.open})
            spans.append(self._difference(raw, [[*given[:i], p, *given[i + 1 :]] for p in probes], render, marks))
        if spans != sorted(spans) or any(b[0] < a[1] for a, b in itertools.pairwise(spans)):
            raise Refused(_UNCLEAR)
        return spans

    def _difference(self, raw: str, probes: list[list[Any]], render: Callable[[list[Any]], str], marks: _Marks) -> Span:
        for probe in probes:
            try:
                other = render(probe)
            except Refused:
                continue
            if other.count(marks.open) != 1:
                continue
            at = other.index(marks.open)
            start = min(_common_prefix(raw, other), at)
            tail = min(_common_suffix(raw, other), len(other) - at - 1, len(raw) - start)
            end = len(raw) - tail
            if self._controls.search(raw, start, end) is None:
                return start, self._end_of_turn(raw, end, calls=len(probes) > 1)
        raise Refused(_UNCLEAR)

    def _end_of_turn(self, raw: str, end: int, *, calls: bool) -> int:
        """The end of the control token behind what was said: blanks may lie between, and what closes a tool call."""
        following = self._controls.search(raw, end, len(raw))
        if following is None:
            return len(raw) if calls else end
        return following[1] if calls or raw[end : following[0]].isspace() or following[0] == end else end


class Controls:
    """The tokenizer's control tokens: literals → ids. `search` finds the next one; the longest wins.

    before, after: those that take in the blanks on that side (lstrip, rstrip of the tokenizers library).
    """

    def __init__(
        self, ids: Mapping[str, int], before: frozenset[str] = frozenset(), after: frozenset[str] = frozenset()
    ) -> None:
        self.ids = dict(ids)
        literals = sorted((x for x in ids if x), key=lambda x: (-len(x), x))
        parts = [(r"\s*" if x in before else "") + re.escape(x) + (r"\s*" if x in after else "") for x in literals]
        self._find = re.compile("|".join(parts)) if parts else None
        # Also the beginning of one at a text's end: the template may put two texts side by side.
        begun = sorted({x[:n] for x in literals for n in range(1, len(x))}, key=lambda x: (-len(x), x))
        inside = "|".join(re.escape(x) for x in literals)
        ends = "|".join(re.escape(x) for x in begun)
        self._inside = re.compile(rf"(?:{inside}|(?:{ends})(?=\s*\Z))" if begun else inside) if parts else None

    def search(self, text: str, start: int, end: int) -> Span | None:
        found = self._find.search(text, start, end) if self._find else None
        return found.span() if found else None

    def all(self, text: str) -> list[Span]:
        return [found.span() for found in self._find.finditer(text)] if self._find else []

    def guard(self, text: str, mark: str) -> str:
        if self._inside is None:
            return text
        return self._inside.sub(lambda found: found[0][0] + mark + found[0][1:], text)


@dataclass(frozen=True, slots=True)
class _Marks:
    guard: str
    open: str
    close: str


class TooDear(RecipeError):
    """A template that takes more time or memory than a conversation may cost."""


@contextmanager
def limited(seconds: float = SECONDS, extra_bytes: int = EXTRA_BYTES) -> Generator[Callable[[], None]]:
    """Inside the block: TooDear after so much processor time, MemoryError beyond so much memory. The value is a
    function that winds the clock up again, for the next conversation.

    Only a process' main thread has such an alarm; tasks of an engine run there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def stop(_number: int, _frame: object) -> None:
        raise _too_dear(f"{seconds:g} seconds of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    ceiling = _address_space() + extra_bytes
    if soft == resource.RLIM_INFINITY or ceiling < soft:
        resource.setrlimit(resource.RLIMIT_AS, (ceiling, hard))
    _wind(seconds)
    try:
        yield lambda: _wind(seconds)
    finally:
        _wind(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, before)


def _wind(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)


_UNCLEAR = (
    "one cannot tell which part of it is the assistant's: the template should put it between "
    "{% generation %} and {% endgeneration %}"
)
_OPEN, _CLOSE = "_sheaf_open", "_sheaf_close"


def _too_dear(what: str) -> TooDear:
    return TooDear(
        "the chat template takes too much on one conversation",
        why=f"more than {what}",
        fix="set `prepare.template` to another template, such as chatml",
    )


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
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.pop("lipsum", None)  # random words
    environment.filters.pop("random", None)
    return environment


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


def _opened(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message as templates expect it: the arguments of a tool call as an object, where they are one."""
    if not message.get("tool_calls"):
        return dict(message)
    calls: list[Any] = []
    for call in message["tool_calls"]:
        function = call["function"]
        try:
            arguments: Any = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            arguments = None
        usable = arguments if isinstance(arguments, dict) else function["arguments"]
        calls.append({**call, "function": {**function, "arguments": usable}})
    return {**message, "tool_calls": calls}


def _guarded(value: Any, controls: Controls, mark: str) -> Any:
    if isinstance(value, str):
        return controls.guard(value, mark)
    if isinstance(value, dict):
        return {_guarded(k, controls, mark): _guarded(v, controls, mark) for k, v in value.items()}
    if isinstance(value, list):
        return [_guarded(v, controls, mark) for v in value]
    return value


def _unused(source: str, messages: Messages, tools: Sequence[Any] | None) -> _Marks:
    """Three characters that neither the template nor the conversation holds."""
    used = source + json.dumps([list(messages), tools], ensure_ascii=False)
    free = [c for c in _MARKS[:3] if c not in used]
    if len(free) < 3:
        free = [c for c in _MARKS if c not in used][:3]
    if len(free) < 3:
        raise Refused("it holds all the characters that could mark its parts")
    return _Marks(*free)


def _take_marks(raw: str, marks: _Marks) -> tuple[str, list[Span]]:
    """The text without the marks of `{% generation %}`, and what lay between them."""
    parts: list[str] = []
    spans: list[Span] = []
    length, opened = 0, -1
    for part in re.split(f"([{marks.open}{marks.close}])", raw):
        if part == marks.open:
            opened = length
        elif part == marks.close:
            if opened < 0:
                raise Refused("its generation blocks are nested, or cut by a filter")
            spans.append((opened, length))
            opened = -1
        else:
            parts.append(part)
            length += len(part)
    if opened >= 0:
        raise Refused("a generation block of it is cut by a filter")
    return "".join(parts), spans


def _without_guards(raw: str, trained: list[Span], controls: Controls, guard: str) -> Written:
    found = controls.all(raw)
    if guard not in raw:
        return Written(raw, found, trained)
    places = [i for i, c in enumerate(raw) if c == guard]

    def moved(span: Span) -> Span:
        return span[0] - bisect_left(places, span[0]), span[1] - bisect_left(places, span[1])

    return Written(raw.replace(guard, ""), [moved(s) for s in found], [moved(s) for s in trained])


def _common_prefix(a: str, b: str) -> int:
    low, high = 0, min(len(a), len(b))
    while low < high:  # slices are compared at memory speed, characters are not
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def _common_suffix(a: str, b: str) -> int:
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        same = a[len(a) - middle : len(a) - low] == b[len(b) - middle : len(b) - low]
        low, high = (middle, high) if same else (low, middle - 1)
    return low


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
