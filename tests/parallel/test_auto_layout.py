"""`layout: auto`: what the ranks measure of their links, and what is chosen from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.parallel.hosts import ended, needs_namespaces, start, two_hosts

from sheaf.errors import UsageError
from sheaf.model.config import ModelConfig
from sheaf.parallel.choose import choose
from sheaf.parallel.cost import step_seconds
from sheaf.parallel.layout import Facts, possible
from sheaf.parallel.links import Link, Machine
from sheaf.parallel.rates import Rates
from sheaf.recipe import Layout

RANK = Path(__file__).parent / "links_rank.py"
FAST, SLOW = Link(2e9, 1e-4), Link(2e6, 1e-3)
MODEL = ModelConfig(
    model_type="llama", max_position_embeddings=1024, vocab_size=32_000,
    hidden_size=1024, intermediate_size=2816, num_hidden_layers=16, num_attention_heads=16,
    num_key_value_heads=8, head_dim=64,
)  # fmt: skip
FACTS = Facts(
    config=MODEL,
    sequence_length=1024,
    batch=32,
    micro_tokens=4096,
    compile=False,
    packing="best-fit",
    memory_bytes=1e12,
)
NEAR = Machine(Rates.alike(1e12), FAST, FAST, 8)


def test_data_parallel_while_all_fits_and_links_are_fast() -> None:
    layout, (why, measured) = choose(8, FACTS, NEAR)
    assert layout == Layout(data=8)
    assert why.startswith("layout {data: 8}: ") and "s a step by estimate; {" in why
    assert "1,000 GFLOP/s a rank, 2,000 MB/s between ranks" in measured


def test_where_a_replica_does_not_fit_the_weights_are_divided() -> None:
    state = 16 * MODEL.parameters()
    layout, (_, measured) = choose(8, replace(FACTS, memory_bytes=state / 2), NEAR)
    assert layout.shard * layout.tensor * layout.pipeline >= 4  # 60% of the memory is for it
    assert f"{state / 1e9:.2f} GB a replica" in measured
    layout, (why, _) = choose(8, replace(FACTS, memory_bytes=state / 1000), NEAR)
    assert layout.shard * layout.tensor * layout.pipeline == 8 and "may not fit" in why


def test_over_a_slow_wire_activations_go_rather_than_gradients() -> None:
    """Gradients of 285 M weights are a gigabyte, the activations of 32,768 tokens at a border 67 MB."""
    far = Machine(Rates.alike(1e12), FAST, SLOW, 4)
    layout, (_, measured) = choose(8, FACTS, far)
    assert layout.pipeline == 2 and layout.data * layout.shard * layout.tensor * layout.context == 4
    assert "2,000 MB/s inside a host of 4, 2.0 MB/s between hosts" in measured
    assert step_seconds(Layout(data=8), FACTS, far) > 3 * step_seconds(layout, FACTS, far)
    # inside a host nothing of this matters
    assert step_seconds(Layout(data=4), FACTS, far) == step_seconds(Layout(data=4), FACTS, NEAR)


def test_a_pipeline_whose_ends_share_the_embedding_sends_its_gradient() -> None:
    far, layout = Machine(Rates.alike(1e12), SLOW, SLOW, 1), Layout(pipeline=2)
    tied = replace(FACTS, config=replace(MODEL, tie_word_embeddings=True))
    more = step_seconds(layout, tied, far) - step_seconds(layout, FACTS, far)
    assert more > 0.9 * 4 * MODEL.vocab_size * MODEL.hidden_size / SLOW.bytes_per_second


def test_a_batch_too_small_to_be_divided_leaves_other_axes() -> None:
    layout, _ = choose(8, replace(FACTS, batch=2), NEAR)
    assert layout.data * layout.shard <= 2
    with pytest.raises(UsageError, match="cannot be spread in this way"):
        choose(17, replace(FACTS, batch=2), NEAR)


def test_a_step_of_any_layout_takes_longer_over_slower_links() -> None:
    near, far = (Machine(Rates.alike(1e12), link, link, 1) for link in (FAST, SLOW))
    for layout in possible(8, FACTS):
        assert 0 < step_seconds(layout, FACTS, near) <= step_seconds(layout, FACTS, far)


@needs_namespaces
def test_ranks_measure_the_wire_between_hosts_and_the_memory_inside_one() -> None:
    with two_hosts("80mbit") as (a, b):
        found = [json.loads(said) for said in ended(start([a, a, b, b], [str(RANK)]))]
    assert all(one == found[0] for one in found)
    assert found[0]["host_ranks"] == 2
    assert 5e6 < found[0]["hosts"]["bytes_per_second"] < 11e6  # 10 MB/s
    assert found[0]["host"]["bytes_per_second"] > 5 * found[0]["hosts"]["bytes_per_second"]
