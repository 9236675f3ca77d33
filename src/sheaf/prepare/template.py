"""Write a conversation out as its template says, and know two things of every character of the result.

*Is it control?* A template's "<|im_start|>" is one token; the same characters inside a message are text, and must never
become that token (a record could else speak as the system). So before rendering, the messages' texts are guarded
(`controls.py`); what matches a control token afterwards came from the template, and the guards are taken out again.
Guards and marks are characters that the conversation does not hold.

*Is it the assistant's?* Only that is trained. Templates say it with `{% generation %}` … `{% endgeneration %}`, as in
transformers. Where they do not, each of the assistant's messages is rendered once more with another content: what
differs is what the assistant said, and the control token right behind it ends the turn; what a template writes between
the prompt for an answer and the answer ("<think>") is the assistant's too. (Rendering prefixes, as others do, fails on
templates that write old turns otherwise than the last one, such as Qwen3's.) Cost: one rendering, 20 to 100 µs, and
where there are no markers one more, and another one for each of the assistant's messages.

Templates come with downloaded checkpoints: they run in a sandbox (`jinja_sandbox.py`), and `limits.py` bounds processor
time and memory. Variables are those of
transformers: messages, tools, the special tokens, add_generation_prompt, raise_exception; not strftime_now, for the
same records must give the same tokens on any day (templates that use it have a date for when it is missing).
"""

from __future__ import annotations

import itertools
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sheaf.prepare.controls import Controls, Span
from sheaf.prepare.limits import TooDear, too_dear

Messages = Sequence[Mapping[str, Any]]

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
        from sheaf.prepare import jinja_sandbox  # here: a corpus without conversations need not wait for Jinja

        self._write = jinja_sandbox.compiled(source)

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
            prompt = self._asked(raw, given, with_tools, marks)
            trained = [self._from_prompt(raw, span, prompt) for span in self._said(raw, given, render, marks)]
        said = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        context = {i for i in said if messages[i].get("weight") == 0}  # as in OpenAI's format
        if context and len(said) != len(trained):
            raise Refused(_UNCLEAR_WEIGHT)
        if context:
            trained = [span for i, span in zip(said, trained, strict=True) if i not in context]
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
            return self._write({**self._variables, **values}, marks.open, marks.close)
        except TooDear:
            raise
        except MemoryError as error:
            raise too_dear("memory") from error
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

    def _asked(self, raw: str, given: list[Any], tools: list[Any] | None, marks: _Marks) -> str:
        """What the template writes where an answer is asked for, such as "<|im_start|>assistant"; "" if that cannot be
        told from words."""
        try:
            asking = self._render(given, tools, marks, prompt=True)
        except Refused:
            return ""
        prompt = asking[len(raw) :] if asking.startswith(raw) else ""
        return prompt if self._controls.search(prompt, 0, len(prompt)) else ""

    def _from_prompt(self, raw: str, span: Span, prompt: str) -> Span:
        """The span from where its prompt ends: what the template writes before the words is to be said as well."""
        at = raw.rfind(prompt, 0, span[0]) if prompt else -1
        start = at + len(prompt)
        between = at >= 0 and start < span[0] and self._controls.search(raw, start, span[0]) is None
        return (start, span[1]) if between else span

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


@dataclass(frozen=True, slots=True)
class _Marks:
    guard: str
    open: str
    close: str


_UNCLEAR = (
    "one cannot tell which part of it is the assistant's: the template should put it between "
    "{% generation %} and {% endgeneration %}"
)
_UNCLEAR_WEIGHT = (
    "one cannot tell which of its turns are of weight 0: the template should put each of the assistant's turns between "
    "{% generation %} and {% endgeneration %}"
)


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
