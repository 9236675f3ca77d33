"""Adapters as peft writes and reads them: adapter_config.json and adapter_model.safetensors.

Our names are peft's but for a prefix. What a configuration says that would change the function, and is not
implemented, is refused by name. Dropout is not: it acts in training alone, and no step draws anything here, so that a
resumed run and one on other ranks compute the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import orjson
import torch
from safetensors.torch import save_file
from torch import Tensor

from sheaf.errors import UsageError
from sheaf.files import write_file
from sheaf.model.adapters import Lora, adapted, is_turned, stored
from sheaf.model.families import Model
from sheaf.model.pieces import Values
from sheaf.model.weight_files import read_tensors
from sheaf.recipe import LoraSpec

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # what peft puts before the name of every tensor
RANK = 16


def lora_of(spec: LoraSpec) -> Lora:
    """What a recipe asks for. Raises UsageError if the folder that it names holds no adapters that are known here."""
    if spec.from_ is not None:
        return _read_config(Path(spec.from_))
    rank = spec.rank or RANK
    return Lora(rank, spec.alpha or 2.0 * rank, spec.targets, spec.full)


def write_adapters(model: Model, folder: Path, dtype: torch.dtype) -> None:
    """Write what peft's `PeftModel.from_pretrained` loads into a folder that is there."""
    lora = model.lora
    if lora is None:
        raise UsageError("the model has no adapters")
    tensors = {PREFIX + name: p.detach().to("cpu", dtype).contiguous() for name, p in stored(model).items()}
    full = list(lora.full)
    for one, other in model.tied_names():
        if PREFIX + one in tensors:  # peft unties what it trains whole: it needs both
            tensors[PREFIX + other] = tensors[PREFIX + one].clone()
            full += [] if _last_module(other) in full else [_last_module(other)]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    turned = any(is_turned(module) for module in adapted(model))
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": lora.base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": sorted(lora.targets),
        "modules_to_save": sorted(full) or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": turned,
        "use_rslora": lora.root,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    write_file(folder / CONFIG, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")


def with_adapters(base: Values, model: Model, folder: Path) -> Values:
    """The values of a model whose adapters come from a folder of peft's. model: one of this shape, perhaps empty.

    Raises UsageError if they are not for it.
    """
    where = folder / WEIGHTS
    named = {name.removeprefix(PREFIX).replace(".base_layer.", "."): tensor for name, tensor in read_tensors([where])}
    for one, other in model.tied_names():
        if one in named and other in named and not torch.equal(named[one], named[other]):
            raise UsageError(
                f"{other} differs from {one} in these adapters, and is the same in the model",
                where=str(where),
                fix="merge them in peft, and start from the merged folder",
            )
        if other in named:
            named[one] = named.pop(other)
    _check(stored(model), named, str(where))
    return lambda name, piece: named[name][piece.slices] if name in named else base(name, piece)


def _check(targets: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    if odd := sorted(targets.keys() ^ found.keys()):
        raise UsageError(
            "the adapters are of another model",
            where=where,
            why=f"{odd[0]} is {'missing' if odd[0] in targets else 'not one of its parameters'}",
        )
    for name, target in targets.items():
        if target.shape != found[name].shape:
            shapes = f"{tuple(found[name].shape)}, where the model has {tuple(target.shape)}"
            raise UsageError(f"{name} has another shape than in the model", where=where, why=shapes)


# What changes the function that adapters compute, and the one value of it that is implemented.
_ONLY: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
    "exclude_modules": None,
    "lora_bias": False,
}


def _read_config(folder: Path) -> Lora:
    path = folder / CONFIG
    try:
        said: Any = orjson.loads(path.read_bytes())
    except OSError as error:
        raise UsageError("this folder holds no adapters", where=str(path), why=str(error.strerror)) from error
    except orjson.JSONDecodeError as error:
        raise UsageError("adapter_config.json is not JSON", where=str(path), why=str(error)) from error
    known = cast(dict[str, Any], said) if isinstance(said, dict) else {}
    for key, only in _ONLY.items():
        if (known.get(key) or only) != only:
            raise UsageError(
                f"these adapters cannot be used here: {key} is {known[key]}",
                where=str(path),
                why="it changes what they compute in a way that is not implemented",
                fix="merge them in peft, and start from the merged folder",
            )
    targets, rank = known.get("target_modules"), known.get("r")
    if not isinstance(rank, int) or not isinstance(targets, list) or not targets:
        raise UsageError("adapter_config.json lacks r, or a list of target_modules", where=str(path))
    full = tuple(sorted(known.get("modules_to_save") or ()))
    root = bool(known.get("use_rslora"))
    return Lora(rank, float(known.get("lora_alpha", rank)), tuple(sorted(cast(list[str], targets))), full, root)


def _last_module(parameter: str) -> str:
    return parameter.removesuffix(".weight").rpartition(".")[2]
