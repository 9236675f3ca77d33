"""Pack documents into samples of at most T input tokens, each token exactly once, in one of three ways.

A document of L tokens gives L − 1 inputs (each predicts the next token). No way drops a token; what a sample cannot
hold is cut into runs.

- **best-fit**: documents side by side, none cut that fits. What exceeds T is first cut into whole runs of T, each a
  sample of its own; the remaining *pieces* are placed window by window, the longest first, each into the open sample
  with the least room that still holds it (best-fit decreasing; Johnson 1974; for language models Ding et al., "Fewer
  Truncations Improve Language Modeling", ICML 2024). Open samples stay open for all later windows, so that nothing is
  wasted where windows meet. Windows, rather than one sort of everything, keep short documents spread over all samples.
  The open samples lie in stacks by room left; a binary tree over the T stacks finds the smallest sufficient one in
  O(log T).
- **concatenate**: documents one after another, cut wherever a sample is full; where each begins stays known.
- **padded**: one piece a row. The pieces of a window are sorted by length, and from the longest on as many become the
  rows of one sample as fit: rows · longest <= T. So T is a budget of positions, and a sample is a bucket of pieces of
  about the same length; the order shuffles buckets, and a step holds buckets of many lengths.

Cost: about 0.2 µs a document; memory 20 bytes a run and 24 a sample, written once and memory-mapped.

Deterministic: a function of the documents' ids, lengths, T and the held-out fraction alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sheaf.corpus.documents import Documents
from sheaf.files import checked, digest_of, read_done, task_folder
from sheaf.kernel import kernel
from sheaf.order.held_out import held_out
from sheaf.order.losses import Loss, predicted
from sheaf.recipe import Packing

VERSION = 3  # raise it whenever the same input would be packed otherwise
WINDOW = 4096  # pieces; best-fit wastes of lognormal lengths 0.14% by 256 at once, 0.02% by 4,096, 0.01% by all


@dataclass(frozen=True, eq=False)
class Pack:
    """Samples of all sources as rows, those of source s in [source_first_sample[s], source_first_sample[s + 1]).

    Run i: inputs [run_start[i], run_start[i] + run_length[i]) of document run_document[i] (a row of Documents).
    Sample j: runs [sample_first_run[j], sample_first_run[j + 1]), by document, then start; sample_tokens[j] inputs;
    sample_valid[j] predictions, fewer than inputs where only some tokens are to be predicted; sample_squares[j], the
    sum of its runs' squared lengths, is what attention costs; sample_longest[j], its longest run.
    """

    run_document: NDArray[np.int64]
    run_start: NDArray[np.int64]
    run_length: NDArray[np.int32]
    sample_first_run: NDArray[np.int64]
    sample_tokens: NDArray[np.int32]
    sample_valid: NDArray[np.int32]
    sample_squares: NDArray[np.int64]
    sample_longest: NDArray[np.int32]
    source_first_sample: NDArray[np.int64]
    source_tokens: NDArray[np.int64]

    @property
    def source_samples(self) -> NDArray[np.int64]:
        return np.diff(self.source_first_sample)


def packed(
    documents: Documents,
    sources: int,
    fingerprint: str,
    sequence_length: int,
    fraction: float,
    split: str,
    cache: Path | None,
    losses: Sequence[Loss] = (),
    kind: Packing = "best-fit",
) -> Pack:
    """The pack of one split ("train" or "held_out"): from the cache folder if it is there, else made and kept there.

    losses: by number of shard; they follow from what the fingerprint says.
    """

    def make() -> Pack:
        held = held_out(documents.id, fraction)
        pack = pack_documents(documents, held if split == "held_out" else ~held, sources, sequence_length, kind)
        return _with_losses(pack, documents, losses)

    if cache is None:
        return make()
    folder = cache / digest_of("pack", VERSION, WINDOW, fingerprint, sequence_length, fraction, split, kind)
    return _cached(folder, make)


def pack_documents(
    documents: Documents, chosen: NDArray[np.bool_], sources: int, sequence_length: int, kind: Packing = "best-fit"
) -> Pack:
    """Pack the chosen documents (bool, by row), each source by itself. `sources`: how many there are."""
    border = np.searchsorted(documents.source, np.arange(sources + 1))
    parts = [
        _pack_source(a + np.flatnonzero(chosen[a:b]), documents.length, sequence_length, kind)
        for a, b in itertools.pairwise(border.tolist())
    ]
    runs = [len(p.run_document) for p in parts]
    first_run = [p.sample_first_run[:-1] + base for p, base in zip(parts, np.cumsum([0, *runs]), strict=False)]
    return Pack(
        run_document=np.concatenate([p.run_document for p in parts]),
        run_start=np.concatenate([p.run_start for p in parts]),
        run_length=np.concatenate([p.run_length for p in parts]),
        sample_first_run=np.concatenate([*first_run, [sum(runs)]]).astype(np.int64),
        sample_tokens=np.concatenate([p.sample_tokens for p in parts]),
        sample_valid=np.concatenate([p.sample_tokens for p in parts]),
        sample_squares=np.concatenate([p.sample_squares for p in parts]),
        sample_longest=np.concatenate([p.sample_longest for p in parts]),
        source_first_sample=np.cumsum([0, *(len(p.sample_tokens) for p in parts)]).astype(np.int64),
        source_tokens=np.array([p.sample_tokens.sum(dtype=np.int64) for p in parts], np.int64),
    )


def _with_losses(pack: Pack, documents: Documents, losses: Sequence[Loss]) -> Pack:
    if all(loss is None for loss in losses):
        return pack
    shard = documents.shard[pack.run_document]
    first = documents.offset[pack.run_document] + pack.run_start + 1  # labels are one further than inputs
    counts = predicted(losses, shard, first, pack.run_length.astype(np.int64))
    total = np.concatenate([[0], np.cumsum(counts)])[pack.sample_first_run]
    return replace(pack, sample_valid=np.diff(total).astype(np.int32))


def _cached(folder: Path, make: Callable[[], Pack]) -> Pack:
    names = [f.name for f in fields(Pack)]
    if read_done(folder) is None:
        pack = make()
        with task_folder(folder, task="pack") as temporary:
            for name in names:
                np.save(temporary / f"{name}.npy", getattr(pack, name), allow_pickle=False)
    paths = [checked(folder / f"{name}.npy") for name in names]
    # Plain arrays over the maps: indexing a np.memmap object costs microseconds of Python each time.
    return Pack(*(np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)) for path in paths))


Pieces = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]


def _pack_source(document: NDArray[np.int64], length: NDArray[np.int64], capacity: int, kind: Packing) -> Pack:
    inputs = np.asarray(length[document], np.int64) - 1
    pieces = _concatenated if kind == "concatenate" else _cut
    piece_document, piece_start, piece_length, piece_sample = pieces(document, inputs, capacity)
    if kind == "best-fit":
        samples = _place(piece_length, capacity, WINDOW, piece_sample)
    elif kind == "padded":
        samples = _bucket(piece_length, capacity, WINDOW, piece_sample)
    else:
        samples = int(piece_sample[-1]) + 1 if len(piece_sample) else 0
    first_run, by_sample, tokens, squares, longest = _group(piece_sample, piece_length, samples)
    return Pack(
        run_document=piece_document[by_sample],
        run_start=piece_start[by_sample],
        run_length=piece_length[by_sample],
        sample_first_run=first_run,
        sample_tokens=tokens,
        sample_valid=tokens,
        sample_squares=squares,
        sample_longest=longest,
        source_first_sample=np.array([0, samples], np.int64),
        source_tokens=tokens.sum(dtype=np.int64, keepdims=True),
    )


def _cut(document: NDArray[np.int64], inputs: NDArray[np.int64], capacity: int) -> Pieces:
    """Document, start and length of the pieces of at most `capacity` inputs; which sample each goes to is open."""
    count = -(-inputs // capacity)
    which = np.repeat(np.arange(len(inputs)), count)
    start = (np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)) * capacity
    length = np.minimum(inputs[which] - start, capacity).astype(np.int32)
    return document[which], start, length, np.empty(len(which), np.int64)


def _concatenated(document: NDArray[np.int64], inputs: NDArray[np.int64], capacity: int) -> Pieces:
    """The same where documents lie one after another and samples are `capacity` of all inputs each; their samples."""
    end = np.cumsum(inputs)
    total = int(end[-1]) if len(end) else 0
    borders = np.union1d((end - inputs)[inputs > 0], np.arange(0, total, capacity))
    which = np.searchsorted(end, borders, side="right")
    length = np.diff(borders, append=total).astype(np.int32)
    return document[which], borders - (end - inputs)[which], length, borders // capacity


@kernel
def _mark(tree: NDArray[np.bool_], leaf: int, full: bool) -> None:
    """Set a leaf of the tree (root at 1, children of i at 2i and 2i + 1): a node is true if a leaf under it is."""
    tree[leaf] = full
    while leaf > 1:
        leaf //= 2
        now = tree[2 * leaf] or tree[2 * leaf + 1]
        if tree[leaf] == now:
            return
        tree[leaf] = now


@kernel
def _at_least(tree: NDArray[np.bool_], leaf: int, leaves: int) -> int:
    """The first true leaf at or after this one, or 0."""
    node = leaf
    while not tree[node]:
        while node % 2 == 1:  # a right child: nothing further right under its parent
            node //= 2
            if node == 0:
                return 0
        node += 1
    while node < leaves:
        node = 2 * node if tree[2 * node] else 2 * node + 1
    return node


@kernel
def _place(piece_length: NDArray[np.int32], capacity: int, window: int, piece_sample: NDArray[np.int64]) -> int:
    """Best fit: fill in the sample that each piece goes to; returns the number of samples."""
    leaves = 1
    while leaves <= capacity:
        leaves *= 2
    tree = np.zeros(2 * leaves, np.bool_)
    top = np.full(capacity + 1, -1, np.int64)  # by room left: the newest open sample
    below = np.empty(len(piece_length), np.int64)  # by sample: the next one in its stack
    held = np.empty(window, np.int64)
    samples, count = 0, 0
    for piece in range(len(piece_length)):
        if piece_length[piece] == capacity:
            piece_sample[piece] = samples
            samples += 1
        else:
            held[count] = piece
            count += 1
        if count == window or piece == len(piece_length) - 1:
            samples = _fit(held[:count], piece_length, piece_sample, samples, tree, top, below)
            count = 0
    return samples


@kernel
def _bucket(piece_length: NDArray[np.int32], capacity: int, window: int, piece_sample: NDArray[np.int64]) -> int:
    """Padded: the same; the rows of a sample are the next pieces of a window by length, the longest first."""
    samples = 0
    for first in range(0, len(piece_length), window):
        lengths = -piece_length[first : first + window].astype(np.int64)
        rows, longest = 0, np.int64(0)
        for i in np.argsort(lengths, kind="mergesort"):
            if (rows + 1) * longest > capacity or rows == 0:
                samples += 1
                rows, longest = 0, -lengths[i]
            piece_sample[first + i] = samples - 1
            rows += 1
    return samples


@kernel
def _fit(
    held: NDArray[np.int64],
    piece_length: NDArray[np.int32],
    piece_sample: NDArray[np.int64],
    samples: int,
    tree: NDArray[np.bool_],
    top: NDArray[np.int64],
    below: NDArray[np.int64],
) -> int:
    """Place the pieces of one window, the longest first (equal ones in order); returns the number of samples so far."""
    capacity, leaves = len(top) - 1, len(tree) // 2
    waiting = np.empty(len(held), np.int64)
    for i in range(len(held)):
        waiting[i] = ((capacity - np.int64(piece_length[held[i]])) << 40) | i
    waiting.sort()
    for key in waiting:
        piece = held[key & ((1 << 40) - 1)]
        length = np.int64(piece_length[piece])
        leaf = _at_least(tree, leaves + length, leaves)
        if leaf == 0:
            sample, room = samples, capacity - length
            samples += 1
        else:
            old = leaf - leaves
            sample, room = top[old], old - length
            top[old] = below[sample]
            if top[old] < 0:
                _mark(tree, leaf, False)
        piece_sample[piece] = sample
        if room > 0:
            below[sample] = top[room]
            if top[room] < 0:
                _mark(tree, leaves + room, True)
            top[room] = sample
    return samples


@kernel
def _group(
    piece_sample: NDArray[np.int64], piece_length: NDArray[np.int32], samples: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]:
    """A counting sort of the pieces by sample, keeping the document order inside a sample; and the samples' sums."""
    first = np.zeros(samples + 1, np.int64)
    tokens, squares, longest = np.zeros(samples, np.int32), np.zeros(samples, np.int64), np.zeros(samples, np.int32)
    for i in range(len(piece_sample)):
        length = np.int64(piece_length[i])
        first[piece_sample[i] + 1] += 1
        tokens[piece_sample[i]] += length
        squares[piece_sample[i]] += length * length
        longest[piece_sample[i]] = max(longest[piece_sample[i]], piece_length[i])
    for j in range(samples):
        first[j + 1] += first[j]
    following = first[:-1].copy()
    order = np.empty(len(piece_sample), np.int64)
    for i in range(len(piece_sample)):
        order[following[piece_sample[i]]] = i
        following[piece_sample[i]] += 1
    return first, order, tokens, squares, longest
