"""What the tokenizer sees of a record: its text with private parts masked, or its conversation written out.

A `Rendering` is all that the tokens of a record depend on beside the record itself: the tokenizer, the chat template
with its variables, the kinds of personal data that are masked. Its digest names the folder of the tokens, and is part
of the corpus digest. Where a corpus has no conversations it has no template, so that none can change it. Of a
preference, the prompt with the chosen answer is trained, as a conversation; nobody should learn the other answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from sheaf.errors import RecipeError
from sheaf.files import digest_json
from sheaf.prepare.controls import Controls
from sheaf.prepare.encoder import CONTROL, END_OF_TEXT, Encoder
from sheaf.prepare.template import CHATML, Messages, Template, Written

VERSION = 2  # raise it whenever the same record would get other tokens
AUTO, BUILT_IN = "auto", {"chatml": CHATML}
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Rendering:
    """tokenizer: its digest. template: Jinja, "" without conversations. variables: its special tokens, by name.
    masked: kinds of prepare.privacy, sorted."""

    tokenizer: str
    template: str = ""
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    masked: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        return digest_json([VERSION, self.to_json()])

    def to_json(self) -> dict[str, Any]:
        about = {"tokenizer": self.tokenizer, "template": self.template}
        return {**about, "variables": dict(self.variables), "masked": list(self.masked)}

    @staticmethod
    def from_json(said: Mapping[str, Any]) -> Rendering:
        return Rendering(said["tokenizer"], said["template"], said["variables"], tuple(said["masked"]))


class Chats:
    """Conversations → ids and what of them is trained, for one rendering."""

    def __init__(self, rendering: Rendering, encoder: Encoder) -> None:
        self._encoder = encoder
        self._controls = Controls(encoder.control_ids, encoder.blanks_before, encoder.blanks_after)
        self.template = Template(rendering.template, rendering.variables, self._controls)

    def encode(self, messages: Messages, tools: Sequence[Any] | None = None) -> Encoded:
        """A document: it ends with the end-of-text token. Raises Refused if the template does not take it."""
        return self._encode(self.template.write(messages, tools), whole=True)

    def prompt(self, messages: Messages) -> NDArray[np.uint32]:
        """Ids up to where the assistant's answer begins."""
        return self._encode(self.template.prompt(messages), whole=False).ids

    def ends_of_turn(self) -> list[int]:
        """The control tokens with which the assistant ends its turn, by a short conversation; not those inside it."""
        talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        encoded = self.encode(talk)
        last = np.flatnonzero(np.diff(encoded.loss.astype(np.int8), append=0) < 0)
        control = set(self._encoder.control_ids.values())
        return [int(i) for i in encoded.ids[last] if int(i) in control]

    def _encode(self, written: Written, *, whole: bool) -> Encoded:
        ids: list[NDArray[np.uint32]] = []
        loss: list[NDArray[np.uint8]] = []
        at, last = 0, len(written.text)
        for start, end in [*written.controls, (last, last)]:
            if at < start:
                part, flags = self._text(written, at, start)
                ids.append(part)
                loss.append(flags)
            if start < end:
                ids.append(np.array([self._control_id(written.text[start:end])], np.uint32))
                loss.append(np.array([_inside(written.trained, start, end)], np.uint8))
            at = end
        if not whole:
            return Encoded(_joined(ids, np.uint32), _joined(loss, np.uint8), 0)
        ended = bool(ids) and int(ids[-1][-1]) == self._encoder.end_of_text
        if not ended:
            # Its own turn's end is what the assistant should learn; without one the end of the text stands for it.
            open_turn = bool(loss) and bool(loss[-1][-1]) and not (written.controls and written.controls[-1][1] == last)
            ids.append(np.array([self._encoder.end_of_text], np.uint32))
            loss.append(np.array([open_turn], np.uint8))
        spoken = sum(len(written.text[a:b].encode()) for a, b in written.trained)
        signs = sum(len(written.text[a:b].encode()) for a, b in written.controls if _inside(written.trained, a, b))
        return Encoded(_joined(ids, np.uint32), _joined(loss, np.uint8), spoken - signs)

    def _control_id(self, found: str) -> int:
        """Some control tokens take in the blanks beside them, others hold some."""
        known = self._encoder.control_ids
        return known[found if found in known else found.strip()]

    def _text(self, written: Written, start: int, end: int) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """Ids of a stretch without control tokens; a token counts as the assistant's if a part of it is."""
        text = written.text[start:end]
        spans = [(max(a, start) - start, min(b, end) - start) for a, b in written.trained if a < end and b > start]
        if not spans or spans == [(0, end - start)]:
            ids = self._encoder.encode(text, first=start == 0)
            return ids, np.full(len(ids), bool(spans), np.uint8)
        ids, begins, ends = self._encoder.encode_placed(text, first=start == 0)
        flags = np.zeros(len(ids), np.uint8)
        for a, b in spans:
            flags |= (begins < len(text[:b].encode())) & (ends > len(text[:a].encode()))
        return ids, flags


