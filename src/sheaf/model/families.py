"""Which code a model's configuration asks for: our decoder for its four families, transformers' own for every other.

What of our families is not implemented in the decoder (a rotary scaling, say) goes to transformers too. The choice is a
function of config.json alone, so a checkpoint, which has its content, finds the same code again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, overload

import orjson
import torch
from torch import Tensor

from sheaf.errors import MissingExtra, UsageError
from sheaf.model.config import ModelConfig
from sheaf.model.decoder import Decoder
from sheaf.model.other import OtherModel, load_other
from sheaf.model.other_config import OtherConfig
from sheaf.model.pieces import Piece, Values
from sheaf.model.weight_files import opened, weight_files

AnyConfig = ModelConfig | OtherConfig
Model = Decoder | OtherModel


def read_config(folder: Path) -> AnyConfig:
    """The config.json of a checkpoint folder. Raises UsageError if it is missing, broken or of no causal model."""
    path = folder / "config.json"
    try:
        content: Any = orjson.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(
            "this folder holds no model",
            where=str(folder),
            why="there is no config.json in it",
            fix="name a folder with config.json and model.safetensors",
        ) from error
    except orjson.JSONDecodeError as error:
        raise UsageError("a model's config.json is not JSON", where=str(path), why=str(error)) from error
    if not isinstance(content, dict):
        raise UsageError("a model's config.json is not a JSON object", where=str(path))
    return config_from_hf(cast(dict[str, Any], content))


def config_from_hf(content: Mapping[str, Any]) -> AnyConfig:
    """Raises UsageError that names what is not supported."""
    try:
        return ModelConfig.from_hf(dict(content))
    except UsageError as ours:
        try:
            return OtherConfig.from_hf(content)
        except MissingExtra as lacking:  # no transformers here: both ways out are worth knowing
            raise UsageError(ours.what, where=ours.where, why=f"{ours.why}; {lacking.what}", fix=lacking.fix) from None


def empty_model(config: AnyConfig, compute_dtype: torch.dtype) -> Model:
    """With parameters to be filled."""
    return Decoder(config, compute_dtype) if isinstance(config, ModelConfig) else OtherModel(config, compute_dtype)


@torch.no_grad()
def fill(model: Model, values: Values) -> None:
    """Fill all parameters of a whole model."""
    for name, parameter in model.named_parameters():
        parameter.copy_(values(name, Piece.whole(tuple(parameter.shape))))


def load_folder(folder: Path, compute_dtype: torch.dtype, vocabulary: int = 0) -> Model:
    """A whole model with the weights of a checkpoint folder; see `folder_values`."""
    config, values = folder_values(folder, vocabulary)
    model = empty_model(config, compute_dtype)
    fill(model, values)
    return model


def folder_values(folder: Path, vocabulary: int = 0) -> tuple[AnyConfig, Values]:
    """The config of a checkpoint folder and, when asked for, any piece of its weights. vocabulary: with room for at
    least so many tokens; rows of new ones are zeros.

    Of the decoder's families no more of a file is read than what is asked for; others are loaded whole by their own
    code, and stay in memory as long as the function that gives the values. Raises UsageError if the folder cannot be
    read or does not fit its config.
    """
    config = read_config(folder)
    if isinstance(config, OtherConfig):
        loaded = load_other(folder, config, vocabulary)
        return loaded.config, values_of(loaded)
    stored: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118  (not a dict: it cannot be iterated itself)
                stored[name], shapes[name] = path, tuple(file.get_slice(name).get_shape())
    _check(config, shapes, str(folder))

    def value(name: str, piece: Piece) -> Tensor:
        there = piece.overlap(Piece.whole(shapes[name]).box)  # all of it, but for rows of new tokens
        result = torch.zeros(piece.size)
        if there is not None:
            with opened(stored[name]) as file:
                result[piece.inside(there)] = file.get_slice(name)[Piece(piece.shape, there).slices]
        return result

    return extended(config, vocabulary), value


def values_of(model: Model) -> Values:
    """Any piece of the weights of a whole model."""
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return lambda name, piece: tensors[name][piece.slices]


@overload
def extended(config: ModelConfig, vocabulary: int) -> ModelConfig: ...
@overload
def extended(config: AnyConfig, vocabulary: int) -> AnyConfig: ...
def extended(config: AnyConfig, vocabulary: int) -> AnyConfig:
    """With room for at least so many tokens."""
    if vocabulary <= config.vocab_size:
        return config
    if isinstance(config, OtherConfig):
        return replace(config, content={**config.content, "vocab_size": vocabulary}, vocab_size=vocabulary)
    return replace(config, vocab_size=vocabulary)


def embedding_names(model: Model) -> list[str]:
    """The matrices with a row a token: the embedding, and the head unless it is the same."""
    rows = {id(model.embedding_weight), id(model.head_weight)}
    return [name for name, parameter in model.named_parameters() if id(parameter) in rows]


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
