"""Values that a recipe leaves open: what is a mark, what may be marked, and who refuses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sheaf import recipe_yaml
from sheaf.errors import RecipeError
from sheaf.recipe_file import json_schema, load, load_open, loads

BASE = Path("/data/recipes")
HEAD = """\
name: support
sources:
  - {name: wiki, uri: ./docs}
  - {name: tune, uri: ./songs}
"""


def opened(tmp_path: Path, text: str, *overrides: str) -> Any:
    (tmp_path / "sheaf.yaml").write_text(HEAD + text)
    return load_open(tmp_path / "sheaf.yaml", overrides)


def test_a_mark_is_a_list_of_choices_or_a_range_anywhere_in_train_mixture_and_prepare(tmp_path: Path) -> None:
    found = opened(
        tmp_path,
        """\
prepare: {filters: [gopher, {tune: ["score.words > 5", "score.words > 50"]}], dedup: {near: {tune: [null, 0.8]}}}
mixture: {wiki: {weight: {tune: {from: 0.5, to: 2}}}}
train: {learning_rate: {tune: {from: 1e-4, to: 1e-2, scale: log}}, schedule: {warmup: {tune: [0, 0.1]}}}
""",
        "train.batch_tokens={tune: [1024, 2048]}",
    )
    usual = {mark.name: mark.usual for mark in found.marks}
    assert usual == {
        "prepare.filters.1": "score.words > 5",
        "prepare.dedup.near": None,
        "mixture.wiki.weight": 1.25,
        "train.learning_rate": pytest.approx(1e-3),
        "train.schedule.warmup": 0,
        "train.batch_tokens": 1024,
    }
    recipe = found.filled({("prepare", "filters", 1): "score.words > 50", ("train", "batch_tokens"): 2048})
    assert recipe.prepare.filters == ("gopher", "score.words > 50")
    assert (recipe.train.batch_tokens, recipe.mixture["wiki"].weight) == (2048, 1.25)
    assert found.filled().prepare.filters == ("gopher", "score.words > 5")  # nothing stays behind


def test_a_source_or_a_glob_that_is_called_tune_is_no_mark(tmp_path: Path) -> None:
    text = "mixture: {tune: {weight: 2}}\ntrain: {rates: {tune: 0.5}}\n"
    assert opened(tmp_path, text).marks == ()
    assert loads(HEAD + text, BASE).mixture["tune"].weight == 2


def test_whoever_needs_every_value_refuses_a_mark_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "sheaf.yaml"
    path.write_text(HEAD + "train:\n  learning_rate: {tune: [1e-3, 1e-2]}\n  weight_decay: {tune: [0, 0.1]}\n")
    with pytest.raises(RecipeError) as raised:
        load(path)
    assert "sheaf.yaml:6: 'train.learning_rate' is left open" in str(raised.value)
    assert "sheaf.yaml:7: 'train.weight_decay' is left open" in str(raised.value)
    assert "`sheaf tune RECIPE`" in str(raised.value)
    assert load(path, ["train.learning_rate=1e-3", "train.weight_decay=0"]).train.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {hidden_size: {tune: [64, 128]}}", "'model.hidden_size' cannot be tuned"),
        ("train: {clip: {tune: [1]}}", "a choice needs two values"),
        ("train: {clip: {tune: [1, 1]}}", "1 is there twice"),
        ("train: {clip: {tune: {from: 2, to: 1}}}", "a range goes from a number to a larger one"),
        ("train: {clip: {tune: {from: 0, to: 1, scale: log}}}", "a range begins above 0"),
        ("train: {clip: {tune: {from: 0, to: 1, step: 2}}}", "not 'step'"),
        ("train: {clip: {tune: {from: 0, to: 1, scale: ln}}}", "scale is one of"),
        ("train: {clip: {tune: [1, -1]}}", "greater than 0"),
        ("train: {optimizer: {tune: [muon, adam]}}", "did you mean 'adamw'?"),
    ],
)
def test_a_mark_that_cannot_be_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        opened(tmp_path, text)
    assert said in str(raised.value)
    assert "sheaf.yaml:5" in str(raised.value)


def test_editors_know_where_a_mark_may_stand() -> None:
    schema = json_schema()
    tune = {"$ref": "#/$defs/Tune"}

    def takes(model: str, key: str) -> bool:
        return tune in schema["$defs"][model]["properties"][key].get("anyOf", [])

    assert takes("Train", "learning_rate") and takes("Dedup", "near") and takes("MixtureEntry", "weight")
    assert tune in schema["$defs"]["Prepare"]["properties"]["filters"]["anyOf"][0]["items"]["anyOf"]
    assert not takes("ModelSpec", "hidden_size") and not takes("SourceSpec", "uri")
    assert recipe_yaml.read("{tune: [1, 2]}", "x").value == {"tune": [1, 2]}
