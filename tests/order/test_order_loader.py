"""The loader: every rank's part of every step, whatever the ranks, the resume point and the read-ahead."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from order_corpora import Corpus, corpora, corpus, curricula, recipes

from sheaf.corpus.columns import save_array
from sheaf.corpus.documents import DTYPES, Documents
from sheaf.errors import CorruptStore, UsageError
from sheaf.order.balance import EmptyStep
from sheaf.order.gather import Gatherer
from sheaf.order.loader import Batch, Loader, micro
from sheaf.order.order import Order
from sheaf.order.trace import trace_step
from sheaf.recipe import Change, MixtureEntry, Packing


def batches(order: Order, made: Corpus, **options: Any) -> list[Batch]:
    with Loader(order, made.token_files, **options) as loader:
        return list(loader)


def contents(parts: list[Batch]) -> list[tuple[bytes, ...]]:
    """The rows of some parts of a step without their padding, as a sorted list of their arrays' bytes."""
    found: list[tuple[bytes, ...]] = []
    for p in parts:
        lengths = (p.document_ids >= 0).sum(axis=1)
        assert ((p.labels == -100) | (p.document_ids >= 0)).all()
        for i in np.flatnonzero(lengths):
            arrays = (p.input_ids, p.labels, p.position_ids, p.document_ids)
            found.append(tuple(a[i, : lengths[i]].tobytes() for a in arrays))
    return sorted(found)


def loader_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("sheaf-loader")]


@settings(max_examples=50, deadline=None)
@given(made=corpora, data=st.data())
def test_each_step_is_the_same_set_on_any_ranks_of_any_speed_resumed_anywhere(
    made: Corpus, data: st.DataObject
) -> None:
    batch, packing = data.draw(st.integers(1, 16)), data.draw(st.sampled_from(get_args(Packing)))
    mixture = {name: MixtureEntry() for name in made.names} | data.draw(recipes(made))
    seed, curriculum = data.draw(st.integers(0, 9)), data.draw(curricula(made))
    order = made.order(mixture=mixture, curriculum=curriculum, batch=batch, packing=packing, seed=seed)
    steps, first = 12, data.draw(st.sampled_from([0, 0, 3, 10**7]))
    alone = {b.step: b for b in batches(order, made, start=first, stop=first + steps, prefetch=0)}
    assert sorted(alone) == list(range(first, first + steps))
    at = first
    while at < first + steps:  # a life of this cluster: some ranks, until some step
        world, until = data.draw(st.integers(1, batch)), data.draw(st.integers(at + 1, first + steps))
        speeds = data.draw(st.none() | st.lists(st.sampled_from([0.1, 1.0, 2.0, 3.7]), min_size=world, max_size=world))
        size, state = data.draw(st.integers(1, 5)), json.loads(json.dumps(order.state(at)))
        ranks: list[list[Batch]] = []
        for rank in range(world):
            place = {"rank": rank, "world": world, "prefetch": rank % 2}
            with Loader(order, made.token_files, stop=until, speeds=speeds, **place) as loader:
                loader.load_state_dict(state)
                ranks.append(list(loader))
        for parts in zip(*ranks, strict=True):
            whole = alone[parts[0].step]
            assert contents(list(parts)) == contents([whole])
            assert {p.valid_tokens for p in parts} == {whole.valid_tokens} == {int((whole.labels != -100).sum())}
            assert sorted(set(np.concatenate([p.samples for p in parts]).tolist())) == list(range(batch))
            assert {p.digest for p in parts} == {whole.digest}
            passes = [micro(part, size) for part in parts]
            assert len({len(p) for p in passes}) == 1
            for part, own in zip(parts, passes, strict=True):
                assert contents(own) == contents([part])
                assert all(p.input_ids.size <= size * order.sequence_length for p in own)
                assert all(len(p.input_ids) > 0 for p in own)
                assert packing == "padded" or len({p.input_ids.shape for p in own}) == 1
        at = until


