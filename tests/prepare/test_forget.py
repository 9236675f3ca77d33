"""What is forgotten is out of the corpus and, purged, out of the workspace's bytes; copies take its place."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tokenizers import Tokenizer

from sheaf import api, recipe_file, show
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import UsageError
from sheaf.prepare.pipeline import prepare
from sheaf.recipe import Recipe

CANARY = "the zebra password is violet-armadillo"
SHARED = "A copy of this sentence lies in two places, and either of them may speak for it."
LONG = " ".join(f"word{n} follows word{n + 1} in this long sentence" for n in range(60))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    for name in ("mail", "wiki", "web"):
        (tmp_path / name).mkdir()
        for n in range(6):
            (tmp_path / name / f"{n}.txt").write_text(
                f"Page {n} of {name} tells the reader about topic number {n * 7}."
            )
    (tmp_path / "mail/secret.txt").write_text(f"Dear all, {CANARY}. Please do not tell anyone about it, ever.")
    (tmp_path / "mail/shared.txt").write_text(SHARED)
    (tmp_path / "wiki/shared.txt").write_text(SHARED)
    (tmp_path / "mail/long.txt").write_text(LONG)
    (tmp_path / "web/long.txt").write_text(LONG.replace("word30 follows", "word30 precedes"))
    text = """
name: forgetful
sources:
  - {name: mail, uri: ./mail, license: private}
  - {name: wiki, uri: ./wiki, license: CC0}
  - {name: web, uri: ./web}
prepare:
  dedup: {near: 0.8, max_loss: 1}
  tokenizer: {train: bpe, vocab_size: 300}
