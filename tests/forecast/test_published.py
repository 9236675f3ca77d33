"""What others have published, forecast again: by one set of constants, within a quarter."""

from __future__ import annotations

import time

import pytest
from bench.plan_published import forecast
from bench.published_runs import FOUNDRY, MEGATRON, PUBLISHED, TITAN, Published

from sheaf.errors import UsageError
from sheaf.forecast.layouts import fitting
from sheaf.forecast.machines import TABLE, accelerator
from sheaf.forecast.subject import of_survey
from sheaf.forecast.where import there
from sheaf.recipe import Recipe


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.name}-{row.layout.data * row.layout.shard}")
def test_a_published_throughput_is_forecast_within_a_quarter(row: Published) -> None:
    assert 0.75 <= forecast(row) / row.tokens_per_second <= 1.25


def test_all_three_projects_are_among_them() -> None:
    assert {row.source for row in PUBLISHED} == {TITAN, FOUNDRY, MEGATRON}


def test_every_machine_names_its_datasheet_and_what_cannot_be_is_said_to() -> None:
    assert {"h100", "h200", "a100", "l40s"} <= TABLE.keys()
    assert all("datasheet" in one.source for one in TABLE.values())
    with pytest.raises(UsageError, match="does not train on tpu-v5p"):
        accelerator("tpu-v5p")
    with pytest.raises(UsageError, match="no machine 'b300'"):
        accelerator("b300")


LARGE = {
    "name": "large",
    "sources": [{"name": "web", "uri": "/nowhere"}],
    "prepare": {"tokenizer": {"train": "bpe", "vocab_size": 128_000}},
    "model": {
        "preset": "base", "family": "llama", "hidden_size": 8192, "layers": 80, "heads": 64, "kv_heads": 8,
        "intermediate_size": 28_672, "tied": False,
    },
    "train": {
        "sequence_length": 4096, "batch_tokens": 4_194_304, "budget": {"tokens": "15B"},
        "activation_checkpointing": "full",
    },
}  # fmt: skip
SEEN = {"tokens": {"value": 10**13, "error": 10**12}}


@pytest.mark.parametrize("gpus", [8, 64, 1024])
def test_seventy_billion_weights_are_planned_without_being_allocated(gpus: int) -> None:
    recipe, begun = Recipe.model_validate(LARGE, strict=False), time.process_time()
    subject = of_survey(recipe, SEEN, gpus, records=10**10, gpu=True)
    good, out = fitting(subject, there(accelerator("h100"), gpus).place, most=1)
    assert 68e9 < subject.plan.total < 72e9
    if gpus == 8:  # 16 bytes a weight over 640 GB
        assert not good
        assert any("for weights, gradients and optimiser" in row.reason for row in out)
    else:
        assert good[0].memory is not None and 70e9 * 12 / gpus < good[0].memory.peak < 80e9
    assert time.process_time() - begun < 10
