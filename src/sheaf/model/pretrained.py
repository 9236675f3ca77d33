"""Folders that other tools read and write: config.json, safetensors, tokenizer.json.

Parameter names are the published ones, so loading is a checked copy and export a plain dump. No pickle is ever
opened: a folder that holds only *.bin or *.pt files is refused. Load: one pass over the files, memory-mapped, plus
the fp32 masters.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson
import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from sheaf.errors import UsageError
from sheaf.files import disk_errors, sync_folder, write_file
from sheaf.model.config import ModelConfig, read_config
from sheaf.model.decoder import Decoder
from sheaf.model.pieces import Piece, Values
from sheaf.model.stream import write_stream
from sheaf.prepare.encoder import Encoder
from sheaf.prepare.rendering import Chats, Rendering
from sheaf.prepare.template import Refused


def load_folder(folder: Path, compute_dtype: torch.dtype) -> Decoder:
    """A decoder with the weights of a checkpoint folder. Raises UsageError if it cannot be read or does not fit."""
    config, values = folder_values(folder)
    model = Decoder(config, compute_dtype)
    fill(model, values)
    return model


def folder_values(folder: Path) -> tuple[ModelConfig, Values]:
    """The config of a checkpoint folder and, when asked for, any piece of its weights: no more of a file is read.

    Raises UsageError if it cannot be read or does not fit its config.
    """
    config = read_config(folder)
    stored: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _weight_files(folder):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118  (not a dict: it cannot be iterated itself)
                stored[name], shapes[name] = path, tuple(file.get_slice(name).get_shape())
    _check(config, shapes, str(folder))

    def value(name: str, piece: Piece) -> Tensor:
        with _opened(stored[name]) as file:
            return file.get_slice(name)[piece.slices]

    return config, value


@torch.no_grad()
def fill(model: Decoder, values: Values) -> None:
    """Fill all parameters of a whole model."""
    for name, parameter in model.named_parameters():
        parameter.copy_(values(name, Piece.whole(tuple(parameter.shape))))


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
    model: Decoder,
    folder: Path,
    tokenizer_json: Path,
    end_of_text: int,
    dtype: torch.dtype = torch.float32,
    chat: ChatFormat | None = None,
    values: Values | None = None,
) -> None:
    """Write a folder that transformers' AutoModelForCausalLM and AutoTokenizer load. It appears whole or not at all.

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
            _write_model(model, temporary, end_of_text, dtype, chat.ends_of_turn if chat else (), values)
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
    values: Values | None,
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
    generation = {key: content[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if ends := [token for token in dict.fromkeys(ends_of_turn) if token != end_of_text]:
        generation["eos_token_id"] = [end_of_text, *ends]
    _write_json(folder / "generation_config.json", generation)


def _write_tokenizer(
    model: Decoder, folder: Path, tokenizer_json: Path, end_of_text: int, chat: ChatFormat | None
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


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        return [_inside(folder, name) for name in _index_names(index)]
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise UsageError(
            "this checkpoint is stored as pickle, which is never opened",
            where=str(folder / pickles[0]),
            why="a pickle can run any code when it is read",
            fix="convert it to safetensors where you trust it: model.save_pretrained(folder) in transformers",
        )
    raise UsageError("this folder holds no weights", where=str(folder), why="there is no model.safetensors in it")


def _index_names(index: Path) -> list[str]:
    try:
        content: Any = orjson.loads(index.read_bytes())
        return sorted(set(cast(dict[str, str], content["weight_map"]).values()))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UsageError("the index of a sharded checkpoint is broken", where=str(index), why=str(error)) from error


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise UsageError("a shard that the index names is not there", where=str(path), fix="fetch the whole checkpoint")
    return path


@contextlib.contextmanager
def _opened(path: Path) -> Generator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise UsageError("a weight file is broken", where=str(path), why=str(error)) from error


def _check(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    with torch.device("meta"):
        targets = {name: tuple(p.shape) for name, p in Decoder(config).named_parameters()}
    for name, shape in shapes.items():
        if _derived(config, name):
            continue
        if name not in targets:
            raise UsageError(f"the checkpoint has a tensor that the model lacks: {name}", where=where)
        if targets[name] != shape:
            why = f"{shape} in the checkpoint, {targets[name]} by the config"
            raise UsageError(f"{name} has another shape than its config.json says", where=where, why=why)
    if missing := targets.keys() - shapes.keys():
        raise UsageError(
            f"the checkpoint lacks {len(missing)} tensors, {min(missing)} among them",
            where=where,
            fix="use a checkpoint of the whole model with its language-model head",
        )


def _derived(config: ModelConfig, name: str) -> bool:
    """Tensors that some checkpoints store though they follow from others."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings)
