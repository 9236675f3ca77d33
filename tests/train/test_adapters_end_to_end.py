"""A published model and conversations to adapters, on the command line, and back through peft."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import orjson
import peft
import pytest
import torch
import transformers
from published import published, rewound, talks
from saved_tensors import saved_tensors

from sheaf import api, recipe_file
from sheaf.cli import main
from sheaf.console import Silent
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import CorruptStore, RecipeError, UsageError
from sheaf.train import journal
from sheaf.train.checkpoint import list_checkpoints
from sheaf.train.launch import resume, train

RECIPE = """
name: helper
sources: [{name: talk, uri: ./talk, map: openai}]
model: {from: ./base, lora: {rank: 4, alpha: 16}}
train: {sequence_length: 64, batch_tokens: 512, budget: {steps: 8}, precision: fp32, compile: "off", held_out: 0.1,
        learning_rate: 0.02, checkpoint_every: 4}
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Generator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, talks, a recipe, and a run that the command line has made of them."""
    folder = tmp_path_factory.mktemp("place")
    published(folder / "base")
    talks(folder / "talk")
    (folder / "sheaf.yaml").write_text(RECIPE)
    assert main(["train", str(folder / "sheaf.yaml"), "--workers", "1", "--quiet"]) == 0
    return folder


def run_of(place: Path) -> Path:
    return place / "workspace" / "runs" / "helper-001"


def test_the_tokenizer_is_the_models_and_only_answers_are_learned(place: Path) -> None:
    corpus = CorpusVersion.open(place / "workspace")
    assert len(transformers.AutoTokenizer.from_pretrained(place / "base")) == corpus.vocab_size
    lines = journal.read(run_of(place))
    assert all(0 < line["valid_tokens"] < 300 for line in lines)  # of 512: questions are context
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3


def test_a_checkpoint_holds_adapters_and_the_digest_of_their_base(place: Path) -> None:
    checkpoint = list_checkpoints(run_of(place))[0]
    manifest = orjson.loads((checkpoint / "manifest.json").read_bytes())
    assert manifest["adapters"]["base"] == str(place / "base") and len(manifest["adapters"]["digest"]) == 32
    assert all(".lora_" in key for key in saved_tensors(run_of(place)))


def test_both_exports_compute_the_same_in_other_hands(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(run_of(place))
    assert main(["export", run, "--to", str(place / "adapters"), "--json"]) == 0
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(
        orjson.loads(capsys.readouterr().out)["files"]
    )
    assert main(["export", run, "--to", str(place / "merged"), "--merge", "--quiet"]) == 0
    assert main(["generate", run, "--chat", "--prompt", "why is the ferry late?", "--max-tokens", "5", "--json"]) == 0
    ids = transformers.AutoTokenizer.from_pretrained(place / "merged")("why is the ferry late", return_tensors="pt")
    base: Any = transformers.AutoModelForCausalLM.from_pretrained(place / "base")
    with torch.no_grad():
        plain = base(**ids).logits
        merged = transformers.AutoModelForCausalLM.from_pretrained(place / "merged")(**ids).logits
        beside = peft.PeftModel.from_pretrained(base, str(place / "adapters"))(**ids).logits
    torch.testing.assert_close(merged, beside, rtol=1e-4, atol=1e-4)
    assert (merged - plain).abs().max() > 0.1


def test_a_resumed_run_arrives_at_the_same_bits_and_two_ranks_at_the_same_losses(place: Path) -> None:
    first = run_of(place)
    again = rewound(first, first.with_name("helper-101"), 4)
    resume(again, console=Silent())
    assert journal.read(again)[-1]["loss"] == journal.read(first)[-1]["loss"]
    one, two = saved_tensors(first), saved_tensors(again)
    assert all(torch.equal(one[name], two[name]) for name in one)
    on_two = rewound(first, first.with_name("helper-102"), 4)
    resume(on_two, nproc=2, console=Silent())
    for a, b in zip(journal.read(first), journal.read(on_two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_a_run_does_not_go_on_beside_another_base(place: Path) -> None:
    again = rewound(run_of(place), run_of(place).with_name("helper-103"), 4)
    config = place / "base" / "config.json"
    before = config.read_bytes()
    config.write_bytes(before + b"\n")
    try:
        with pytest.raises(CorruptStore, match="has changed"):
            resume(again, console=Silent())
    finally:
        config.write_bytes(before)


def test_training_goes_on_from_exported_adapters(place: Path) -> None:
    if not (place / "adapters").exists():
        main(["export", str(run_of(place)), "--to", str(place / "adapters"), "--quiet"])
    text = RECIPE.replace("{rank: 4, alpha: 16}", "{from: ./adapters}").replace("steps: 8", "steps: 1")
    corpus = CorpusVersion.open(place / "workspace")
    result = train(recipe_file.loads(text, place), corpus, console=Silent())
    first = journal.read(Path(result["run"]))[0]["loss"]
    assert first < journal.read(run_of(place))[3]["loss"]  # not where the base began


@pytest.mark.parametrize(
    ("change", "named", "near"),
    [
        (("rank: 4", "rank: 4, targets: [q_prj]"), "q_prj", "q_proj"),
        (("rank: 4", "rank: 4, full: [embed_token]"), "embed_token", "embed_tokens"),
        (("compile", "freeze: ['model.layers.7.*'], compile"), "model.layers.7", "model.layers"),
        (("compile", "rates: {'*lora_C*': 2}, compile"), "lora_C", ""),
    ],
)
def test_a_name_that_fits_nothing_stops_before_a_run_is_made(
    change: tuple[str, str], named: str, near: str, place: Path
) -> None:
    runs = len(list((place / "workspace" / "runs").iterdir()))
    with pytest.raises(RecipeError, match=named) as caught:
        train(
            recipe_file.loads(RECIPE.replace(*change), place), CorpusVersion.open(place / "workspace"), console=Silent()
        )
    assert near in caught.value.fix
    assert len(list((place / "workspace" / "runs").iterdir())) == runs


def test_what_makes_no_sense_is_refused(place: Path) -> None:
    with pytest.raises(RecipeError, match="lora adapts a model that is there"):
        recipe_file.loads(RECIPE.replace("from: ./base, ", ""), place)
    with pytest.raises(RecipeError, match="its own rank"):
        recipe_file.loads(RECIPE.replace("rank: 4", "from: ./x, rank: 4"), place)
    with pytest.raises(RecipeError, match="adapters are thin factors"):
        recipe_file.loads(RECIPE.replace("compile", "optimizer: muon, compile"), place)
    assert main(["export", str(run_of(place)), "--step", "3", "--quiet"]) == 2  # no such checkpoint


def test_there_is_nothing_to_merge_without_adapters(place: Path) -> None:
    text = RECIPE.replace(", lora: {rank: 4, alpha: 16}", "").replace("steps: 8", "steps: 1")
    result = train(recipe_file.loads(text, place), CorpusVersion.open(place / "workspace"), console=Silent())
    with pytest.raises(UsageError, match="no adapters"):
        api.open_run(result["run"]).export(place / "whole", merge=True)
