"""Prove that a layout computes what one process computes, for the user's own model and data.

`verify` runs a few steps on one process and under every layout asked for, on ranks of this machine, over the same
global batches, and compares in every step the loss, the gradient of each parameter, and its change by the update. Each
step begins with the weights of the one process, and its update with the gradients of the one process: so an error is
that of this step, or of this update, and not what an optimiser made of rounding before it (Muon lifts the smallest
directions of a matrix to the size of the largest, AdamW every weight's gradient, however small). The reference is the
definition (DESIGN: ∇w = (1/n) Σ ∇l_i(w) over the global batch; every rank computes its slice of it exactly), run
by the same single-device code with no layout at all.

What differs between two right computations is the order of sums: relative errors of about 1e-6 in fp32 and 1e-2 in
bf16. A missing sum, a wrong factor or a shifted slice is off by 0.1 to 1. The tolerances lie close to the first.

Cost: a launch of ranks for each number of them, then steps × layouts steps of the model; gradients and weights go
through files in a temporary folder, 4 bytes a weight, step and layout.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson
import torch
from safetensors import safe_open
from torch import Tensor

from sheaf.console import Console
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import EnvironmentProblem
from sheaf.files import write_json
from sheaf.model.pieces import Piece, Values
from sheaf.parallel.forker import Forker
from sheaf.parallel.launch import Ended, forker, run_once
from sheaf.parallel.layout import Facts, check_layout, describe, problems, ranks_of
from sheaf.recipe import Communication, Layout, Recipe
from sheaf.train.plan import plan_of

Precision = Literal["fp32", "bf16"]
# Relative, by precision: of a loss, of a parameter's gradient and of its change (norm of the difference over norm).
TOLERANCE: dict[Precision, dict[str, float]] = {
    "fp32": {"loss": 1e-5, "gradient": 1e-5, "change": 1e-4},
    "bf16": {"loss": 2e-3, "gradient": 5e-2, "change": 5e-2},
}
# Of a gradient that was summed in bf16, with all else in fp32: two roundings of 2⁻⁸ at most. A parameter's first update
# divides a gradient by its own size, so what is near zero may turn its sign: 0.17 was seen.
ROUNDED = {"loss": 1e-5, "gradient": 1e-2, "change": 0.5}
IMPORTS = ("sheaf.train.learner", "sheaf.train.setup", "sheaf.parallel.shard")  # what its ranks need
STEPS = 3
SAMPLES = 8  # of a global batch, at least: enough for 4 ranks and two micro-batches


@dataclass(frozen=True)
class Worst:
    """The largest error of a kind: where, and how large."""

    error: float = 0.0
    where: str = ""

    def or_(self, error: float, where: str) -> Worst:
        return Worst(error, where) if not error <= self.error else self  # so that a NaN counts


@dataclass
class Verdict:
    """What a layout's run differs by from one process. holds: all within the tolerances."""

    layout: Layout
    loss: Worst = field(default_factory=Worst)
    gradient: Worst = field(default_factory=Worst)
    change: Worst = field(default_factory=Worst)
    holds: bool = True

    def to_json(self) -> dict[str, Any]:
        kinds = {"loss": self.loss, "gradient": self.gradient, "change": self.change}
        errors = {kind: {"error": worst.error, "where": worst.where} for kind, worst in kinds.items()}
        return {"layout": self.layout.model_dump(), "ranks": ranks_of(self.layout), "holds": self.holds, **errors}


def tolerance(precision: Precision, communication: Communication) -> dict[str, float]:
    """What a layout may differ by from one process, relatively."""
    bounds = TOLERANCE[precision]
    if communication.gradients != "bf16":
        return bounds
    return {kind: max(bound, ROUNDED[kind]) for kind, bound in bounds.items()}


def comparable(communication: Communication) -> Communication:
    """How gradients are summed in a verification: lossy ways are not meant to give what one process does."""
    return Communication() if communication.is_lossy else communication


def verify(
    recipe: Recipe,
    corpus: CorpusVersion,
    layouts: Sequence[Layout],
    *,
    steps: int = STEPS,
    precision: Precision = "fp32",
    console: Console,
    fault: Path | None = None,
) -> list[Verdict]:
    """Compare each layout with one process. fault: a Python file that every rank runs first, for tests.

    Raises UsageError for a layout that cannot be, EnvironmentProblem if ranks die.
    """
    facts = facts_of_verify(recipe, corpus, layouts)
    for layout in layouts:
        check_layout(layout, facts)
    communication = recipe.train.communication
    if communication.is_lossy:
        console.note(
            f"{communication.gradients} gradients are lossy: their steps are not those of one process, and are not"
            " compared; what is compared are the layouts with fp32 sums (docs/communication.md has the loss effect)"
        )
    with tempfile.TemporaryDirectory(prefix="sheaf-verify-") as name:
        folder = Path(name)
        spec = {
            "recipe": orjson.loads(recipe.model_dump_json(by_alias=True)),
            "workspace": str(corpus.workspace.root),
            "corpus": corpus.manifest["corpus"],
            "batch": facts.batch,
            "steps": steps,
            "precision": precision,
            "fault": str(fault) if fault else None,
        }
        reference = Layout()
        with forker("sheaf.train.verify_worker", IMPORTS, 1) as starts:
            for ranks in sorted({1, *map(ranks_of, layouts)}):
                some = [reference] if ranks == 1 else [one for one in layouts if ranks_of(one) == ranks]
                _launch(starts, folder, spec, some, ranks, console)
        truth = _Found(folder, reference)
        bounds = tolerance(precision, communication)
        return [_compare(truth, _Found(folder, layout), bounds) for layout in layouts]


