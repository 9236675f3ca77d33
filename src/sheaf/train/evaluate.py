"""Loss and bits per byte on the held-out records.

loss: mean nats over the predicted tokens. bits_per_byte: total nats / ln 2 / UTF-8 bytes of the texts, which compares
models with different tokenizers, and with compressors. The code is a complete one: the end of a text is predicted like
any token, and a document's first token, which has nothing before it, is charged ln(vocabulary), as by a uniform code.
Of a document that was evaluated in part, the same part of its bytes counts; of a conversation, what the assistant said
(its bytes, its tokens and the ends of its turns). Cost: one forward pass over the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sheaf.corpus.version import CorpusVersion
from sheaf.errors import DataRefused
from sheaf.order import losses
from sheaf.order.gather import Tokens
from sheaf.order.loader import Loader
from sheaf.order.order import Order
from sheaf.order.replace import Replaced
from sheaf.parallel.mesh import Mesh
from sheaf.parallel.parallelize import How, Spread
from sheaf.parallel.pulse import pulse
from sheaf.parallel.ranks import alone, threads_for
from sheaf.recipe import Layout
from sheaf.train.checkpoint import checkpoint_of
from sheaf.train.learner import measured_loss_sum
from sheaf.train.run import Run
from sheaf.train.setup import DTYPES, exact, order_of


def evaluate(
    spread: Spread,
    corpus: CorpusVersion,
    order: Order,
    token_files: Sequence[Tokens],
    *,
    micro_samples: int,
    tokens: int | None = None,
    tell: Callable[[Replaced], None] | None = None,
) -> dict[str, Any]:
    """{"loss", "bits_per_byte", "tokens", "bytes", "documents"} of an order's held-out split; and "replaced", where
    samples were measured in place of others, which lie in damaged blocks of the corpus.

    tokens: look at whole steps from the first on until that many (None: all). Called by every rank, each computes its
    share. tell: as in Loader. Raises DataRefused if nothing is held out that is to be predicted.
    """
    steps = steps_within(order, tokens)
    if not predicts(order, tokens):
        raise DataRefused(
            "nothing is held out that is to be predicted, so there is nothing to evaluate on",
            why=f"train.held_out is {order.held_out:g} of {len(order.documents):,} documents",
            fix="raise train.held_out",
        )
    nats, replaced, mesh = 0.0, 0, spread.mesh
    samples = mesh.samples
    with Loader(order, token_files, rank=samples.rank, world=samples.size, stop=steps, tell=tell) as loader:
        for batch in loader:
            replaced += len(batch.replaced) if mesh.is_first_of_its_samples else 0
            nats += measured_loss_sum(spread, batch, micro_samples)
            pulse.sign()
    nats, replaced = mesh.ranks.sum([nats, float(replaced)])
    predicted, text_bytes, firsts, documents = _account(corpus, order, steps)
    total = nats + firsts * math.log(corpus.vocab_size)
    return {
        "loss": nats / predicted,
        "bits_per_byte": total / math.log(2) / text_bytes if text_bytes else None,
        "tokens": predicted,
        "bytes": round(text_bytes),
        "documents": documents,
        **({"replaced": int(replaced)} if replaced else {}),
    }


def evaluate_run(run: Path, *, step: int | None = None) -> dict[str, Any]:
    """The whole held-out split with a run's newest (or the given) checkpoint, in this process."""
    opened = Run.open(run)
    corpus = opened.corpus()
    return evaluate_on(opened, corpus, order_of(opened.recipe, corpus, "held_out"), step=step, threads=threads_for(1))


def evaluate_on(
    run: Run, corpus: CorpusVersion, order: Order, *, step: int | None, threads: int, tokens: int | None = None
) -> dict[str, Any]:
    """A run's checkpoint on a held-out order, of its own corpus or of another one in the same tokens, in this process.
    tokens: as in `evaluate`."""
    with exact(threads):
        checkpoint, info = checkpoint_of(run.folder, step)
        size = run.settings.micro_samples(order.sequence_length, 1)
        how = How(lora=checkpoint.lora)
        config, dtype = checkpoint.config, DTYPES[run.recipe.train.precision]
        spread = Spread(config, dtype, Mesh(alone(), Layout()), how, checkpoint.values())
        figures = evaluate(spread, corpus, order, corpus.token_files(), micro_samples=size, tokens=tokens)
    return {**info, **figures}


def steps_within(order: Order, tokens: int | None) -> int:
    """Steps of a held-out order that hold about `tokens` tokens, at least one if there are any."""
    steps = order.steps or 0
    if tokens is None or steps == 0:
        return steps
    return min(steps, max(1, tokens // (order.batch * order.sequence_length)))


def predicts(order: Order, tokens: int | None) -> bool:
    """Whether that part of a held-out order holds a token to predict; a long prompt may fill it."""
    steps = steps_within(order, tokens)
    if steps == 0:
        return False
    rows = order.rows(order.samples_of_slots(*order.slot_range(0, steps)))
    return bool(order.pack.sample_valid[rows].any())


def _account(corpus: CorpusVersion, order: Order, steps: int) -> tuple[int, float, int, int]:
    """(predictions, bytes, documents whose first token is charged too, documents) of the first `steps` steps."""
    if steps == 0:
        return 0, 0.0, 0, 0
    runs = order.runs(order.samples_of_slots(*order.slot_range(0, steps)))
    numbers, place = np.unique(runs.document, return_inverse=True)
    predictions = order.predictions(runs)
    predicted = np.bincount(place, weights=predictions)
    shard, offset = order.documents.shard[numbers], order.documents.offset[numbers]
    possible = losses.predicted(order.losses, shard, offset + 1, order.documents.length[numbers] - 1)
    charged = losses.predicted(order.losses, shard, offset, np.ones(len(numbers), np.int64)) > 0
    begun = np.isin(np.arange(len(numbers)), place[runs.start == 0])
    whole = (predicted == possible) & (possible > 0)
    text_bytes = float(corpus.text_bytes(numbers[whole]))
    partly = (predicted < possible) & (possible > 0)
    for number, share in zip(numbers[partly], predicted[partly] / possible[partly], strict=True):
        text_bytes += float(share) * corpus.text_bytes(np.array([number]))
    return int(predictions.sum()), text_bytes, int((begun & charged).sum()), len(numbers)