@settings(max_examples=25, deadline=None)
@given(made=corpora, epochs=st.integers(1, 3), data=st.data())
def test_over_whole_epochs_every_prediction_of_every_record_is_handed_out_exactly_so_often(
    made: Corpus, epochs: int, data: st.DataObject
) -> None:
    """Whatever the weights on the way, the packing and the ranks: the caps say how often."""
    packing, world = data.draw(st.sampled_from(get_args(Packing))), data.draw(st.integers(1, 4))
    mixture = {
        name: MixtureEntry(weight=data.draw(st.sampled_from([0.5, 1, 9])), max_epochs=epochs) for name in made.names
    }
    order = made.order(mixture=mixture, curriculum=data.draw(curricula(made)), batch=1, packing=packing)
    handed = Counter[tuple[int, int]]()
    for step in range(order.steps or 0):
        (sample,) = trace_step(order, step)
        handed.update((run.document, at) for run in sample.runs for at in range(run.start, run.end))
    lengths = made.documents.length.tolist()
    assert handed == {(document, at): epochs for document, n in enumerate(lengths) for at in range(n - 1)}
    whole = (
        made.order(mixture=mixture, curriculum=order.curriculum, batch=world, packing=packing)
        if (order.steps or 0) >= world
        else None
    )
    if whole is not None and whole.steps:
        parts = [b for rank in range(world) for b in batches(whole, made, rank=rank, world=world, prefetch=0)]
        held = sum(int((p.document_ids >= 0).sum()) for p in parts)
        assert held == sum(whole.valid_tokens(step) for step in range(whole.steps))


@settings(max_examples=40, deadline=None)
@given(
    made=corpora,
    step=st.integers(0, 10**6),
    kind=st.sampled_from([np.uint16, np.uint32]),
    packing=st.sampled_from(get_args(Packing)),
)
def test_a_batch_holds_exactly_the_tokens_that_the_trace_names(
    made: Corpus, step: int, kind: Any, packing: Packing
) -> None:
    """The twin of the gathering kernel: each row written run by run from the documents' tokens."""
    made = Corpus(made.documents, made.names, [f.astype(kind) for f in made.token_files])
    order = made.order(batch=3, packing=packing)
    (batch,) = batches(order, made, start=step, stop=step + 1)
    for sample in trace_step(order, step):
        here = np.flatnonzero(batch.samples == sample.slot)
        rows = [sample.runs] if packing != "padded" else [(run,) for run in sample.runs]
        width = batch.input_ids.shape[1]
        narrow = max(run.end - run.start for run in sample.runs)  # the trace counts the rows of this sample alone
        for row, runs in zip(here, rows, strict=True):
            inputs, labels = np.zeros(width, np.int64), np.full(width, -100)
            positions, numbers = np.zeros(width, np.int64), np.full(width, -1)
            at = 0
            for number, run in enumerate(runs):
                tokens, n = made.tokens(run.document), run.end - run.start
                inputs[at : at + n] = tokens[run.start : run.end]
                labels[at : at + n] = tokens[run.start + 1 : run.end + 1]
                positions[at : at + n], numbers[at : at + n] = np.arange(n), number
                assert run.position == (at if packing != "padded" else narrow * (row - here[0]))
                at += n
            positions[at:] = np.arange(width - at)
            for name, expected in (
                ("input_ids", inputs),
                ("labels", labels),
                ("position_ids", positions),
                ("document_ids", numbers),
            ):
                assert np.array_equal(getattr(batch, name)[row], expected), name


@settings(max_examples=30, deadline=None)
@given(made=corpora, step=st.integers(0, 100), packing=st.sampled_from(get_args(Packing)))
def test_cu_seqlens_bound_the_documents_of_the_rows_laid_one_after_another(
    made: Corpus, step: int, packing: Packing
) -> None:
    (batch,) = batches(made.order(batch=3, packing=packing), made, start=step, stop=step + 1)
    expected = [0]
    for row in batch.document_ids:
        for _, group in itertools.groupby(row.tolist()):
            expected.append(expected[-1] + len(list(group)))
    assert batch.cu_seqlens.tolist() == expected and batch.cu_seqlens.dtype == np.int32
    assert batch.max_seqlen == max(np.diff(expected))
    flat = batch.position_ids.ravel()
    assert all((flat[a:b] == np.arange(b - a)).all() for a, b in itertools.pairwise(expected))


