"""Training records that hold parts of evaluation files are found, and told with the record that was hit."""

from __future__ import annotations

import csv
import json
import os
import random
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf import recipe_file
from sheaf.console import Silent
from sheaf.corpus.workspace import Workspace
from sheaf.errors import DataRefused, RecipeError
from sheaf.prepare import decontaminate, words
from sheaf.prepare.evaluation import SPACELESS_WORDS, WORDS, Exams, hash_pieces
from sheaf.recipe import Recipe

VOCABULARY = [f"w{i}" for i in range(3000)]
CHINESE = "一艘船在夜里穿过海峡的时候船长看见远处有三盏灯他想知道这三盏灯之间的距离是多少米请写出计算的全部过程"


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def sentence(rng: random.Random, n: int) -> str:
    return " ".join(rng.choice(VOCABULARY) for _ in range(n))


def recipe_for(base: Path, *globs: str) -> Recipe:
    sources = "sources: [{name: a, uri: ./a}]"
    return recipe_file.loads(f"name: t\n{sources}\nprepare: {{decontaminate: {json.dumps(globs)}}}\n", base)


def exams_of(base: Path, *globs: str, console: Silent | None = None) -> Exams:
    recipe = recipe_for(base, *globs)
    workspace = Workspace.at(recipe.workspace)
    workspace.create()
    digest = decontaminate.build(workspace, recipe, console or Silent())
    assert digest is not None
    return Exams.open(workspace, digest)


def details(exams: Exams, *texts: str) -> dict[int, str]:
    found = decontaminate.search(pa.array(texts, pa.large_string()), exams).to_pylist()
    return {f["row"]: f["detail"] for f in found}


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def test_thirteen_words_in_a_row_are_found_in_any_column_whatever_their_case_and_marks(tmp_path: Path) -> None:
    rng = random.Random(1)
    questions = [sentence(rng, 30) for _ in range(20)]
    write_rows(tmp_path / "evals/gsm.jsonl", [{"id": str(i), "ctx": {"q": [q]}} for i, q in enumerate(questions)])
    exams = exams_of(tmp_path, "./evals/*.jsonl")
    part = questions[16].split()
    inside = f"{sentence(rng, 50)}, {' -- '.join(part[5:18]).upper()}. {sentence(rng, 50)}"
    less = f"{sentence(rng, 50)} {' '.join(part[5:17])} {sentence(rng, 50)}"
    assert details(exams, sentence(rng, 500), inside, less, questions[3]) == {
        1: "evals/gsm.jsonl row 17, 1 of 18 pieces",
        3: "evals/gsm.jsonl row 4, 18 of 18 pieces",
    }


def test_a_short_question_is_found_whole_and_one_of_seven_words_is_not_looked_for(tmp_path: Path) -> None:
    eight, seven = "what is the boiling point of liquid nitrogen", "what is the capital city of Mongolia"
    write_rows(tmp_path / "e/q.jsonl", [{"q": eight}, {"q": seven}])
    console = Notes()
    exams = exams_of(tmp_path, "e/q.jsonl", console=console)
    asked = [f"He asked: {q}? Nobody knew." for q in (eight, seven)]
    assert details(exams, *asked, eight.removeprefix("what ")) == {0: "e/q.jsonl row 1, 1 of 1 piece"}
    assert console.notes == ["1 of 2 evaluation records are too short to look for: e/q.jsonl row 2, …"]


def test_in_a_script_without_spaces_a_piece_is_longer(tmp_path: Path) -> None:
    write_rows(tmp_path / "e/c.jsonl", [{"question": CHINESE}])
    exams = exams_of(tmp_path, "e/*")
    n = SPACELESS_WORDS
    enough, less = CHINESE[3 : 3 + n], CHINESE[3 : 3 + n - 1]
    assert details(exams, f"另外，{enough[:9]}，{enough[9:]}。好的", f"另外{less}好的") == {
        0: f"e/c.jsonl row 1, 1 of {len(CHINESE) - n + 1} pieces"
    }


