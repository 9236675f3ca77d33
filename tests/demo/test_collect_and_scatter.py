"""The demo's data: real, the same every time, and its truth adds up."""

from __future__ import annotations

import gzip
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import pytest

from sheaf.demo.collect import Roots, collect, normal
from sheaf.demo.scatter import MIN_CHARACTERS, Scattered, scatter
from sheaf.demo.truth import Truth, key_of

MEGABYTES = 0.4


@pytest.fixture(scope="module")
def scattered(tmp_path_factory: pytest.TempPathFactory) -> Scattered:
    return scatter(collect(MEGABYTES), tmp_path_factory.mktemp("demo") / "data")


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_two_runs_give_the_same_bytes_everywhere(scattered: Scattered, tmp_path: Path) -> None:
    again = scatter(collect(MEGABYTES), tmp_path / "data")
    assert tree(again.data) == tree(scattered.data)
    assert again.truth == scattered.truth
    assert again.pages == scattered.pages


def test_a_second_run_in_the_same_folder_touches_no_file(tmp_path: Path) -> None:
    pool = collect(0.1)
    scatter(pool, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    scatter(pool, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_what_an_earlier_demo_with_other_texts_left_is_removed(tmp_path: Path) -> None:
    scatter(collect(0.2), tmp_path / "one")
    small = collect(0.1, seed=5)
    scatter(small, tmp_path / "one")
    scatter(small, tmp_path / "two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_another_seed_chooses_other_texts() -> None:
    names = [{t.name for texts in collect(0.1, seed=seed).values() for t in texts} for seed in (0, 1)]
    assert names[0] != names[1]


def test_a_machine_without_documents_gets_its_megabytes_from_source_code(tmp_path: Path) -> None:
    roots = Roots(packages=tmp_path, documents=tmp_path, manuals=tmp_path, catalogues=tmp_path)
    pool = collect(0.3, roots=roots)
    assert not pool["manual"] and not pool["foreign"]
    assert sum(len(t.text.encode()) for texts in pool.values() for t in texts) > 250_000


def test_a_machine_with_nothing_gives_an_empty_pool_and_still_the_broken_files(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    roots = Roots(library=nothing, packages=nothing, documents=nothing, manuals=nothing, catalogues=nothing)
    pool = collect(0.3, roots=roots)
    assert not any(pool.values())
    assert {r for i in scatter(pool, tmp_path / "data").truth.items for r in i.reasons} >= {"empty", "bomb"}


def test_the_truth_lists_every_file_of_the_tree_with_its_size(scattered: Scattered) -> None:
    on_disk = {p: len(data) for p, data in tree(scattered.data).items() if p.startswith(("files/", "web/"))}
    told = {f"{i.source}/{i.path}": i.size for i in scattered.truth.items if i.source in ("files", "web")}
    assert told == on_disk


def test_the_totals_of_the_truth_add_up(scattered: Scattered) -> None:
    counts = scattered.truth.counts()
    for source in counts.values():
        assert source["records"] == source["kept"] + source["duplicate"] + source["dropped"]
    texts = {t for i in scattered.truth.items for t in i.texts}
    short = {t for i in scattered.truth.items for t in i.short}
    assert sum(c["kept"] for c in counts.values()) == len(texts - short)
    assert all(sum(c[what] for c in counts.values()) > 0 for what in ("duplicate", "dropped", "quarantined"))


def test_repeats_are_planted_across_places(scattered: Scattered) -> None:
    places: dict[str, set[str]] = {}
    for item in scattered.truth.items:
        for text in item.texts:
            places.setdefault(text, set()).add(item.source)
    assert sum(len(p) > 1 for p in places.values()) >= 10


def test_the_truth_survives_its_file(scattered: Scattered, tmp_path: Path) -> None:
    scattered.truth.save(tmp_path / "truth.json")
    assert Truth.load(tmp_path / "truth.json") == scattered.truth


def test_what_is_in_the_places_is_what_the_truth_says(scattered: Scattered) -> None:
    """Read back with the standard library alone."""
    backup = next(i for i in scattered.truth.items if i.source == "backup")
    found: list[str] = []
    with tarfile.open(scattered.data / "backup/backup.tar.gz") as tar:
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None
            if member.name.endswith(".zip"):
                with zipfile.ZipFile(file) as archive:
                    found += [key_of(normal(archive.read(name).decode())) for name in archive.namelist()]
            else:
                found.append(key_of(normal(file.read().decode())))
    assert sorted(found) == sorted(backup.texts)
    pages = [i for i in scattered.truth.items if i.source == "docstrings"]
    with sqlite3.connect(scattered.data / "docstrings.sqlite") as connection:
        docs = [doc for (doc,) in connection.execute("SELECT doc FROM docstring")]
    assert [key_of(d) for d in docs] == [t for page in pages for t in page.texts]
    assert {key_of(d) for d in docs if len(d) < MIN_CHARACTERS} == {t for page in pages for t in page.short}
    for item in scattered.truth.items:
        if item.path.startswith("compressed/"):
            data = gzip.decompress((scattered.data / "files" / item.path).read_bytes())
            assert (key_of(data.decode()),) == item.texts
