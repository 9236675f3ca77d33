"""What lies in a damaged block is never trained: other samples stand in, the same ones for everybody, and are told."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from order_corpora import Corpus, corpus

from sheaf.corpus import blocks
from sheaf.corpus.blocks import BLOCK_BYTES, Table, write_table
from sheaf.corpus.tokens import DAMAGED, LocalFile, TokenFile
from sheaf.errors import CorruptStore
from sheaf.files import task_folder
from sheaf.order.loader import Batch, DamagedData, Loader
from sheaf.order.order import Order
from sheaf.order.replace import as_trained, corrected, digest
from sheaf.order.trace import trace_step

pytestmark = pytest.mark.filterwarnings("ignore::sheaf.order.loader.DamagedData")


def on_disk(made: Corpus, folder: Path) -> list[Path]:
    paths = [folder / f"{number}/tokens.bin" for number in range(len(made.token_files))]
    for path, tokens in zip(paths, made.token_files, strict=True):
        with task_folder(path.parent) as out:
            tokens.tofile(out / path.name)
            write_table(out / path.name)
    return paths


def opened(paths: list[Path]) -> list[TokenFile]:
    tables = [Table.of(path) for path in paths]
    return [TokenFile(p, t, np.uint16, LocalFile(p, t, None)) for p, t in zip(paths, tables, strict=True)]


def damage(path: Path, *at: int) -> None:
    with path.open("r+b") as file:
        for place in at:
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 8]))


def made_and_damaged(folder: Path, *at: int) -> tuple[Corpus, list[Path]]:
    """Some 600 KB of tokens in two files and two sources; damaged at these bytes of the first."""
    made = corpus([[60, 90, 120, 150] * 400, [30, 200] * 1000], shards=2)
    paths = on_disk(made, folder)
    damage(paths[0], *at)
    return made, paths


def steps(order: Order, files: list[Any], **options: Any) -> list[Batch]:
    with Loader(order, files, **options) as loader:
        return list(loader)


def rows(parts: list[Batch]) -> dict[int, tuple[bytes, ...]]:
    """By slot, the arrays' bytes."""
    return {
        int(slot): tuple(a[i].tobytes() for a in (p.input_ids, p.labels, p.position_ids, p.document_ids))
        for p in parts
        for i, slot in enumerate(p.samples)
    }


def test_a_damaged_block_is_named_where_that_is_asked_for(tmp_path: Path) -> None:
    made, paths = made_and_damaged(tmp_path, 2 * BLOCK_BYTES + 5)
    with pytest.raises(CorruptStore) as caught:
        steps(made.order(sequence_length=128), opened(paths), stop=400, strict=True)
    assert f"{paths[0]}, block 2, bytes {2 * BLOCK_BYTES} to {3 * BLOCK_BYTES}" in caught.value.where
    assert (paths[0].parent / DAMAGED).exists() and not (paths[1].parent / DAMAGED).exists()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_stands_in_is_the_same_on_any_ranks_from_any_step(data: st.DataObject, damaged: Any) -> None:
    made, paths, alone = damaged
    order = made.order(sequence_length=128, batch=8)
    start = data.draw(st.integers(0, 35))
    world, stop = data.draw(st.integers(1, 8)), data.draw(st.integers(start + 1, 40))
    ranks = [
        steps(order, opened(paths), rank=r, world=world, start=start, stop=stop, prefetch=r % 2) for r in range(world)
    ]
    for parts in zip(*ranks, strict=True):
        whole = alone[parts[0].step]
        assert rows(list(parts)) == rows([whole])
        assert sorted((o for p in parts for o in p.replaced), key=lambda o: o.slot) == list(whole.replaced)
        assert (
            {p.valid_tokens for p in parts} == {whole.valid_tokens} == {sum(int((p.labels >= 0).sum()) for p in parts)}
        )


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Corpus, list[Path], list[Batch]]]:
    made, paths = made_and_damaged(tmp_path_factory.mktemp("damaged"), 5, 3 * BLOCK_BYTES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedData)
        yield made, paths, steps(made.order(sequence_length=128, batch=8), opened(paths), stop=40)


