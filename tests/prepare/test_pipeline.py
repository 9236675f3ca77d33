"""`prepare` keeps its promises: nothing lost, nothing done twice, one result."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from sheaf import recipe_file
from sheaf.corpus import lineage
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import CorruptStore, DataRefused, EnvironmentProblem, RecipeError
from sheaf.prepare.pipeline import prepare
from sheaf.recipe import Recipe

WORDS = ["lineage", "ledger", "corpus", "token", "shard", "origin", "source", "record", "epoch", "batch", "recipe"]


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def make_tree(folder: Path, files: int = 60, seed: int = 1) -> None:
    """Text, JSONL, gzip and an SQLite table, with repeats across them and one bad line."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    shared = [f"Shared paragraph {i}. {sentence(rng, 40)}" for i in range(6)]
    for i in range(files):
        text = f"File {i}.\n{sentence(rng, rng.randint(5, 400))}\n"
        (folder / f"{i:03d}.txt").write_text(text)
    (folder / "copy.txt").write_text(shared[0])
    with gzip.open(folder / "more.jsonl.gz", "wt") as f:
        for i, text in enumerate([*shared, sentence(rng, 90), "tiny"]):
            f.write(orjson.dumps({"text": text, "n": i}).decode() + "\n")
    lines = [orjson.dumps({"text": sentence(rng, 50)}) for _ in range(30)]
    lines.insert(7, b'{"text": "broken')
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    with sqlite3.connect(folder.parent / "help.db") as db:
        db.execute("CREATE TABLE ticket (id INTEGER PRIMARY KEY, subject TEXT, body TEXT)")
        rows = [(f"Ticket {i}", sentence(rng, 30)) for i in range(40)]
        db.executemany("INSERT INTO ticket (subject, body) VALUES (?, ?)", rows)


def recipe_for(base: Path, *overrides: str, workspace: str = "workspace") -> Recipe:
    text = f"""
    name: test
    sources:
      - {{name: files, uri: ./files}}
      - {{name: tickets, uri: "sqlite:///help.db", query: "SELECT id, subject, body FROM ticket ORDER BY id",
         text: "{{subject}}\\n\\n{{body}}"}}
    prepare:
      tokenizer: {{train: bpe, vocab_size: 400}}
    workspace: ./{workspace}
    """
    return recipe_file.loads(textwrap.dedent(text), base, overrides=overrides)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("data")
    make_tree(base / "files")
    return base


@pytest.fixture(scope="module")
def prepared(tree: Path) -> dict[str, Any]:
    return prepare(recipe_for(tree), workers=2)


def test_every_byte_of_every_item_is_kept_dropped_or_quarantined(tree: Path, prepared: dict[str, Any]) -> None:
    corpus = CorpusVersion.open(tree / "workspace")
    rows = corpus.ledger().to_pylist()
    sizes = {str(p): p.stat().st_size for p in (tree / "files").iterdir()}
    assert {r["uri"]: r["size"] for r in rows if r["source"] == "files"} == sizes
    for r in rows:
        assert r["kept_bytes"] + r["dropped_bytes"] + r["quarantined_bytes"] == r["size"], r["uri"]
    counted = prepared["bytes"]
    assert counted["in"] == counted["kept"] + counted["dropped"] + counted["quarantined"] > 0


def test_records_are_accounted_for(prepared: dict[str, Any]) -> None:
    records = prepared["records"]
    assert records["read"] == 60 + 1 + 8 + 31 + 40
    assert records["duplicate"] == 1
    assert records["dropped"] == {"too-short": 1}
    assert records["quarantined"] == 1
    assert prepared["quarantine"]["bad-json"]["regions"] == 1
    dropped = sum(records["dropped"].values())
    assert records["read"] == records["kept"] + records["duplicate"] + dropped + records["quarantined"]


