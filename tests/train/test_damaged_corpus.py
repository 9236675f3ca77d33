"""A run over a corpus with a damaged block: told, written down, the same on any ranks, and traced as it was."""

from __future__ import annotations

from pathlib import Path

from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.corpus.blocks import BLOCK_BYTES
from sheaf.corpus.version import CorpusVersion
from sheaf.order.replace import as_trained, digest
from sheaf.train.damage import replaced_in
from sheaf.train.journal import read as read_journal
from sheaf.train.launch import train
from sheaf.train.run import Run
from sheaf.train.setup import order_of
from sheaf.train.trace import trace_item


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_a_run_says_what_it_replaced_and_two_ranks_replace_alike(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, budget={"steps": 6})
    make_corpus(tmp_path, documents=4000)
    [path] = tmp_path.glob("tokens/*/shard1/tokens.bin")
    with path.open("r+b") as file:
        file.seek(2 * BLOCK_BYTES + 100)
        file.write(b"\x01\x01\x01\x01")
    console = Notes()
    done = train(recipe, CorpusVersion.open(tmp_path), nproc=1, console=console)
    run, corpus = Run.open(Path(done["run"])), CorpusVersion.open(tmp_path)
    order, lines = order_of(recipe, corpus, "train"), read_journal(Path(done["run"]))
    replaced = [one for line in lines for one in replaced_in(line)]
    assert len(replaced) == done["replaced"] > 1
    assert {(one.damage.file, one.damage.block) for one in replaced} == {(str(path), 2)}
    assert sum("block 2" in note for note in console.said) == 1  # once, not for each sample
    assert all(line["samples"] == digest(order, line["step"], replaced_in(line)) for line in lines)

    two = read_journal(Path(train(recipe, CorpusVersion.open(tmp_path), nproc=2, console=Silent())["run"]))
    for line, other in zip(lines, two, strict=True):
        assert (line["samples"], line["valid_tokens"]) == (other["samples"], other["valid_tokens"])
        mine, theirs = ([(o.slot, o.index, o.by, o.damage.block) for o in replaced_in(x)] for x in (line, other))
        assert mine == theirs

    one = replaced[0]  # and the uses of a record are those that were
    planned, trained = order.runs(order.samples(one.step)), order.runs(as_trained(order, one.step, replaced))
    held = {bytes(corpus.documents.id[d]).hex() for d in trained.document[trained.sample == one.slot]}
    gone = {bytes(corpus.documents.id[d]).hex() for d in planned.document[planned.sample == one.slot]} - held
    for record in held | gone:
        uses = {(use["step"], use["sample"]) for use in trace_item(run.folder, record)["uses"]}
        assert ((one.step, one.slot) in uses) == (record in held)
