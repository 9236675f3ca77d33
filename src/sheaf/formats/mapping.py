"""A recipe's `map`: how a row becomes a conversation, a preference or a text.

A mapping names columns; a row that lacks one, or holds something else in it, is refused as "bad-row" with the reason,
never guessed. NAMED holds the usual ones (Taori et al. 2023, Alpaca; ShareGPT; OpenAI's chat format; TRL's
prompt/completion and preference columns). A column is a name, else a path into nested values, lists and JSON in cells:
`answers.text.0`. A mapping is compiled once for each process; a row then costs its look-ups and one pass over its
messages, whose contents are normalised (`normalise`), so that equal conversations have equal ids.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import orjson

from sheaf.formats.messages import (
    Messages,
    as_list,
    conversation,
    from_json,
    normalised,
    rendering,
    transcript,
)
from sheaf.formats.piece import Refused

Row = dict[str, Any]
_FIELD = re.compile(r"\{([^{}]+)\}")
_MISSING: Any = object()


@dataclass(frozen=True, slots=True)
class Mapping:
    """As the recipe's `map`: which column is what, by kind of record. "": there is none."""

    kind: str
    messages: str = ""
    role: str = "role"
    content: str = "content"
    roles: dict[str, str] = field(default_factory=dict[str, str])
    system: str = ""
    user: str = ""
    assistant: str = ""
    prompt: str = ""
    chosen: str = ""
    rejected: str = ""
    text: str = ""
    optional: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that it names."""
        places = (self.messages, self.system, self.user, self.assistant)
        places += (self.prompt, self.chosen, self.rejected, self.text)
        return tuple(dict.fromkeys(name for place in places for name in _names(place)))


@dataclass(frozen=True, slots=True)
class Mapped:
    """What a row is: the kind of record, its text (a conversation's plain rendering), and its messages."""

    kind: str
    text: str
    messages: Any = None


NAMED: dict[str, Mapping] = {
    "alpaca": Mapping(
        "chat",
        system="system",
        user="{instruction}\n\n{input}",
        assistant="output",
        optional=("system", "input"),
    ),
    "sharegpt": Mapping(
        "chat", messages="conversations", role="from", content="value", system="system", optional=("system",)
    ),
    "openai": Mapping("chat", messages="messages"),
    "prompt-completion": Mapping("chat", user="prompt", assistant="completion"),
    "preference": Mapping(
        "preference", prompt="prompt", chosen="chosen", rejected="rejected", optional=("prompt",)
    ),
    "question-answer": Mapping("chat", user="{context}\n\n{question}", assistant="answer", optional=("context",)),
    "text": Mapping("text", text="text"),
}  # fmt: skip


@lru_cache(maxsize=64)
def mapping_of(asked: str) -> Mapping:
    """From ParseOptions.map: the JSON of a name, or of an object like the recipe's."""
    said = orjson.loads(asked)
    if isinstance(said, str):
        return NAMED[said]
    made = Mapping(**said)
    return replace(made, optional=tuple(made.optional))  # JSON has no tuples


@lru_cache(maxsize=64)
def columns_of(asked: str) -> frozenset[str]:
    """The columns that a mapping names."""
    return frozenset(mapping_of(asked).columns)


def apply(row: Row, mapping: Mapping, mojibake: bool = True) -> Mapped:
    """The row as a record. Raises Refused("bad-row") with what is missing or odd."""
    if mapping.kind == "text":
        return Mapped("text", _template(row, mapping.text, mapping))
    if mapping.kind == "preference":
        return _preference(row, mapping, mojibake)
    messages = _system(row, mapping) + _chat(row, mapping)
    if all(m["role"] != "assistant" for m in messages):
        raise Refused("bad-row", "nobody answers: there is no message by an assistant")
    return Mapped("chat", rendering(messages), normalised(messages, mojibake))


def look_up(row: Row, column: str) -> Any:
    """What a column, or a path into one, holds. Raises Refused("bad-row") if it is not there."""
    if column in row:
        return row[column]
    found: Any = row
    for step in column.split("."):
        if isinstance(found, str):
            found = from_json(found)
        if isinstance(found, dict):
            found = found.get(step, _MISSING)
        elif isinstance(found, list) and step.isdecimal():
            found = found[int(step)] if int(step) < len(found) else _MISSING
        else:
            found = _MISSING
        if found is _MISSING:
            raise Refused("bad-row", f"there is no column '{column}'")
    return found


def _system(row: Row, mapping: Mapping) -> Messages:
    words = _template(row, mapping.system, mapping) if mapping.system else ""
    return [{"role": "system", "content": words}] if words else []


def _chat(row: Row, mapping: Mapping) -> Messages:
    if mapping.messages:
        value = look_up(row, mapping.messages)
        return conversation(value, mapping.role, mapping.content, mapping.roles, mapping.messages)
    return _turn(row, mapping.user, "user", mapping) + _turn(row, mapping.assistant, "assistant", mapping)


def _turn(row: Row, place: str, role: str, mapping: Mapping) -> Messages:
    """A column as one message, or as the messages that it holds."""
    if "{" not in place:
        value = look_up(row, place)
        listed = _listed(value)
        if listed is not None:
            return conversation(listed, mapping.role, mapping.content, mapping.roles, place)
    words = _template(row, place, mapping)
    if not words:
        raise Refused("bad-row", f"'{place}' is empty")
    return [{"role": role, "content": words}]


def _listed(value: Any) -> list[Any] | None:
    """Messages, also as JSON in a cell; a text that merely starts with a bracket stays a text."""
    if isinstance(value, str) and not value.lstrip().startswith("[{"):
        return None
    listed = as_list(value)
    return listed if listed and all(isinstance(one, dict) for one in listed) else None


def _preference(row: Row, mapping: Mapping, mojibake: bool) -> Mapped:
    prompt = _prompt(row, mapping)
    chosen, rejected = (_side(row, place, prompt, mapping) for place in (mapping.chosen, mapping.rejected))
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    prompt, chosen, rejected = prompt + chosen[:shared], chosen[shared:], rejected[shared:]
    if chosen == rejected:
        raise Refused("bad-row", f"'{mapping.chosen}' and '{mapping.rejected}' are the same")
    if not prompt:
        raise Refused("bad-row", "nothing comes before the two answers: there is no prompt")
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise Refused("bad-row", "the last message of an answer is not by an assistant")
    prompt = _system(row, mapping) + prompt
    sides = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    # What is read as text until there is a template for it: the better answer; nobody should learn the worse one.
    return Mapped(
        "preference", rendering(prompt + chosen), {name: normalised(side, mojibake) for name, side in sides.items()}
    )


def _prompt(row: Row, mapping: Mapping) -> Messages:
    if not mapping.prompt:
        return []
    place = mapping.prompt
    if "{" not in place and place in mapping.optional and _is_blank(row, place):
        return []
    turns = _turn(row, place, "user", mapping)
    alone = turns[0]["content"] if len(turns) == 1 else ""
    return transcript(alone) or turns if alone.startswith(("Human:", "\n\nHuman:")) else turns


def _is_blank(row: Row, column: str) -> bool:
    try:
        value = look_up(row, column)
    except Refused:
        return True
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _side(row: Row, column: str, prompt: Messages, mapping: Mapping) -> Messages:
    """One of the two answers, without the prompt if it repeats that. Without a prompt it must be a conversation."""
    value = look_up(row, column)
    listed = _listed(value)
    if listed is not None:
        messages = conversation(listed, mapping.role, mapping.content, mapping.roles, column)
    else:
        words = _scalar(value, column)
        if not words.strip():
            raise Refused("bad-row", f"the column '{column}' is empty")
        turns = transcript(words) if not prompt else None
        if turns is None and not prompt:
            raise Refused("bad-row", f"there is no prompt, and the column '{column}' holds no conversation")
        messages = turns or [{"role": "assistant", "content": words}]
    repeats = bool(prompt) and len(messages) > len(prompt) and _said(messages[: len(prompt)]) == _said(prompt)
    return messages[len(prompt) :] if repeats else messages


def _said(messages: Messages) -> list[tuple[str, str]]:
    return [(m["role"], m["content"].strip()) for m in messages]


def _template(row: Row, place: str, mapping: Mapping) -> str:
    """A column or a template, filled. Columns that are not optional must hold something."""
    if "{" not in place:
        return _value(row, place, mapping)
    parts = _parts(place)
    return "".join(
        [part if number % 2 == 0 else _value(row, part, mapping) for number, part in enumerate(parts)]
    ).strip()


@lru_cache(maxsize=256)
def _parts(template: str) -> tuple[str, ...]:
    """Words, column, words, column, …, words."""
    return tuple(_FIELD.split(template))


def _value(row: Row, column: str, mapping: Mapping) -> str:
    plain = row.get(column)
    if isinstance(plain, str) and plain and not plain.isspace():
        return plain
    optional = column in mapping.optional
    if optional and plain is None and "." not in column:
        return ""  # no exception for what most rows lack
    try:
        words = _scalar(look_up(row, column), column)
    except Refused:
        if optional and _is_blank(row, column):
            return ""
        raise
    if not words.strip():
        if optional:
            return ""
        raise Refused("bad-row", f"the column '{column}' is empty")
    return words


def _scalar(value: Any, column: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, (dict, list)):
        raise Refused("bad-row", f"the column '{column}' holds {'an object' if isinstance(value, dict) else 'a list'}")
    # Integers of any length: YAML has them, and orjson ends at 64 bits.
    return str(value) if type(value) is int else orjson.dumps(value).decode()


def _names(place: str) -> tuple[str, ...]:
    if not place:
        return ()
    return tuple(_FIELD.findall(place)) if "{" in place else (place,)
