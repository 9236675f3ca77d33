"""From a recipe and a corpus to a run's model: what it is made of, what of it learns, what its weights start from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sheaf.corpus.version import CorpusVersion
from sheaf.errors import RecipeError
from sheaf.model.adapters import Lora, built, digest_of_base, new_factors, trained
from sheaf.model.config import ModelConfig, dimensions, of_preset
from sheaf.model.families import AnyConfig, embedding_names, empty_model, extended, folder_values, read_config
from sheaf.model.init import starting_values
from sheaf.model.new_tokens import NewTokens, has_tokenizer, new_tokens, with_new_tokens
from sheaf.model.peft_folder import lora_of, with_adapters
from sheaf.model.pieces import Values
from sheaf.recipe import ModelSpec, Recipe
from sheaf.train.patterns import check_rates, frozen
from sheaf.train.settings import seed_of


@dataclass(frozen=True)
class ModelPlan:
    """What is known of a run's model without its weights. lora: adapters, beside which all else is frozen. frozen:
    names of what would learn, and does not. learning, total: numbers of parameters."""

    config: AnyConfig
    lora: Lora | None
    frozen: frozenset[str]
    learning: int
    total: int

    @property
    def learned(self) -> float:
        """Share of the parameters that learn."""
        return self.learning / self.total


def plan_of(recipe: Recipe, corpus: CorpusVersion) -> ModelPlan:
    """The model that a new run of a recipe has.

    Raises RecipeError if it cannot take the corpus' tokens or the recipe's sequences, or if a name in the recipe fits
    none of its parameters.
    """
    return _plan(recipe, corpus, _new_tokens(recipe.model, corpus))


def planned(recipe: Recipe, config: AnyConfig, lora: Lora | None) -> ModelPlan:
    """As `plan_of`, for the model of a checkpoint."""
    with torch.device("meta"):
        model = built(config, torch.float32, lora)
    learning = trained(model)
    still = frozenset(frozen(list(learning), recipe.train.freeze))
    left = {name: parameter.numel() for name, parameter in learning.items() if name not in still}
    check_rates(list(left), recipe.train.rates)
    return ModelPlan(config, model.lora, still, sum(left.values()), sum(p.numel() for p in model.parameters()))


def new_values(recipe: Recipe, corpus: CorpusVersion, *, digest: bool = True) -> tuple[ModelPlan, Values]:
    """The model before step 0, as any piece of it: initialised from the seed, or a published checkpoint with what the
    recipe adds. digest: compute that of the adapters' base, which a checkpoint names; a second a gigabyte."""
    new = _new_tokens(recipe.model, corpus)
    plan, spec, seed = _plan(recipe, corpus, new), recipe.model, seed_of(recipe)
    if isinstance(plan.config, ModelConfig) and spec.from_ is None:
        return plan, starting_values(plan.config, seed)
    folder = Path(spec.from_ or "")
    _, values = folder_values(folder, corpus.vocab_size)
    if new is not None:
        values = with_new_tokens(values, _embeddings(plan.config), new)
    if spec.lora is None or plan.lora is None:
        return plan, values
    values = new_factors(values, seed)
    if spec.lora.from_ is not None:
        with torch.device("meta"):
            model = built(plan.config, torch.float32, plan.lora)
        values = with_adapters(values, model, Path(spec.lora.from_))
    known = digest_of_base(folder) if digest else ""
    return replace(plan, lora=replace(plan.lora, base=str(folder), digest=known)), values


def _plan(recipe: Recipe, corpus: CorpusVersion, new: NewTokens | None) -> ModelPlan:
    config = _config_of(recipe, corpus, new)
    return planned(recipe, config, _lora(recipe.model, new, config))


def _config_of(recipe: Recipe, corpus: CorpusVersion, new: NewTokens | None) -> AnyConfig:
    spec, length = recipe.model, recipe.train.sequence_length
    if spec.from_ is None:
        return of_preset(spec, vocab_size=corpus.vocab_size, max_positions=length, end_of_text=corpus.end_of_text)
    if changed := [key for key, value in dimensions(spec).items() if value is not None]:
        raise RecipeError(
            f"model.{changed[0]} cannot be changed for a model from a folder",
            where=spec.from_,
            why="its weights have the shape that its config.json says",
            fix=f"remove model.{changed[0]}, or start from a preset",
        )
    config = read_config(Path(spec.from_))
    if new is None and config.vocab_size < corpus.vocab_size:
        raise RecipeError(
            f"the model knows {config.vocab_size:,} tokens, the corpus uses {corpus.vocab_size:,}",
            where=spec.from_,
            why="there is no tokenizer.json in the folder, so nobody can say which of them are new",
            fix="put its tokenizer.json there; `prepare.tokenizer.from` names that, or one with more tokens",
        )
    if config.max_position_embeddings < length:
        raise RecipeError(
            f"the model takes {config.max_position_embeddings:,} positions, train.sequence_length is {length:,}",
            fix=f"set train.sequence_length to at most {config.max_position_embeddings}",
        )
    return extended(config, corpus.vocab_size)


def _new_tokens(spec: ModelSpec, corpus: CorpusVersion) -> NewTokens | None:
    """None if no folder, or none with a tokenizer, is the model's. Raises RecipeError if it is not the corpus'."""
    folder = None if spec.from_ is None else Path(spec.from_)
    return None if folder is None or not has_tokenizer(folder) else new_tokens(folder, corpus.tokenizer_path)


def _lora(spec: ModelSpec, new: NewTokens | None, config: AnyConfig) -> Lora | None:
    """As the recipe says; where there are new tokens, embedding and head learn whole, or nobody would learn them."""
    if spec.lora is None:
        return None
    lora = lora_of(spec.lora)
    if new is None or not new.pieces:
        return lora
    names = [name.split(".")[-2] for name in _embeddings(config)]
    return replace(lora, full=tuple(dict.fromkeys((*lora.full, *names))))


def _embeddings(config: AnyConfig) -> list[str]:
    with torch.device("meta"):
        return embedding_names(empty_model(config, torch.float32))
