"""What a run's ranks measure of themselves before it."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.forecast import here, where
from sheaf.forecast.here import measured
from sheaf.forecast.subject import of_corpus
from sheaf.parallel.ranks import alone
from sheaf.train import probe
from sheaf.train.setup import exact


def test_two_ranks_measure_themselves_and_their_link(tmp_path: Path) -> None:
    subject = of_corpus(make_recipe(tmp_path), make_corpus(tmp_path), 2)
    found = measured(subject.facts(2), 2, tmp_path)
    assert found is not None
    rates = found.machine.rates
    assert min(rates.layers, rates.attention, rates.head, rates.muon, rates.update) > 1e6
    assert found.machine.host_ranks == 2 and found.machine.host.bytes_per_second > 1e5
    assert found.disk > 1e5 and not found.gpu
    assert list(tmp_path.glob(".plan-*")) == []


def test_one_rank_has_no_link_to_wait_for(tmp_path: Path) -> None:
    subject = of_corpus(make_recipe(tmp_path), make_corpus(tmp_path), 1)
    found = measured(subject.facts(1), 1)
    assert found is not None
    machine = found.machine
    assert machine.host.bytes_per_second == math.inf and machine.host_ranks == 1


def test_a_probe_that_takes_too_long_stops_after_one_try_of_each_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "MOST_SECONDS", 0.0)
    tries: list[float] = []
    monkeypatch.setattr(probe.statistics, "median", lambda taken: tries.append(len(taken)) or max(taken))
    subject = of_corpus(make_recipe(tmp_path), make_corpus(tmp_path), 1)
    with exact(1):
        probe.rates_here(alone(), subject.facts(1), torch.float32)
    assert tries == [1] * 5


def test_ranks_that_take_more_than_a_minute_are_ended_and_rates_are_assumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here, "MOST_SECONDS", 0.5)  # less than it takes to import torch
    subject = of_corpus(make_recipe(tmp_path), make_corpus(tmp_path), 1)
    said: list[str] = []
    monkeypatch.setattr(Silent, "note", lambda _, text: said.append(text))
    begun, before = time.monotonic(), psutil.Process().children(recursive=True)
    found = where.here(subject, 1, Silent())
    assert time.monotonic() - begun < 30
    assert found.measured is None and found.to_json()["source"].startswith("assumed")
    assert any("took too long" in text for text in said)
    assert psutil.Process().children(recursive=True) == before


def test_a_block_too_large_for_a_few_seconds_is_tried_narrower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "BLOCK_WEIGHTS", 400_000)
    subject = of_corpus(make_recipe(tmp_path), make_corpus(tmp_path), 1)
    config = replace(
        subject.plan.config, hidden_size=8192, intermediate_size=28_672, num_attention_heads=64, num_key_value_heads=8,
        head_dim=128, num_hidden_layers=80, vocab_size=128_000,
    )  # fmt: skip
    begun = time.process_time()
    with exact(1):
        rates = probe.rates_here(alone(), replace(subject.facts(1), config=config, micro_tokens=256), torch.float32)
    assert rates.layers > 1e6
    assert time.process_time() - begun < 30  # as it is, one block takes a minute and more
