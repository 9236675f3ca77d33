"""Any token of any step leads back to source bytes, and any source item forward to the steps that saw it."""

from __future__ import annotations

import random
import textwrap
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import orjson
import pytest

from sheaf import recipe_file
from sheaf.console import Silent
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import UsageError
from sheaf.order.loader import Loader
from sheaf.order.trace import trace_step
from sheaf.prepare.encoder import Encoder
from sheaf.prepare.pipeline import prepare
from sheaf.train import launch
from sheaf.train.run import Run
from sheaf.train.setup import order_of
from sheaf.train.trace import trace_item, trace_run

STEPS = 12


def scatter(folder: Path) -> None:
    """Text in several languages and encodings, rows, mail, an archive in an archive, and copies among them."""
    rng = random.Random(5)
    words = ["läuft", "Straße", "données", "mañana", "данные", "データ", "训练", "model", "token", "batch", "shard"]

    def text(n: int) -> str:
        return " ".join(rng.choice(words) for _ in range(n)) + "."

    folder.mkdir()
    for i in range(25):
        (folder / f"{i}.md").write_text(f"# Note {i}\n\n{text(rng.randint(20, 300))}\n", "utf-8")
    russian = " ".join(rng.choice(["данные", "модель", "обучение", "корпус", "запись"]) for _ in range(300))
    (folder / "utf16.txt").write_text(text(200), "utf-16")
    (folder / "russian.txt").write_bytes(russian.encode("cp1251"))
    (folder / "windows.txt").write_bytes(text(100).replace(" ", "\r\n").encode("utf-8"))
    (folder / "marked.txt").write_text(text(150), "utf-8-sig")
    (folder / "damaged.txt").write_bytes(
        b"".join(text(5).encode() + b"\n" for _ in range(300)) + b"\xff\xfe\n" + text(9).encode()
    )
    copy = text(60)
    (folder / "copy.txt").write_text(copy)
    rows = [{"text": text(40), "n": i} for i in range(20)] + [{"text": copy}]
    (folder / "rows.jsonl").write_bytes(b"\n".join(orjson.dumps(r) for r in rows))
    (folder / "table.csv").write_text("id,text\n" + "".join(f'{i},"{text(30)}\nnext line"\n' for i in range(10)))
    paragraphs = "".join(f"<p>{text(50)}</p>" for _ in range(6))
    (folder / "page.html").write_text(
        f"<html><head><title>A page</title></head><body><article>{paragraphs}</article></body></html>"
    )
    with zipfile.ZipFile(folder / "inner.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("deep/rows.jsonl", b"\n".join(orjson.dumps({"text": text(30)}) for _ in range(5)))
    with zipfile.ZipFile(folder / "outer.zip", "w") as z:
        z.write(folder / "inner.zip", "inner.zip")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("trace")
    scatter(base / "files")
    text = f"""
    name: traced
    sources:
      - {{name: files, uri: ./files}}
    prepare: {{tokenizer: {{train: bpe, vocab_size: 500}}}}
    model: {{hidden_size: 32, layers: 1, heads: 2, kv_heads: 1, intermediate_size: 64}}
    train:
      sequence_length: 64
      batch_tokens: 512
      budget: {{steps: {STEPS}}}
      precision: fp32
      compile: "off"
    """
    recipe = recipe_file.loads(textwrap.dedent(text), base)
    prepare(recipe, workers=1)
    result = launch.train(recipe, CorpusVersion.open(Path(recipe.workspace)), nproc=2, console=Silent())
    return Path(result["run"])


def test_200_random_tokens_lead_back_to_bytes_that_give_their_text(run: Path) -> None:
    corpus = Run.open(run).corpus()
    order = order_of(Run.open(run).recipe, corpus, "train")
    encoder = Encoder(corpus.tokenizer_path)
    rng = random.Random(0)
    verified: dict[int, dict[int, dict]] = {}
    checked = 0
    while checked < 200:
        step = rng.randrange(STEPS)
        if step not in verified:
            verified[step] = {s["sample"]: s for s in trace_run(run, step, verify=True)["samples"]}
        sample = verified[step][rng.randrange(order.batch)]
        position = rng.randrange(order.sequence_length)
        documents = [d for d in sample["documents"] if d["position"] <= position]
        document = documents[-1]
        token = document["tokens"][0] + position - document["position"]
        if token >= document["tokens"][1]:
            continue  # padding at the end of the sample
        checked += 1
        assert document["origins"], (step, position)
        assert all(o["verified"] for o in document["origins"]), document["origins"]
        number = int(np.flatnonzero([bytes(i).hex() == document["record"] for i in corpus.documents.id])[0])
        assert document["text"] in corpus.text(number)
        offset = int(corpus.documents.offset[number])
        token_id = int(corpus.token_files()[corpus.documents.shard[number]][offset + token])
        piece = encoder.decode([token_id])
        assert piece.strip("\ufffd") in document["text"]


def test_where_bytes_are_text_the_very_bytes_of_the_span_are_named(run: Path) -> None:
    spans = 0
    for step in range(STEPS):
        for sample in trace_run(run, step)["samples"]:
            for document in sample["documents"]:
                for origin in document["origins"]:
                    if "span" not in origin or origin["member"]:
                        continue
                    start, end = origin["span"]
                    raw = Path(origin["uri"]).read_bytes()[start:end]
                    assert raw.decode("utf-8", "ignore") == document["text"]
                    spans += 1
    assert spans > 50


def test_a_record_seen_twice_names_both_places_wherever_it_trains(run: Path) -> None:
    uses = trace_item(run, "copy.txt")["uses"]
    assert uses
    step, slot = uses[0]["step"], uses[0]["sample"]
    documents = trace_run(run, step, slot)["samples"][0]["documents"]
    places = next(d["origins"] for d in documents if d["record"] == uses[0]["record"])
    assert sorted(Path(o["uri"]).name for o in places) == ["copy.txt", "rows.jsonl"]


def test_item_to_steps_is_the_inverse_of_step_to_items(run: Path) -> None:
    forward: Counter[tuple[int, int]] = Counter()
    for step in range(STEPS):
        for sample in trace_run(run, step)["samples"]:
            hit = any(o["uri"].endswith("rows.jsonl") for d in sample["documents"] for o in d["origins"])
            forward[step, sample["sample"]] += hit
    expected = {where for where, n in forward.items() if n}
    assert {(u["step"], u["sample"]) for u in trace_item(run, r"/rows\.jsonl$")["uses"]} == expected


def test_checkpoints_that_saw_an_item_are_named(run: Path) -> None:
    assert trace_item(run, "rows.jsonl")["checkpoints"][-1] == f"step-{STEPS:08d}"
    assert trace_item(run, "no such file")["checkpoints"] == []


def test_a_step_that_was_not_made_is_refused(run: Path) -> None:
    with pytest.raises(UsageError, match=f"has not made step {STEPS}"):
        trace_run(run, STEPS)
    with pytest.raises(UsageError, match="samples 0 to 7"):
        trace_run(run, 0, 8)


def test_a_rank_s_rows_are_those_of_the_batch_that_it_trained_on(run: Path) -> None:
    opened = Run.open(run)
    order = order_of(opened.recipe, opened.corpus(), "train")
    for rank in (0, 1):
        with Loader(order, opened.corpus().token_files(), rank=rank, world=2, start=3, stop=4) as loader:
            (batch,) = loader
        traced = trace_run(run, 3, rank=rank)["samples"]
        assert [s["sample"] for s in traced] == batch.samples.tolist()
        assert [(s["rank"], s["row"]) for s in traced] == [(rank, row) for row in range(len(traced))]
        assert trace_run(run, 3, 1, rank=rank)["samples"] == [traced[1]]
    with pytest.raises(UsageError, match="ranks 0 to 1, not 2"):
        trace_run(run, 3, rank=2)
    with pytest.raises(UsageError, match="rank 1 in step 3 has samples 0 to 3, not 4"):
        trace_run(run, 3, 4, rank=1)


def test_each_position_of_a_sample_leads_to_its_token_its_document_and_what_is_learned_there(run: Path) -> None:
    opened = Run.open(run)
    order = order_of(opened.recipe, opened.corpus(), "train")
    with Loader(order, opened.corpus().token_files(), start=2, stop=3) as loader:
        (batch,) = loader
    (sample,) = trace_run(run, 2, 5)["samples"]
    held = int((batch.document_ids[5] >= 0).sum())
    for position in range(held):
        (found,) = trace_run(run, 2, 5, token=position)["samples"]
        (document,) = found["documents"]
        assert document["id"] == batch.input_ids[5, position]
        assert document["predicts"]["id"] == batch.labels[5, position]
        whole = sample["documents"][batch.document_ids[5, position]]
        assert document["record"] == whole["record"]
        assert document["tokens"][0] == whole["tokens"][0] + batch.position_ids[5, position]
        assert [o["uri"] for o in document["origins"]] == [o["uri"] for o in whole["origins"]]
    with pytest.raises(UsageError, match=f"tokens 0 to {held - 1}, not {held}"):
        trace_run(run, 2, 5, token=held)
    with pytest.raises(UsageError, match="a token is one of a sample"):
        trace_run(run, 2, token=0)


def test_a_record_s_id_leads_to_its_uses_with_their_ranks_and_tokens(run: Path) -> None:
    expected: Counter[tuple[int, int, int, int]] = Counter()
    record = trace_run(run, 0, 0)["samples"][0]["documents"][0]["record"]
    for step in range(STEPS):
        for sample in trace_run(run, step)["samples"]:
            for document in sample["documents"]:
                if document["record"] == record:
                    expected[step, sample["sample"], sample["rank"], sample["row"]] += 1
    found = trace_item(run, record)
    assert found["documents"] == [record]
    assert {(u["step"], u["sample"], u["rank"], u["row"]) for u in found["uses"]} == set(expected)
    opened = Run.open(run)
    order = order_of(opened.recipe, opened.corpus(), "train")
    for use in found["uses"]:
        runs = trace_step(order, use["step"])[use["sample"]].runs
        assert use["tokens"] == sum(r.end - r.start for r in runs if r.record == record)
    assert trace_item(run, "0" * 32)["documents"] == []