def test_evaluation_files_of_every_kind_are_read_as_sources_are(tmp_path: Path) -> None:
    rng = random.Random(2)
    texts = [sentence(rng, 20) for _ in range(6)]
    folder = tmp_path / "evals"
    (folder / "deep").mkdir(parents=True)
    with (folder / "a.csv").open("w", newline="") as f:
        csv.writer(f).writerows([["n", "question", "answer"], ["1", "none", "x"], ["2", texts[0], "y"]])
    pq.write_table(pa.table({"n": [1, 2], "input": ["", texts[1]]}), folder / "b.parquet")
    (folder / "c.txt").write_text(texts[2])
    (folder / "d.json").write_text(json.dumps([{"q": texts[3]}]))
    with zipfile.ZipFile(folder / "deep" / "e.zip", "w") as z:
        z.writestr("x/y.jsonl", json.dumps({"messages": [{"role": "user", "content": texts[4]}]}) + "\n")
    (folder / "f.html").write_text(f"<html><body><p>{texts[5]}</p></body></html>")
    exams = exams_of(tmp_path, "evals/**")
    assert [d.partition(",")[0] for d in details(exams, *texts).values()] == [
        "evals/a.csv row 2",
        "evals/b.parquet row 2",
        "evals/c.txt record 1",
        "evals/d.json row 1",
        "evals/deep/e.zip!/x/y.jsonl row 1",
        "evals/f.html record 1",
    ]


def test_the_form_of_an_exam_is_no_question_but_every_record_keeps_a_piece(tmp_path: Path) -> None:
    rng = random.Random(3)
    form = sentence(rng, 20)
    questions = [sentence(rng, 15) for _ in range(40)]
    write_rows(tmp_path / "e/form.jsonl", [{"p": f"{form}\n\n{q}"} for q in questions])
    console = Notes()
    exams = exams_of(tmp_path, "e/*", console=console)
    assert details(exams, form, questions[7]) == {1: "e/form.jsonl row 8, 3 of 15 pieces"}
    assert console.notes == ["8 pieces of evaluation files are left out, since a tenth of a file's records has them"]
    write_rows(tmp_path / "e/form.jsonl", [{"p": form} for _ in range(40)])
    assert details(exams_of(tmp_path, "e/*"), form) == {0: "e/form.jsonl row 1, 8 of 8 pieces"}


def test_of_several_evaluation_records_the_one_with_most_pieces_is_named(tmp_path: Path) -> None:
    rng = random.Random(4)
    a, b = sentence(rng, 14), sentence(rng, 30)
    write_rows(tmp_path / "e/1.jsonl", [{"q": a}])
    write_rows(tmp_path / "e/2.jsonl", [{"q": b}])
    assert details(exams_of(tmp_path, "e/*"), f"{a} {b} {b}") == {0: "e/2.jsonl row 1, 18 of 18 pieces"}


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda p: (p / "q.jsonl").write_text('{"q": "fine"}\n{"q": broken\n'), "bad-json"),
        (lambda p: (p / "q.jsonl").write_bytes(b""), "e/q.jsonl"),
        (lambda p: (p / "q.bin").write_bytes(os.urandom(5000)), "unsupported"),
        (lambda p: (p / "q.zip").write_bytes(b"PK\x03\x04" + bytes(100)), "e/q.zip"),
        (lambda p: os.mkfifo(p / "q.jsonl"), "e/q.jsonl"),
        (lambda p: (p / "q.jsonl").write_text('{"q": 1}\n'), "e/q.jsonl"),
        (lambda p: (p / "q.jsonl").write_text('{"q": "too short"}\n'), "nothing to look for"),
    ],
    ids=["a broken row", "empty", "no format", "a broken archive", "a pipe", "no text", "all too short"],
)
def test_an_evaluation_file_that_cannot_be_read_whole_ends_prepare(tmp_path: Path, write: object, said: str) -> None:
    (tmp_path / "e").mkdir()
    assert callable(write)
    write(tmp_path / "e")
    with pytest.raises(DataRefused, match=said):
        exams_of(tmp_path, "e/*")


@pytest.mark.parametrize("glob", ["nowhere/*.jsonl", "e/*.csv", "e/q.json", "https://x.org/q.jsonl"])
def test_a_glob_that_means_no_file_is_an_error_of_the_recipe(tmp_path: Path, glob: str) -> None:
    write_rows(tmp_path / "e/q.jsonl", [{"q": "what is the boiling point of liquid nitrogen"}])
    with pytest.raises(RecipeError, match="evaluation file"):
        exams_of(tmp_path, glob)


