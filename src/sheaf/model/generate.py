"""Continue a prompt, token by token, with a cache of keys and values.

Each token costs one row through the model. Sampling: softmax at a temperature, cut to the nucleus of mass top_p
(Holtzman et al. 2019); the quotient in float64, so that any temperature above 0 is safe; temperature 0 takes the most
probable token. The same seed gives the same text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor

from sheaf.errors import UsageError
from sheaf.model.cache import KeyValueCache
from sheaf.model.decoder import Decoder
from sheaf.model.families import Model


def generate(
    model: Model,
    prompt_ids: list[int],
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    stop_ids: Collection[int],
) -> Iterator[int]:
    """Yield token ids until a stop id (not yielded), max_tokens, or the model's last position.

    Raises UsageError for an empty or too long prompt, or another argument out of range.
    """
    _check(model, prompt_ids)
    _check_numbers(max_tokens, temperature, top_p, seed)
    return _continue(model, prompt_ids, max_tokens, temperature, top_p, seed, frozenset(stop_ids))


def choose(logits_v: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One token id from logits (vocabulary,)."""
    if temperature == 0:
        return int(logits_v.argmax())
    logits_v = logits_v.double()
    softmax_v = torch.softmax((logits_v - logits_v.max()) / temperature, dim=-1).float()
    probabilities, ids = softmax_v.sort(descending=True, stable=True)
    before = probabilities.cumsum(0) - probabilities
    nucleus = probabilities * (before < top_p)
    return int(ids[torch.multinomial(nucleus, 1, generator=generator)])


def _continue(
    model: Model,
    prompt_ids: list[int],
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    stop: frozenset[int],
) -> Iterator[int]:
    device = model.head_weight.device
    capacity = min(len(prompt_ids) + max_tokens, model.config.max_position_embeddings)
    follow = _following(model, capacity)
    generator = torch.Generator(device).manual_seed(seed)
    new = prompt_ids
    for _ in range(capacity - len(prompt_ids)):
        token = choose(follow(new), temperature, top_p, generator)
        if token in stop:
            return
        yield token
        new = [token]


def _following(model: Model, capacity: int) -> Callable[[list[int]], Tensor]:
    """A function that takes the tokens that follow the ones before, and gives the logits of the next."""
    device = model.head_weight.device
    length, past = 0, None
    cache = None
    if isinstance(model, Decoder):
        cache = KeyValueCache(model.config, batch=1, capacity=capacity, dtype=model.compute_dtype, device=device)

    @torch.inference_mode()
    def follow(new_ids: list[int]) -> Tensor:
        nonlocal length, past
        ids = torch.tensor([new_ids], device=device)
        if isinstance(model, Decoder):
            positions = torch.arange(length, length + len(new_ids), device=device)[None]
            hidden = model.forward(ids, positions, cache=cache)
        else:
            hidden, past = model.continued(ids, past, length)
        length += len(new_ids)
        return model.logits(hidden[0, -1])

    return follow


def _check(model: Model, prompt_ids: list[int]) -> None:
    if not prompt_ids:
        raise UsageError("the prompt is empty", fix="give at least one token, for example the end-of-text token")
    room = model.config.max_position_embeddings
    if len(prompt_ids) > room:
        raise UsageError(f"the prompt has {len(prompt_ids)} tokens, the model has room for {room}", fix="shorten it")


def _check_numbers(max_tokens: int, temperature: float, top_p: float, seed: int) -> None:
    if not (math.isfinite(temperature) and temperature >= 0 and 0 < top_p <= 1):
        raise UsageError(
            f"cannot sample with temperature {temperature} and top_p {top_p}", fix="temperature >= 0 and 0 < top_p <= 1"
        )
    if max_tokens < 0:
        raise UsageError(f"cannot generate {max_tokens} tokens", fix="max_tokens >= 0")
    if not 0 <= seed < 2**63:
        raise UsageError(f"{seed} is no seed", fix="0 <= seed < 2^63")
