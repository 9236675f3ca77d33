"""The order of training: a pure function from a position to the samples of that global step.

(corpus fingerprint, sequence length, packing, global batch, seed, mixture and its curriculum, held-out share) → an
endless or finite sequence of global steps. Step N is slots [N·batch, (N+1)·batch) of the mixture (`mix`); a slot is a
draw of a source; draw k of a source with n samples is epoch k // n, and the shuffle of that epoch (`shuffle`) says
which sample of the pack (`pack`) it is. Nothing is stored and nothing is walked through: step 10 million costs what
step 0 costs.

The held-out split is the same machine with the shuffle off and one pass: the sources in proportion to their size,
each in the order of its pack, the last step perhaps smaller than a batch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sheaf.corpus.documents import Documents
from sheaf.errors import DataRefused, UsageError
from sheaf.order.balance import check_ranks, sample_cost, split_by_cost
from sheaf.order.digest import digest_of_samples
from sheaf.order.losses import Loss, predicted
from sheaf.order.mix import Mixture, resolve_mixture
from sheaf.order.pack import Pack, packed
from sheaf.order.shuffle import permute, shuffle_key, unpermute
from sheaf.recipe import Change, MixtureEntry, Packing

VERSION = 2  # raise it whenever the same arguments would give other steps
Split = Literal["train", "held_out"]


@dataclass(frozen=True, eq=False)
class SampleRef:
    """Samples, by slot. source: int32 (n,). epoch: int64 (n,), of that source. index: int64 (n,), in its pack."""

    source: NDArray[np.int32]
    epoch: NDArray[np.int64]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, eq=False)
class Runs:
    """The runs of some samples, sample after sample (r = runs).

    sample: int64 (r,), position of the sample among those asked for. document: int64 (r,), row of Documents.
    start, length: int64 (r,), the inputs [start, start + length) of that document.
    """

    sample: NDArray[np.int64]
    document: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Use:
    """One use of (a part of) a document: `slot` counts from 0 inside the step; `tokens` of it are inputs there."""

    document: int
    step: int
    slot: int
    source: int
    epoch: int
    tokens: int


@dataclass(frozen=True, eq=False)
class Order:
    """Made by `Order.build`. All methods are pure; `step` counts from 0."""

    documents: Documents
    source_names: tuple[str, ...]
    fingerprint: str
    sequence_length: int
    batch: int
    seed: int
    entries: dict[str, MixtureEntry]
    held_out: float
    split: Split
    pack: Pack
    mixture: Mixture
    losses: tuple[Loss, ...] = ()
    packing: Packing = "best-fit"
    curriculum: tuple[Change, ...] = ()

    @staticmethod
    def build(
        documents: Documents,
        source_names: Sequence[str],
        fingerprint: str,
        *,
        sequence_length: int,
        batch: int,
        seed: int,
        mixture: dict[str, MixtureEntry],
        held_out: float,
        split: Split = "train",
        cache: Path | None,
        losses: Sequence[Loss] = (),
        packing: Packing = "best-fit",
        curriculum: Sequence[Change] = (),
    ) -> Order:
        """Pack (or find the pack in the folder `cache`) and resolve the mixture.

        batch: samples of a global step. held_out: share of the documents, by id. losses: by number of shard, which
        tokens are to be predicted; none: all. curriculum: changes of weights at steps; of two at one step the later
        one counts. Raises DataRefused if there is nothing to train on or not enough for one step; an empty held-out
        split is an order of 0 steps, and a curriculum is nothing to it.
        """
        if sequence_length < 1 or batch < 1:
            raise UsageError(f"a step needs samples and tokens, not {batch} samples of {sequence_length} tokens")
        names = tuple(source_names)
        pack = packed(documents, len(names), fingerprint, sequence_length, held_out, split, cache, losses, packing)
        if split == "held_out":
            samples_s = pack.source_samples
            mixed = Mixture(pack.source_tokens.astype(np.float64), pack.source_tokens, samples_s, samples_s)
        else:
            mixed = _training_mixture(names, mixture, curriculum, pack, batch)
        return Order(
            documents,
            names,
            fingerprint,
            sequence_length,
            batch,
            seed,
            dict(mixture),
            held_out,
            split,
            pack,
            mixed,
            tuple(losses),
            packing,
            tuple(curriculum),
        )

    @property
    def steps(self) -> int | None:
        """Whole steps until all sources are spent, None if they never are. (Held out: the last step may be smaller.)"""
        if self.mixture.total is None:
            return None
        total = self.mixture.total
        return -(-total // self.batch) if self.split == "held_out" else total // self.batch

    def of_sources(self, names: Collection[str]) -> Order:
        """A held-out order with these sources alone. Raises UsageError for another order, or a name that is none."""
        if self.split != "held_out":
            raise UsageError("an order of training is narrowed by its mixture, not by sources")
        if odd := sorted(set(names) - set(self.source_names)):
            raise UsageError(f"there is no source '{odd[0]}'", fix=f"sources: {', '.join(self.source_names)}")
        taken_s = np.isin(self.source_names, list(names))
        return replace(self, mixture=replace(self.mixture, share_s=np.where(taken_s, self.mixture.share_s, 0.0)))

    def steps_for(self, epochs: float) -> int:
        """Steps that draw `epochs` times as many samples as the mixture's sources hold, rounded up, within `steps`."""
        samples = int(self.pack.source_samples[self.mixture.ever_drawn_s].sum())
        steps = math.ceil(epochs * samples / self.batch)
        return steps if self.steps is None else min(steps, self.steps)

    def samples(self, step: int) -> SampleRef:
        """The samples of a global step, by slot. Raises IndexError beyond the last step."""
        return self.samples_of_slots(*self.slot_range(step, step + 1))

    def slot_range(self, step_from: int, step_to: int) -> tuple[int, int]:
        """The slots of steps [step_from, step_to). Raises IndexError beyond the last step."""
        if step_from < 0 or (self.steps is not None and step_to > self.steps):
            raise IndexError(f"steps {step_from} to {step_to} lie outside the order, which has {self.steps}")
        end = step_to * self.batch
        return step_from * self.batch, end if self.mixture.total is None else min(end, self.mixture.total)

    def samples_of_slots(self, slot_from: int, slot_to: int) -> SampleRef:
        """The samples of any range of slots: many steps at once cost less than one by one."""
        source, draw = self.mixture.draws(slot_from, slot_to)
        samples_n = self.pack.source_samples[source]
        epoch = draw // samples_n
        index = draw - epoch * samples_n
        if self.split == "train":
            for at, s, e in _groups(source, epoch):
                index[at] = permute(index[at], int(self.pack.source_samples[s]), self._key(s, e))
        return SampleRef(source, epoch, index)

    def rows(self, samples: SampleRef) -> NDArray[np.int64]:
        """Rows of the pack: int64 (n,)."""
        return self.pack.source_first_sample[samples.source] + samples.index

    def runs(self, samples: SampleRef) -> Runs:
        """The runs of these samples, in their order."""
        sample, run = self.runs_of_rows(self.rows(samples))
        length = self.pack.run_length[run].astype(np.int64)
        return Runs(sample, self.pack.run_document[run], self.pack.run_start[run], length)

    def runs_of_rows(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each run of these rows of the pack the position of its row, and its number: int64 (runs,)."""
        first = self.pack.sample_first_run[rows]
        count = self.pack.sample_first_run[rows + 1] - first
        sample = np.repeat(np.arange(len(rows)), count)
        return sample, np.arange(len(sample)) + np.repeat(first - (np.cumsum(count) - count), count)

    def valid_tokens(self, step: int) -> int:
        """Predictions in the global step: what its loss is divided by."""
        return int(self.pack.sample_valid[self.rows(self.samples(step))].sum(dtype=np.int64))

    def predictions(self, runs: Runs) -> NDArray[np.int64]:
        """How many tokens each run predicts: int64 (runs,); its length, unless the corpus says otherwise."""
        shard, offset = self.documents.shard[runs.document], self.documents.offset[runs.document]
        return predicted(self.losses, shard, offset + runs.start + 1, runs.length)

    def digest(self, step: int) -> str:
        """blake2b-128 of what the step holds: the set of its samples, each the set of its (record id, start, length).

        Independent of the order inside the step, of ranks, shards and file names; equal digests mean equal batches.
        """
        return digest_of_samples(self.documents, self.runs(self.samples(step)))

    def split_ranks(self, step: int, world: int, speeds: tuple[float, ...] | None = None) -> list[NDArray[np.int64]]:
        """For each rank its slots in the step, rising: balanced by cost, their number by speed, or equal within one.

        Raises EmptyStep if a whole step has fewer samples than ranks; held out, a rank may get none of the last step.
        """
        check_ranks(self.batch, world)
        return self.split_rows(self.rows(self.samples(step)), world, speeds)

    def split_rows(
        self, rows: NDArray[np.int64], world: int, speeds: tuple[float, ...] | None = None
    ) -> list[NDArray[np.int64]]:
        """As split_ranks, for the rows of a step's samples."""
        if world == 1:
            return [np.arange(len(rows))]
        return split_by_cost(self.cost(rows), world, speeds)

    def cost(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Relative cost of the samples in these rows of the pack: int64 (n,)."""
        tokens = self.pack.sample_tokens[rows] if self.packing != "padded" else self.positions(rows)
        return sample_cost(tokens.astype(np.int64), self.pack.sample_squares[rows])

    def positions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token positions that are computed for the samples in these rows of the pack, padding included: int64 (n,)."""
        if self.packing != "padded":
            return np.full(len(rows), self.sequence_length, np.int64)
        count, width = self.buckets(rows)
        return count * width

    def buckets(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of padded samples: their rows, a document each, and the width of these, that of the longest: int64 (n,)."""
        count = self.pack.sample_first_run[rows + 1] - self.pack.sample_first_run[rows]
        return count, self.pack.sample_longest[rows].astype(np.int64)

    def by_rows(self) -> Order:
        """The same with every run a sample of its own: what is gathered into the rows of padded batches."""
        return replace(self, pack=replace(self.pack, sample_first_run=np.arange(len(self.pack.run_document) + 1)))

    def weights(self, step: int) -> dict[str, float]:
        """The share of the tokens that each source is asked for at a step; their sum is 1."""
        shares = self.mixture.shares_at(self.slot_range(step, step)[0])
        return dict(zip(self.source_names, shares.tolist(), strict=True))

    def state(self, step: int) -> dict[str, Any]:
        """All that is needed to go on at this step, as small JSON; and all that must not have been otherwise.

        Changes of weights count as far as they lie before the step: what comes later may still be decided. sources:
        of each its samples an epoch, and how many were drawn so far.
        """
        end = step * self.batch
        drawn = self.mixture.counts(end if self.mixture.total is None else min(end, self.mixture.total))
        sizes = zip(self.pack.source_samples.tolist(), drawn.tolist(), strict=True)
        return {
            "order": VERSION,
            "step": step,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            "packing": self.packing,
            "batch": self.batch,
            "held_out": self.held_out,
            "split": self.split,
            "mixture": {name: [e.weight, e.max_epochs] for name, e in sorted(self.entries.items())},
            "curriculum": [[c.at, dict(c.weights)] for c in self.curriculum if isinstance(c.at, int) and c.at < step],
            "sources": dict(zip(self.source_names, map(list, sizes), strict=True)),
        }

    def check(self, state: dict[str, Any]) -> int:
        """The step of a state, if it is of this very order; else a UsageError naming what differs."""
        step: Any = state.get("step")
        valid = type(step) is int and step >= 0
        now = self.state(step if valid else 0)
        differing = [key for key in now if key != "step" and state.get(key) != now[key]]
        if len(differing) > 1 and "sources" in differing:
            differing.remove("sources")  # it follows from the others
        if differing or not valid:
            raise UsageError(
                "the position belongs to another order of the data: going on would repeat or skip samples",
                where=", ".join(differing) or "step",
                why="; ".join(f"{key} was {state.get(key)!r}, is {now[key]!r}" for key in differing)
                or f"the step is {step!r}",
                fix="go on with the corpus and settings of the run, or start a new run",
            )
        return step

    def steps_of(self, documents: Sequence[int] | NDArray[np.int64], steps: int) -> list[Use]:
        """Every use of these documents (rows of Documents) in the first `steps` steps, by step, then slot.

        A sample with several runs of one document is one use of it. Cost: one pass over the runs, not over the steps.
        """
        end = self.slot_range(0, steps)[1]
        counts = self.mixture.counts(end)
        run = np.flatnonzero(np.isin(self.pack.run_document, np.asarray(documents, np.int64)))
        row = np.searchsorted(self.pack.sample_first_run, run, side="right") - 1
        uses: list[Use] = []
        for s in range(len(self.source_names)):
            mine = (row >= self.pack.source_first_sample[s]) & (row < self.pack.source_first_sample[s + 1])
            if not mine.any():
                continue
            both = np.stack([row[mine], self.pack.run_document[run[mine]]])
            pairs, which = np.unique(both, axis=1, return_inverse=True)
            tokens = np.bincount(which.ravel(), self.pack.run_length[run[mine]]).astype(np.int64)
            index = pairs[0] - self.pack.source_first_sample[s]
            uses += self._uses(s, index, pairs[1], tokens, end, int(counts[s]))
        return sorted(uses, key=lambda use: (use.step, use.slot, use.document))

    def _uses(
        self,
        source: int,
        index: NDArray[np.int64],
        document: NDArray[np.int64],
        tokens: NDArray[np.int64],
        end: int,
        draws: int,
    ) -> list[Use]:
        n = int(self.pack.source_samples[source])
        uses: list[Use] = []
        for epoch in range(-(-draws // n)):
            place = unpermute(index, n, self._key(source, epoch)) if self.split == "train" else index
            draw = epoch * n + place
            drawn = draw < draws
            slot = self.mixture.slots(np.full(int(drawn.sum()), source, np.int32), draw[drawn])
            assert not len(slot) or int(slot.max()) < end
            uses += [
                Use(int(d), int(at) // self.batch, int(at) % self.batch, source, epoch, int(n_tokens))
                for d, at, n_tokens in zip(document[drawn], slot, tokens[drawn], strict=True)
            ]
        return uses

    def _key(self, source: int, epoch: int) -> int:
        return shuffle_key(self.seed, self.source_names[source], epoch)


def _training_mixture(
    names: tuple[str, ...],
    mixture: dict[str, MixtureEntry],
    curriculum: Sequence[Change],
    pack: Pack,
    batch: int,
) -> Mixture:
    if not len(pack.sample_tokens):
        raise DataRefused(
            "there is nothing to train on",
            why="no document with text is left (pictures and sound have none), or all of them are held out",
            fix="look at the ledger for what was dropped, or lower train.held_out",
        )
    if not pack.sample_valid.any():
        raise DataRefused(
            "there is nothing to predict",
            why="all that the assistant says in the conversations is the very first token of a document, or weighs 0",
            fix="look at one of them with `sheaf show`, and at prepare.template",
        )
    mixed = resolve_mixture(names, mixture, pack.source_tokens, pack.source_samples, curriculum, batch)
    if mixed.total is not None and mixed.total < batch:
        raise DataRefused(
            "there is too little data for one step",
            why=f"max_epochs leaves {mixed.total} samples, a global batch takes {batch}",
            fix="raise max_epochs, or lower train.batch_tokens or train.sequence_length",
        )
    return mixed


def _groups(source: NDArray[np.int32], epoch: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], int, int]]:
    """Positions by (source, epoch)."""
    by = np.lexsort((epoch, source))
    changes = (np.diff(source[by]) != 0) | (np.diff(epoch[by]) != 0)
    return [(at, int(source[at[0]]), int(epoch[at[0]])) for at in np.split(by, np.flatnonzero(changes) + 1) if len(at)]
