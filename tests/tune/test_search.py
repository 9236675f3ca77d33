"""A search with real runs: stopped, killed and gone on with, it finds what an undisturbed one does."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sheaf
from sheaf.console import Silent
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import Interrupted, RecipeError, TrainingFailed, UsageError
from sheaf.recipe_file import load
from sheaf.train import journal
from sheaf.train.run import Run

sys.path.append(str(Path(__file__).parents[1] / "prepare"))
from in_process import InThisProcess

RECIPE = """\
name: micro
sources:
  - {name: text, uri: ./text}
  - {name: noise, uri: ./noise}
prepare: {tokenizer: {train: bpe, vocab_size: 300}}
model: {hidden_size: 32, layers: 1, heads: 2, kv_heads: 1, intermediate_size: 64}
train: {sequence_length: 32, batch_tokens: 256, budget: {steps: 16}, precision: fp32, compile: "off", held_out: 0.2,
  evaluate_tokens: 2048}
"""
RATES = "train.learning_rate={tune: [1e-3, 1e-2, 3e-2, 1e-4]}"
NUMBERS = ("step", "loss", "tokens", "samples", "lr", "grad_norm")


@pytest.fixture(autouse=True)
def ran(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Tasks of preparing that ran, by the module of their function. One thread, as there are several processes."""
    counted: Counter[str] = Counter()

    class Counting(InThisProcess):
        def run(self, tasks: Any, progress: Any = None) -> Iterator[Any]:
            for task, result in super().run(tasks, progress):
                counted[task.function.partition(":")[0]] += 1
                yield task, result

    monkeypatch.setattr("sheaf.engine.make", lambda *_: Counting())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return counted


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rng = random.Random(5)
    words = "the sheaf gathers scattered data from many places and every origin is known".split(" ")  # noqa: SIM905
    for source in ("text", "noise"):
        (tmp_path / source).mkdir()
        for n in range(24):
            start = rng.randrange(len(words))
            said = f"{n} " + " ".join(words[(start + k) % len(words)] for k in range(60))
            drawn = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=len(said)))
            (tmp_path / source / f"{n}.txt").write_text(said if source == "text" else drawn)
    (tmp_path / "sheaf.yaml").write_text(RECIPE)
    return tmp_path / "sheaf.yaml"


def numbers(run: str | Path) -> list[list[Any]]:
    return [[line[key] for key in NUMBERS] for line in journal.read(Path(run))]


def measures(data: dict[str, Any]) -> list[Any]:
    return [[one["values"], one["losses"], one["state"], one["steps"], one["why"]] for one in data["trials"]]


def journals(recipe: Path) -> Iterator[Path]:
    return (recipe.parent / "workspace" / "runs").glob("*/journal.jsonl")


