"""The shape of a model, in the words of the published checkpoints' config.json, and the presets.

Four families of one architecture (pre-norm, rotary positions, grouped-query attention, SwiGLU): Llama, Mistral,
Qwen2, Qwen3. What tells them apart is data here: biases, QK norm, a sliding window. Everything in a config.json that
would change the mathematics and is not implemented is refused by name; nothing is ignored in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from sheaf.errors import RecipeError, UsageError
from sheaf.recipe import ModelSpec

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
ARCHITECTURES: dict[Family, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


@dataclass(frozen=True)
class ModelConfig:
    """Field names are those of config.json; sizes in elements. Made by `preset`, `of_preset` or `from_hf`."""

    model_type: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float = 10_000.0
    rope_scaling: Mapping[str, Any] | None = None
    """None, {"rope_type": "linear", "factor"} or {"rope_type": "llama3", …}."""
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    """q, k and v have biases (always so in Qwen2); in Llama and Qwen3 the output projection then has one too."""
    qk_norm: bool = False
    sliding_window: int | None = None
    """A token sees itself and the window − 1 before it, in the layers that `window_layers` names."""
    window_layers: tuple[bool, ...] | None = None
    """Per layer: whether the window applies. None: to all."""
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise UsageError(
                f"{self.num_attention_heads} attention heads cannot share {self.num_key_value_heads} key-value heads",
                why="every key-value head serves the same number of query heads",
                fix="choose kv_heads that divides heads",
            )
        if self.head_dim % 2:
            raise UsageError(
                f"a head of {self.head_dim} dimensions cannot be rotated",
                why="rotary positions turn pairs of dimensions",
                fix="choose hidden_size and heads so that hidden_size / heads is even",
            )

    @property
    def output_bias(self) -> bool:
        return self.attention_bias and self.model_type in ("llama", "qwen3")

    def window_of(self, layer: int) -> int | None:
        """The sliding window of a layer, None if it sees its whole document."""
        return self.sliding_window if self.window_layers is None or self.window_layers[layer] else None

    @staticmethod
    def from_hf(config: dict[str, Any]) -> ModelConfig:
        """Read the content of a config.json. Raises UsageError that names what is not supported."""
        return _read(config)

    def to_hf(self) -> dict[str, Any]:
        """The content of a config.json that transformers 4 and 5 read alike."""
        return _write(self)

    def parameters(self) -> int:
        """Number of parameters; a tied head counts once."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.hidden_parameters()

    def hidden_parameters(self) -> int:
        """Weights outside embedding and head."""
        return self.num_hidden_layers * self._layer_parameters() + self.hidden_size

    def flops_per_token(self, attention_span: float, learned: float = 1.0) -> float:
        """FLOPs of one training token, forward and backward; attention_span: mean number of keys that a token sees.
        learned: share of the weights that learn; the others have no gradient to compute.

        Matrix products only: 6 a weight that multiplies (the head does, the embedding does not), 4 if it is frozen, and
        12·span·heads·head_dim a layer for scores and values (Chowdhery et al. 2022, PaLM, appendix B, with the span
        in place of the length).
        """
        attention = 12 * self.num_attention_heads * self.head_dim * attention_span
        each = 4 + 2 * learned
        layers = self.num_hidden_layers * (each * self.layer_matrices() + attention)
        return layers + each * self.vocab_size * self.hidden_size

    def layer_matrices(self) -> int:
        """Weights of a layer that multiply: those of its matrices."""
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return self.hidden_size * (2 * q + 2 * kv + 3 * self.intermediate_size)

    def _layer_parameters(self) -> int:
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        biases = (q + 2 * kv if self.attention_bias else 0) + (self.hidden_size if self.output_bias else 0)
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        return self.layer_matrices() + biases + norms


@dataclass(frozen=True)
class _Shape:
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int


