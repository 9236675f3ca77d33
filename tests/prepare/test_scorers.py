"""A scorer of the user runs in real workers, gives one number a text, and what is wrong with it is told by its name."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sheaf.corpus.workspace import Workspace
from sheaf.engine.local import LocalEngine
from sheaf.errors import SheafError, UsageError
from sheaf.files import task_folder
from sheaf.prepare import scorers
from sheaf.prepare.scorers import ROWS, Scorer

MODULE = '''
"""What a user writes."""
import os
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

def vowels(texts):
    assert isinstance(texts, pa.LargeStringArray), type(texts)
    assert len(texts) <= 1024
    return pc.count_substring_regex(texts, "[aeiou]")

class Judge:
    @staticmethod
    def lengths(texts):
        return [float(len(t)) for t in texts.to_pylist()]

def truths(texts):
    return np.array(pc.starts_with(texts, "a"))

def where(texts):
    return np.full(len(texts), os.getpid())

def raises(texts):
    raise KeyError("no such word")

def short(texts):
    return [1.0]

def nan(texts):
    return np.array([0.0] * (len(texts) - 1) + [float("nan")])

def words(texts):
    return ["one"] * len(texts)

def nothing(texts):
    return None

def table(texts):
    return np.zeros((len(texts), 2))

made_by_hand = lambda texts: np.zeros(len(texts))
'''


@pytest.fixture
def judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The user's module, in a folder that is on the path of this process and so of its workers."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "users_judges.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(scorers, "_registered", {})
    importlib.invalidate_caches()
    yield importlib.import_module("users_judges")
    sys.modules.pop("users_judges", None)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    store = Workspace(tmp_path / "workspace")
    store.create()
    texts = [f"record {n} about a kettle" for n in range(ROWS + 10)] + ["", "a last one"]
    kinds = ["text"] * (ROWS + 10) + ["image", "chat"]
    with task_folder(store.shard("s"), stage="read") as out:
        table = pa.table({"kind": kinds, "text": pa.array(texts, pa.large_string())})
        pq.write_table(table, out / "records.parquet", row_group_size=ROWS, write_page_checksum=True)
    return store


def run(workspace: Workspace, scorer: Scorer) -> list[float | None]:
    with closing(LocalEngine(1)) as engine:
        ((_, result),) = engine.run([scorers.task(workspace, "s", scorer)])
    column = scorers.read(workspace, "s", scorer)
    assert result == {"records": len(column)}
    return column.to_pylist()


def test_a_scorer_runs_in_a_worker_and_gives_one_number_a_text(judges: Any, workspace: Workspace) -> None:
    scorer = scorers.register("vowels", judges.vowels, version="3")
    assert scorers.registered() == {"vowels": scorer}
    found = run(workspace, scorer)
    assert found[0] == sum("record 0 about a kettle".count(c) for c in "aeiou")
    assert found[-1] == sum("a last one".count(c) for c in "aeiou")
    assert len(found) == ROWS + 12


def test_a_picture_has_no_score(judges: Any, workspace: Workspace) -> None:
    assert run(workspace, scorers.register("vowels", judges.vowels))[-2] is None


def test_lists_truths_and_methods_of_classes_serve_too(judges: Any, workspace: Workspace) -> None:
    assert run(workspace, scorers.register("size", judges.Judge.lengths))[-1] == 10.0
    assert run(workspace, scorers.register("a_first", judges.truths))[-1] == 1.0


def test_a_new_version_is_a_stage_of_its_own(judges: Any) -> None:
    first = scorers.register("vowels", judges.vowels, version="1")
    second = scorers.register("vowels", judges.vowels, version="2")
    assert first.stage != second.stage
    assert scorers.registered()["vowels"] == second
    assert Scorer(**second.about()) == second


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("raises", "it raised KeyError: 'no such word'"),
        ("short", "it gave an array of shape (1,) for 1024 texts"),
        ("nan", "it gave nan for a text of 26 characters"),
        ("words", "it gave no numbers"),
        ("nothing", "it gave no numbers"),
        ("table", "it gave an array of shape (1024, 2)"),
    ],
)
def test_a_scorer_that_fails_is_named_with_what_it_did(judges: Any, workspace: Workspace, name: str, told: str) -> None:
    scorer = scorers.register("politeness", getattr(judges, name))
    with pytest.raises(SheafError) as caught:
        run(workspace, scorer)
    assert "the scorer 'politeness' failed" in str(caught.value)
    assert f"users_judges:{name}" in str(caught.value)
    assert told in str(caught.value)
    assert not workspace.scores("s", scorer.stage).exists()


def test_a_module_that_workers_do_not_have_is_told(judges: Any, workspace: Workspace) -> None:
    scorer = scorers.register("vowels", judges.vowels)
    Path(judges.__file__).unlink()
    with pytest.raises(SheafError, match="is not to be found in a worker") as caught:
        run(workspace, scorer)
    assert "PYTHONPATH" in str(caught.value)


def test_only_what_another_process_finds_by_name_can_be_registered(judges: Any) -> None:
    def local(texts: pa.Array) -> list[float]:
        return [0.0] * len(texts)

    functions: list[Any] = [local, judges.made_by_hand, judges, 3, judges.vowels.__call__, judges.Judge()]
    for function in functions:
        with pytest.raises(UsageError, match="cannot run in a worker"):
            scorers.register("x", function)
    local.__module__, local.__qualname__ = "__main__", "local"
    with pytest.raises(UsageError, match="the program that is being run"):
        scorers.register("x", local)
    local.__module__, local.__qualname__ = "users_judges", "vowels"
    with pytest.raises(UsageError, match="is something else"):
        scorers.register("x", local)
    assert scorers.registered() == {}


@pytest.mark.parametrize("name", ["words", "kind", "id", "Politeness", "2nd", "a-b", "", "a b", "a.b", "__class__"])
def test_a_name_that_is_none_or_is_taken_is_refused(judges: Any, name: str) -> None:
    with pytest.raises(UsageError, match="a scorer cannot be called"):
        scorers.register(name, judges.vowels)


def test_two_functions_cannot_have_one_name(judges: Any) -> None:
    scorers.register("x", judges.vowels)
    scorers.register("x", judges.vowels)
    with pytest.raises(UsageError, match="another scorer is called 'x'"):
        scorers.register("x", judges.truths)
