"""What is taken from transformers: its configurations, its own model code, and its reading of safetensors.

No code from a folder is run and no pickle is opened, ever. What would not be trained as its folder says (encoders,
quantised weights, state that is no weight) is refused.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from sheaf.errors import MissingExtra, UsageError


@dataclass(frozen=True)
class OtherConfig:
    """content: of config.json, as transformers writes it."""

    content: Mapping[str, Any] = field(repr=False)
    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    max_position_embeddings: int

    @staticmethod
    def from_hf(content: Mapping[str, Any]) -> OtherConfig:
        """Raises UsageError if transformers knows no such causal model, MissingExtra without transformers."""
        config = _configuration(content)
        if config.get_text_config() is not config or config.is_encoder_decoder:
            raise _unsupported(content, "it is not a decoder of text alone")
        if content.get("quantization_config") is not None:
            raise _unsupported(content, "it is quantised", "use the unquantised checkpoint")
        sizes = [getattr(config, key, None) for key in ("vocab_size", "hidden_size", "num_hidden_layers")]
        if not all(isinstance(size, int) for size in sizes):
            raise _unsupported(content, "its configuration does not say vocab_size, hidden_size and num_hidden_layers")
        longest = getattr(config, "max_position_embeddings", None) or 1 << 20  # positions without an end
        said = json.loads(json.dumps(config.to_dict()))  # keys as text, as in a file
        return OtherConfig(said, config.model_type, *cast(tuple[int, int, int], tuple(sizes)), longest)

    def to_hf(self) -> dict[str, Any]:
        return dict(self.content)

    def parameters(self) -> int:
        return self._counts[0]

    def hidden_parameters(self) -> int:
        """Weights outside embedding and head."""
        return self._counts[1]

    def flops_per_token(self, attention_span: float, learned: float = 1.0) -> float:
        """As of the decoder: 6 a weight that multiplies, and scores and values over the keys that a token sees."""
        attention = 12 * self.hidden_size * attention_span * self.num_hidden_layers
        return (4 + 2 * learned) * (self.hidden_parameters() + self.vocab_size * self.hidden_size) + attention

    @cached_property
    def _counts(self) -> tuple[int, int]:
        with torch.device("meta"):
            net = network(self.content)
        ends = {id(p) for part in (net.get_input_embeddings(), net.get_output_embeddings()) for p in part.parameters()}
        sizes = [(id(p), p.numel()) for p in net.parameters()]
        return sum(n for _, n in sizes), sum(n for i, n in sizes if i not in ends)


def network(content: Mapping[str, Any]) -> Any:
    """transformers' model of a configuration, with random weights."""
    transformers = _transformers()
    try:
        net = transformers.AutoModelForCausalLM.from_config(
            _configuration(content), trust_remote_code=False, dtype=torch.float32
        )
    except (ValueError, KeyError) as error:
        raise _unsupported(content, _first_line(error)) from error
    if kept := sorted(set(net.state_dict()) - {name for name, _ in net.named_parameters(remove_duplicate=False)}):
        raise _unsupported(content, f"it keeps state that is no weight: {kept[0]}")
    return net


def network_from(folder: Path) -> Any:
    """transformers' model with the weights of a folder. Raises UsageError if they are not whole."""
    transformers = _transformers()
    try:
        with _without_bars(transformers):
            net, info = transformers.AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError("transformers cannot load this model", where=str(folder), why=_first_line(error)) from error
    if lacking := sorted(info["missing_keys"]):
        raise UsageError(
            f"the checkpoint lacks {len(lacking)} tensors, {lacking[0]} among them",
            where=str(folder),
            fix="use a checkpoint of the whole model with its language-model head",
        )
    return net


def _configuration(content: Mapping[str, Any]) -> Any:
    transformers = _transformers()
    apart = ("model_type", "auto_map", "transformers_version")
    said = {key: value for key, value in content.items() if key not in apart}
    try:
        return transformers.AutoConfig.for_model(str(content.get("model_type")), **said)
    except (ValueError, KeyError, TypeError) as error:
        raise _unsupported(content, _first_line(error)) from error


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "a model of another family than llama, mistral, qwen2 or qwen3") from error
    return transformers


@contextmanager
def _without_bars(transformers: Any) -> Generator[None]:
    """Every rank would draw one."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _unsupported(content: Mapping[str, Any], why: str, fix: str = "choose a causal language model") -> UsageError:
    return UsageError(
        f"this model cannot be trained here: model_type is {content.get('model_type')}",
        where="config.json",
        why=why,
        fix=fix,
    )