def test_the_stand_ins_are_whole_sound_samples_and_what_is_said_of_them_is_so(damaged: Any) -> None:
    """Against the undamaged tokens in memory, sample by sample as the trace tells them."""
    made, _, alone = damaged
    order = made.order(sequence_length=128, batch=8)
    assert sum(len(batch.replaced) for batch in alone) > 10
    bad = [range(0, BLOCK_BYTES // 2), range(3 * BLOCK_BYTES // 2, 4 * BLOCK_BYTES // 2)]
    for batch in alone:
        assert batch.valid_tokens == int((batch.labels >= 0).sum()) == order.valid_tokens(batch.step)
        assert batch.digest == digest(order, batch.step, batch.replaced)
        assert (batch.digest == order.digest(batch.step)) == (not batch.replaced)
        for sample in trace_step(order, batch.step, batch.replaced):
            at = 0
            for run in sample.runs:
                tokens, n = made.tokens(run.document), run.end - run.start
                assert np.array_equal(batch.input_ids[sample.slot, at : at + n], tokens[run.start : run.end])
                labels = batch.labels[sample.slot, at : at + n]
                most = n if sample.replaced is None else max(0, min(n, sample.replaced.predicted - at))
                assert np.array_equal(labels[:most], tokens[run.start + 1 : run.start + most + 1])
                assert (labels[most:] == -100).all()
                d = made.documents
                first = int(d.offset[run.document]) + run.start
                touched = range(first, first + n + 1)
                assert d.shard[run.document] == 1 or not any(
                    touched.start < b.stop and b.start < touched.stop for b in bad
                )
                at += n
        for one in batch.replaced:
            assert one.index != one.by and one.damage.block in (0, 3)


def test_the_uses_of_a_document_are_those_that_were(damaged: Any) -> None:
    made, _, alone = damaged
    order = made.order(sequence_length=128, batch=8)
    replaced = [one for batch in alone for one in batch.replaced]
    everything = np.arange(len(made.documents))
    told = corrected(order, order.steps_of(everything, 40), everything, replaced)
    held: set[tuple[int, int, int]] = set()
    for batch in alone:
        runs = order.runs(as_trained(order, batch.step, batch.replaced))
        held |= {(batch.step, int(s), int(d)) for s, d in zip(runs.sample, runs.document, strict=True)}
    assert {(use.step, use.slot, use.document) for use in told} == held and len(told) == len(held)


def test_a_plain_loop_is_warned_once_for_a_block(tmp_path: Path) -> None:
    made, paths = made_and_damaged(tmp_path, 5)
    with pytest.warns(DamagedData, match="block 0") as told:
        steps(made.order(sequence_length=128), opened(paths), stop=300)
    assert len([w for w in told if w.category is DamagedData]) == 1


def test_a_source_of_which_nothing_is_left_ends_it(tmp_path: Path) -> None:
    made = corpus([[60, 90, 120, 150] * 400], shards=1)
    [path] = on_disk(made, tmp_path)
    damage(path, *range(0, path.stat().st_size, BLOCK_BYTES))
    with pytest.raises(CorruptStore, match="no sample of source 'source-0' can stand in"):
        steps(made.order(sequence_length=128), opened([path]), stop=1)


def test_a_token_file_that_is_shorter_or_gone_is_named(tmp_path: Path) -> None:
    _, paths = made_and_damaged(tmp_path)
    with paths[0].open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CorruptStore, match="missing, or has another size") as caught:
        opened(paths)
    assert str(paths[0]) in caught.value.where
    paths[0].unlink()
    with pytest.raises(CorruptStore, match="missing"):
        opened(paths)


def test_each_block_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, paths = made_and_damaged(tmp_path)
    looked: list[int] = []
    holds = blocks.Table.holds
    monkeypatch.setattr(
        blocks.Table, "holds", lambda self, block, data: looked.append(block) or holds(self, block, data)
    )
    files = opened(paths)
    order = made.order(sequence_length=128)
    for _ in range(3):
        steps(order, files, stop=600)
    assert sorted(looked) == sorted(b for f in files for b in range(len(f.state)))


def collect(loader: Loader, steps: int, told: Any) -> None:
    running = iter(loader)
    told.put([next(running).input_ids for _ in range(steps)])
    loader.close()


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_loader_goes_on_in_another_process(how: str, tmp_path: Path) -> None:
    """Also one whose thread is running and which has read ahead: the child has its own."""
    made = corpus([[60, 90] * 400], shards=2)
    files = [np.memmap(path, np.uint16, "r") for path in on_disk(made, tmp_path)]
    order = made.order(sequence_length=128, cache=tmp_path / "packs")
    expected = steps(order, files, stop=8)
    with Loader(order, files) as loader:
        running = iter(loader)
        for _ in range(3):
            next(running)
        context: Any = multiprocessing.get_context(how)
        told = context.Queue()
        child = context.Process(target=collect, args=(loader, 5, told))
        child.start()
        found = told.get(timeout=120)
        child.join()
        assert [np.array_equal(a, b.input_ids) for a, b in zip(found, expected[3:], strict=True)] == [True] * 5
        assert np.array_equal(next(running).input_ids, expected[3].input_ids)  # and here nothing has happened