def test_a_second_run_reads_nothing_and_gives_the_same_version(tree: Path, prepared: dict[str, Any]) -> None:
    before = {p: p.stat().st_mtime_ns for p in (tree / "workspace").rglob("*.parquet")}
    again = prepare(recipe_for(tree), workers=2)
    assert again["items"]["read"] == 0
    assert again["items"]["unchanged"] == prepared["items"]["seen"]
    assert again["corpus"] == prepared["corpus"]
    assert {p: p.stat().st_mtime_ns for p in (tree / "workspace").rglob("*.parquet")} == before


@pytest.mark.parametrize("workers", [1, 4])
def test_the_number_of_workers_does_not_matter(tree: Path, prepared: dict[str, Any], workers: int) -> None:
    other = prepare(recipe_for(tree, workspace=f"workspace-{workers}"), workers=workers)
    assert other["corpus"] == prepared["corpus"]


def test_one_new_file_costs_one_file(tmp_path: Path) -> None:
    make_tree(tmp_path / "files", files=20)
    first = prepare(recipe_for(tmp_path), workers=2)
    shards = set((tmp_path / "workspace/shards").iterdir())
    (tmp_path / "files/new.txt").write_text("A new file. " + "words " * 30)
    second = prepare(recipe_for(tmp_path), workers=2)
    assert second["items"]["read"] == 1
    assert second["records"]["kept"] == first["records"]["kept"] + 1
    new = set((tmp_path / "workspace/shards").iterdir()) - shards
    assert len(new) == 1
    # the tokenizer stays, so only the new shard is encoded; the fresh workspace agrees about the records
    tokens = sorted((tmp_path / "workspace/tokens").iterdir())
    assert len(tokens) == 1
    fresh = prepare(recipe_for(tmp_path, workspace="fresh"), workers=1)
    assert fresh["records"] == second["records"]
    # and a new tokenizer makes it the very version that a fresh workspace has
    assert prepare(recipe_for(tmp_path), workers=1, new_tokenizer=True)["corpus"] == fresh["corpus"]


def test_a_deleted_file_leaves_and_its_copy_elsewhere_speaks_for_the_record(tmp_path: Path) -> None:
    make_tree(tmp_path / "files", files=10)
    first = prepare(recipe_for(tmp_path), workers=1)
    (tmp_path / "files/copy.txt").unlink()
    second = prepare(recipe_for(tmp_path), workers=1)
    assert second["items"]["seen"] == first["items"]["seen"] - 1
    assert second["records"]["kept"] == first["records"]["kept"]
    assert second["records"]["duplicate"] == 0
    uris = set(CorpusVersion.open(tmp_path / "workspace").ledger()["uri"].to_pylist())
    assert str(tmp_path / "files/copy.txt") not in uris


def test_a_changed_threshold_reads_and_encodes_nothing_again(tmp_path: Path) -> None:
    make_tree(tmp_path / "files", files=10)
    prepare(recipe_for(tmp_path), workers=1)
    before = {
        p: p.stat().st_mtime_ns for s in ("shards", "scores", "tokens") for p in (tmp_path / "workspace" / s).rglob("*")
    }
    changed = prepare(recipe_for(tmp_path, "prepare.length.min_words=35"), workers=1)
    assert changed["records"]["dropped"]["too-short"] > 1
    after = {
        p: p.stat().st_mtime_ns for s in ("shards", "scores", "tokens") for p in (tmp_path / "workspace" / s).rglob("*")
    }
    assert after == before


def test_another_layout_of_the_folders_gives_the_same_records(
    tree: Path, prepared: dict[str, Any], tmp_path: Path
) -> None:
    names = sorted(p.name for p in (tree / "files").iterdir())
    random.Random(3).shuffle(names)
    for i, name in enumerate(names):
        target = tmp_path / "files" / f"dir{i % 5}" / f"{len(names) - i}-{name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tree / "files" / name, target)
    shutil.copy(tree / "help.db", tmp_path)
    moved = prepare(recipe_for(tmp_path), workers=2)
    assert moved["records"] == prepared["records"]
    here, there = CorpusVersion.open(tmp_path / "workspace"), CorpusVersion.open(tree / "workspace")
    assert np.array_equal(here.documents.id, there.documents.id)
    assert here.fingerprint == there.fingerprint


