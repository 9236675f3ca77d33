"""A narrow model in place of a wide one, and the wide one's learning rate from the narrow one's best.

What the rule says follows from how weights start (`model/init.py`) and how they are updated. A matrix in the layers
starts at N(0, 1/width) and takes vectors whose entries are about 1. A layer's output changes as much at every width if
the update's effect on such a vector does (Yang et al. 2022, Tensor Programs V, table 8; layer by layer for this
"standard" start: Everett et al. 2024, arXiv 2407.05872, table 1):

    AdamW's update has entries of about 1 that all push the same way: its effect grows as the width  → rate ∝ 1/width
    Muon's has singular values of 0.2·√width (train/muon.py): its effect grows as √width             → rate ∝ 1/√width
    the head, which AdamW updates, is a matrix that takes such vectors                               → rate ∝ 1/width
    embedding, norms and biases are added or multiplied entry by entry                               → rate as it is
    an embedding that is the head too has to be as slow as the head                                  → rate ∝ 1/width

Decay is rate times weight_decay a step and has to be as strong at every width, so weight_decay grows as the rate of
the layers shrinks (Wang and Aitchison 2024, arXiv 2405.13698). All of it is said in a recipe's own words:
`learning_rate` is that of the layers, `rates` are the others' factors on it. Depth, batch and steps stay as they are:
no rule is applied to them.
"""

from __future__ import annotations

from typing import Any

from sheaf.errors import UsageError
from sheaf.model.config import ModelConfig
from sheaf.recipe import ModelSpec, Recipe
from sheaf.recipe_yaml import KeyPath
from sheaf.train.optimizer import Kind

HEAD, EMBEDDING, NORMS, BIASES = "lm_head*", "*embed_tokens*", "*norm*", "*bias"
LAYERS: dict[Kind, float] = {"adamw": 1.0, "schedule-free": 1.0, "muon": 0.5}


def narrowed(spec: ModelSpec, wide: ModelConfig, width: int) -> ModelSpec:
    """A model of the same depth, heads as large as they are, and everything else in proportion. Raises UsageError."""
    if spec.from_ is not None:
        raise UsageError("a model from a folder has the width that it has", fix="leave --width out")
    heads, odd = divmod(width * wide.num_attention_heads, wide.hidden_size)
    if odd or not 0 < width < wide.hidden_size:
        step = wide.hidden_size // wide.num_attention_heads
        fits = ", ".join(str(w) for w in range(step, wide.hidden_size, step))
        raise UsageError(
            f"a model of width {wide.hidden_size} is not tried at {width}",
            why=f"its heads have {step} dimensions and stay as large, or attention would be another one",
            fix=f"widths that fit: {fits or 'none, as it has one head'}",
        )
    kv_heads = max(1, round(wide.num_key_value_heads * width / wide.hidden_size))
    while heads % kv_heads:
        kv_heads -= 1
    inner = max(8, round(wide.intermediate_size * width / wide.hidden_size))
    changed = {"hidden_size": width, "heads": heads, "kv_heads": kv_heads, "intermediate_size": inner}
    return spec.model_copy(update={**changed, "layers": wide.num_hidden_layers})


def transferred(recipe: Recipe, optimizer: Kind, wide: ModelConfig, *, width: int, rate: float) -> dict[KeyPath, Any]:
    """What the wide model's recipe says, from the best rate of one of that width; it has no `rates` of its own."""
    factor = width / wide.hidden_size
    layers = factor ** LAYERS[optimizer]
    rates = {NORMS: 1 / layers} | ({BIASES: 1 / layers} if wide.attention_bias else {})
    if wide.tie_word_embeddings:
        rates[EMBEDDING] = factor / layers
    else:
        rates |= {EMBEDDING: 1 / layers, HEAD: factor / layers}
    decay = recipe.train.weight_decay / layers
    return {
        ("train", "learning_rate"): _rounded(rate * layers),
        ("train", "weight_decay"): _rounded(decay),
        ("train", "rates"): {pattern: _rounded(one) for pattern, one in rates.items() if one != 1.0},
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