# Widths are multiples of 64 (heads of 64): whole tiles of the matrix units. Totals at 16,384 tokens with a tied head:
# 4.9 M, 26.2 M and 125.4 M.
PRESETS: dict[str, _Shape] = {
    "tiny": _Shape(hidden_size=192, layers=4, heads=3, kv_heads=3, intermediate_size=512),
    "small": _Shape(hidden_size=512, layers=6, heads=8, kv_heads=4, intermediate_size=1408),
    "base": _Shape(hidden_size=768, layers=14, heads=12, kv_heads=4, intermediate_size=2816),
}


def preset(
    name: str, *, vocab_size: int, family: str = "qwen3", max_positions: int, end_of_text: int, **overrides: Any
) -> ModelConfig:
    """A shape by name; overrides (None = as in the preset): hidden_size, layers, heads, kv_heads, intermediate_size,
    tied.

    Raises RecipeError for an unknown name or family, UsageError for a shape that cannot be.
    """
    if name not in PRESETS:
        raise RecipeError(f"there is no model preset '{name}'", fix=f"choose one of {', '.join(PRESETS)}")
    if family not in get_args(Family):
        raise RecipeError(f"there is no model family '{family}'", fix=f"choose one of {', '.join(get_args(Family))}")
    unknown = overrides.keys() - {"hidden_size", "layers", "heads", "kv_heads", "intermediate_size", "tied"}
    if unknown:
        raise UsageError(f"a preset has no dimension '{min(unknown)}'")
    given = {key: value for key, value in overrides.items() if value is not None}
    shape = PRESETS[name]
    hidden = given.get("hidden_size", shape.hidden_size)
    heads = given.get("heads", shape.heads if hidden % shape.heads == 0 else max(1, hidden // 64))
    if hidden % heads:
        raise UsageError(
            f"a hidden size of {hidden} cannot be split into {heads} heads", fix="choose heads that divide hidden_size"
        )
    kv_heads = given.get("kv_heads", shape.kv_heads if heads % shape.kv_heads == 0 else heads)
    return ModelConfig(
        model_type=cast(Family, family),
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=given.get("intermediate_size", _intermediate(shape, hidden)),
        num_hidden_layers=given.get("layers", shape.layers),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=given.get("tied", True),
        attention_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        eos_token_id=end_of_text,
    )


def of_preset(spec: ModelSpec, *, vocab_size: int, max_positions: int, end_of_text: int) -> ModelConfig:
    """The config of a recipe's `model:` that starts from scratch. Raises RecipeError or UsageError."""
    common: dict[str, Any] = {"max_positions": max_positions, "end_of_text": end_of_text}
    return preset(spec.preset or "tiny", vocab_size=vocab_size, family=spec.family, **common, **dimensions(spec))


def dimensions(spec: ModelSpec) -> dict[str, Any]:
    """What a recipe says of a preset's shape, None where it says nothing."""
    return {
        key: getattr(spec, key) for key in ("hidden_size", "layers", "heads", "kv_heads", "intermediate_size", "tied")
    }


def _intermediate(shape: _Shape, hidden: int) -> int:
    """The preset's ratio to the hidden size, in whole tiles of 64."""
    if hidden == shape.hidden_size:
        return shape.intermediate_size
    return max(64, round(shape.intermediate_size / shape.hidden_size * hidden / 64) * 64)


# What changes the mathematics, and the one value of it that is implemented.
_ONLY: dict[str, Any] = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "partial_rotary_factor": 1.0,
}


def _read(config: dict[str, Any]) -> ModelConfig:
    family = config.get("model_type")
    if family not in get_args(Family):
        raise _unsupported("model_type", family, f"supported: {', '.join(get_args(Family))}")
    for key, value in _ONLY.items():
        if config.get(key, value) != value:
            raise _unsupported(key, config[key], f"supported: {value}")
    if config.get("quantization_config") is not None:
        raise _unsupported("quantization_config", "…", "use the unquantised checkpoint")
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if not isinstance(config.get(key), int):
            raise UsageError(f"this model's {key} is not known", where="config.json", why="it is missing or no integer")
    heads = int(config["num_attention_heads"])
    theta, scaling = _read_rope(config)
    window, window_layers = _read_window(config)
    eos = config.get("eos_token_id")
    return ModelConfig(
        model_type=cast(Family, family),
        vocab_size=int(config["vocab_size"]),
        hidden_size=int(config["hidden_size"]),
        intermediate_size=int(config["intermediate_size"]),
        num_hidden_layers=int(config["num_hidden_layers"]),
        num_attention_heads=heads,
        num_key_value_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=_head_dim(config),
        max_position_embeddings=int(config.get("max_position_embeddings", 2048)),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=family == "qwen2" or (family != "mistral" and bool(config.get("attention_bias", False))),
        qk_norm=family == "qwen3",
        sliding_window=window,
        window_layers=window_layers,
        bos_token_id=config.get("bos_token_id"),
        eos_token_id=tuple(cast(list[int], eos)) if isinstance(eos, list) else cast("int | None", eos),
        pad_token_id=config.get("pad_token_id"),
    )


def _head_dim(config: dict[str, Any]) -> int:
    # Qwen3's default is 128 whatever the hidden size; the other families divide.
    default = 128 if config["model_type"] == "qwen3" else config["hidden_size"] // config["num_attention_heads"]
    return int(config.get("head_dim") or default)


def _read_rope(config: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling) of either spelling: flat `rope_theta` and `rope_scaling`, or nested `rope_parameters`."""
    nested: dict[str, Any] = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(nested.pop("rope_theta", config.get("rope_theta", 10_000.0)))
    kind = nested.pop("rope_type", nested.pop("type", "default"))
    if nested.pop("partial_rotary_factor", 1.0) != 1.0:
        raise _unsupported("partial_rotary_factor", "other than 1", "supported: 1.0")
    wanted = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }
    if kind not in wanted:
        raise _unsupported("rope_type", kind, f"supported: {', '.join(wanted)}")
    if kind == "default":
        return theta, None
    # transformers fills the last one in from max_position_embeddings.
    nested.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    return theta, {"rope_type": kind, **{key: nested[key] for key in wanted[kind]}}


def _read_window(config: dict[str, Any]) -> tuple[int | None, tuple[bool, ...] | None]:
    family, layers = config["model_type"], int(config["num_hidden_layers"])
    if family == "llama":
        return None, None
    window = config.get("sliding_window", 4096 if family == "mistral" else None)
    if family == "mistral":
        if config.get("layer_types") is not None:
            raise _unsupported("layer_types", "in a Mistral model", "remove it if all layers have the window")
        return window, None
    if not config.get("use_sliding_window", False) or window is None:
        return None, None
    kinds = config.get("layer_types")
    if kinds is None:
        first = int(config.get("max_window_layers", 28))
        return window, tuple(layer >= first for layer in range(layers))
    return window, tuple(kind == "sliding_attention" for kind in kinds)


def _write(config: ModelConfig) -> dict[str, Any]:
    rope = {"rope_theta": config.rope_theta, **(config.rope_scaling or {"rope_type": "default"})}
    content: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.model_type]],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else dict(config.rope_scaling),
        "rope_parameters": rope,
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_id) if isinstance(config.eos_token_id, tuple) else config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "use_cache": True,
    }
    if config.model_type in ("llama", "qwen3"):
        content["attention_bias"] = config.attention_bias
    if config.model_type == "llama":
        content["mlp_bias"] = False
    if config.model_type == "mistral":
        content["sliding_window"] = config.sliding_window
    if config.model_type in ("qwen2", "qwen3"):
        flags = [config.window_of(layer) is not None for layer in range(config.num_hidden_layers)]
        content["use_sliding_window"] = any(flags)
        content["sliding_window"] = config.sliding_window
        content["layer_types"] = ["sliding_attention" if windowed else "full_attention" for windowed in flags]
    return content


def _unsupported(key: str, value: object, fix: str) -> UsageError:
    return UsageError(
        f"this model cannot be trained here: {key} is {value}",
        where="config.json",
        why="it changes the mathematics in a way that is not implemented",
        fix=fix,
    )