def test_a_workspace_inside_a_source_is_not_gathered(tmp_path: Path) -> None:
    make_tree(tmp_path / "files", files=3)
    inside = recipe_for(tmp_path, "sources.files.uri=.", "sources.files.exclude=['*.db']", workspace="work [1]")
    first = prepare(inside, workers=1)
    assert prepare(inside, workers=1)["items"] == {**first["items"], "read": 0, "unchanged": first["items"]["seen"]}


def test_without_exact_dedup_every_occurrence_trains(tmp_path: Path) -> None:
    make_tree(tmp_path / "files", files=5)
    once = prepare(recipe_for(tmp_path), workers=1)
    twice = prepare(recipe_for(tmp_path, "prepare.dedup.exact=false"), workers=1)
    assert twice["records"]["duplicate"] == 0
    assert twice["documents"] == once["documents"] + 1


def files_in(workspace: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(workspace))


def test_killed_at_any_moment_and_run_again_it_gives_the_same_corpus(tree: Path, prepared: dict[str, Any]) -> None:
    script = textwrap.dedent(
        """
        import sys; from pathlib import Path
        from sheaf import recipe_file; from sheaf.prepare.pipeline import prepare
        if __name__ == "__main__":
            prepare(recipe_file.load(Path(sys.argv[1])), workers=2)
        """
    )
    program = tree / "run_prepare.py"
    program.write_text(script)
    recipe = tree / "killed.yaml"
    recipe.write_text(recipe_file.dump(recipe_for(tree, workspace="killed")))
    once = [sys.executable, str(program), str(tree / "once.yaml")]
    (tree / "once.yaml").write_text(recipe_file.dump(recipe_for(tree, workspace="once")))
    subprocess.run(once, check=True)
    whole, killed = files_in(tree / "once"), 0
    for share in (0.1, 0.25, 0.4, 0.6, 0.75, 0.9):  # of the files: a slow machine is killed at the same moments
        process = subprocess.Popen([sys.executable, str(program), str(recipe)], start_new_session=True)
        while process.poll() is None and files_in(tree / "killed") < share * whole:
            threading.Event().wait(0.005)
        if process.poll() is None:
            killed += 1
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert killed >= 3, "hardly a run was killed: the test proves little"
    assert prepare(recipe_file.load(recipe), workers=2)["corpus"] == prepared["corpus"]
    assert not list((tree / "killed").rglob(".*.tmp-*"))


def test_every_document_is_traced_to_bytes_that_give_its_text(tree: Path, prepared: dict[str, Any]) -> None:
    corpus = CorpusVersion.open(tree / "workspace")
    assert len(corpus.documents) == prepared["records"]["kept"]
    with lineage.Rereader(corpus) as again:
        for number in range(0, len(corpus.documents), 7):
            places = lineage.origins(corpus, number)
            assert places
            assert {again.text(origin) for origin in places} == {corpus.text(number)}


def test_a_record_seen_in_two_places_has_two_origins(tree: Path, prepared: dict[str, Any]) -> None:
    corpus = CorpusVersion.open(tree / "workspace")
    numbers = lineage.documents_of(corpus, "copy.txt")
    assert len(numbers) == 1
    places = lineage.origins(corpus, int(numbers[0]))
    assert sorted(Path(p["uri"]).name for p in places) == ["copy.txt", "more.jsonl.gz"]


def test_an_origin_that_has_changed_proves_nothing(tmp_path: Path) -> None:
    make_tree(tmp_path / "files", files=3)
    prepare(recipe_for(tmp_path), workers=1)
    corpus = CorpusVersion.open(tmp_path / "workspace")
    number = int(lineage.documents_of(corpus, "001.txt")[0])
    origin = lineage.origins(corpus, number)[0]
    (tmp_path / "files/001.txt").write_text("something else altogether, long enough to be kept")
    with pytest.raises(lineage.SourceChanged):
        lineage.reread(corpus, origin)