@dataclass(frozen=True, slots=True)
class Encoded:
    """ids: uint32 (tokens,). loss: uint8 (tokens,), 1 where the token is one to predict. spoken_bytes: UTF-8 bytes of
    the text to predict, control tokens not counted."""

    ids: NDArray[np.uint32]
    loss: NDArray[np.uint8]
    spoken_bytes: int


def check(rendering: Rendering, encoder: Encoder, note: Callable[[str], None]) -> None:
    """Say what the user should know before conversations are written. Raises RecipeError for a broken template."""
    if not rendering.template:
        return
    Chats(rendering, encoder)
    lacking = [x for x in control_literals(rendering.template) if x not in encoder.control_ids]
    if lacking:
        note(f"the tokenizer has no control tokens {', '.join(lacking)}: they are written as plain text")


def control_literals(template: str) -> list[str]:
    """The control tokens that a template names, such as "<|im_start|>", in its order."""
    return list(dict.fromkeys(CONTROL.findall(template)))


def messages_of(kind: str, stored: str) -> Messages:
    """What of a record's `messages` is written out: a conversation, or a prompt with the answer that was chosen."""
    said = orjson.loads(stored)
    return said["prompt"] + said["chosen"] if kind == "preference" else said


def tools_of(meta: str) -> list[Any] | None:
    """The tools that a row offers beside its messages: the column `tools`, as OpenAI's format has it."""
    if '"tools"' not in meta:
        return None
    said: Any = orjson.loads(meta).get("tools")
    if isinstance(said, str):
        try:
            said = orjson.loads(said)
        except orjson.JSONDecodeError:
            return None
    return cast(list[Any], said) if isinstance(said, list) and said else None


def find_template(asked: str, tokenizer: str | None) -> tuple[str, dict[str, str]]:
    """The template that a recipe asks for, and the special tokens that it may name.

    asked: "auto" (the one in the folder of the given tokenizer, else ChatML), a built-in name, or a Jinja file.
    tokenizer: the recipe's `tokenizer.from`, or None if one is trained. Raises RecipeError.
    """
    folder = _folder(tokenizer)
    config = _json_file(folder / "tokenizer_config.json") if folder else {}
    variables = _special_tokens(config) if folder else {"bos_token": "", "eos_token": END_OF_TEXT}
    if asked == AUTO:
        return _of_folder(folder, config) or CHATML, variables
    if asked in BUILT_IN:
        return BUILT_IN[asked], variables
    try:
        return Path(asked).read_text("utf-8"), variables
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            "the chat template cannot be read",
            where=f"prepare.template: {asked}",
            why=str(error),
            fix=f"name a Jinja file, or one of {', '.join((AUTO, *BUILT_IN))}",
        ) from error


def _folder(tokenizer: str | None) -> Path | None:
    if tokenizer is None:
        return None
    path = Path(tokenizer)
    return path if path.is_dir() else path.parent


def _of_folder(folder: Path | None, config: Mapping[str, Any]) -> str:
    """As transformers keeps it: in a file of its own, else in the tokenizer's configuration, perhaps one of several."""
    if folder is None:
        return ""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text("utf-8", "replace")
    said = config.get("chat_template")
    if isinstance(said, list):
        named = {one.get("name"): one.get("template") for one in said if isinstance(one, dict)}
        said = named.get("default")
    return said if isinstance(said, str) else ""


def _json_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        said: Any = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise RecipeError("the tokenizer's configuration is no JSON", where=str(path), why=str(error)) from error
    return cast(dict[str, Any], said) if isinstance(said, dict) else {}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in SPECIAL:
        said = config.get(name)
        literal = said.get("content") if isinstance(said, dict) else said
        if isinstance(literal, str):
            found[name] = literal
    return found


def _inside(spans: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    return any(a <= start and end <= b for a, b in spans)


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
