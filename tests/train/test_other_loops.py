"""The loader under loops that are not Sheaf's: plain, DataLoader, Hugging Face's Trainer, Lightning, and without torch.

Each trains two steps, stops after the first, goes on with new objects, and gets just the samples and weights of a loop
that was never stopped; the Trainer and Lightning go on on two ranks too.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from other_loops import BATCH, LENGTH, RATE, Fed, Module, lightning, loader_of, loss, model, trainer
from training_corpus import make_corpus
from transformers import Trainer, TrainingArguments

from sheaf import Corpus
from sheaf.errors import UsageError
from sheaf.order.huggingface import in_order
from sheaf.order.loader import Loader

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("corpus")
    make_corpus(root)
    return Corpus.open(root)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def calm(corpus: Corpus) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """The first four batches, and the weights after a plain loop over two."""
    with loader_of(corpus, stop=4) as loader:
        batches = list(loader)
    made = model([])
    train(made, loader_of(corpus, stop=2))
    return batches, made.state_dict()


def train(made: Any, loader: Loader) -> None:
    optimizer = torch.optim.SGD(made.parameters(), RATE)
    for batch in loader.torch():
        loss(made, batch).backward()
        optimizer.step()
        optimizer.zero_grad()


def rows(fed: Fed | list[np.ndarray]) -> list[bytes]:
    """The samples of some batches, in no order."""
    return sorted(row.tobytes() for ids in fed for row in np.asarray(ids))


def assert_close(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_plain_loop_goes_on_from_a_state_in_json(corpus: Corpus, calm: Any) -> None:
    made = model([])
    first = loader_of(corpus, stop=1)
    train(made, first)
    state = json.loads(json.dumps(first.state_dict()))
    second = loader_of(corpus, stop=2)
    second.load_state_dict(state)
    train(made, second)
    assert_close(made.state_dict(), calm[1])


def test_without_torch_a_corpus_is_an_iterator_of_numpy_arrays(corpus: Corpus, calm: Any, tmp_path: Path) -> None:
    code = f"""
import json, sys
sys.modules["torch"] = None
import sheaf
corpus = sheaf.Corpus.open({str(corpus.workspace.root)!r})
def batches(state=None):
    with corpus.loader(sequence_length={LENGTH}, batch={BATCH}, seed=3, stop=2) as loader:
        if state: loader.load_state_dict(state)
        for batch in loader:
            yield batch.input_ids.tolist(), loader.state_dict()
