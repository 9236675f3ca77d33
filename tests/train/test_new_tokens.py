"""Tokens that a published model does not know: where they start, and that they are trained and exported."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
import torch
import transformers
from published import published, talks
from tokenizers import AddedToken, Tokenizer

from sheaf import api, recipe_file
from sheaf.console import Silent
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import RecipeError
from sheaf.model.families import folder_values
from sheaf.model.new_tokens import NewTokens, new_tokens, with_new_tokens
from sheaf.model.pieces import Piece
from sheaf.train.launch import train
from sheaf.train.plan import new_values, plan_of

RECIPE = """
name: t
sources: [{name: talk, uri: ./talk, map: openai}]
prepare: {tokenizer: {from: ./base, add: ["<|tool|>"]}, template: ./own.jinja}
model: {from: ./base}
train: {sequence_length: 64, batch_tokens: 256, budget: {steps: 2}, precision: fp32, compile: "off", held_out: 0,
        learning_rate: 0.01, optimizer: adamw}
"""
OWN = "{% for m in messages %}<|tool|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Generator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    published(folder / "base")
    talks(folder / "talk", 20)
    (folder / "own.jinja").write_text(OWN)
    api.prepare(recipe_file.loads(RECIPE, folder), workers=1)
    return folder


def more_tokens(base: Path, to: Path) -> Tokenizer:
    made = Tokenizer.from_file(str(base / "tokenizer.json"))
    made.add_tokens([AddedToken("ferryman", normalized=False), AddedToken("<|tool|>", special=True)])
    made.save(str(to))
    return made


def test_a_word_starts_as_the_mean_of_its_pieces_and_a_control_token_as_that_of_all(
    place: Path, tmp_path: Path
) -> None:
    made = more_tokens(place / "base", tmp_path / "more.json")
    old = Tokenizer.from_file(str(place / "base" / "tokenizer.json"))
    new = new_tokens(place / "base", tmp_path / "more.json")
    assert set(new.pieces) == {made.token_to_id("ferryman"), made.token_to_id("<|tool|>")}
    _, values = folder_values(place / "base", made.get_vocab_size())
    name, piece = "model.embed_tokens.weight", Piece.whole((made.get_vocab_size(), 64))
    before, rows = values(name, piece), with_new_tokens(values, [name], new)(name, piece)
    assert torch.equal(rows[: old.get_vocab_size()], before[: old.get_vocab_size()])
    pieces = old.encode("ferryman").ids
    assert len(pieces) > 1
    torch.testing.assert_close(rows[made.token_to_id("ferryman")], before[pieces].mean(0))
    torch.testing.assert_close(rows[made.token_to_id("<|tool|>")], before[: old.get_vocab_size()].mean(0))


def test_rows_that_a_model_has_to_spare_are_filled_and_count_for_no_mean() -> None:
    """As of Qwen: more rows than tokens."""
    stored = {name: torch.cat([torch.randn(8, 4), torch.full((4, 4), 1000.0)]) for name in ("in", "out")}
    new = NewTokens(known=list(range(8)), pieces={8: (1, 3), 9: ()})
    values = with_new_tokens(lambda name, piece: stored[name][piece.slices], ["in", "out"], new)
    for name in stored:
        rows = values(name, Piece.whole((12, 4)))
        torch.testing.assert_close(rows[8], rows[[1, 3]].mean(0))
        torch.testing.assert_close(rows[9], rows[:8].mean(0))
        assert rows[10, 0] == 1000.0
        assert torch.equal(values(name, Piece((12, 4), ((9, 11), (1, 3)))), rows[9:11, 1:3])


def test_a_recipe_adds_a_token_that_is_trained_and_exported(place: Path) -> None:
    corpus = CorpusVersion.open(place / "workspace")
    recipe = recipe_file.loads(RECIPE, place)
    old = transformers.AutoConfig.from_pretrained(place / "base").vocab_size
    assert corpus.vocab_size == old + 1 == plan_of(recipe, corpus).config.vocab_size
    plan, values = new_values(recipe, corpus)
    before = values("model.embed_tokens.weight", Piece.whole((old + 1, plan.config.hidden_size)))
    torch.testing.assert_close(before[old], before[:old].mean(0))  # a control token
    result = train(recipe, corpus, console=Silent())
    folder = api.open_run(result["run"]).export(place / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    rows = model.get_input_embeddings().weight.detach()
    assert model.config.vocab_size == old + 1 == len(transformers.AutoTokenizer.from_pretrained(folder))
    assert not torch.equal(rows[old], before[old])


def test_adapters_train_embedding_and_head_whole_where_there_are_new_tokens(place: Path) -> None:
    text = RECIPE.replace("{from: ./base}\n", "{from: ./base, lora: {rank: 2}}\n").replace("steps: 2", "steps: 1")
    result = train(recipe_file.loads(text, place), CorpusVersion.open(place / "workspace"), console=Silent())
    run = api.open_run(result["run"])
    merged = run.export(place / "merged", merge=True)
    rows = transformers.AutoModelForCausalLM.from_pretrained(merged).get_input_embeddings().weight
    assert len(rows) == CorpusVersion.open(place / "workspace").vocab_size
    assert "embed_tokens" in (run.export(place / "beside") / "adapter_config.json").read_text()


def test_another_tokenizer_than_the_models_is_refused(place: Path, tmp_path: Path) -> None:
    made = Tokenizer.from_file(str(place / "base" / "tokenizer.json"))
    swapped = made.to_str().replace('"<|im_start|>"', '"<|im_xxxxx|>"')
    (tmp_path / "other.json").write_text(swapped)
    with pytest.raises(RecipeError, match="not the model's") as caught:
        new_tokens(place / "base", tmp_path / "other.json")
    assert "'<|im_start|>' for the model and '<|im_xxxxx|>'" in caught.value.why


def test_more_tokens_than_a_model_without_a_tokenizer_knows_are_refused(place: Path, tmp_path: Path) -> None:
    corpus = CorpusVersion.open(place / "workspace")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((place / "base" / name).read_bytes())
    recipe = recipe_file.loads(RECIPE.replace("model: {from: ./base}", f"model: {{from: '{tmp_path}'}}"), place)
    with pytest.raises(RecipeError, match="the corpus uses"):
        plan_of(recipe, corpus)


def test_a_folder_must_fit_the_recipe(place: Path) -> None:
    corpus = CorpusVersion.open(place / "workspace")
    for change, said in (("sequence_length: 64", "positions"), ("{from: ./base}\n", "layers")):
        other = {"positions": "sequence_length: 256", "layers": "{from: ./base, layers: 3}\n"}[said]
        with pytest.raises(RecipeError, match=said):
            plan_of(recipe_file.loads(RECIPE.replace(change, other), place), corpus)


def test_tokens_are_added_to_a_given_tokenizer_only() -> None:
    text = "name: t\nsources: [{name: a, uri: .}]\nprepare: {tokenizer: {train: bpe, add: ['<|x|>']}}\n"
    with pytest.raises(RecipeError, match="a tokenizer that is given"):
        recipe_file.loads(text, Path())
