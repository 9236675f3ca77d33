"""A survey reads little, changes nothing, and comes near the truth."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import orjson
import pytest

import sheaf
from sheaf.api import folder_recipe, scan
from sheaf.cli import main
from sheaf.errors import EnvironmentProblem
from sheaf.recipe import Recipe

WORDS = Path(__file__).read_text().split()
SECRET = "AKIA" + "Q7W3ERTYUIOPASDF"


def prose(seed: int, words: int = 120) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in root.rglob("*")}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("survey")
    for name in ("wiki", "mirror"):
        (root / name).mkdir()
    for n in range(300):
        (root / "wiki" / f"{n:03}.txt").write_text(prose(n, 60 + n))
    for n in range(100, 250):  # half of the wiki, and another half of its own
        (root / "mirror" / f"copy-{n}.txt").write_text(prose(n, 60 + n))
        (root / "mirror" / f"own-{n}.txt").write_text(prose(10_000 + n, 500 + n))
    rows = [{"instruction": prose(n, 9), "input": "", "output": prose(5000 + n, 30)} for n in range(40_000)]
    (root / "wiki" / "alpaca.jsonl").write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in rows))
    (root / "wiki" / "page.html").write_text(
        f"<html><title>x</title><p>{prose(1)} mail me at carol@example.org</p>"
        "<a href='https://creativecommons.org/licenses/by-sa/4.0/'>licence</a></html>"
    )
    (root / "wiki" / "keys.md").write_text(f"# keys\nthe key is {SECRET} and the card 4111 1111 1111 1111\n")
    (root / "wiki" / "cut.gz").write_bytes(gzip.compress(prose(3, 4000).encode())[:-900])
    (root / "wiki" / "old.cpp").write_text("// SPDX-License-Identifier: MIT\n" + prose(77))
    return root


@pytest.fixture(scope="module")
def surveyed(tree: Path) -> dict[str, Any]:
    before = snapshot(tree)
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "sources": [{"name": n, "uri": str(tree / n)} for n in ("wiki", "mirror")],
            "workspace": str(tree / "ws"),
        }
    )
    data = scan(recipe, share=0.02, workers=2, page=tree.parent / "page.html")
    assert snapshot(tree) == before, "a survey changes nothing"
    return data


def near(estimate: dict[str, float], truth: float, slack: float = 0.0) -> bool:
    return abs(estimate["value"] - truth) <= estimate["error"] + slack


def test_it_reads_about_the_stated_share(surveyed: dict[str, Any]) -> None:
    whole = surveyed["sample"]["of_bytes"]
    small = 2 * 20 * 5_000 + 64_000  # 20 items of each kind are read whatever the share
    assert surveyed["sample"]["bytes"] <= 0.02 * whole + small
    assert surveyed["sample"]["of_items"] == 305 + 300


def test_records_are_estimated_within_the_stated_error(surveyed: dict[str, Any]) -> None:
    assert near(surveyed["sources"]["wiki"]["records"], 40_304, slack=400)
    assert near(surveyed["sources"]["mirror"]["records"], 300)


def test_copies_between_sources_are_estimated_within_the_stated_error(surveyed: dict[str, Any]) -> None:
    (pair,) = surveyed["between"]
    assert pair["sources"] == ["wiki", "mirror"]
    assert abs(pair["of_second"]["share"] - 0.5) <= pair["of_second"]["error"] < 0.45
    assert surveyed["sources"]["mirror"]["copies"]["share"] == 0
    for group in surveyed["repeated"]:
        assert {source for source, _ in group["items"]} == {"wiki", "mirror"} and group["count"] == 2
    assert surveyed["repeated"]


def test_types_schemas_licences_and_broken_items_are_seen(surveyed: dict[str, Any]) -> None:
    wiki = surveyed["sources"]["wiki"]
    assert wiki["types"]["text/html"]["items"] == 1 and wiki["types"]["application/x-ndjson"]["items"] == 1
    assert {"CC-BY-SA-4.0", "MIT"} <= set(wiki["licences"])
    assert wiki["broken"]["truncated"]["examples"][0]["path"] == "cut.gz"
    assert 0 < wiki["broken"]["truncated"]["bytes"]["value"] <= 20_000
    assert wiki["privacy"]["secret"]["examples"] == ["keys.md"]
    assert wiki["privacy"]["secret"]["value"] == wiki["privacy"]["card"]["value"] == 1
    assert next(iter(wiki["languages"])) == "en"
    (group,) = surveyed["mappings"]["wiki"]
    assert group["proposals"][0]["recipe"] == "map: alpaca"


def test_no_secret_that_it_counts_is_in_what_it_writes(surveyed: dict[str, Any], tree: Path) -> None:
    page = (tree.parent / "page.html").read_text()
    for private in (SECRET, "carol@example.org", "4111 1111"):
        assert private not in page and private not in json.dumps(surveyed)
    assert "<script" not in page and "default-src 'none'" in page


def test_the_forecast_of_tokens_comes_near_what_prepare_makes(tmp_path: Path) -> None:
    texts = sorted(Path(sheaf.__file__).parent.rglob("*.py"))
    (tmp_path / "in").mkdir()
    for n, path in enumerate(texts):
        (tmp_path / "in" / f"{n}.py").write_bytes(path.read_bytes())
    recipe = folder_recipe(tmp_path / "in").model_copy(update={"workspace": str(tmp_path / "ws")})
    guess = scan(recipe, share=0.3, workers=2)["forecast"]["tokens"]
    made = sheaf.prepare(recipe, workers=2).manifest["tokens"]
    assert abs(guess["value"] - made) <= guess["error"]


def test_the_verb_takes_a_folder_and_names_the_next_one(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scan", str(tree / "mirror"), "--to", str(tmp_path / "s.html")]) == 0
    out, err = capsys.readouterr()
    assert "mirror" in out and "sheaf init" in err and (tmp_path / "s.html").exists()


def test_a_source_that_cannot_be_listed_is_told_beside_those_that_can(tree: Path, tmp_path: Path) -> None:
    uris = {"here": str(tree / "mirror"), "gone": str(tmp_path / "nowhere")}
    recipe = Recipe.model_validate(
        {"name": "t", "sources": [{"name": n, "uri": u} for n, u in uris.items()], "workspace": str(tmp_path / "ws")}
    )
    data = scan(recipe, workers=1)
    assert list(data["sources"]) == ["here"] and "gone" in data["problems"][0]
    assert data["exit_code"] == 3 and "\n" not in data["problems"][0]


def test_the_only_source_that_cannot_be_listed_says_itself_what_is_wrong(tmp_path: Path) -> None:
    source = {"name": "db", "uri": "postgresql://me@127.0.0.1/x", "query": "SELECT 1", "password": {"env": "NO_SUCH"}}
    with pytest.raises(EnvironmentProblem, match="NO_SUCH"):
        scan(Recipe.model_validate({"name": "t", "sources": [source], "workspace": str(tmp_path)}), workers=1)


def test_what_cannot_be_surveyed_is_told_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scan", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["scan", str(tmp_path), "prepare.mojibake=false"]) == 2
    assert "no keys to change" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["scan", str(tmp_path), "--to", str(tmp_path / "file" / "page.html")]) == 4
    assert "the page cannot be written there" in capsys.readouterr().err


def test_what_a_rule_admits_is_read_so_and_is_not_broken(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    letter = b"\x01\x02\x03\x04\x05\x06\x07" + ("Письмо, которое не опознать. " * 4).encode("cp1251")
    (tmp_path / "in" / "letter.txt").write_bytes(letter)
    (tmp_path / "in" / "drawing.ps").write_text("%!PS-Adobe\n% a program that draws, to be read as text\n")
    (tmp_path / "in" / "zeros.txt.gz").write_bytes(gzip.compress(b"much of the same, over and over\n" * 60_000))
    rules = [
        {"path": "letter.txt", "encoding": "cp1251"},
        {"path": "*.ps", "format": "text/plain"},
        {"path": "*.gz", "limits": {"ratio": 5000}},
    ]
    source = {"name": "s", "uri": str(tmp_path / "in")}
    known: list[dict[str, Any]] = []
    for admit in ([], rules):
        prepare = {"limits": {"ratio": 50}, "admit": admit}
        recipe = Recipe.model_validate(
            {"name": "t", "sources": [source], "prepare": prepare, "workspace": str(tmp_path / "ws")}
        )
        known.append(scan(recipe, share=1.0, workers=1)["sources"]["s"])
    assert set(known[0]["broken"]) == {"undecodable", "unsupported", "bomb"}
    assert known[1]["broken"] == {} and known[1]["records"]["value"] == 3 and "cp1251" in known[1]["encodings"]


def test_a_folder_is_read_through_the_mapping_that_is_proposed_for_its_rows(tmp_path: Path) -> None:
    talk = [
        {"messages": [{"role": "user", "content": prose(n, 9)}, {"role": "assistant", "content": prose(99 + n, 9)}]}
        for n in range(60)
    ]
    for n in range(3):
        (tmp_path / f"talk-{n}.jsonl").write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in talk))
    (tmp_path / "page.txt").write_text(prose(1))
    data = scan(tmp_path, share=1.0, workers=1)
    (source,) = data["sources"].values()
    assert source["kinds"]["chat"] > 0.9 and source["broken"] == {} and source["records"]["value"] == 181
    unmapped = scan(folder_recipe(tmp_path), share=1.0, workers=1)
    (source,) = unmapped["sources"].values()
    assert source["records"]["value"] == 1 and set(source["broken"]) == {"no-text"}
