"""Scores of the user's own: a Python function from texts to numbers, registered under a name, run by shard like ours.

    def politeness(texts: pa.LargeStringArray) -> np.ndarray: ...     # in a module that workers can import
    sheaf.register_scorer("politeness", politeness, version="1")      # then `filters: ["score.politeness > 0.2"]`

A recipe names scores and never code: what `score.politeness` runs was decided by the program that registered it. The
function is found again in a worker by module and name, so it must be importable there; nothing is pickled. Its output
is a stage of its own, named by function and version: a new version runs anew, and nothing else does.
Cost: the function's own, on ROWS texts at a time; memory is theirs and 8 bytes a record.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sheaf.corpus.shards import ROW_GROUP
from sheaf.corpus.signals import SIGNAL
from sheaf.corpus.workspace import Workspace
from sheaf.engine.base import Json, Task
from sheaf.errors import SheafError, UsageError
from sheaf.files import checked, digest_of, task_folder
from sheaf.formats.schema import TEXTUAL

ScoreFunction = Callable[[pa.Array], Any]
ROWS = ROW_GROUP
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_KEPT = ("id", "kind")  # columns of scores that are no signals


class ScorerFailed(SheafError):
    """A scorer of the user raised something, or gave what is no number for each text."""


@dataclass(frozen=True)
class Scorer:
    """function: "module:qualified.name", as a worker finds it."""

    name: str
    function: str
    version: str

    @property
    def stage(self) -> str:
        return f"scorer-{self.name}-{digest_of(self.function, self.version)[:8]}"

    def about(self) -> Json:
        """As a manifest keeps it; `Scorer(**about)` reads the scores again without the function."""
        return {"name": self.name, "function": self.function, "version": self.version}


_registered: dict[str, Scorer] = {}


def register(name: str, function: ScoreFunction, version: str = "1") -> Scorer:
    """Make `score.NAME` of what the function gives. Raises UsageError for a name that is taken or is none, and for a
    function that no other process could find: a lambda, a local one, or one of a script that is being run.

    version: change it whenever the function would give other numbers; the old ones are not looked at again.
    """
    if not _NAME.fullmatch(name) or name in SIGNAL or name in _KEPT:
        taken = name in SIGNAL or name in _KEPT
        raise UsageError(
            f"a scorer cannot be called '{name}'",
            why="sheaf has a score of that name" if taken else "a name is small letters, digits and _",
            fix="choose another name",
        )
    scorer = Scorer(name, _importable(name, function), str(version))
    known = _registered.get(name)
    if known is not None and known.function != scorer.function:
        raise UsageError(
            f"another scorer is called '{name}'",
            why=f"it is {known.function}, and this is {scorer.function}",
            fix="register each under a name of its own",
        )
    _registered[name] = scorer
    return scorer


def registered() -> Mapping[str, Scorer]:
    """The scorers of this process, by name."""
    return dict(_registered)


def task(workspace: Workspace, shard: str, scorer: Scorer) -> Task:
    arguments = {"workspace": workspace.where, "shard": shard, **scorer.about()}
    return Task("sheaf.prepare.scorers:score_shard", arguments, label=f"{scorer.name} {shard[:8]}")


def read(workspace: Workspace, shard: str, scorer: Scorer) -> pa.ChunkedArray:
    """One number a row of the shard's records; null where a record has no text (pictures and sounds)."""
    return pq.read_table(checked(workspace.scores(shard, scorer.stage) / "scores.parquet"))[scorer.name]


def score_shard(workspace: str, shard: str, name: str, function: str, version: str) -> Json:
    """The task: all rows of a shard. Raises ScorerFailed, and UsageError if the function is not there."""
    store, scorer = Workspace.at(workspace), Scorer(name, function, version)
    found = _find(scorer)
    parts = [_scored(scorer, found, kind, text) for kind, text in _batches(store.shard(shard) / "records.parquet")]
    column = pa.chunked_array(parts, pa.float64())
    with task_folder(store.scores(shard, scorer.stage), stage="scorer") as out:
        pq.write_table(pa.table({name: column}), out / "scores.parquet", compression="zstd")
    return {"records": len(column)}


def _batches(records: Path) -> Any:
    """(kind, text) of some rows at a time."""
    with pq.ParquetFile(checked(records), page_checksum_verification=True) as file:
        for batch in file.iter_batches(ROWS, columns=["kind", "text"]):
            yield batch["kind"], batch["text"]


def _scored(scorer: Scorer, function: ScoreFunction, kind: pa.Array, text: pa.Array) -> pa.Array:
    textual = pc.is_in(kind, pa.array(TEXTUAL)).to_numpy(zero_copy_only=False)
    result = np.full(len(kind), np.nan)
    if textual.any():
        result[textual] = _checked(scorer, function, text.filter(pa.array(textual)).cast(pa.large_string()))
    return pa.array(result, pa.float64(), mask=~textual)


def _checked(scorer: Scorer, function: ScoreFunction, texts: pa.Array) -> NDArray[np.float64]:
    """What the function gives for the texts, if it is a finite number for each."""
    try:
        given = function(texts)
    except Exception as error:
        raise _failed(scorer, f"it raised {type(error).__name__}: {error}") from error
    try:
        numbers = np.asarray(given.to_numpy(zero_copy_only=False) if isinstance(given, pa.Array) else given)
        if numbers.dtype.kind not in "biuf":
            raise TypeError(f"it gave {numbers.dtype}")
        numbers = numbers.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise _failed(scorer, f"it gave no numbers: {error}") from error
    if numbers.shape != (len(texts),):
        raise _failed(scorer, f"it gave an array of shape {numbers.shape} for {len(texts)} texts")
    odd = np.flatnonzero(~np.isfinite(numbers))
    if len(odd):
        text = texts[int(odd[0])].as_py()
        raise _failed(scorer, f"it gave {numbers[odd[0]]} for a text of {len(text)} characters")
    return numbers


def _failed(scorer: Scorer, why: str) -> ScorerFailed:
    return ScorerFailed(
        f"the scorer '{scorer.name}' failed",
        where=scorer.function,
        why=why,
        fix="a scorer takes an Arrow array of texts and gives one finite number for each; try it on pa.array(['…'])",
    )


def _importable(name: str, function: ScoreFunction) -> str:
    """ "module:qualname" of a function that another process finds by it."""
    module, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    why = ""
    if not callable(function) or not module or not qualname:
        why = "it is no function of a module"
    elif "<" in qualname:
        why = f"{qualname} has no name that another process could find"
    elif module == "__main__":
        why = "it stands in the program that is being run, which workers do not import"
    elif _resolved(module, qualname) is not function:
        why = f"{module}:{qualname} is something else"
    if why:
        raise UsageError(
            f"the scorer '{name}' cannot run in a worker",
            why=why,
            fix="define it with `def` at the top of a module of its own, and import it from there",
        )
    return f"{module}:{qualname}"


def _find(scorer: Scorer) -> ScoreFunction:
    module, _, qualname = scorer.function.partition(":")
    try:
        return _resolved(module, qualname)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"the scorer '{scorer.name}' is not to be found in a worker",
            where=scorer.function,
            why=str(error),
            fix="install its module, or put its folder on PYTHONPATH, wherever workers run",
        ) from error


def _resolved(module: str, qualname: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found
