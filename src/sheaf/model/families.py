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
from sheaf.model.other import OtherConfig, OtherModel, load_other
from sheaf.model.weight_files import read_tensors, weight_files

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
    """With parameters to be filled by `load_state`."""
    return Decoder(config, compute_dtype) if isinstance(config, ModelConfig) else OtherModel(config, compute_dtype)


def parameter_names(config: AnyConfig) -> list[str]:
    """Without their memory."""
    with torch.device("meta"):
        return [name for name, _ in empty_model(config, torch.float32).named_parameters()]


def load_folder(folder: Path, compute_dtype: torch.dtype, vocabulary: int = 0) -> Model:
    """A model with the weights of a checkpoint folder. vocabulary: with room for at least so many tokens; rows of new
    ones are zeros. Raises UsageError if it cannot be read or does not fit."""
    config = read_config(folder)
    if isinstance(config, OtherConfig):
        return load_other(folder, config, compute_dtype, vocabulary)
    model = Decoder(extended(config, vocabulary), compute_dtype)
    _copy(model, read_tensors(weight_files(folder)), str(folder), config.vocab_size)
    return model


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


def embedding_rows(model: Model) -> list[Tensor]:
    """The matrices with a row a token: the embedding, and the head unless it is the same."""
    first = model.embedding_weight
    return [first] if model.head_weight is first else [first, model.head_weight]


def load_state(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the model's parameters. Raises UsageError if names or shapes differ."""
    _copy(model, tensors.items(), "")


def _copy(model: Model, tensors: Any, where: str, rows: int = 0) -> None:
    """rows: how many of embedding and head the tensors have, if fewer than the model."""
    targets = dict(model.named_parameters())
    whole = {id(matrix) for matrix in embedding_rows(model)}
    derived = {name for _, name in model.tied_names()}
    missing = set(targets)
    with torch.no_grad():
        for name, tensor in tensors:
            if name in derived or name.endswith("rotary_emb.inv_freq"):  # follow from others, yet some store them
                continue
            if name not in targets:
                raise UsageError(f"the checkpoint has a tensor that the model lacks: {name}", where=where)
            target = targets[name].data[:rows] if rows and id(targets[name]) in whole else targets[name].data
            if target.shape != tensor.shape:
                shapes = f"{tuple(tensor.shape)} in the checkpoint, {tuple(target.shape)} by the config"
                raise UsageError(f"{name} has another shape than its config.json says", where=where, why=shapes)
            target.copy_(tensor)
            missing.discard(name)
    if missing:
        raise UsageError(
            f"the checkpoint lacks {len(missing)} tensors, {min(missing)} among them",
            where=where,
            fix="use a checkpoint of the whole model with its language-model head",
        )
