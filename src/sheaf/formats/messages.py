"""Conversations as lists of messages: the many shapes that data sets give them, in one form.

A message is {"role", "content", …}: role is one of ROLES' values, content a string ("" beside tool calls). Kept where
given: tool_calls as {"id", "type", "function": {"name", "arguments"}}, name, tool_call_id, weight, reasoning_content.
Shapes read: a list of objects with any two names for role and content; the same as JSON in a cell; the columns of that
list ({"role": […], "content": […]}, as Arrow flattens it); content in parts (OpenAI); a function_call (OpenAI before
tools); a transcript "\\n\\nHuman: …\\n\\nAssistant: …" (Bai et al. 2022, HH-RLHF). What fits none of them is refused
with the message's number, never guessed. One pass over the messages of a row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as MappingType
from typing import Any

import orjson

from sheaf.formats.normalise import normalise
from sheaf.formats.piece import Refused

Message = dict[str, Any]
Messages = list[Message]

# What speakers are called in published data sets; compared in lower case. A recipe's `roles` adds to them.
ROLES: dict[str, str] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_response", "observation"), "tool"),
}
ROLE_NAMES = ("role", "from", "speaker", "author", "sender")
CONTENT_NAMES = ("content", "value", "text", "message", "utterance")
_KEPT = ("name", "tool_call_id", "weight", "reasoning_content")
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[ ]?")


def conversation(value: Any, role: str, content: str, roles: MappingType[str, str], column: str) -> Messages:
    """The messages that a column holds. role, content: their names in a message. Raises Refused("bad-row")."""
    listed = as_list(value)
    if listed is None:
        raise Refused("bad-row", f"the column '{column}' holds no list of messages")
    found: Messages = []
    for number, one in enumerate(listed, 1):
        where = f"message {number} of '{column}'"
        if not isinstance(one, dict):
            raise Refused("bad-row", f"{where} is no object")
        message = _message(one, role, content, roles, where)
        if message is not None:
            found.append(message)
    if not found:
        raise Refused("bad-row", f"the column '{column}' holds no messages")
    return found


def as_list(value: Any) -> list[Any] | None:
    """A list, a list as JSON in a string, or an object of equally long lists as a list of objects; else None."""
    if isinstance(value, str):
        value = from_json(value)
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
        columns: dict[str, list[Any]] = value
        if len({len(v) for v in columns.values()}) == 1:
            return [dict(zip(columns, one, strict=True)) for one in zip(*columns.values(), strict=True)]
    return value if isinstance(value, list) else None


def looks_like_messages(listed: list[Any]) -> bool:
    """Whether objects are the messages of one conversation: the first says who speaks and what, in a usual way."""
    first = listed[0] if listed and isinstance(listed[0], dict) else {}
    speakers = [first[name] for name in ROLE_NAMES if isinstance(first.get(name), str)]
    return any(s.strip().lower() in ROLES for s in speakers) and any(name in first for name in CONTENT_NAMES)


def from_json(text: str) -> Any:
    """The object or array that a string holds as JSON; None if it holds none."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def transcript(text: str) -> Messages | None:
    """The turns of "\\n\\nHuman: …\\n\\nAssistant: …"; None if the text does not begin like that. A last turn without
    words, as in a prompt that ends with "Assistant:", is left out."""
    first = _TURN.match(text)
    if first is None:
        return None
    parts = _TURN.split(text)[1:]
    turns = [
        {"role": ROLES[name.lower()], "content": words.strip()}
        for name, words in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns and not turns[-1]["content"]:
        turns.pop()
    return turns if turns and all(turn["content"] for turn in turns) else None


def rendering(messages: Messages) -> str:
    """Plain text of a conversation, the same for the same messages: "User: …", blank line, "Assistant: …"."""
    return "\n\n".join(f"{m['role'].capitalize()}: {_words(m)}" for m in messages)


def normalised(messages: Messages, mojibake: bool) -> Messages:
    """The messages with their contents in normal form."""
    return [{**m, "content": normalise(m["content"], mojibake)[0]} for m in messages]


def _words(message: Message) -> str:
    calls = [f"{c['function']['name']}({c['function']['arguments']})" for c in message.get("tool_calls", ())]
    words = message["content"].rstrip()
    return "\n".join([words, *calls] if words else calls)


def _message(one: Message, role: str, content: str, roles: MappingType[str, str], where: str) -> Message | None:
    """None: a system message without words."""
    speaker = one.get(role)
    if not isinstance(speaker, str):
        raise Refused("bad-row", f"{where} has no '{role}'")
    known = roles.get(speaker) or ROLES.get(speaker.strip().lower())
    if known is None:
        raise Refused(
            "bad-row", f"{where} is by '{speaker[:40]}', which is no known role; the recipe's `roles` can say"
        )
    words = _content(one.get(content), where)
    message: Message = {"role": known, "content": words}
    calls = _calls(one, where)
    if calls:
        message["tool_calls"] = calls
    elif not words.strip():
        if known == "system":
            return None
        if known != "tool":  # a tool may have nothing to say
            raise Refused("bad-row", f"{where} is empty")
    for name in _KEPT:
        if name not in (role, content) and isinstance(one.get(name), (str, int, float)):
            message[name] = one[name]
    return message


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if not isinstance(value, list):
        raise Refused("bad-row", f"the content of {where} is no text")
    texts: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else "text"
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else part
        if kind not in _TEXT_PARTS or not isinstance(text, str):
            raise Refused("bad-row", f"{where} has a part that is no text: {str(kind)[:40]}")
        texts.append(text)
    return "\n".join(texts)


def _calls(one: Message, where: str) -> list[Message]:
    listed = as_list(one.get("tool_calls")) or []
    old = one.get("function_call")
    if isinstance(old, dict):
        listed = [*listed, {"function": old}]
    return [_call(call, where) for call in listed]


def _call(call: Any, where: str) -> Message:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Refused("bad-row", f"{where} has a tool call without a name")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        try:
            arguments = orjson.dumps({} if arguments is None else arguments, option=orjson.OPT_SORT_KEYS).decode()
        except TypeError:  # the only one that a JSON value can cause
            raise Refused("bad-row", f"{where} has a tool call that is nested too deep") from None
    about = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**about, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
