"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685), for our decoder and for others.

A target's output gains scale·B(Ax), with A (rank, in) drawn as peft draws it, B (out, rank) zero, scale = alpha / rank;
every other parameter is frozen: it has no gradient, no optimiser state and no place in the run's checkpoints, which
name the folder it came from and its digest. Frozen matrices of the decoder are held in the compute dtype, in which they
are used anyway: bit for bit the same products for half the memory. Modules named in `full` are trained whole beside the
adapters (peft's `modules_to_save`), which new tokens need.
Cost: rank·(in + out) weights a target; two thin products, and no weight gradient of the wide one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sheaf.errors import CorruptStore, RecipeError
from sheaf.files import digest_file, digest_json
from sheaf.model.decoder import Decoder, Weights
from sheaf.model.families import AnyConfig, Model, empty_model
from sheaf.model.init import seed_of
from sheaf.model.pieces import Piece, Values
from sheaf.model.weight_files import weight_files
from sheaf.recipe_errors import nearest


@dataclass(frozen=True)
class Lora:
    """targets, full: names of modules, or ends of them from a dot on. root: alpha counts by √rank (Kalajdzievski 2023).
    base: the folder of the frozen weights; digest: of what lay in it."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = ()
    full: tuple[str, ...] = ()
    root: bool = False
    base: str = ""
    digest: str = ""

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.root else self.rank)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(said: Mapping[str, Any]) -> Lora:
        fields: dict[str, Any] = {**said, "targets": tuple(said["targets"]), "full": tuple(said["full"])}
        return Lora(**fields)


def attach(model: Model, lora: Lora) -> Lora:
    """Freeze the model and put adapters beside its targets, of zeros. Returns the settings with the targets by name.

    Raises RecipeError if a name fits no module.
    """
    able = {name: module for name, module in model.named_modules() if _can_adapt(name, module)}
    chosen = chosen_modules(lora.targets or tuple(_last(name) for name in able), able, "model.lora.targets")
    whole = chosen_modules(lora.full, dict(model.named_modules()), "model.lora.full")
    model.requires_grad_(False)
    for module in whole.values():
        module.requires_grad_(True)
    for name, module in chosen.items():
        if name not in whole:
            _adapt(module, lora)
    if not adapted(model):
        raise RecipeError("the model has no matrix in its layers that could get an adapter", where="model.lora.targets")
    _halve(model)
    targets = lora.targets or tuple(dict.fromkeys(_last(name) for name in chosen))
    model.lora = replace(lora, targets=targets)
    return model.lora


def merge(model: Model) -> None:
    """Add every adapter's product to the matrix that it stands beside, and take it away. Exact up to fp32 rounding."""
    with torch.no_grad():
        for module in adapted(model):
            change = module.lora_scale * (module.lora_B.weight @ module.lora_A.weight)
            module.weight.add_(change.T if is_turned(module) else change)
            if isinstance(module, Weights):
                module.lora_A = module.lora_B = None
            else:
                _unhook(module)
    model.lora = None


def adapted(model: Model) -> list[Any]:
    """The modules that have adapters: lora_A, lora_B, lora_scale beside their weight."""
    return [module for _, module in model.named_modules() if getattr(module, "lora_A", None) is not None]


def built(config: AnyConfig, compute_dtype: torch.dtype, lora: Lora | None) -> Model:
    """A whole model to be filled, perhaps with adapters."""
    model = empty_model(config, compute_dtype)
    if lora is not None:
        attach(model, lora)
    return model


def trained(model: Model) -> dict[str, nn.Parameter]:
    """What learns, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def stored(model: Model) -> dict[str, nn.Parameter]:
    """What a checkpoint holds: everything, or only what stands beside a base that is kept elsewhere."""
    if model.lora is None:
        return dict(model.named_parameters())
    whole = tuple(f"{name}." for name in chosen_modules(model.lora.full, dict(model.named_modules()), ""))
    return {n: p for n, p in model.named_parameters() if ".lora_" in n or n.startswith(whole)}


def new_factors(base: Values, seed: int) -> Values:
    """Starting values of a model with adapters: A drawn from the seed and its name, B zero, all else from the base."""

    def value(name: str, piece: Piece) -> Tensor:
        if ".lora_B." in name:
            return torch.zeros(piece.size)
        if ".lora_A." not in name:
            return base(name, piece)
        generator = torch.Generator().manual_seed(seed_of(name, seed))
        bound = 1 / math.sqrt(piece.shape[1])  # Kaiming's uniform with a = √5, as peft and nn.Linear have it
        return ((2 * torch.rand(piece.shape, generator=generator) - 1) * bound)[piece.slices]

    return value


def digest_of_base(folder: Path) -> str:
    """Of the configuration and the weights that a folder holds; about a second a gigabyte."""
    files = [folder / "config.json", *weight_files(folder)]
    return digest_json([[path.name, digest_file(path)] for path in files])


def check_base(lora: Lora) -> None:
    """Raise CorruptStore unless the base lies where it lay, unchanged."""
    folder = Path(lora.base)
    if not folder.is_dir() or digest_of_base(folder) != lora.digest:
        raise CorruptStore(
            "the model that the adapters belong to has changed" if folder.is_dir() else "the adapters' model is gone",
            where=lora.base,
            why="the run's checkpoints hold the adapters alone",
            fix="put the folder back as it was when the run began",
        )


def _can_adapt(name: str, module: nn.Module) -> bool:
    """A matrix inside the layers; embedding and head are none of them."""
    if isinstance(module, Weights):
        return ".layers." in name and not name.endswith((".lora_A", ".lora_B"))
    return (isinstance(module, nn.Linear) or is_turned(module)) and any(part.isdecimal() for part in name.split("."))


def is_turned(module: nn.Module) -> bool:
    """GPT-2's matrices lie the other way round, (in, out)."""
    return type(module).__name__ == "Conv1D"


def chosen_modules(wanted: tuple[str, ...], able: Mapping[str, nn.Module], key: str) -> dict[str, nn.Module]:
    """As peft finds them: the whole name, or its end from a dot on."""
    found: dict[str, nn.Module] = {}
    for word in wanted:
        fits = {name: module for name, module in able.items() if name == word or name.endswith(f".{word}")}
        # A tied head has no module of its own here: peft's name for it means the embedding, which is listed too.
        if not fits and word != "lm_head":
            ends = sorted({_last(name) for name in able})
            raise RecipeError(
                f"'{word}' is no module of the model that could be meant",
                where=key,
                why=f"there are {', '.join(ends[:12])}",
                fix=nearest(word, ends),
            )
        found |= fits
    return found


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _adapt(module: Any, lora: Lora) -> None:
    weight: Tensor = module.weight
    out_size, in_size = weight.shape[::-1] if is_turned(module) else weight.shape
    module.lora_scale = lora.scale
    with weight.device:
        module.lora_A, module.lora_B = Weights(lora.rank, in_size), Weights(out_size, lora.rank)
    if not isinstance(module, Weights):
        module.lora_hook = module.register_forward_hook(_add_low_rank)


def _add_low_rank(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    down = functional.linear(inputs[0], module.lora_A.weight.to(inputs[0].dtype))
    return output + functional.linear(down * module.lora_scale, module.lora_B.weight.to(down.dtype))


def _unhook(module: Any) -> None:
    module.lora_hook.remove()
    del module.lora_A, module.lora_B, module.lora_hook


def _halve(model: Model) -> None:
    """Frozen matrices of the decoder are cast at every use: once is enough. Others compute by autocast, and keep."""
    if isinstance(model, Decoder):
        for parameter in _frozen(model):
            if parameter.ndim == 2:
                parameter.data = parameter.data.to(model.compute_dtype)


def _frozen(model: Decoder) -> Iterator[nn.Parameter]:
    return (parameter for parameter in model.parameters() if not parameter.requires_grad)
