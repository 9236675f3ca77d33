"""Selecting decides by the set of occurrences alone, and its account adds up."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from selecting import Place, Store, decisions, recipe_of, record_id

from sheaf.console import Silent
from sheaf.errors import DataRefused, RecipeError, SheafError
from sheaf.prepare.select import check_admit
from sheaf.recipe import Admit

WORDS = [f"{a}{b}" for a in ("stone", "river", "cloud", "ember", "quill") for b in ("less", "ward", "ling", "fold")]


def prose(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def world(seed: int = 1) -> dict[Place, list[str]]:
    """Three sources with repeats inside items, between them and between sources, and records that are too short."""
    rng = random.Random(seed)
    texts = [prose(rng, rng.randint(2, 30)) for _ in range(400)]
    return {
        (source, f"{n:02d}.txt"): rng.choices(texts, k=rng.randint(0, 60))
        for source in ("b", "a", "c")
        for n in range(12)
    }


def laid_down(root: Path, items: Mapping[Place, Sequence[str]], shards: int, seed: int) -> Store:
    """The items in an order and a grouping of their own."""
    order = list(items)
    random.Random(seed).shuffle(order)
    store = Store.at(root)
    for part in range(shards):
        store.add({place: items[place] for place in order[part::shards]})
    return store


def expected(items: Mapping[Place, Sequence[str]], names: Sequence[str], shortest: int) -> dict[str, dict[str, Any]]:
    """What the definition says, record by record."""
    seen: dict[str, list[tuple[int, str, str]]] = {}
    for (source, path), texts in items.items():
        for line, text in enumerate(texts):
            seen.setdefault(text, []).append((names.index(source), path, f'{{"row":{line}}}'))
    return {
        record_id(text).hex(): {
            "source": min(places)[0],
            "kept": len(text) >= shortest,
            "reason": "" if len(text) >= shortest else "too-short",
            "occurrences": len(places),
        }
        for text, places in seen.items()
    }


def test_each_record_is_decided_once_and_its_first_occurrence_speaks_for_it(tmp_path: Path) -> None:
    items = world()
    recipe = recipe_of(["a", "b", "c"], length={"min_characters": 40})
    with laid_down(tmp_path, items, 3, seed=1).selected(recipe) as selection:
        found = decisions(selection)
        wanted = expected(items, ["a", "b", "c"], 40)
        assert {i: {k: row[k] for k in wanted[i]} for i, row in found.items()} == wanted
        order = [(row["source"], i) for i, row in found.items()]
        assert order == sorted(order)


@pytest.mark.parametrize(("shards", "ranges", "seed"), [(1, 1, 1), (4, 1, 2), (4, 7, 3), (9, 64, 4)])
def test_the_outcome_depends_neither_on_shards_nor_on_ranges_of_ids(
    tmp_path: Path, shards: int, ranges: int, seed: int
) -> None:
    recipe = recipe_of(["a", "b", "c"], length={"min_characters": 40}, dedup={"near": 0.8})
    told: list[Any] = []
    for root, n, r, s in ((tmp_path / "one", 2, None, 0), (tmp_path / "two", shards, ranges, seed)):
        with laid_down(root, world(), n, s).selected(recipe, ranges=r) as selection:
            rows = decisions(selection)
            for row in rows.values():
                del row["shard"], row["row"]
            told.append((selection.content, rows, selection.ledger.to_pylist(), selection.counts))
    assert told[0] == told[1]


def test_read_is_kept_and_duplicates_and_dropped_and_quarantined_for_each_source_and_overall(tmp_path: Path) -> None:
    items = world()
    recipe = recipe_of(["a", "b", "c"], length={"min_characters": 40}, dedup={"near": 0.8})
    with laid_down(tmp_path, items, 3, seed=1).selected(recipe, ranges=5) as selection:
        counts = selection.counts
    for name in ("a", "b", "c"):
        records = counts["sources"][name]["records"]
        assert records["read"] == sum(len(texts) for (source, _), texts in items.items() if source == name)
        assert records["read"] == records["kept"] + records["duplicate"] + sum(records["dropped"].values())
    total = counts["records"]
    assert total["read"] == sum(map(len, items.values()))
    assert total["duplicate"] == sum(o["exact"] for o in counts["overlap"]) > 0
    assert total["dropped"]["too-short"] > 0


@pytest.mark.parametrize("changed", [{"records": [3]}, {"size": [1000]}, {"structure_bytes": [1]}])
def test_an_account_that_does_not_add_up_is_caught(tmp_path: Path, changed: dict[str, list[int]]) -> None:
    store = Store.at(tmp_path)
    store.add({("a", "x"): ["one record that is long enough to stay", "another record that is long enough"]}, **changed)
    with pytest.raises(SheafError, match="does not add up") as caught, store.selected(recipe_of(["a"])):
        pass
    assert "a: /data/a/x" in caught.value.where
    assert not list(tmp_path.glob(".select*"))


def test_every_rule_of_one_recipe_decides_in_order_and_names_its_reason(tmp_path: Path) -> None:
    rng = random.Random(5)
    base = [prose(rng, 60) for _ in range(20)]
    question = prose(rng, 20)
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals/exam.jsonl").write_bytes(orjson.dumps({"question": question}) + b"\n")
    changed = " ".join([*base[0].split()[:-1], "different"])
    special = {
        "short": "tiny",
        "expression": prose(rng, 300),
        "private": f"Write to jane.roe@bank.com about {prose(rng, 20)}",
        "both": "ann@bank.com",
        "exam": f"{prose(rng, 10)} {question} {prose(rng, 10)}",
        "near": changed,
    }
    store = Store.at(tmp_path / "workspace")
    store.add({("first", "base"): base})
    store.add({("second", "special"): [*special.values(), base[1], prose(rng, 50)]})
    recipe = recipe_of(
        ["first", "second"],
        filters=["score.words < 200"],
        privacy={"email": "drop", "phone": "mask"},
        decontaminate=[str(tmp_path / "evals/*.jsonl")],
        dedup={"near": 0.8},
    )
    with store.selected(recipe) as selection:
        found = decisions(selection)
        by_name = {name: found[record_id(text).hex()] for name, text in special.items()}
        assert {name: row["reason"] for name, row in by_name.items()} == {
            "short": "too-short",
            "expression": "filter:score.words < 200",
            "private": "privacy:email",
            "both": "too-short",
            "exam": "evaluation",
            "near": "near-duplicate",
        }
        assert "exam.jsonl" in by_name["exam"]["detail"]
        assert by_name["near"]["of"] == record_id(base[0]).hex()
        assert 0.8 <= float(by_name["near"]["detail"]) < 1
        assert selection.counts["overlap"] == [{"source": "second", "of": "first", "exact": 1, "near": 1}]
        assert selection.counts["sources"]["second"]["decisions"]["privacy:email"] == 1


def test_an_exception_undoes_its_own_reason_only(tmp_path: Path) -> None:
    store = Store.at(tmp_path)
    texts = ["tiny", "ann@bank.com"]
    store.add({("a", "x"): texts})
    recipe = recipe_of(["a"], privacy={"email": "drop"}, admit=[{"path": "x", "reason": "too-short"}])
    with store.selected(recipe) as selection:
        found = decisions(selection)
        assert [found[record_id(text).hex()]["reason"] for text in texts] == ["", "privacy:email"]


def test_a_near_duplicate_can_be_admitted(tmp_path: Path) -> None:
    rng = random.Random(2)
    text = prose(rng, 80)
    twin = f"{text} more"
    store = Store.at(tmp_path)
    store.add({("a", "x"): [text], ("b", "y"): [twin]})
    for admit, reason in (([], "near-duplicate"), ([{"path": "y", "reason": "near-duplicate"}], "")):
        recipe = recipe_of(["a", "b"], dedup={"near": 0.8, "max_loss": 1}, admit=admit)
        with store.selected(recipe) as selection:
            row = decisions(selection)[record_id(twin).hex()]
            assert (row["reason"], row["of"] is None) == (reason, not reason)


def test_what_was_forgotten_goes_first_and_no_exception_brings_it_back(tmp_path: Path) -> None:
    store = Store.at(tmp_path)
    texts = ["tiny", "a record that is long enough to be kept by the rules"]
    store.add({("a", "x"): texts})
    gone = frozenset(record_id(text) for text in texts)
    with store.selected(recipe_of(["a"]), forgotten=gone) as selection:
        assert {row["reason"] for row in decisions(selection).values()} == {"forgotten"}
    with pytest.raises(RecipeError, match="forgotten"):
        check_admit([Admit(reason="forgotten")], ["a"])


@pytest.mark.parametrize("reason", ["gopher:mean_word_lenght", "privacy:e-mail", "fineweb:stop_words"])
def test_a_rule_that_drops_nothing_so_is_not_admitted(reason: str) -> None:
    with pytest.raises(RecipeError, match="no record is dropped as"):
        check_admit([Admit(reason=reason)], ["a"])
    check_admit([Admit(reason=r) for r in ("gopher:mean_word_length", "privacy:email", "gopher", "filter:x")], ["a"])


def test_a_source_that_near_duplicates_would_eat_stops_everything_and_is_shown_without_secrets(tmp_path: Path) -> None:
    rng = random.Random(3)
    form = f"Dear jane.roe@bank.com, {prose(rng, 60)}"
    store = Store.at(tmp_path)
    store.add({("forms", "x"): [f"{form} number {n}" for n in range(101)], ("prose", "y"): [prose(rng, 60)]})
    recipe = recipe_of(["forms", "prose"], dedup={"near": 0.8})
    match = "100 of the 101 records that the source 'forms' has left"
    with pytest.raises(DataRefused, match=match) as caught, store.selected(recipe):
        pass
    assert caught.value.exit_code == 3
    assert "100 are like this one of 'forms'" in caught.value.why and "[email]" in caught.value.why
    assert "jane" not in str(caught.value) and "max_loss" in caught.value.fix
    assert not list(tmp_path.glob(".select*"))
    with store.selected(recipe_of(["forms", "prose"], dedup={"near": 0.8, "max_loss": 1})) as selection:
        assert selection.counts["records"]["dropped"] == {"near-duplicate": 100}


def test_a_few_near_duplicates_stop_nothing_however_large_a_share_they_are(tmp_path: Path) -> None:
    rng = random.Random(3)
    form = prose(rng, 60)
    store = Store.at(tmp_path)
    store.add({("forms", "x"): [f"{form} number {n}" for n in range(100)]})
    with store.selected(recipe_of(["forms"], dedup={"near": 0.8, "max_loss": 0})) as selection:
        assert selection.counts["records"]["dropped"] == {"near-duplicate": 99}


def test_every_part_of_selecting_tells_how_far_it_is(tmp_path: Path) -> None:
    rng = random.Random(4)
    texts = [prose(rng, 60) for _ in range(6)]
    store = Store.at(tmp_path)
    store.add({("a", "x"): texts})
    store.add({("a", "y"): [f"{text} more" for text in texts]})
    told: dict[str, list[int | None]] = {}

    class Listening(Silent):
        @contextmanager
        def stage(self, title: str, total: int | None, unit: str) -> Generator[Callable[[int], None]]:
            line = told[title] = [total, 0]

            def advance(n: int) -> None:
                line[1] = (line[1] or 0) + n

            yield advance

    with store.selected(recipe_of(["a"], dedup={"near": 0.8, "max_loss": 1}), console=Listening()):
        pass
    assert told == {"gather": [2, 2], "select": [2, 2], "near: candidates": [2, 2], "near: compare": [12, 12]}


MEASURE = """
import sys
from pathlib import Path
from selecting import Store, recipe_of
from sheaf.prepare import select, stages
from sheaf.corpus.workspace import Workspace
root, ranges = Path(sys.argv[1]), int(sys.argv[2])
recipe = recipe_of(["a"])
keys = {bytes.fromhex(line) for line in (root / "keys").read_text().split()}
workspace = Workspace(root)
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
Path("/proc/self/clear_refs").write_text("5")  # what importing took is forgotten
before = peak()
with select.select(workspace, workspace.finished_shards(), keys, [], recipe, stages.asked(recipe), ranges=ranges) as s:
    print(len(s.decided), peak() - before)
"""


def peak_kilobytes(root: Path, shards: int) -> int:
    """What selecting adds to a process' memory, over shards of 10,000 records each and as many ranges: the least of
    three times, as allocators and threads add some megabytes or not."""
    store = Store.at(root)
    for n in range(shards):
        store.add({("a", f"{n}"): [f"record {n} {i} and so on" for i in range(10_000)]})
    with store.selected(recipe_of(["a"])):
        pass
    (root / "keys").write_text("\n".join(key.hex() for key in store.keys))
    found: list[int] = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(root), str(shards)],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        records, kilobytes = map(int, done.stdout.split())
        assert records == shards * 10_000
        found.append(kilobytes)
    return min(found)


def test_memory_does_not_grow_with_the_number_of_records(tmp_path: Path) -> None:
    few, many = peak_kilobytes(tmp_path / "few", 2), peak_kilobytes(tmp_path / "many", 16)
    # of 140,000 records more, what is decided is mapped while shards are gone through, 14 bytes each, and no more
    assert many - few < 140 * 40, f"{few} kB at 20,000 records, {many} kB at 160,000"
