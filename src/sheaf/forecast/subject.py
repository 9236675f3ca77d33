"""What a recipe would train, as far as it is known: from the corpus where there is one, else from a survey.

Of a corpus steps, packing and documents are exact. Of a survey the tokens are an estimate with an error, samples are
taken to be nearly full, and documents to be as long as the records are on the mean. The same recipe on the same machine
decides the same here as `train` does: it is the same code. Cost: a survey, where there is no corpus; else the packing,
which `train` finds in the workspace then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from sheaf.corpus.version import CorpusVersion
from sheaf.errors import DataRefused
from sheaf.model.config import ModelConfig, of_preset
from sheaf.model.families import extended, read_config
from sheaf.model.peft_folder import lora_of
from sheaf.order.order import Order
from sheaf.parallel.layout import Facts, ranks_of
from sheaf.parallel.ranks import threads_for
from sheaf.recipe import Recipe
from sheaf.recipe_file import parse_tokens
from sheaf.train.evaluate import steps_within
from sheaf.train.optimizer import choose, default_rate
from sheaf.train.plan import ModelPlan, plan_of, planned
from sheaf.train.settings import (
    MICRO_TOKENS,
    Settings,
    attention_span,
    batch_samples,
    compiles,
    decide,
    seed_of,
    start_of,
    with_steps,
)
from sheaf.train.setup import facts_of, order_of, placed

Json = dict[str, Any]
FULL = 0.97  # of a sample that best-fit packing fills, of documents of usual lengths (`bench/packing.py`)


@dataclass(frozen=True)
class Subject:
    """corpus: facts of the data, as `plan --json` prints them. span: keys that a mean token sees. filled: share of the
    positions that hold a token. asked, most: steps that the budget asks for, and that `max_epochs` of all sources
    allows (None: no cap). evaluated: positions of one evaluation. error: of the number of steps, as a share."""

    recipe: Recipe
    plan: ModelPlan
    settings: Settings
    corpus: Json
    span: float
    filled: float
    asked: int | None
    most: int | None
    evaluated: int
    error: float

    def facts(self, ranks: int) -> Facts:
        return facts_of(self.recipe, self.plan, self.settings, ranks, self.span)

    @property
    def positions(self) -> int:
        """Of a step."""
        return self.settings.batch * self.recipe.train.sequence_length

    def with_step_seconds(self, seconds: float) -> Subject:
        """Once a step's time is known, so are the steps of a budget in hours."""
        hours, train = self.recipe.train.budget.hours, self.recipe.train
        if hours is None or self.settings.steps is not None:
            return self
        evaluation = 10 * self.evaluated / self.positions * seconds / 3
        steps = max(1, int((3600 * hours - evaluation) / seconds))
        steps = steps if self.most is None else min(steps, self.most)
        return replace(self, settings=with_steps(self.settings, steps, train))


def ranks_asked(recipe: Recipe, nproc: int | None) -> int:
    """As many as `train` would start."""
    asked = recipe.train.layout
    return nproc or (1 if asked == "auto" else ranks_of(asked))


def of_corpus(
    recipe: Recipe, corpus: CorpusVersion, ranks: int, *, gpu: bool | None = None, plan: ModelPlan | None = None
) -> Subject:
    """Of a corpus that is there. gpu: whether its ranks have GPUs; default: as this machine. plan: if it is known."""
    recipe = placed(recipe, corpus)
    order, held_out = order_of(recipe, corpus, "train"), order_of(recipe, corpus, "held_out")
    plan = plan or plan_of(recipe, corpus)
    span = attention_span(order)
    settings, _ = decide(
        recipe,
        order,
        flops_per_token=plan.config.flops_per_token(span),
        hidden_parameters=plan.config.hidden_parameters(),
        ranks=ranks,
        threads=threads_for(1),
        gpu=torch.cuda.is_available() if gpu is None else gpu,
        built_in=isinstance(plan.config, ModelConfig),
    )
    filled = float(order.pack.sample_tokens.sum(dtype=float)) / (len(order.pack.sample_tokens) * order.sequence_length)
    evaluated = steps_within(held_out, recipe.train.evaluate_tokens) * held_out.batch * held_out.sequence_length
    tokens = corpus.tokens_by_source()
    known = {
        "from": "corpus",
        "digest": corpus.digest,
        "tokens": {"value": sum(tokens.values()), "error": 0},
        "samples": len(order.pack.sample_tokens),
    }
    return Subject(
        recipe, plan, settings, known, span, filled, _asked(recipe, order), order.steps, evaluated, error=0.0
    )


