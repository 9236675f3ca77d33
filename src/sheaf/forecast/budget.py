"""`sheaf plan --budget "6 hours"` or `"100 EUR"`: the other way round, from time or money to model, tokens and layout.

Of many shapes of one family each is put to the forecast: how many tokens a second it would get here, in its best layout
that fits, and so how many tokens D the budget is for a model of N weights. The one with the least loss by

    L(N, D) = 1.8172 + 482.01 / N^0.3478 + 2085.43 / D^0.3658        (nats a token)

is taken: the parametric law of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.3) as Besiroglu et al. 2024 (arXiv
2404.10102) fitted it again to the same runs, whose first fit was off. It speaks of one epoch of web text and of N from
44 M to 16 B; what lies outside is said to. Tokens that are seen again teach less; up to about four epochs hardly so
(Muennighoff et al. 2023, arXiv 2305.16264). Cost: some thirty shapes in the cost model, the memory of a few.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from sheaf.errors import UsageError
from sheaf.forecast.layouts import Row, fitting
from sheaf.forecast.subject import Subject
from sheaf.forecast.training import Learned, chosen
from sheaf.forecast.where import Where
from sheaf.model.config import ModelConfig
from sheaf.parallel.cost import step_seconds
from sheaf.parallel.layout import describe, possible
from sheaf.train.plan import ModelPlan

SOURCE = "L(N, D) of Hoffmann et al. 2022, section 3.3, as fitted by Besiroglu et al. 2024 (arXiv 2404.10102)"
E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
LEAST_N, MOST_N = 44e6, 16e9  # parameters of the runs that it was fitted to
EPOCHS = 4.0  # as good as new up to here
UNITS = {"s": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "day": 86400, "week": 604800}
Json = dict[str, Any]


def loss(parameters: float, tokens: float) -> float:
    """Nats a token after so many tokens, of a model of so many weights."""
    return E + A / parameters**ALPHA + B / tokens**BETA


def budget_seconds(words: str, price: float | None, ranks: int) -> tuple[float, str]:
    """(seconds, currency or "") of a budget. price: of an hour of one of so many ranks."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z€$£]+)\s*", words)
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"this is no budget: {words}", fix='write it as in --budget "6 hours" or --budget "100 EUR"')
    number, unit = float(found[1]), found[2]
    short = unit.lower().removesuffix("s") or unit.lower()
    if short in UNITS:
        return number * UNITS[short], ""
    if price is None:
        raise UsageError(
            f"nobody knows what {words} buys", fix="give --price, what an hour of one process or GPU costs"
        )
    return 3600 * number / (price * ranks), unit


@dataclass(frozen=True)
class _Try:
    subject: Subject
    seconds: float  # of a step
    tokens: float
    loss: float


def afforded(subject: Subject, where: Where, words: str, price: float | None) -> Json:
    """What a budget buys: {"words", "seconds", "parameters", "hidden_size", "layers", …, "tokens", "steps", "epochs",
    "layout", "loss", "source", "notes", "change": [words of a command line]}. Raises UsageError if no shape fits."""
    seconds, currency = budget_seconds(words, price, where.place.ranks)
    tried = sorted(_tries(subject, where, seconds), key=lambda one: one.loss)
    for one in tried[:8]:
        good, _ = fitting(one.subject, where.place, most=1)
        row = chosen(one.subject, where, good)
        if row is not None and not row.reason:
            return _told(one, row, seconds, currency, words)
    raise UsageError("no model that this budget suits fits there", where=words, fix="more ranks, or a larger machine")


def _tries(subject: Subject, where: Where, seconds: float) -> Iterator[_Try]:
    for config in shapes(subject.plan.config):
        plan = ModelPlan(config, None, frozenset(), config.parameters(), config.parameters())
        other = replace(subject, plan=plan)
        step = _step(other, where)
        if step is None or step > seconds:
            continue
        tokens = seconds / step * subject.positions * subject.filled
        yield _Try(other, step, tokens, loss(config.parameters(), tokens))


def _step(subject: Subject, where: Where) -> float | None:
    """Of the fastest layout, whether it fits or not; a tenth of the time is for what is not a step."""
    facts, place = subject.facts(where.place.ranks), where.place
    layouts = possible(place.ranks, facts)
    factor = Learned.of(subject, where).step.factor
    taken = min((step_seconds(one, facts, place.machine) for one in layouts), default=None)
    return None if taken is None else taken * factor / 0.9


def shapes(like: object) -> Iterator[ModelConfig]:
    """Models of one family, from 64 wide to 16,384: deeper as they are wider, heads of 64, then of 128."""
    if not isinstance(like, ModelConfig):
        raise UsageError("a budget chooses among models from scratch", fix="leave model.from out, or give a preset")
    for hidden in _widths():
        head = 64 if hidden < 2048 else 128
        heads = hidden // head
        yield replace(
            like,
            hidden_size=hidden,
            num_hidden_layers=max(2, min(96, round(hidden / (64 if hidden < 2048 else 110)))),
            num_attention_heads=heads,
            num_key_value_heads=next(kv for kv in (8, 4, 2, 1) if heads % kv == 0 and kv <= heads),
            head_dim=head,
            intermediate_size=round(hidden * 8 / 3 / 64) * 64,
            window_layers=None,
        )


def _widths() -> Iterator[int]:
    width = 64.0
    seen = 0
    while width <= 16384:
        hidden = round(width / 64) * 64 if width < 2048 else round(width / 512) * 512
        if hidden != seen:
            yield hidden
        seen, width = hidden, width * 1.22


def _told(one: _Try, row: Row, seconds: float, currency: str, words: str) -> Json:
    config, subject = one.subject.plan.config, one.subject
    if not isinstance(config, ModelConfig) or row.cost is None:
        raise AssertionError("shapes are of our code, and a layout that can be has a cost")
    steps = max(1, round(seconds / one.seconds))
    have = float(subject.corpus["tokens"]["value"]) * (1 - subject.recipe.train.held_out)
    epochs = one.tokens / max(have, 1.0)
    shape = {
        "hidden_size": config.hidden_size, "layers": config.num_hidden_layers, "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads, "intermediate_size": config.intermediate_size,
    }  # fmt: skip
    return {
        "words": words,
        "seconds": seconds,
        "currency": currency,
        "parameters": config.parameters(),
        **shape,
        "tokens": round(one.tokens),
        "steps": steps,
        "epochs": epochs,
        "layout": describe(row.layout),
        "step_seconds": row.cost.seconds,
        "loss": one.loss,
        "source": SOURCE,
        "notes": list(_notes(config.parameters(), epochs)),
        "change": [*(f"model.{key}={value}" for key, value in shape.items()), f"train.budget='{{steps: {steps}}}'"],
    }


def _notes(parameters: int, epochs: float) -> Iterator[str]:
    if not LEAST_N <= parameters <= MOST_N:
        yield f"the law was fitted to models of {LEAST_N / 1e6:.0f} M to {MOST_N / 1e9:.0f} B weights: this is a guess"
    if epochs > EPOCHS:
        yield (
            f"the data would be gone through {epochs:.1f} times: beyond about {EPOCHS:g} epochs it teaches little more "
            "(Muennighoff et al. 2023); more data, or a smaller budget"
        )