def test_passes_of_a_rank_cost_about_the_same_and_those_of_slow_ranks_are_smaller() -> None:
    rng = np.random.default_rng(0)
    made = corpus([rng.integers(2, 60, 2000).tolist()])
    order = made.order(batch=48, sequence_length=256)
    sizes: dict[tuple[int, int], int] = {}
    for speeds, number in ((None, 0), ([1.0, 2.0, 3.0], 1)):
        for rank in range(3):
            (batch,) = batches(order, made, rank=rank, world=3, stop=1, speeds=speeds)
            passes = micro(batch, 4)
            cost = [((p.document_ids >= 0) * (256 + p.position_ids)).sum() for p in passes]
            assert len(passes) == (4, 6)[number]
            assert number == 1 or max(cost) < 1.1 * np.mean(cost)
            sizes[number, rank] = passes[0].input_ids.size
    assert sizes[0, 0] == sizes[0, 1] == sizes[0, 2] == 4 * 256
    assert [sizes[1, rank] // 256 for rank in range(3)] == [2, 3, 4]


def test_the_last_held_out_step_may_leave_a_rank_without_samples_but_not_without_micro_batches() -> None:
    made = corpus([[17] * 100])
    order = made.order(held_out=0.3, split="held_out", batch=7)
    last = (order.steps or 0) - 1
    left = len(order.samples(last))
    assert 0 < left < 7
    parts = [batches(order, made, rank=rank, world=7, start=last)[0] for rank in range(7)]
    assert sum(len(p.samples) for p in parts) == left
    assert [len(micro(p, 2)) for p in parts] == [1] * 7
    empty = micro(parts[-1], 2)[0]
    assert len(parts[-1].samples) == 0 and empty.input_ids.shape == (1, 16) and (empty.labels == -100).all()


def test_a_state_says_what_was_handed_out_not_what_was_read_ahead() -> None:
    made = corpus([[9] * 80])
    order = made.order()
    expected = [b.input_ids for b in batches(order, made, stop=10, prefetch=0)]
    loader = Loader(order, made.token_files, stop=10, prefetch=4)
    for batch in loader:
        if batch.step == 3:
            break
    assert loader.state_dict()["step"] == 4
    rest = list(loader)
    assert [b.step for b in rest] == [4, 5, 6, 7, 8, 9]
    loader.seek(2)
    assert np.array_equal(next(iter(loader)).input_ids, expected[2])
    loader.close()


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_no_thread_outlives_a_break_an_exception_or_the_end(prefetch: int) -> None:
    made = corpus([[9] * 80])
    order = made.order()
    for _ in Loader(order, made.token_files, prefetch=prefetch):
        assert loader_threads()
        break
    assert loader_threads() == []
    with pytest.raises(KeyError), Loader(order, made.token_files, prefetch=prefetch) as loader:
        for _ in loader:
            raise KeyError
    assert loader_threads() == []
    assert len(list(Loader(order, made.token_files, stop=6, prefetch=prefetch))) == 6
    assert loader_threads() == []
    loader = Loader(order, made.token_files, prefetch=prefetch)
    running = iter(loader)
    next(running)
    loader.close()
    assert loader_threads() == [] and list(running) == []


def test_an_index_that_points_outside_its_file_is_named_and_ends_the_iteration() -> None:
    made = corpus([[9] * 80], shards=2)
    short = [made.token_files[0], made.token_files[1][:-1]]
    with pytest.raises(CorruptStore, match="outside its token file") as caught:
        list(Loader(made.order(), short, stop=40))
    assert "token file 1" in caught.value.where
    assert loader_threads() == []
    with pytest.raises(CorruptStore, match="uint16 or uint32"):
        Gatherer(made.order(), [made.token_files[0].astype(np.int64)])


def test_memory_mapped_files_and_a_kept_pack_give_the_same_batches(tmp_path: Path) -> None:
    made = corpus([[9] * 80, [40] * 20], shards=3)
    for name in DTYPES:
        save_array(tmp_path / f"{name}.npy", getattr(made.documents, name))
    for shard, tokens in enumerate(made.token_files):
        tokens.tofile(tmp_path / f"{shard}.bin")
    mapped = Corpus(
        Documents.open(tmp_path), made.names, [np.memmap(tmp_path / f"{s}.bin", np.uint16, "r") for s in range(3)]
    )
    for _ in range(2):  # the pack is made, then found
        order = mapped.order(cache=tmp_path / "packs")
        for ours, theirs in zip(batches(order, mapped, stop=9), batches(made.order(), made, stop=9), strict=True):
            assert contents([ours]) == contents([theirs]) and ours.digest == theirs.digest


def test_ranks_that_cannot_be_are_refused() -> None:
    made = corpus([[9] * 80])
    with pytest.raises(EmptyStep):
        Loader(made.order(batch=2), made.token_files, rank=0, world=3)
    with pytest.raises(UsageError):
        Loader(made.order(), made.token_files, rank=2, world=2)
    for speeds in ([1.0], [1.0, 0.0], [1.0, float("nan")], [1.0, float("inf")]):
        with pytest.raises(UsageError, match="no speeds of 2 ranks"):
            Loader(made.order(), made.token_files, rank=0, world=2, speeds=speeds)


def test_a_seek_to_step_ten_million_costs_less_than_a_tenth_of_a_second_on_any_ranks() -> None:
    """Of processor time, with the batch; the machine may be busy."""
    made = corpus([[30] * 4000, [90] * 500, [9] * 2000])
    changes = tuple(Change(at=i * 50_000, weights={"source-1": 1 + i % 3}) for i in range(100))
    order = made.order(mixture={"source-0": MixtureEntry(weight=2)}, curriculum=changes, batch=64)
    for rank, world, prefetch in ((0, 1, 0), (5, 16, 2), (63, 64, 4)):
        with Loader(order, made.token_files, rank=rank, world=world, prefetch=prefetch) as loader:
            next(iter(loader))  # kernels are compiled once a machine
            state = order.state(10_000_000)
            begin = time.process_time()
            loader.load_state_dict(state)
            batch = next(iter(loader))
            seconds = time.process_time() - begin
        assert batch.step == 10_000_000 and len(batch.samples) == 64 // world
        assert seconds < 0.1
    begin = time.process_time()
    traced = trace_step(order, 10_000_000)  # what `sheaf trace` recomputes
    assert time.process_time() - begin < 0.1 and len(traced) == 64


def test_pytorch_s_own_data_loader_serves_the_same_batches() -> None:
    made = corpus([[9] * 80])
    order = made.order()
    ours = batches(order, made, stop=5)
    served = list(torch.utils.data.DataLoader(Loader(order, made.token_files, stop=5).torch(), batch_size=None))
    assert [b["step"] for b in served] == [b.step for b in ours]
    for theirs, mine in zip(served, ours, strict=True):
        assert theirs["input_ids"].dtype == theirs["labels"].dtype == theirs["position_ids"].dtype == torch.int64
        assert theirs["document_ids"].dtype == torch.int32
        for name in ("input_ids", "labels", "position_ids", "document_ids"):
            assert np.array_equal(theirs[name].numpy(), getattr(mine, name))
        assert theirs["valid_tokens"] == mine.valid_tokens


def test_batches_of_torch_have_the_tensors_that_are_asked_for() -> None:
    made = corpus([[9] * 80])
    (mine,) = batches(made.order(), made, stop=1)
    (theirs,) = Loader(made.order(), made.token_files, stop=1).torch(["labels", "cu_seqlens"])
    assert set(theirs) == {"labels", "cu_seqlens", "step", "valid_tokens", "replaced"}
    assert theirs["cu_seqlens"].tolist() == mine.cu_seqlens.tolist() and theirs["replaced"] == 0
    with pytest.raises(UsageError, match="no tensors"):
        Loader(made.order(), made.token_files).torch(["attention_mask"])


def test_memory_is_used_again_only_when_nothing_of_the_batch_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sheaf.order.loader.GATHERED_TOKENS", 1)  # a piece of memory for every batch
    made = corpus([[9] * 400])
    loader = Loader(made.order(), made.token_files, prefetch=0)
    kept, copies, places = [], [], set[int]()
    for batch in loader:
        places.add(batch.input_ids.ctypes.data)
        if batch.step % 10 == 0:  # by a view of a view, by a tensor, by the batch
            view = (batch.input_ids[1:][:, 2:], torch.from_numpy(batch.labels), batch)[batch.step // 10 % 3]
            kept.append(view)
            copies.append(np.array(getattr(view, "input_ids", view).tolist()))
        if batch.step == 90:
            break
    assert len(places) < 40
    assert all(np.array_equal(getattr(view, "input_ids", view), copy) for view, copy in zip(kept, copies, strict=True))
