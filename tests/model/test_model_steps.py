"""Training steps: the same twice, compiled or not, in fp32 masters; starting weights; decoding."""

from __future__ import annotations

import math

import pytest
import torch
from model_shapes import positions, random_model, small_config, tokens

from sheaf.errors import UsageError
from sheaf.model.compile import compile_decoder
from sheaf.model.decoder import Decoder
from sheaf.model.generate import choose, generate
from sheaf.model.init import initialise
from sheaf.model.loss import next_token_loss


def step(model: Decoder, seed: int = 0) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients on two packed rows; many equal tokens, so that the embedding's gradient adds up."""
    model.zero_grad()
    ids = tokens(2, 160, seed) % 7
    documents = torch.sort(tokens(2, 160, seed + 1) % 4).values
    loss = next_token_loss(model(ids, positions(2, 160), documents), model.head_weight, tokens(2, 160, seed + 2))
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("mode", ["off", "on"])
def test_two_steps_on_the_same_data_are_equal_bit_for_bit(mode: str) -> None:
    model = random_model(small_config(), dtype=torch.bfloat16)
    compile_decoder(model, "on" if mode == "on" else "off")
    first, second = step(model), step(model)
    assert first[0] == second[0]
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


def test_compiled_blocks_compute_what_eager_ones_do_from_one_compilation() -> None:
    eager, compiled = (random_model(small_config(num_hidden_layers=4, window_layers=None)) for _ in range(2))
    compile_decoder(compiled, "on")
    torch._dynamo.utils.counters.clear()
    for seed in (0, 10):
        (a, ours), (b, theirs) = step(compiled, seed), step(eager, seed)
        assert a == pytest.approx(b, rel=1e-5)
        for x, y in zip(ours, theirs, strict=True):
            assert (x - y).abs().max() <= 1e-4 * y.abs().max()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert list(compiled.state_dict()) == list(eager.state_dict())


def test_gradients_arrive_in_fp32_on_the_masters() -> None:
    model = random_model(small_config(), dtype=torch.bfloat16)
    _, gradients = step(model)
    assert {g.dtype for g in gradients} == {torch.float32}
    assert len(gradients) == len(list(model.parameters()))


def test_bf16_steps_stay_close_to_fp32_ones() -> None:
    narrow, wide = random_model(small_config(), dtype=torch.bfloat16), random_model(small_config())
    (a, ours), (b, theirs) = step(narrow), step(wide)
    assert a == pytest.approx(b, rel=5e-3)
    for x, y in zip(ours, theirs, strict=True):
        assert (x - y).norm() <= 0.05 * y.norm()


def test_starting_weights_depend_on_seed_and_name_and_start_near_a_uniform_guess() -> None:
    config = small_config()
    models = [Decoder(config) for _ in range(3)]
    for model, seed in zip(models, (5, 5, 6), strict=True):
        initialise(model, seed)
    same, other = (
        [torch.equal(a, b) for a, b in zip(models[0].parameters(), m.parameters(), strict=True)] for m in models[1:]
    )
    assert all(same) and not all(other)
    deeper = Decoder(small_config(num_hidden_layers=4))
    initialise(deeper, 5)
    assert torch.equal(
        deeper.state_dict()["model.layers.1.mlp.up_proj.weight"],
        models[0].state_dict()["model.layers.1.mlp.up_proj.weight"],
    )
    loss, gradients = step(models[0])
    assert loss / 320 == pytest.approx(math.log(config.vocab_size), rel=0.02)
    assert all(g.any() for g in gradients)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_greedy_decoding_with_a_cache_equals_decoding_without(family: str) -> None:
    window = {"mistral": {"sliding_window": 12}}.get(family, {})
    model = random_model(small_config(family, **window))
    prompt = tokens(1, 20)[0].tolist()
    cached = list(generate(model, prompt, max_tokens=40, temperature=0, top_p=1.0, seed=0, stop_ids=()))
    plain = list(prompt)
    with torch.no_grad():
        for _ in range(40):
            hidden = model(torch.tensor([plain]), positions(1, len(plain)))
            plain.append(int(model.logits(hidden[0, -1]).argmax()))
    assert cached == plain[20:]
    assert len(set(cached)) > 5, "a constant continuation would prove nothing"


def test_generation_is_repeatable_stops_where_told_and_never_outgrows_the_model() -> None:
    model = random_model(small_config())
    options = {"max_tokens": 30, "temperature": 1.0, "top_p": 0.9}
    first = list(generate(model, [1, 2], **options, seed=3, stop_ids=()))
    assert first == list(generate(model, [1, 2], **options, seed=3, stop_ids=()))
    assert first != list(generate(model, [1, 2], **options, seed=4, stop_ids=()))
    stopped = list(generate(model, [1, 2], **options, seed=3, stop_ids={first[10]}))
    assert stopped == first[: first.index(first[10])]
    long = list(generate(model, [1] * 250, **{**options, "max_tokens": 999}, seed=3, stop_ids=()))
    assert len(long) == 6
    nan, inf = float("nan"), float("inf")
    bad = [{"top_p": 0.0}, {"top_p": nan}, {"temperature": -1.0}, {"temperature": nan}, {"temperature": inf}]
    for wrong in (*bad, {"max_tokens": -1}, {"seed": -1}, {"seed": 2**63}):
        with pytest.raises(UsageError):
            generate(model, [1], **{**options, "seed": 0, **wrong}, stop_ids=())
    assert list(generate(model, [1], **{**options, "max_tokens": 0}, seed=0, stop_ids=())) == []
    with pytest.raises(UsageError, match="empty"):
        generate(model, [], **options, seed=0, stop_ids=())


def test_the_nucleus_keeps_the_fewest_tokens_that_reach_top_p() -> None:
    logits = torch.log(torch.tensor([0.1, 0.5, 0.05, 0.35]))
    generator = torch.Generator().manual_seed(0)
    assert {choose(logits, 1.0, 0.5, generator) for _ in range(50)} == {1}
    assert {choose(logits, 1.0, 0.6, generator) for _ in range(50)} == {1, 3}
    assert {choose(logits, 1.0, 1.0, generator) for _ in range(200)} == {0, 1, 2, 3}


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-6, 1e300])
def test_no_temperature_breaks_sampling_and_the_smallest_ones_take_the_likeliest(temperature: float) -> None:
    logits = torch.tensor([-3e4, 200.0, 199.0, -float("inf")])
    drawn = {choose(logits, temperature, 1.0, torch.Generator().manual_seed(seed)) for seed in range(50)}
    assert drawn == ({1} if temperature < 1 else {0, 1, 2})


def test_a_compiled_model_still_generates() -> None:
    model = random_model(small_config())
    options = {"max_tokens": 5, "temperature": 0, "top_p": 1.0, "seed": 0, "stop_ids": ()}
    before = list(generate(model, [1, 2, 3], **options))
    compile_decoder(model, "on")
    assert list(generate(model, [1, 2, 3], **options)) == before