def _asked(recipe: Recipe, order: Order) -> int | None:
    """Steps that the budget asks for, whether the mixture has them or not; None for hours."""
    budget = recipe.train.budget
    if budget.epochs is not None:
        drawn = int(order.pack.source_samples[order.mixture.ever_drawn_s].sum())
        return max(1, math.ceil(budget.epochs * drawn / order.batch))
    return _steps_asked(recipe, order.batch * float(order.pack.sample_valid.mean()))


def _steps_asked(recipe: Recipe, predictions: float) -> int | None:
    """Of a budget in steps or tokens. predictions: of a step."""
    budget = recipe.train.budget
    if budget.steps is not None:
        return budget.steps
    return None if budget.tokens is None else max(1, math.ceil(parse_tokens(budget.tokens) / predictions))


def of_survey(
    recipe: Recipe,
    forecast: Json,
    ranks: int,
    *,
    records: float,
    gpu: bool | None = None,
    plan: ModelPlan | None = None,
) -> Subject:
    """Of sources that were only looked at. forecast: of `scan`. records: how many there may be. plan: if known."""
    train, plan = recipe.train, plan or plan_without_corpus(recipe)
    tokens, error = float(forecast["tokens"]["value"]), float(forecast["tokens"]["error"])
    if tokens < 1:
        raise DataRefused("there is no text to train on", why="the sample of the sources shows none", fix="sheaf scan")
    length, batch = train.sequence_length, batch_samples(train)
    mean = tokens / max(records, 1.0)
    span = min((mean + 1) / 2, length / 2)
    samples = tokens * (1 - train.held_out) / (FULL * length)
    most = _capped(recipe, samples, batch)
    asked = _steps_asked(recipe, batch * length * FULL)
    if train.budget.epochs is not None:
        asked = max(1, math.ceil(train.budget.epochs * samples / batch))
    steps = asked if asked is None or most is None else min(asked, most)
    settings = _settings(recipe, plan, steps, ranks, span, torch.cuda.is_available() if gpu is None else gpu)
    held_out = train.held_out * tokens / FULL
    evaluated = round(min(held_out, max(train.evaluate_tokens, batch * length)))
    known = {"from": "survey", "tokens": forecast["tokens"], "samples": round(samples)}
    share = error / tokens if train.budget.epochs is not None else 0.0
    return Subject(recipe, plan, settings, known, span, FULL, asked, most, evaluated, share)


def _capped(recipe: Recipe, samples: float, batch: int) -> int | None:
    """Steps until `max_epochs` of all sources is used up, as if they were of one size; None if one has no cap."""
    entries = [recipe.mixture.get(source.name) for source in recipe.sources]
    caps = [entry.max_epochs if entry else None for entry in entries]
    known = [cap for cap in caps if cap is not None]
    return None if len(known) < len(caps) else max(1, int(sum(known) / len(known) * samples / batch))


def plan_without_corpus(recipe: Recipe) -> ModelPlan:
    """The model of a recipe whose corpus is still to be made. Of a deep model it takes a second: ask once."""
    spec, train = recipe.model, recipe.train
    vocabulary = _vocabulary(recipe)
    if spec.from_ is None:
        config = of_preset(spec, vocab_size=vocabulary, max_positions=train.sequence_length, end_of_text=0)
    else:
        config = extended(read_config(Path(spec.from_)), vocabulary)
    return planned(recipe, config, None if spec.lora is None else lora_of(spec.lora))


def _vocabulary(recipe: Recipe) -> int:
    tokenizer = recipe.prepare.tokenizer
    if tokenizer.from_ is None:
        return tokenizer.vocab_size
    path = Path(tokenizer.from_)
    library = Tokenizer.from_file(str(path / "tokenizer.json" if path.is_dir() else path))
    return max(library.get_vocab(with_added_tokens=True).values()) + 1 + len(tokenizer.add)


def _settings(recipe: Recipe, plan: ModelPlan, steps: int | None, ranks: int, span: float, gpu: bool) -> Settings:
    train, config, batch = recipe.train, plan.config, batch_samples(recipe.train)
    start = start_of(recipe)
    optimizer, _ = choose(train.optimizer, start)
    rate, _ = default_rate(optimizer, config.hidden_parameters(), start)
    flops = config.flops_per_token(span) * batch * train.sequence_length
    compiled = isinstance(config, ModelConfig) and compiles(train, flops, steps, ranks, gpu)[0]
    settings = Settings(
        steps=steps,
        batch=batch,
        micro_tokens=train.micro_batch_tokens or MICRO_TOKENS,
        optimizer=optimizer,
        learning_rate=train.learning_rate or rate,
        evaluate_every=0,
        checkpoint_every=0,
        compile=compiled,
        seed=seed_of(recipe),
        threads=threads_for(1),
    )
    return settings if steps is None else with_steps(settings, steps, train)