def test_tokens_decode_to_the_text(tree: Path, prepared: dict[str, Any]) -> None:
    from sheaf.prepare.encoder import Encoder

    corpus = CorpusVersion.open(tree / "workspace")
    encoder, files, documents = Encoder(corpus.tokenizer_path), corpus.token_files(), corpus.documents
    for n in range(0, len(documents), 11):
        start = documents.offset[n]
        ids = files[documents.shard[n]][start : start + documents.length[n]]
        assert ids[-1] == corpus.end_of_text
        assert encoder.decode(ids[:-1]) == corpus.text(n)
    assert corpus.text_bytes(np.arange(len(documents))) == sum(
        len(t.encode()) for t in corpus.texts(range(len(documents)))
    )


def test_an_empty_source_is_refused_with_its_name(tmp_path: Path) -> None:
    make_tree(tmp_path / "files", files=1)
    with pytest.raises(DataRefused, match="'files' holds nothing") as caught:
        prepare(recipe_for(tmp_path, "sources.files.include=['*.nothing']"), workers=1)
    assert caught.value.exit_code == 3


def test_rows_without_the_named_column_are_refused_with_the_name(tmp_path: Path) -> None:
    make_tree(tmp_path / "files", files=1)
    recipe = recipe_for(tmp_path, "sources.tickets.text='{subjekt}'", "sources.files.include=['noise.bin']")
    (tmp_path / "files/noise.bin").write_bytes(bytes(range(256)) * 8)
    with pytest.raises(DataRefused, match="no record is left") as caught:
        prepare(recipe, workers=1)
    assert "noise.bin" in caught.value.where and "no-text: 40" in caught.value.why


def test_a_source_of_which_nothing_can_be_had_says_why(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    os.mkfifo(tmp_path / "files/pipe")
    recipe = recipe_for(tmp_path).model_copy(update={"sources": recipe_for(tmp_path).sources[:1]})
    with pytest.raises(DataRefused, match="could be had") as caught:
        prepare(recipe, workers=1)
    assert "pipe is the first" in caught.value.where and caught.value.why == "not-a-file: 1"


def test_more_quarantine_than_allowed_is_refused(tmp_path: Path) -> None:
    make_tree(tmp_path / "files", files=1)
    (tmp_path / "files/noise.bin").write_bytes(os.urandom(200_000))
    with pytest.raises(DataRefused, match="quarantined"):
        prepare(recipe_for(tmp_path, "prepare.refuse_above=0.1"), workers=1)


def test_a_flipped_byte_in_the_store_is_named(tmp_path: Path) -> None:
    make_tree(tmp_path / "files", files=3)
    prepare(recipe_for(tmp_path), workers=1)
    victim = next((tmp_path / "workspace/tokens").rglob("tokens.bin"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    code = (
        "import sys; from pathlib import Path; from sheaf.corpus.version import CorpusVersion; "
        "[file[:] for file in CorpusVersion.open(Path(sys.argv[1])).token_files()]"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "workspace")], capture_output=True, text=True)
    assert done.returncode != 0
    assert "tokens.bin, block 0, bytes 0 to" in done.stderr
    assert "a block of the corpus is damaged" in done.stderr


def test_a_folder_that_was_never_renamed_is_no_shard(tree: Path, prepared: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(tree / "files", tmp_path / "files")
    shutil.copy(tree / "help.db", tmp_path)
    prepare(recipe_for(tmp_path), workers=1)
    shards = tmp_path / "workspace/shards"
    shard = next(shards.iterdir())
    # what a killed worker leaves between writing DONE and renaming, seen while its process still lives
    shard.rename(shards / f".{shard.name}.tmp-{os.getpid()}")
    (tmp_path / "workspace/HEAD").unlink()
    prepare(recipe_for(tmp_path), workers=1)
    assert not any(name.startswith(".") for name in CorpusVersion.open(tmp_path / "workspace").shard_names)


def test_a_refused_corpus_is_not_the_newest_one(tmp_path: Path) -> None:
    make_tree(tmp_path / "files", files=3)
    good = prepare(recipe_for(tmp_path), workers=1)
    (tmp_path / "files/noise.bin").write_bytes(os.urandom(200_000))
    with pytest.raises(DataRefused, match=r"noise\.bin"):
        prepare(recipe_for(tmp_path, "prepare.refuse_above=0.1"), workers=1)
    assert CorpusVersion.open(tmp_path / "workspace").digest == good["corpus"]


def test_a_lost_version_is_made_again(tmp_path: Path) -> None:
    make_tree(tmp_path / "files", files=3)
    first = prepare(recipe_for(tmp_path), workers=1)
    shutil.rmtree(tmp_path / "workspace/corpora")
    assert prepare(recipe_for(tmp_path), workers=1)["corpus"] == first["corpus"]


def test_two_at_once_take_turns(tmp_path: Path) -> None:
    make_tree(tmp_path / "files", files=20)
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda: results.append(prepare(recipe_for(tmp_path), workers=1)["corpus"]))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert len(set(results)) == 1
    assert len(list((tmp_path / "workspace/corpora").iterdir())) == 1


def test_a_file_that_never_holds_still_is_quarantined_and_the_rest_is_kept(tmp_path: Path) -> None:
    make_tree(tmp_path / "files", files=5)
    (tmp_path / "files/service.log").write_text("a log that is written to all the time, like those of any service\n")
    code = "import os, sys\nwhile True: os.utime(sys.argv[1])"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "files/service.log")]) for _ in range(2)]
    try:
        result = prepare(recipe_for(tmp_path), workers=1)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert result["quarantine"]["changed"]["regions"] == 1
    assert result["bytes"]["in"] == sum(result["bytes"][k] for k in ("kept", "dropped", "quarantined"))
    again = prepare(recipe_for(tmp_path), workers=1)
    assert "changed" not in again["quarantine"]
    assert again["items"]["read"] == 1