def stop_after(recipe: Path, runs: int) -> threading.Thread:
    """Ctrl-C for this process once so many trials have made a step."""

    def watch() -> None:
        while sum(bool(path.stat().st_size) for path in journals(recipe)) < runs:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_search_that_is_stopped_and_killed_goes_on_to_what_an_undisturbed_run_is(recipe: Path) -> None:
    watcher = stop_after(recipe, 1)
    with pytest.raises(Interrupted) as stopped:
        sheaf.tune(recipe, [RATES], jobs=2, on=["text"])
    watcher.join()
    assert stopped.value.exit_code == 130 and "the same command goes on" in stopped.value.fix

    words = [sys.executable, "-m", "sheaf", "tune", recipe.name, RATES, "--jobs", "2", "--on", "text", "--json"]
    process = subprocess.Popen(words, cwd=recipe.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while sum(bool(path.stat().st_size) for path in journals(recipe)) < 3:
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        time.sleep(0.05)
    process.kill()  # whatever it is doing, with two trials under way
    process.wait()

    data = sheaf.tune(recipe, [RATES], jobs=1, on=["text"])
    assert [one["state"] for one in data["trials"]].count("done") == 1
    assert sorted(one["percent"] for one in data["trials"]) == [25, 25, 50, 100]
    assert sorted(one["steps"] for one in data["trials"]) == [4, 4, 8, 16]
    for one in data["trials"]:  # each step once, whatever befell the search
        assert [line[0] for line in numbers(one["run"])] == list(range(one["steps"]))

    best = data["best"]
    assert best["measured"] < data["trials"][3]["measured"]
    alone = sheaf.train(load(recipe, data["overrides"]))
    assert numbers(alone.path) == numbers(best["run"])  # bit for bit, though stopped at two rungs

    before = {path: path.read_bytes() for path in journals(recipe)}
    again = sheaf.tune(recipe, [RATES], on=["text"])
    assert measures(again) == measures(data)
    assert {path: path.read_bytes() for path in journals(recipe)} == before  # nothing is made twice


def test_weights_of_a_mixture_are_judged_by_the_sources_that_are_named(recipe: Path) -> None:
    weight = "mixture.noise.weight={tune: [3, 0]}"
    with pytest.raises(UsageError, match="it is not said what for"):
        sheaf.tune(recipe, [weight])
    out = recipe.parent / "found.yaml"
    data = sheaf.tune(recipe, [weight], on=["text"], out=out)
    assert data["values"] == {"mixture.noise.weight": 0}
    first, best = data["first"], data["best"]
    assert best["losses"]["25"] < first["losses"]["25"] - 0.1
    assert load(out) == load(recipe, ["mixture.noise.weight=0"])
    assert data["difference"] == "mixture:\n  noise:\n    weight: 0\n"


def test_a_threshold_selects_anew_and_all_trials_are_judged_on_the_same_records(
    recipe: Path, ran: Counter[str]
) -> None:
    kept = "prepare.filters={tune: [[], ['score.words > 40']]}"  # a line of noise has a few, of text sixty
    sheaf.prepare(load(recipe))
    ran.clear()
    data = sheaf.tune(recipe, [kept, "train.budget.steps=4"], on=["text"])
    assert not ran
    workspace = recipe.parent / "workspace"
    runs = [Run.open(Path(one["run"])) for one in data["trials"]]
    sizes = [len(run.corpus().documents) for run in runs]
    assert sizes[0] == 48 and sizes[1] < 36
    judges = list(Path(data["study"]).glob("judges/*.json"))
    assert len(judges) == 1
    assert CorpusVersion.open(workspace).digest == runs[data["best"]["trial"]].corpus().digest


def test_a_trial_that_cannot_be_is_told_and_the_others_go_on(recipe: Path) -> None:
    length, batch = "train.sequence_length={tune: [32, 64]}", "train.batch_tokens={tune: [128, 32]}"
    data = sheaf.tune(recipe, [length, batch, "train.budget={epochs: 0.5}"], on=["text"])
    failed = [one for one in data["trials"] if one["state"] == "failed"]
    assert [one["values"] for one in failed] == [{"train.sequence_length": 64, "train.batch_tokens": 32}]
    assert "a global batch holds whole samples" in failed[0]["why"]


def test_a_search_without_marks_says_what_it_searches(recipe: Path) -> None:
    told: list[str] = []

    class Listener(Silent):
        def note(self, text: str) -> None:
            told.append(text)

    with pytest.raises(TrainingFailed, match="no trial could be measured"):
        sheaf.tune(recipe, trials=1, tokens="2k", hours=1e-9, on=["text"], console=Listener())
    at = told.index("nothing in the recipe is marked with {tune: …}, so these are searched:")
    assert [line.split(":")[0].strip() for line in told[at + 1 : at + 4]] == [
        "train.learning_rate",
        "train.weight_decay",
        "train.batch_tokens",
    ]
    assert at < next(n for n, line in enumerate(told) if "1 trials" in line)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.budget={hours: 1}", RATES], "give --tokens"),
        (["train.batch_tokens={tune: [256, 512]}"], "as many steps of a larger batch see more tokens"),
        (["train.held_out={tune: [0.1, 0.2]}"], "the held-out records judge all trials"),
        (["train.rates={lm_head*: 2}", "width"], "train.rates and --width do not go together"),
        (["train.budget={tune: [{steps: 1}, {steps: 2}]}"], "equal budgets"),
    ],
)
def test_what_would_not_be_a_fair_comparison_is_refused(recipe: Path, words: list[str], said: str) -> None:
    width = 16 if words[-1] == "width" else None
    with pytest.raises(RecipeError) as raised:
        sheaf.tune(recipe, [word for word in words if "=" in word], width=width)
    assert said in str(raised.value)
