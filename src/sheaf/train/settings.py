"""What the recipe leaves open, decided once before a run and written into its run.json, each with its reason.

A resumed run reads these numbers instead of deciding again: another machine, load or number of cores must not change
the update rule. Everything here is a function of recipe, corpus and machine kind; nothing is timed, so the same recipe
on the same machine decides the same (only a budget in hours is measured, see `hours.py`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from sheaf import allowance
from sheaf.errors import EnvironmentProblem, RecipeError
from sheaf.model.compile import compiler_problem
from sheaf.order.mix import LARGEST_DRAW
from sheaf.order.order import Order
from sheaf.recipe import Budget, Recipe, Train
from sheaf.recipe_file import parse_tokens
from sheaf.train.optimizer import Kind, Start, choose, default_rate, published_batch

MICRO_TOKENS = 8192  # enough rows for full speed of the matrix products; activations of `small` stay near 1 GB
COMPILE_SECONDS = 60.0  # cold cache, two cores, presets tiny to base
# Share of an eager step that compiling saves: measured on a processor, where eager blocks have kernels of their own
# (`model/row_kernels.py`); an estimate on a GPU.
COMPILE_SAVES = {"cpu": 0.15, "cuda": 0.3}
CORE_FLOPS, GPU_FLOPS = 60e9, 150e12  # what an eager bf16 step reaches of a core, of a GPU; only to decide on compiling


@dataclass(frozen=True)
class Settings:
    """steps is None while a budget in hours waits for the first measurement. batch: samples of a global step.
    micro_tokens: tokens of one forward pass. threads: of rank 0's process, when it was alone.
    """

    steps: int | None
    batch: int
    micro_tokens: int
    optimizer: Kind
    learning_rate: float
    evaluate_every: int
    checkpoint_every: int
    compile: bool
    seed: int
    threads: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def micro_samples(self, sequence_length: int, world: int) -> int:
        """Samples of one forward pass: the fewest equal passes of at most micro_tokens over a rank's share."""
        share = -(-self.batch // world)
        most = max(1, self.micro_tokens // sequence_length)
        return -(-share // -(-share // most))


def start_of(recipe: Recipe) -> Start:
    """Where the weights of a new run come from."""
    if recipe.model.lora is not None:
        return "lora"
    return "scratch" if recipe.model.from_ is None else "folder"


def batch_samples(train: Train) -> int:
    """At least one: the recipe sees to that."""
    return train.batch_tokens // train.sequence_length


def seed_of(recipe: Recipe) -> int:
    return recipe.seed if recipe.train.seed is None else recipe.train.seed


def decide(
    recipe: Recipe,
    order: Order,
    *,
    flops_per_token: float,
    hidden_parameters: int,
    ranks: int,
    threads: int,
    gpu: bool,
    built_in: bool = True,
) -> tuple[Settings, list[str]]:
    """The settings of a new run, and a line of reason for each that the recipe left open. built_in: the model is our
    decoder; others are not compiled."""
    train = recipe.train
    steps, reasons = planned_steps(train.budget, order)
    batch = batch_samples(train)
    if batch * train.sequence_length != train.batch_tokens:
        reasons.append(
            f"a global batch of {batch * train.sequence_length:,} tokens: {batch:,} whole samples of "
            f"{train.sequence_length:,}, of the {train.batch_tokens:,} asked for"
        )
    start = start_of(recipe)
    if start == "scratch" and steps is not None:
        reasons.append(_batch_reason(order, steps, hidden_parameters))
    optimizer, why = choose(train.optimizer, start)
    if why:
        reasons.append(f"optimizer {optimizer}: {why}")
    rate, source = default_rate(optimizer, hidden_parameters, start)
    if train.learning_rate is None:
        reasons.append(f"learning rate {rate:g}: {source}")
    compiled, why = False, "the model is of transformers' code, which is run as it is"
    if built_in:
        compiled, why = compiles(train, flops_per_token * order.batch * order.sequence_length, steps, ranks, gpu)
    elif train.compile == "on":
        raise RecipeError("this model is not compiled", where="train.compile: on", why=why, fix="set it to auto")
    reasons.append(f"compile {'on' if compiled else 'off'}: {why}")
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
        threads=threads,
    )
    size = settings.micro_samples(train.sequence_length, ranks)
    reasons.append(
        f"{size} samples in a forward pass: equal parts of the {settings.batch} of a global batch, "
        f"at most {settings.micro_tokens:,} tokens each to bound memory"
    )
    return (settings if steps is None else with_steps(settings, steps, train)), reasons


def _batch_reason(order: Order, steps: int, hidden_parameters: int) -> str:
    """The batch that is taken beside the one that is published for a run of this size: what suits is within a factor
    of two or so, and short runs like small batches, which make more updates."""
    tokens = order.batch * order.sequence_length
    flops = 6.0 * hidden_parameters * tokens * steps
    return (
        f"a global batch of {tokens:,} tokens; a run of {flops:.1e} FLOPs would suit about "
        f"{published_batch(flops):,.0f} (0.292·FLOPs^0.3271, Bi et al. 2024, equation 1)"
    )


def with_steps(settings: Settings, steps: int, train: Train) -> Settings:
    """The settings once the number of steps is known; evaluation and checkpoint are ten times a run by default."""
    tenth = -(-steps // 10)
    return replace(
        settings,
        steps=steps,
        evaluate_every=train.evaluate_every or tenth,
        checkpoint_every=train.checkpoint_every or tenth,
    )


def planned_steps(budget: Budget, order: Order) -> tuple[int | None, list[str]]:
    """How many steps a budget is, and a line of reason; None for a budget in hours."""
    if budget.hours is not None:
        return None, []
    if budget.steps is not None:
        wanted, why = budget.steps, f"budget of {budget.steps:,} steps"
    elif budget.epochs is not None:
        wanted, why = order.steps_for(budget.epochs), f"budget of {budget.epochs:g} epochs"
    else:
        tokens = parse_tokens(budget.tokens or 0)
        _check_reach(tokens // order.sequence_length)
        wanted, why = math.ceil(tokens / mean_tokens(order, tokens)), f"budget of {tokens:,} tokens"
    steps = max(1, wanted)
    _check_reach(steps * order.batch)
    reasons = [f"{steps:,} steps: {why}"]
    if order.steps is not None and order.steps < steps:
        reasons = [f"{order.steps:,} steps instead of {steps:,}: max_epochs of all sources are used up then"]
        steps = order.steps
    return steps, reasons


def _check_reach(samples: int) -> None:
    if samples > LARGEST_DRAW:
        raise RecipeError(
            "the budget reaches further than samples can be numbered",
            where="train.budget",
            why=f"there are numbers for {LARGEST_DRAW:.0e} of them",
            fix="lower train.budget",
        )


def attention_span(order: Order) -> float:
    """Keys that a mean token sees, itself included: documents see nothing of each other."""
    tokens, squares = order.pack.sample_tokens.sum(dtype=float), order.pack.sample_squares.sum(dtype=float)
    return float((squares / tokens + 1) / 2)


def mean_tokens(order: Order, tokens: int) -> float:
    """Predictions of a mean step among those that a budget of tokens will reach; 32 of them are looked at."""
    full = order.batch * order.sequence_length
    reach = max(1, tokens // full)
    reach = reach if order.steps is None else min(reach, order.steps)
    looked_at = sorted({reach * i // 32 for i in range(32)})
    found = sum(order.valid_tokens(step) for step in looked_at) / len(looked_at)
    return found or float(order.pack.sample_valid.mean()) * order.batch  # long prompts: perhaps none is among them


def compiles(train: Train, step_flops: float, steps: int | None, ranks: int, gpu: bool) -> tuple[bool, str]:
    """Whether a run of our decoder is compiled, and why."""
    if train.compile == "off":
        return False, "the recipe says so"
    if train.packing == "padded":
        return False, "padded batches have a shape of their own in every step, and each would be compiled anew"
    problem = "" if gpu else compiler_problem()
    if train.compile == "on" and problem:
        raise EnvironmentProblem(
            "the model cannot be compiled on this machine",
            where="train.compile: on",
            why=problem,
            fix="install a C++ compiler and Python's headers, or set train.compile to auto or off",
        )
    if train.compile == "on":
        return True, "the recipe says so"
    if problem:
        return False, problem
    if steps is None:
        seconds = 3600.0 * (train.budget.hours or 0.0)
    else:
        seconds = step_flops * steps / (GPU_FLOPS * ranks if gpu else CORE_FLOPS * allowance.cores())
    saved = COMPILE_SAVES["cuda" if gpu else "cpu"] * seconds
    why = f"it would save about {saved:.0f} s of some {seconds:.0f} s and costs {COMPILE_SECONDS:.0f} s to compile"
    return saved > COMPILE_SECONDS, why