def test_a_full_disk_is_told_as_one_and_the_next_run_goes_on(tmp_path: Path) -> None:
    make_tree(tmp_path / "files", files=30)
    recipe = tmp_path / "sheaf.yaml"
    recipe.write_text(recipe_file.dump(recipe_for(tmp_path)))
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from sheaf import recipe_file; from sheaf.errors import SheafError\n"
        "from sheaf.prepare.pipeline import prepare\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))\n"
        "try: prepare(recipe_file.load(Path(sys.argv[1])), workers=1)\n"
        "except SheafError as e: print(e); sys.exit(e.exit_code)\n"
    )
    codes: list[int] = []
    for limit in (2_000, 20_000, 24_000, 40_000):
        done = subprocess.run(
            [sys.executable, "-c", code, str(recipe), str(limit)],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},  # it does not notice that it wrote half a .pyc
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == 0 or "grew beyond what this disk" in done.stdout, done.stdout
        codes.append(done.returncode)
    assert codes[0] == 4
    assert prepare(recipe_file.load(recipe), workers=1)["records"]["kept"] > 30


def test_a_workspace_that_cannot_be_is_named(tmp_path: Path) -> None:
    make_tree(tmp_path / "files", files=1)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(EnvironmentProblem, match="cannot be made") as caught:
        prepare(recipe_for(tmp_path, workspace="taken"), workers=1)
    assert caught.value.exit_code == 4
    with pytest.raises(RecipeError, match="same folder"):
        prepare(recipe_for(tmp_path, workspace="files"), workers=1)


def test_a_flipped_byte_in_a_shard_is_caught_without_reading_all_of_it(tmp_path: Path) -> None:
    make_tree(tmp_path / "files", files=3)
    prepare(recipe_for(tmp_path), workers=1)
    records = next((tmp_path / "workspace/shards").rglob("records.parquet"))
    data = bytearray(records.read_bytes())
    data[10] ^= 0xFF  # in the first page: ids
    records.write_bytes(data)
    (tmp_path / "files/new.txt").write_text("one more file, so that the records are selected again")
    with pytest.raises(CorruptStore, match="cannot be read"):
        prepare(recipe_for(tmp_path), workers=1)