def test_the_same_files_are_the_same_exams_on_another_machine_and_other_contents_are_not(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"q": "what is the boiling point of liquid nitrogen"}]
    digests: list[str | None] = []
    for home, extra in (("one", []), ("two", []), ("three", [{"q": "and what is that of liquid helium then"}])):
        write_rows(tmp_path / home / "evals/q.jsonl", rows + extra)
        recipe = recipe_for(tmp_path / home, "evals/*", "./evals/q.jsonl")
        workspace = Workspace.at(recipe.workspace)
        workspace.create()
        digests.append(decontaminate.build(workspace, recipe, Silent()))
    assert digests[0] == digests[1] != digests[2]
    assert decontaminate.build(workspace, recipe_for(tmp_path), Silent()) is None


def test_files_that_are_read_in_another_way_are_other_exams(tmp_path: Path) -> None:
    write_rows(tmp_path / "evals/q.jsonl", [{"q": "what is cafÃ© au lait in the kitchen of the hotel called"}])
    repaired = recipe_for(tmp_path, "evals/*")
    as_written = repaired.model_copy(update={"prepare": repaired.prepare.model_copy(update={"mojibake": False})})
    workspace = Workspace.at(repaired.workspace)
    workspace.create()
    tables = [decontaminate.build(workspace, recipe, Silent()) for recipe in (repaired, as_written)]
    keys = [Exams.open(workspace, table or "").keys.tolist() for table in tables]
    assert keys[0] != keys[1]


def plain_pieces(hashes: list[int], k: int) -> list[int]:
    """The twin of `hash_pieces`: each sum anew."""
    base, mix, mask = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 2**64 - 1
    found = []
    for i in range(len(hashes) - k + 1):
        h = sum(x * pow(base, k - 1 - j, 2**64) for j, x in enumerate(hashes[i : i + k])) & mask
        mixed = (h + k) * mix & mask
        found.append(mixed ^ (mixed >> 32))
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=40), max_size=4), st.integers(1, 30))
def test_hashes_of_pieces_are_what_their_words_say(rows: list[list[int]], k: int) -> None:
    first = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    width = np.array([k if len(row) >= k else 0 for row in rows], np.int64)
    expected = [h for row in rows if len(row) >= k for h in plain_pieces(row, k)]
    keys = np.zeros(len(expected), np.uint64)
    hash_pieces(np.array([h for row in rows for h in row], np.uint64), first, width, keys)
    assert keys.tolist() == expected


def test_searching_finds_what_comparing_all_words_finds(tmp_path: Path) -> None:
    rng = random.Random(6)
    few = [f"v{i}" for i in range(4)]  # so that pieces come again by chance
    questions = [" ".join(rng.choice(few) for _ in range(rng.randint(6, 20))) for _ in range(30)]
    write_rows(tmp_path / "e/q.jsonl", [{"q": q} for q in questions])
    exams = exams_of(tmp_path, "e/*")
    texts = [" ".join(rng.choice(few) for _ in range(rng.randint(0, 400))) for _ in range(200)]
    wanted = {
        tuple(w[i : i + k])
        for q in questions
        if len(w := q.split()) >= 8
        for k in [min(len(w), WORDS)]
        for i in range(len(w) - k + 1)
    }
    widths = {len(p) for p in wanted}
    expected = [
        row
        for row, text in enumerate(texts)
        if any(tuple(w[i : i + k]) in wanted for w in [text.split()] for k in widths for i in range(len(w) - k + 1))
    ]
    assert 0 < len(expected) < len(texts)
    assert list(details(exams, *texts)) == expected
    assert len(words.hashes(pa.array(texts, pa.large_string()))[0]) == sum(len(t.split()) for t in texts)


def test_texts_in_many_batches_keep_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(7)
    question = sentence(rng, 20)
    write_rows(tmp_path / "e/q.jsonl", [{"q": question}])
    exams = exams_of(tmp_path, "e/*")
    monkeypatch.setattr(decontaminate, "BATCH_BYTES", 300)
    texts = [question if i % 7 == 3 else sentence(rng, rng.randint(0, 60)) for i in range(100)]
    assert list(details(exams, *texts)) == list(range(3, 100, 7))
