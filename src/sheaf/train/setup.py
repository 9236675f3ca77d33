"""From a recipe, a corpus and perhaps a checkpoint to the objects that train: order, model, compiled forward."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch.utils import deterministic

from sheaf.corpus.version import CorpusVersion
from sheaf.errors import DataRefused, RecipeError
from sheaf.model.adapters import Lora, attach, digest_of_base, trained
from sheaf.model.config import ModelConfig, dimensions, of_preset
from sheaf.model.decoder import Decoder
from sheaf.model.families import AnyConfig, Model, embedding_rows, empty_model, extended, load_folder, read_config
from sheaf.model.init import initialise
from sheaf.model.new_tokens import NewTokens, has_tokenizer, new_tokens, start_new_tokens
from sheaf.model.other import OtherConfig
from sheaf.model.peft_folder import load_adapters, lora_of
from sheaf.order.order import Order
from sheaf.recipe import ModelSpec, Recipe
from sheaf.train.patterns import factors, frozen
from sheaf.train.settings import batch_samples, seed_of

FILLS = "fill_uninitialized_memory"  # a property that torch gives the module at run time
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def order_of(recipe: Recipe, corpus: CorpusVersion, split: Literal["train", "held_out"]) -> Order:
    """The order that a recipe asks for; its packing is kept in the workspace. Raises DataRefused without text."""
    if not len(corpus.documents):
        raise DataRefused(
            "there is no text to train on",
            where=f"corpus {corpus.digest[:12]} in {corpus.workspace.root}",
            why="none of its records has text: they are pictures or sounds, and this version trains on text alone",
            fix='add a source that holds text, or take the records from Python: `corpus.records_of("image")`',
        )
    return Order.build(
        corpus.documents,
        corpus.source_names,
        corpus.fingerprint,
        sequence_length=recipe.train.sequence_length,
        batch=batch_samples(recipe.train),
        seed=seed_of(recipe),
        mixture=recipe.mixture,
        held_out=recipe.train.held_out,
        split=split,
        cache=corpus.workspace.packs,
        losses=corpus.loss_files(),
    )


def config_of(recipe: Recipe, corpus: CorpusVersion) -> AnyConfig:
    """The model's shape. Raises RecipeError if it cannot take the corpus' tokens or the recipe's sequences."""
    spec, length = recipe.model, recipe.train.sequence_length
    if spec.from_ is not None:
        return _config_of_folder(spec, corpus, length)
    return of_preset(spec, vocab_size=corpus.vocab_size, max_positions=length, end_of_text=corpus.end_of_text)


def check_parameters(recipe: Recipe, corpus: CorpusVersion, config: AnyConfig) -> str:
    """What of the model learns, in words; "" if all does. Takes no memory.

    Raises RecipeError if a name in the recipe fits none of its parameters.
    """
    with torch.device("meta"):
        model = empty_model(config, torch.float32)
        if recipe.model.lora is not None:
            attach(model, _lora(recipe.model, model, _new_tokens(recipe.model, corpus)))
    hold_still(model, recipe.train.freeze)
    factors(list(trained(model)), recipe.train.rates)
    learning = sum(parameter.numel() for parameter in trained(model).values())
    total = sum(parameter.numel() for parameter in model.parameters())
    return "" if learning == total else f"{learning:,} of {total:,} parameters are trained, the others are frozen"


def hidden_parameters(config: AnyConfig) -> int:
    """Weights outside embedding and head."""
    if isinstance(config, OtherConfig):
        return config.hidden_parameters()
    return config.parameters() - config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)


def new_model(recipe: Recipe, corpus: CorpusVersion, device: torch.device) -> Model:
    """The model before step 0: initialised from the seed, or a published checkpoint with what the recipe adds."""
    dtype, spec, seed = DTYPES[recipe.train.precision], recipe.model, seed_of(recipe)
    if spec.from_ is None:
        config = config_of(recipe, corpus)
        assert isinstance(config, ModelConfig)
        model = Decoder(config, dtype)
        initialise(model, seed)
        return model.to(device)
    folder = Path(spec.from_)
    loaded = load_folder(folder, dtype, corpus.vocab_size)
    new = _new_tokens(spec, corpus)
    if new is not None:
        start_new_tokens(loaded, new)
    if spec.lora is not None:
        lora = _lora(spec, loaded, new)
        attach(loaded, replace(lora, base=str(folder), digest=digest_of_base(folder)), seed)
        if spec.lora.from_ is not None:
            load_adapters(loaded, Path(spec.lora.from_))
    return loaded.to(device)


def hold_still(model: Model, patterns: Sequence[str]) -> None:
    """Freeze what `train.freeze` names: no gradient, no optimiser state. Raises RecipeError for a pattern that matches
    nothing that would learn."""
    learning = trained(model)
    for name in frozen(list(learning), patterns):
        learning[name].requires_grad_(False)


def _config_of_folder(spec: ModelSpec, corpus: CorpusVersion, length: int) -> AnyConfig:
    folder = Path(spec.from_ or "")
    if changed := [key for key, value in dimensions(spec).items() if value is not None]:
        raise RecipeError(
            f"model.{changed[0]} cannot be changed for a model from a folder",
            where=str(folder),
            why="its weights have the shape that its config.json says",
            fix=f"remove model.{changed[0]}, or start from a preset",
        )
    config = read_config(folder)
    if _new_tokens(spec, corpus) is None and config.vocab_size < corpus.vocab_size:
        raise RecipeError(
            f"the model knows {config.vocab_size:,} tokens, the corpus uses {corpus.vocab_size:,}",
            where=str(folder),
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
    """None if the model's folder has no tokenizer. Raises RecipeError if it is another one than the corpus'."""
    folder = Path(spec.from_ or "")
    return new_tokens(folder, corpus.tokenizer_path) if has_tokenizer(folder) else None


def _lora(spec: ModelSpec, model: Model, new: NewTokens | None) -> Lora:
    """As the recipe says; where there are new tokens, embedding and head learn whole, or nobody would learn them."""
    assert spec.lora is not None
    lora = lora_of(spec.lora)
    if new is None or not new.pieces:
        return lora
    rows = {id(matrix) for matrix in embedding_rows(model)}
    names = [name.split(".")[-2] for name, parameter in model.named_parameters() if id(parameter) in rows]
    return replace(lora, full=tuple(dict.fromkeys((*lora.full, *names))))


@contextlib.contextmanager
def exact(threads: int) -> Generator[None]:
    """Inside the block the same inputs give the same bits: this many threads, deterministic kernels."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        _fills(),
    )
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=False)
    _set_fills(False)  # it would fill every torch.empty, and nothing here reads one
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        _set_fills(before[2])


def _fills() -> bool:
    return bool(getattr(deterministic, FILLS))


def _set_fills(value: bool) -> None:
    setattr(deterministic, FILLS, value)
