"""The folder that an export writes for other tools: config.json, safetensors, tokenizer.json; or peft's adapters.

Parameter names are the published ones, so the decoder's weights are a plain dump; other families write themselves.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from tokenizers import Tokenizer
from torch import Tensor

from sheaf.errors import UsageError
from sheaf.files import disk_errors, sync_folder, write_file
from sheaf.model.decoder import Decoder
from sheaf.model.families import Model
from sheaf.model.other import OtherModel
from sheaf.model.peft_folder import write_adapters
from sheaf.model.pieces import Piece, Values
from sheaf.model.stream import write_stream
from sheaf.prepare.encoder import Encoder
from sheaf.prepare.rendering import Chats, Rendering
from sheaf.prepare.template import Refused


@dataclass(frozen=True)
class ChatFormat:
    """How conversations were written out. template: Jinja. variables: its special tokens, by name, "" for those that
    the tokenizer has not. ends_of_turn: tokens with which an answer ends."""

    template: str
    variables: Mapping[str, str]
    ends_of_turn: Sequence[int]

    @staticmethod
    def of(rendering: Mapping[str, Any], tokenizer_json: Path) -> ChatFormat | None:
        """Of a corpus, by its rendering; None if it has no conversations."""
        how = Rendering.from_json(rendering)
        if not how.template:
            return None
        try:
            ends = Chats(how, Encoder(tokenizer_json)).ends_of_turn()
        except Refused:  # a template for conversations of another kind than question and answer
            ends = []
        return ChatFormat(how.template, how.variables, ends)


def export_folder(
    model: Model,
    folder: Path,
    tokenizer_json: Path,
    end_of_text: int,
    dtype: torch.dtype = torch.float32,
    chat: ChatFormat | None = None,
    values: Values | None = None,
) -> None:
    """Write a folder that transformers' AutoModelForCausalLM and AutoTokenizer load; of a model with adapters, one that
    peft loads beside its base. It appears whole or not at all.

    dtype: of the stored weights. chat: if the model has learned conversations; `apply_chat_template` then writes them
    as they were trained, and `generate` stops where an answer ends. values: of a model that lies on no device, so that
    one parameter after the other is in memory. Raises UsageError if the folder is there and not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UsageError("the folder to export to is not empty", where=str(folder), fix="name a new folder")
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    with disk_errors(folder):
        temporary.mkdir(parents=True)
        try:
            ends = chat.ends_of_turn if chat else ()
            if model.lora is not None:
                write_adapters(model, temporary, dtype)
            elif isinstance(model, Decoder):
                _write_model(model, temporary, end_of_text, dtype, ends, values)
            else:
                _write_other(model, temporary, end_of_text, dtype, ends)
            _write_tokenizer(model, temporary, tokenizer_json, end_of_text, chat)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(folder.parent)


def _write_model(
    model: Decoder,
    folder: Path,
    end_of_text: int,
    dtype: torch.dtype,
    ends_of_turn: Sequence[int],
    values: Values | None = None,
) -> None:
    held = model.state_dict()

    def tensor(name: str) -> Tensor:
        found = held[name] if values is None else values(name, Piece.whole(tuple(held[name].shape)))
        return found.detach().to("cpu", dtype).contiguous()

    described = {name: (tuple(parameter.shape), dtype) for name, parameter in held.items()}
    write_stream(folder / "model.safetensors", described, tensor)
    content = {**model.config.to_hf(), "eos_token_id": end_of_text, "pad_token_id": end_of_text}
    # Both spellings: transformers 5 reads `dtype`, 4 reads `torch_dtype`.
    stored = str(dtype).removeprefix("torch.")
    _write_json(folder / "config.json", {**content, "dtype": stored, "torch_dtype": stored})
    generation = {"bos_token_id": content["bos_token_id"], "pad_token_id": end_of_text}
    generation["eos_token_id"] = _stops(end_of_text, ends_of_turn)
    _write_json(folder / "generation_config.json", generation)


def _write_other(
    model: OtherModel, folder: Path, end_of_text: int, dtype: torch.dtype, ends_of_turn: Sequence[int]
) -> None:
    """By the model's own code, which knows how its parameters are called in files."""
    net = model.net.to("cpu", dtype)
    net.config.eos_token_id = net.config.pad_token_id = end_of_text
    net.generation_config.eos_token_id = _stops(end_of_text, ends_of_turn)
    net.generation_config.pad_token_id = end_of_text
    net.save_pretrained(str(folder))


def _stops(end_of_text: int, ends_of_turn: Sequence[int]) -> int | list[int]:
    ends = [token for token in dict.fromkeys(ends_of_turn) if token != end_of_text]
    return [end_of_text, *ends] if ends else end_of_text


def _write_tokenizer(
    model: Model, folder: Path, tokenizer_json: Path, end_of_text: int, chat: ChatFormat | None
) -> None:
    data = tokenizer_json.read_bytes()
    tokenizer = Tokenizer.from_str(data.decode())
    word = tokenizer.id_to_token(end_of_text)
    if word is None:
        raise UsageError(f"the tokenizer has no token {end_of_text} to end a text with", where=str(tokenizer_json))
    write_file(folder / "tokenizer.json", data)
    special = {"eos_token": word, "pad_token": word}
    if chat is not None:
        special |= {name: said for name, said in chat.variables.items() if tokenizer.token_to_id(said) is not None}
        write_file(folder / "chat_template.jinja", _template_for_others(chat, special).encode())
    _write_json(folder / "special_tokens_map.json", special)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _template_for_others(chat: ChatFormat, special: Mapping[str, str]) -> str:
    """The template, which sets those of its variables that the tokenizer cannot hold: transformers leaves them
    undefined. Each on a line of its own, which gives no output, so that the template's first line stays one."""
    lacking = {n: said for n, said in chat.variables.items() if special.get(n) != said and n in chat.template}
    return "".join(f"{{% set {name} = {said!r} %}}\n" for name, said in lacking.items()) + chat.template


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_file(path, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
