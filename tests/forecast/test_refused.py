"""What the command says of a run that could not be finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sheaf.cli import main

RECIPE = """
name: doomed
sources: [{name: docs, uri: ./docs}]
prepare: {tokenizer: {train: bpe, vocab_size: 300}}
mixture: {docs: {max_epochs: 1}}
model: {preset: tiny, hidden_size: 64, layers: 1, heads: 1, kv_heads: 1, intermediate_size: 64}
train: {sequence_length: 32, batch_tokens: 64, budget: {steps: 5000}, held_out: 0, compile: "off"}
"""


def test_train_refuses_a_doomed_run_with_exit_code_4_and_makes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    for n in range(20):
        (tmp_path / "docs" / f"{n}.txt").write_text(" ".join(f"word{(n * k) % 97}" for k in range(60)))
    (tmp_path / "sheaf.yaml").write_text(RECIPE)
    assert main(["train", "--json", "--quiet"]) == 4
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert told["what"] == "this run could not be finished: epochs"
    assert len(told["fix"].split("; or ")) == 3 and told["fix"].startswith("train.budget='{steps: ")
    assert not list((tmp_path / "workspace" / "runs").glob("*"))