whole = list(batches())
resumed = list(batches(json.loads(json.dumps(whole[0][1]))))
print(json.dumps([[ids for ids, _ in whole], [ids for ids, _ in resumed]]))
"""
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path).stdout
    expected = [batch.input_ids.tolist() for batch in calm[0][:2]]
    assert json.loads(told) == [expected, expected[1:]]


@pytest.mark.parametrize(
    ("workers", "context"), [(0, None), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.soak)]
)
def test_pytorch_s_own_data_loader_serves_the_steps_in_order(
    corpus: Corpus, calm: Any, workers: int, context: str | None
) -> None:
    batches = loader_of(corpus, stop=3).torch()
    batches.seek(1)
    served = torch.utils.data.DataLoader(batches, None, num_workers=workers, multiprocessing_context=context)
    got = list(served)
    assert [batch["step"] for batch in got] == [1, 2]
    for theirs, mine in zip(got, calm[0][1:], strict=False):
        for name in ("input_ids", "labels", "position_ids", "document_ids"):
            assert np.array_equal(theirs[name].numpy(), getattr(mine, name))
    if workers == 0:
        assert batches.state_dict()["step"] == 3
        return
    with pytest.raises(UsageError, match="position is not known"):  # workers are ahead of what was trained
        batches.state_dict()
    if context == "fork":
        with pytest.raises(UsageError, match="position is not known"):
            list(served)
        batches.load_state_dict(batches.loader.order.state(got[0]["step"] + 1))
        assert [batch["step"] for batch in served] == [2]


def test_hugging_face_s_trainer_makes_the_steps_of_the_order(corpus: Corpus, folder: Path, calm: Any) -> None:
    fed: Fed = []
    whole = trainer(corpus, folder / "hf", fed, samples=4, steps=2, stop=2)
    whole.train()
    assert [rows(fed[:2]), rows(fed[2:])] == [rows([batch.input_ids]) for batch in calm[0][:2]]
    assert_close(whole.model.state_dict(), calm[1])

    again: Fed = []
    resumed = trainer(corpus, folder / "hf", again, samples=8, steps=2)  # another size, and an endless loader
    resumed.train(resume_from_checkpoint=str(folder / "hf" / "checkpoint-1"))
    assert rows(again) == rows(fed[2:]) and len(again) == 1
    assert_close(resumed.model.state_dict(), calm[1])


def test_hugging_face_s_trainer_is_refused_what_would_train_on_anything_else(corpus: Corpus, tmp_path: Path) -> None:
    def refused(match: str, loader: Any = None, **changes: Any) -> None:
        named = {k: changes.pop(k) for k in ("data_collator",) if k in changes}
        settings = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": [], "max_steps": 2, **changes}
        arguments = TrainingArguments(per_device_train_batch_size=4, **settings)
        with pytest.raises(UsageError, match=match):
            made = model([])
            in_order(Trainer)(model=made, args=arguments, train_dataset=loader or loader_of(corpus), **named).train()

    refused("takes 4 samples, a step of the order has 8")
    refused("to be a loader", [1, 2])
    refused("labels and masks", data_collator=lambda x: x)
    refused("when training ends", max_steps=-1)
    refused("given once", loader_of(corpus, stop=2), max_steps=-1)
    refused("the loader has 2 steps", loader_of(corpus, stop=2), max_steps=3)
    refused("see each other", use_cache=True)
    refused("shapes of their own", loader_of(corpus, packing="padded"))
    refused("split_batches", accelerator_config={"split_batches": True})


def test_lightning_goes_on_where_its_checkpoint_was_made(corpus: Corpus, folder: Path, calm: Any) -> None:
    for options in ({"stop": 2}, {}):  # with an end and without one
        fed: Fed = []
        module = Module(fed)
        lightning(folder / "lightning", steps=1).fit(module, loader_of(corpus, **options).torch())
        module = Module(fed)
        checkpoint = str(folder / "lightning" / "step=1.ckpt")
        lightning(folder / "more", steps=2).fit(module, loader_of(corpus, **options).torch(), ckpt_path=checkpoint)
        assert [rows([ids]) for ids in fed] == [rows([batch.input_ids]) for batch in calm[0][:2]]
        assert_close(module.model.state_dict(), calm[1])


@pytest.mark.soak
def test_the_trainer_and_lightning_go_on_on_two_ranks(corpus: Corpus, folder: Path, calm: Any) -> None:
    """From checkpoints that one process has made."""
    trainer(corpus, folder / "hf", [], samples=4, steps=1).train()
    lightning(folder / "lightning", steps=1).fit(Module([]), loader_of(corpus).torch())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    launch |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "other_loops.py"), str(corpus.workspace.root), str(folder)]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **launch, "RANK": r, "LOCAL_RANK": r}, stderr=subprocess.PIPE)
        for r in "01"
    ]
    for rank in ranks:
        message = rank.communicate(timeout=500)[1].decode()
        assert rank.returncode == 0, message[-3000:]
    told = [torch.load(folder / f"ranks-{r}.pt") for r in (0, 1)]
    for loop, calls in (("hf", 2), ("lightning", 1)):
        assert [len(rank[loop]) for rank in told] == [calls, calls]
        assert rows(told[0][loop] + told[1][loop]) == rows([calm[0][1].input_ids])
        for rank in told:
            assert_close(rank[f"{loop} weights"], calm[1])


def test_documents_of_a_sample_do_not_see_each_other_in_a_model_of_transformers(corpus: Corpus) -> None:
    made = model([]).eval()
    batch = next(iter(loader_of(corpus, stop=1).torch()))
    with torch.no_grad():
        together = made(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
        for row in range(BATCH):
            for number in batch["document_ids"][row].unique():
                here = batch["document_ids"][row] == number
                alone = made(input_ids=batch["input_ids"][row, here][None]).logits[0]
                torch.testing.assert_close(together[row, here], alone, rtol=1e-3, atol=1e-4)