"""
    return recipe_file.loads(text, tmp_path)


@pytest.fixture
def first(recipe: Recipe) -> dict[str, Any]:
    return prepare(recipe, workers=1)


def opened(recipe: Recipe) -> CorpusVersion:
    return CorpusVersion.open(Path(recipe.workspace))


def texts(corpus: CorpusVersion) -> dict[str, list[str]]:
    every = corpus.texts(range(len(corpus.documents)))
    found: dict[str, list[str]] = {name: [] for name in corpus.source_names}
    for source, text in zip(corpus.documents.source, every, strict=True):
        found[corpus.source_names[source]].append(text)
    return found


def has_canary(recipe: Recipe) -> bool:
    return any(CANARY in text for found in texts(opened(recipe)).values() for text in found)


def stored(recipe: Recipe) -> dict[Path, bytes]:
    """All files but caches."""
    workspace = Path(recipe.workspace)
    return {p: p.read_bytes() for p in workspace.rglob("*") if p.is_file() and p.parent.parent != workspace / "near"}


def everything_in(workspace: Path, corpus: CorpusVersion) -> Iterator[tuple[Path, str]]:
    """Every file of the workspace as text: as it is, tables unpacked, tokens decoded."""
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_path))
    for path in sorted(p for p in workspace.rglob("*") if p.is_file()):
        yield path, path.read_bytes().decode("utf-8", "replace")
        if path.suffix == ".parquet":
            yield path, "\n".join(map(repr, pq.read_table(path).to_pylist()))
        if path.name == "tokens.bin" and path.stat().st_size:
            yield path, tokenizer.decode(np.fromfile(path, corpus.manifest["token_dtype"]).tolist())


def test_a_preview_says_exactly_what_would_change_and_changes_nothing(recipe: Recipe, first: dict[str, Any]) -> None:
    before = stored(recipe)
    told = api.forget(recipe, source="mail")
    assert told["done"] is False
    assert before == stored(recipe)
    done = api.forget(recipe, source="mail", yes=True, workers=1)
    assert (done["gone"], done["promoted"]) == (told["gone"], told["promoted"])
    assert told["gone"]["records"] == 8  # six pages, the secret, the long one; the shared one lives on in wiki
    assert told["promoted"]["by_source"] == {"wiki": 1, "web": 1}


def test_a_picture_that_goes_is_counted_with_its_source_although_it_has_no_tokens(
    recipe: Recipe, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "wiki/red.png")
    prepare(recipe, workers=1)
    gone = api.forget(recipe, source="wiki")["gone"]
    assert gone["records"] == gone["by_source"]["wiki"]["records"] == 7  # six pages and the picture
    assert api.forget(recipe, item="red.png")["gone"]["by_source"] == {"wiki": {"records": 1, "tokens": 0}}


def test_the_next_copy_and_the_near_copy_take_the_place_of_what_goes(recipe: Recipe, first: dict[str, Any]) -> None:
    assert SHARED in texts(opened(recipe))["mail"]
    assert not any(text.startswith("word0") for text in texts(opened(recipe))["web"])
    done = api.forget(recipe, license="private", yes=True, workers=1)
    after = texts(opened(recipe))
    assert after["mail"] == [] and SHARED in after["wiki"]
    assert sum(text.startswith("word0") for text in after["web"]) == 1
    assert opened(recipe).digest == done["corpus"] != first["corpus"]
    told = show.render(show.forgotten(done), io.StringIO())
    assert re.search(r"mail +8 +[1-9]\d* +0\n +wiki +0 +0 +1\n +web +0 +0 +1\n", told)
    assert "no run here has seen them" in told


def test_exam_questions_stay_out_when_something_is_forgotten_and_older_versions_are_purged(
    recipe: Recipe, tmp_path: Path
) -> None:
    question = "Which of the seven towers of the harbour is lit last, and who lights it, when there is fog in May?"
    (tmp_path / "web/exam.txt").write_text(f"Guess what. {question} Nobody knows.")
    (tmp_path / "exam.jsonl").write_bytes(orjson.dumps({"question": question}))
    examined = recipe.model_copy(
        update={"prepare": recipe.prepare.model_copy(update={"decontaminate": (str(tmp_path / "exam.jsonl"),)})}
    )
    prepare(examined, workers=1)
    assert opened(recipe).manifest["counts"]["sources"]["web"]["decisions"]["evaluation"] == 1
    told = api.forget(examined, item="mail/0.txt", yes=True, purge=True, workers=1)
    assert told["gone"]["records"] == 1 and told["promoted"]["records"] == 0
    assert api.forget(examined, item="mail/1.txt", yes=True, workers=1)["gone"]["records"] == 1
    assert opened(recipe).manifest["counts"]["sources"]["web"]["decisions"]["evaluation"] == 1
    assert prepare(examined, workers=1)["items"]["read"] == 0


@pytest.mark.parametrize("how", [{"item": "secret.txt"}, {"matching": "violet-[a-z]+"}, {"records": ()}])
def test_one_record_goes_by_its_item_by_its_text_or_by_its_id(
    recipe: Recipe, first: dict[str, Any], how: dict[str, Any]
) -> None:
    corpus = opened(recipe)
    number = next(n for n in range(len(corpus.documents)) if CANARY in corpus.text(n))
    if "records" in how:
        how = {"records": (bytes(corpus.documents.id[number]).hex(),)}
    done = api.forget(recipe, **how, yes=True, workers=1)
    assert done["gone"]["ids"] == [bytes(corpus.documents.id[number]).hex()]
    assert not has_canary(recipe)


def test_only_the_touched_shards_are_written_anew(recipe: Recipe, first: dict[str, Any]) -> None:
    before = set(opened(recipe).shard_names)
    api.forget(recipe, item="secret.txt", yes=True, workers=1)
    after = set(opened(recipe).shard_names)
    assert len(before - after) == len(after - before) == 1 and len(before) == 3
    kept = orjson.loads((Path(recipe.workspace) / "forgotten/000.json").read_bytes())
    assert set(kept["replaced"]) == before - after and set(kept["replaced"].values()) == after - before
    assert kept["difference"]["sources"]["mail"]["went"] == 1


def test_what_is_forgotten_stays_out_whatever_is_prepared_later(
    recipe: Recipe, first: dict[str, Any], tmp_path: Path
) -> None:
    done = api.forget(recipe, matching="violet-armadillo", yes=True, workers=1)
    again = prepare(recipe, workers=1)
    assert (again["corpus"], again["items"]["read"]) == (done["corpus"], 0)
    (tmp_path / "web/again.txt").write_text((tmp_path / "mail/secret.txt").read_text())
    later = prepare(recipe, workers=1)
    assert later["items"]["read"] == 1 and later["records"]["dropped"]["forgotten"] == 2
    assert later["bytes"]["in"] == sum(later["bytes"][name] for name in ("kept", "dropped", "quarantined"))
    assert not has_canary(recipe)
    for shard in opened(recipe).shard_names:
        column = pq.read_table(opened(recipe).workspace.shard(shard) / "records.parquet")["text"]
        assert not any(CANARY in text for text in column.to_pylist())


def test_a_forgotten_item_is_not_opened_again_even_when_it_changes(
    recipe: Recipe, first: dict[str, Any], tmp_path: Path
) -> None:
    api.forget(recipe, item="secret.txt", yes=True, workers=1)
    (tmp_path / "mail/secret.txt").write_text(
        "Another text, but the same file that somebody wanted to be gone from here."
    )
    later = prepare(recipe, workers=1)
    assert later["items"]["read"] == 0
    assert later["bytes"]["in"] == sum(later["bytes"][name] for name in ("kept", "dropped", "quarantined"))
    assert later["bytes"]["quarantined"] == 0


def test_after_a_purge_the_workspace_holds_no_trace(recipe: Recipe, first: dict[str, Any]) -> None:
    workspace = Path(recipe.workspace)
    report = workspace / "runs/forgetful-001/report.html"  # it quotes what a run was trained on
    report.parent.mkdir(parents=True)
    report.write_text(f"<p>{CANARY}</p>")
    assert any(CANARY in text for _, text in everything_in(workspace, opened(recipe)))
    api.forget(recipe, item="secret.txt", yes=True, workers=1)
    assert any(CANARY in text for _, text in everything_in(workspace, opened(recipe)))  # the older version is there
    purged = api.forget(recipe, purge=True)["purged"]
    assert purged["versions"] == 1 and purged["shards"] == 1
    traces = [
        (path, word)
        for path, text in everything_in(workspace, opened(recipe))
        for word in ("violet", "armadillo", "zebra password", "secret.txt")
        if word in text
    ]
    assert traces == []
    again = prepare(recipe, workers=1)
    assert (again["corpus"], again["items"]["read"]) == (opened(recipe).digest, 0)


def test_a_tokenizer_that_learned_what_is_forgotten_goes_once_another_was_trained(tmp_path: Path) -> None:
    (tmp_path / "mail").mkdir()
    (tmp_path / "mail/often.txt").write_text("violetarmadillo is what everybody here says. " * 40)
    for n in range(6):
        (tmp_path / f"mail/{n}.txt").write_text(f"Page {n} tells the reader about topic number {n * 7}, and no more.")
    text = "name: words\nsources: [{name: mail, uri: ./mail}]\nprepare: {tokenizer: {train: bpe, vocab_size: 320}}\n"
    recipe = recipe_file.loads(text, tmp_path)
    prepare(recipe, workers=1)
    first = api.forget(recipe, item="often.txt", yes=True, purge=True, workers=1)
    assert first["purged"]["tokenizer"]
    assert any("armadillo" in text for _, text in everything_in(Path(recipe.workspace), opened(recipe)))
    prepare(recipe, workers=1, new_tokenizer=True)
    assert not api.forget(recipe, purge=True)["purged"]["tokenizer"]
    assert not any("armadillo" in text for _, text in everything_in(Path(recipe.workspace), opened(recipe)))


def test_a_fresh_workspace_without_the_item_has_the_same_records(
    recipe: Recipe, first: dict[str, Any], tmp_path: Path
) -> None:
    api.forget(recipe, item="secret.txt", yes=True, workers=1)
    (tmp_path / "mail/secret.txt").unlink()
    fresh = recipe.model_copy(update={"workspace": str(tmp_path / "fresh")})
    prepare(fresh, workers=1)
    assert texts(opened(recipe)) == texts(opened(fresh))


def test_what_is_not_there_is_told_and_nothing_is_done(recipe: Recipe, first: dict[str, Any]) -> None:
    for how in (
        {"source": "post"},
        {"license": "MIT"},
        {"records": ("00" * 16,)},
        {"matching": "("},
        {"item": "("},
        {},
    ):
        with pytest.raises(UsageError):
            api.forget(recipe, **how, yes=True)
    nothing = api.forget(recipe, matching="no text says this", yes=True)
    assert nothing["done"] is False and nothing["gone"]["records"] == 0
    assert opened(recipe).digest == first["corpus"]


def test_versions_are_listed_and_compared(recipe: Recipe, first: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "web/new.txt").write_text("A new page has come to the web, and it says what no other page has said.")
    (tmp_path / "wiki/0.txt").unlink()
    second = prepare(recipe, workers=1)
    listed = api.versions(recipe)
    assert [v["corpus"] for v in listed] == [first["corpus"], second["corpus"]]
    assert [v["head"] for v in listed] == [False, True]
    assert all(0 < v["own_bytes"] < v["bytes"] for v in listed)
    told = api.compare(recipe, first["corpus"])
    assert told["sources"]["web"] == {"stayed": 6, "came": 1, "went": 0, "why": {}}
    assert told["sources"]["wiki"] == {"stayed": 5, "came": 0, "went": 1, "why": {"not there": 1}}
    assert (told["items"]["came"], told["items"]["went"], told["items"]["changed"]) == (1, 1, 0)
    assert told["settings"] == {}
    stricter = recipe_file.loads(
        orjson.dumps(recipe.model_dump(mode="json", by_alias=True)).decode(),
        tmp_path,
        overrides=["prepare.length.min_words=12"],
    )
    third = prepare(stricter, workers=1)
    told = api.compare(recipe, second["corpus"][:8], third["corpus"][:8])
    assert told["settings"] == {"prepare.length.min_words": [0, 12]}
    assert sum(s["why"].get("too-short", 0) for s in told["sources"].values()) > 10
