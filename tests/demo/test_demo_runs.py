"""The whole demo, small: from this machine's own text to a verdict, a trained model and a traced sample."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

from sheaf.corpus.version import CorpusVersion
from sheaf.demo.main import run_demo
from sheaf.demo.truth import Truth, compare

SMALL = (
    *("model.hidden_size=64", "model.layers=1", "model.heads=2", "model.kv_heads=2", "model.intermediate_size=128"),
    *("train.budget={steps: 4}", "train.sequence_length=128", "train.batch_tokens=1024", "train.held_out=0.05"),
    *("prepare.tokenizer.vocab_size=600", "train.precision=fp32", "train.compile=off"),
)


class Notes:
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        self.text: list[str] = []

    def stage(self, title: str, total: int | None, unit: str) -> Any:
        from sheaf.console import Silent

        self.text.append(title)
        return Silent().stage(title, total, unit)

    def note(self, text: str) -> None:
        self.text.append(text)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    notes = Notes()
    data = run_demo(tmp_path_factory.mktemp("a path") / "demo", megabytes=0.4, console=notes, overrides=SMALL)
    return data, "\n".join(notes.text)


def test_the_ledger_agrees_with_the_planted_truth(demo: tuple[dict[str, Any], str]) -> None:
    data, _ = demo
    assert data["verdict"]["agrees"]
    corpus = CorpusVersion.open(Path(data["folder"]) / "workspace")
    assert compare(Truth.load(Path(data["folder"]) / "truth.json"), corpus.root) == []
    assert set(pq.read_table(corpus.root / "quarantine.parquet")["reason"].to_pylist()) == {
        *("empty", "bomb", "unsupported", "truncated", "undecodable", "bad-json")
    }


def test_the_story_is_told_in_order(demo: tuple[dict[str, Any], str]) -> None:
    told = demo[1]
    chapters = [
        *(
            "collect text",
            "What lies where",
            "to the byte",
            "quarantined: bomb",
            "tokens: files",
            "Verdict: all agrees",
        ),
        *("step 1/4", "Bits per byte", "unigram", "A sample of what it writes", "was trained on", "The report:"),
    ]
    places = [told.find(chapter) for chapter in chapters]
    assert places == sorted(places) and places[0] >= 0


def test_the_measurements_are_of_the_same_text(demo: tuple[dict[str, Any], str]) -> None:
    held_out = demo[0]["held_out"]
    assert held_out["bytes"] > 1000 and held_out["documents"] > 1
    assert 0 < held_out["xz"] < 8 and 0 < held_out["unigram"] < 8 and 0 < held_out["bits_per_byte"] < 8


def test_every_traced_origin_was_read_again(demo: tuple[dict[str, Any], str]) -> None:
    origins = [o for s in demo[0]["trace"]["samples"] for d in s["documents"] for o in d["origins"]]
    assert origins and all(origin["verified"] for origin in origins)


def test_the_answer_is_json_and_names_the_report(demo: tuple[dict[str, Any], str]) -> None:
    orjson.dumps(demo[0])
    page = Path(demo[0]["report"]).read_text()
    assert page.startswith("<!DOCTYPE html>") and "bits per byte" in page and "<script" not in page


def test_a_second_demo_in_the_same_folder_reads_nothing_again(demo: tuple[dict[str, Any], str]) -> None:
    folder = Path(demo[0]["folder"])
    command = "import sys; from pathlib import Path; from sheaf.demo.main import run_demo; import orjson\n" + (
        f"sys.stdout.buffer.write(orjson.dumps(run_demo(Path(sys.argv[1]), megabytes=0.4, overrides={SMALL!r})))"
    )
    ended = subprocess.run([sys.executable, "-c", command, str(folder)], capture_output=True, check=True, timeout=300)
    again = orjson.loads(ended.stdout)
    assert again["prepare"]["items"]["read"] == 0
    assert again["prepare"]["corpus"] == demo[0]["prepare"]["corpus"]
    assert again["run"] != demo[0]["run"]
    assert again["train"]["loss"] == demo[0]["train"]["loss"]