def facts_of_verify(recipe: Recipe, corpus: CorpusVersion, layouts: Sequence[Layout]) -> Facts:
    """What the layouts of a verification depend on: its batch is small, two micro-batches a rank."""
    train, plan = recipe.train, plan_of(recipe, corpus)
    samples = max([SAMPLES, *(2 * one.data * one.shard for one in layouts)])
    return Facts(
        config=plan.config,
        sequence_length=train.sequence_length,
        batch=samples,
        micro_tokens=train.sequence_length,
        compile=False,
        packing=train.packing,
        memory_bytes=float("inf"),
        adapters=plan.lora is not None,
        communication=comparable(train.communication),
    )


def layouts_to_try(ranks: Sequence[int], facts: Facts) -> list[Layout]:
    """For each number of ranks each axis alone, products of two, each schedule; of these, those that can be."""
    found: list[Layout] = []
    axes = ("data", "shard", "context", "tensor", "pipeline")
    for number in ranks:
        for one in axes:
            found.append(Layout.model_validate({one: number}))
            others = [two for two in axes if number % 2 == 0 and number > 2 and one < two]
            found += [Layout.model_validate({one: number // 2, two: 2}) for two in others]
        if number == 8:
            found.append(Layout(data=2, tensor=2, pipeline=2))
        if number % 2 == 0:
            piped = {"data": number // 2, "pipeline": 2}
            found += [Layout.model_validate({**piped, "schedule": s}) for s in ("interleaved", "zero-bubble")]
    return [one for one in dict.fromkeys(found) if not any(problems(one, facts))]


def _launch(
    starts: Forker, folder: Path, spec: Mapping[str, Any], layouts: Sequence[Layout], ranks: int, console: Console
) -> None:
    path = folder / f"spec-{ranks}.json"
    write_json(path, {**spec, "layouts": [layout.model_dump() for layout in layouts]})
    console.note(f"{ranks} {'rank' if ranks == 1 else 'ranks'}: " + ", ".join(describe(one) for one in layouts))
    ended = run_once(starts, [str(path), str(folder)], ranks, folder)
    if ended == Ended():
        return
    left, failed = sorted(folder.glob("failure-*.txt")), ended.failed
    died = f"rank {failed.rank} ended with exit code {failed.code}" if failed else "they were stopped by a signal"
    raise EnvironmentProblem(
        "the ranks of a verification did not end well",
        why=left[0].read_text() if left else died,
        fix="see their output above; fewer ranks or steps need less memory",
    )


class _Found:
    """What the ranks of one layout left: whole tensors, put together from their pieces."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.layout = layout
        where = folder / folder_name(layout)
        self.losses: list[float] = orjson.loads((where / "losses.json").read_bytes())
        self._pieces: dict[str, list[tuple[Path, Piece]]] = {}
        for path in sorted(where.glob("pieces-*.json")):
            file = path.with_suffix(".safetensors")
            for key, (shape, box) in orjson.loads(path.read_bytes()).items():
                piece = Piece(tuple(shape), tuple((a, b) for a, b in box))
                self._pieces.setdefault(key, []).append((file, piece))

    def names(self) -> list[str]:
        return sorted(self._pieces)

    def read(self, key: str) -> Tensor:
        """A whole tensor; NaN where the ranks' pieces leave a gap."""
        pieces = self._pieces.get(key, [])
        whole = torch.full(pieces[0][1].shape if pieces else (1,), torch.nan)
        for file, piece in pieces:
            with safe_open(file, framework="pt") as stored:
                whole[piece.slices] = stored.get_tensor(key).float()
        return whole


def of_one_process(folder: Path, kind: str, step: int) -> Values:
    """What the one process had in a step: the weights "before" it, or its "gradient"."""
    where = folder / folder_name(Layout()) / "pieces-0.safetensors"

    def value(name: str, piece: Piece) -> Tensor:
        with safe_open(where, framework="pt") as stored:
            return stored.get_slice(f"{kind}:{step}:{name}")[piece.slices]

    return value


def folder_name(layout: Layout) -> str:
    """Of a layout's results."""
    return "-".join(str(value) for value in layout.model_dump().values())


def _compare(truth: _Found, found: _Found, tolerance: Mapping[str, float]) -> Verdict:
    verdict = Verdict(found.layout)
    for step, (right, loss) in enumerate(zip(truth.losses, found.losses, strict=True)):
        verdict.loss = verdict.loss.or_(abs(loss - right) / abs(right), f"step {step}")
    for key in truth.names():
        kind, step, name = key.split(":")
        if kind == "before":
            continue
        right, value = truth.read(key), found.read(key)
        error = _relative(right, value) if right.shape == value.shape else float("nan")
        if kind == "change":
            verdict.change = verdict.change.or_(error, f"step {step}, {name}")
        else:
            verdict.gradient = verdict.gradient.or_(error, f"step {step}, {name}")
    errors = {"loss": verdict.loss.error, "gradient": verdict.gradient.error, "change": verdict.change.error}
    verdict.holds = all(errors[kind] <= bound for kind, bound in tolerance.items())
    return verdict


def _relative(right: Tensor, value: Tensor) -> float:
    """Norm of the difference over the norm; absolute where there is nothing to be relative to."""
    scale = right.double().norm().item()
    return (value.double() - right.double()).norm().item() / (scale or 1.0)
