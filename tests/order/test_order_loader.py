"""The loader: every rank's part of every step, whatever the ranks, the resume point and the read-ahead."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from order_corpora import Corpus, corpora, corpus, recipes

from sheaf.corpus.columns import save_array
from sheaf.corpus.documents import DTYPES, Documents
from sheaf.errors import CorruptStore, UsageError
from sheaf.order.balance import EmptyStep
from sheaf.order.gather import Gatherer
from sheaf.order.loader import Batch, Loader, micro
from sheaf.order.order import Order
from sheaf.order.trace import trace_step


def batches(order: Order, made: Corpus, **options: Any) -> list[Batch]:
    with Loader(order, made.token_files, **options) as loader:
        return list(loader)


def contents(parts: list[Batch]) -> list[tuple[bytes, ...]]:
    """The samples of some parts of a step, as a sorted list of their arrays' bytes."""
    arrays = [(p.input_ids, p.labels, p.position_ids, p.document_ids) for p in parts]
    return sorted(tuple(a[i].tobytes() for a in four) for four in arrays for i in range(len(four[0])))


def loader_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("sheaf-loader")]


@settings(max_examples=40, deadline=None)
@given(made=corpora, data=st.data())
def test_each_step_is_the_same_set_on_any_ranks_resumed_anywhere(made: Corpus, data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, 16))
    order = made.order(mixture=data.draw(recipes(made)), batch=batch)
    steps = 12
    alone = {b.step: b for b in batches(order, made, stop=steps, prefetch=0)}
    assert sorted(alone) == list(range(steps))
    at = 0
    while at < steps:  # a life of this cluster: some ranks, until some step
        world, until = data.draw(st.integers(1, batch)), data.draw(st.integers(at + 1, steps))
        state = order.state(at)
        ranks: list[list[Batch]] = []
        for rank in range(world):
            with Loader(order, made.token_files, rank=rank, world=world, stop=until, prefetch=rank % 2) as loader:
                loader.load_state_dict(state)
                ranks.append(list(loader))
        for parts in zip(*ranks, strict=True):
            whole = alone[parts[0].step]
            assert contents(list(parts)) == contents([whole])
            assert {p.valid_tokens for p in parts} == {whole.valid_tokens} == {int((whole.labels != -100).sum())}
            assert sorted(np.concatenate([p.samples for p in parts]).tolist()) == list(range(batch))
            assert {p.digest for p in parts} == {whole.digest}
            counts = [len(p.samples) for p in parts]
            assert max(counts) - min(counts) <= 1
        at = until


@settings(max_examples=40, deadline=None)
@given(made=corpora, step=st.integers(0, 10**6), kind=st.sampled_from([np.uint16, np.uint32]))
def test_a_batch_holds_exactly_the_tokens_that_the_trace_names(made: Corpus, step: int, kind: Any) -> None:
    """The twin of the gathering kernel: each row written run by run from the documents' tokens."""
    made = Corpus(made.documents, made.names, [f.astype(kind) for f in made.token_files])
    order = made.order(batch=3)
    (batch,) = batches(order, made, start=step, stop=step + 1)
    for sample in trace_step(order, step):
        inputs, labels = np.zeros(16, np.int64), np.full(16, -100)
        positions, numbers = np.zeros(16, np.int64), np.full(16, -1)
        at = 0
        for number, run in enumerate(sample.runs):
            tokens, n = made.tokens(run.document), run.end - run.start
            inputs[at : at + n] = tokens[run.start : run.end]
            labels[at : at + n] = tokens[run.start + 1 : run.end + 1]
            positions[at : at + n], numbers[at : at + n] = np.arange(n), number
            at += n
        positions[at:] = np.arange(16 - at)
        for name, expected in (
            ("input_ids", inputs),
            ("labels", labels),
            ("position_ids", positions),
            ("document_ids", numbers),
        ):
            assert np.array_equal(getattr(batch, name)[sample.slot], expected), name


@settings(max_examples=30, deadline=None)
@given(world=st.integers(1, 5), size=st.integers(1, 4), batch=st.integers(5, 11))
def test_micro_batches_are_alike_in_shape_and_number_on_all_ranks_and_lose_nothing(
    world: int, size: int, batch: int
) -> None:
    made = corpus([[9] * 50, [30] * 20])
    order = made.order(batch=batch)
    numbers: set[int] = set()
    valid = 0
    for rank in range(world):
        (part,) = batches(order, made, rank=rank, world=world, stop=1)
        pieces = micro(part, size)
        numbers.add(len(pieces))
        valid += sum(int((piece.labels != -100).sum()) for piece in pieces)
        for piece in pieces:
            for name in ("input_ids", "labels", "position_ids", "document_ids"):
                assert getattr(piece, name).shape == (size, 16)
        n = len(part.samples)
        for name in ("input_ids", "labels", "position_ids", "document_ids"):
            joined = np.concatenate([getattr(piece, name) for piece in pieces])
            assert np.array_equal(joined[:n], getattr(part, name)) and joined.dtype == getattr(part, name).dtype
            assert (np.concatenate([piece.document_ids for piece in pieces])[n:] == -1).all()
    assert len(numbers) == 1 and valid == order.valid_tokens(0)


def test_the_last_held_out_step_may_leave_a_rank_without_samples_but_not_without_micro_batches() -> None:
    made = corpus([[17] * 100])
    order = made.order(held_out=0.3, split="held_out", batch=7)
    last = (order.steps or 0) - 1
    left = len(order.samples(last))
    assert 0 < left < 7
    parts = [batches(order, made, rank=rank, world=7, start=last)[0] for rank in range(7)]
    assert sum(len(p.samples) for p in parts) == left
    assert [len(micro(p, 2)) for p in parts] == [1] * 7


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
        Loader(made.order(batch=2), made.token_files, world=3)
    with pytest.raises(UsageError):
        Loader(made.order(), made.token_files, rank=2, world=2)


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


def test_worker_processes_of_pytorch_s_data_loader_are_refused() -> None:
    made = corpus([[9] * 80])
    served = torch.utils.data.DataLoader(
        Loader(made.order(), made.token_files, stop=5).torch(), batch_size=None, num_workers=1
    )
    with pytest.raises(UsageError, match="worker processes"):
        list(served)
