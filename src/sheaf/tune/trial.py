"""One trial's process: `sheaf.tune.trial ANSWER ORDER`, forked by `crew` from one that has imported everything.

Trains a run up to a step, or goes on with it, then measures it on what judges all trials. Both are done once: a process
that finds the run there already only measures, and one that finds the measure in judged.jsonl is done. Why it fails is
written to the file ANSWER.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sheaf.processes import die_with_parent, leave

JUDGED = "judged.jsonl"  # in the run's folder: a line for each rung
LAUNCHER = "SHEAF_LAUNCHER"


def main(answer: Path, order: Mapping[str, Any]) -> int:
    """Returns the exit code; 0 once the measure is in the run's folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the launcher's to pass on
    die_with_parent(int(os.environ.pop(LAUNCHER)))
    from sheaf.errors import SheafError

    try:
        reach(**order)
    except SheafError as error:
        words = {"what": error.what, "where": error.where, "why": error.why, "fix": error.fix}
        _say(answer, {"kinds": [kind.__name__ for kind in type(error).__mro__], **words})
        return error.exit_code
    except Exception as error:  # noqa: BLE001  (it is told, and this process ends)
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        _say(answer, {"kinds": [], "what": said, "where": "", "why": "", "fix": ""})
        traceback.print_exc()
        return 1
    return 0


def reach(run: str, until: int, percent: int, judge: str) -> None:
    """Train the run up to that step, unless it is there, and measure it, unless that is done."""
    from sheaf.console import Silent
    from sheaf.train.checkpoint import newest_valid
    from sheaf.train.launch import resume
    from sheaf.train.run import Run

    opened = Run.open(Path(run))
    if judged(opened.folder).get(percent) is not None:
        return
    newest = newest_valid(opened.folder)
    if opened.result is None and (newest is None or newest.step < until or until == opened.settings.steps):
        resume(opened.folder, until=until, console=Silent())
    start = time.perf_counter()
    figures = _measured(Run.open(opened.folder), until, Path(judge))
    seconds = time.perf_counter() - start
    _append(opened.folder / JUDGED, {"percent": percent, **figures, "seconds": seconds})


def judged(run: Path) -> dict[int, dict[str, Any]]:
    """What a run was measured at, by rung in percent."""
    from sheaf.train.journal import read_lines

    return {int(line["percent"]): line for line in read_lines(run / JUDGED)}


def _measured(run: Any, step: int, judge: Path) -> dict[str, Any]:
    import orjson

    from sheaf.corpus.version import CorpusVersion
    from sheaf.recipe import Recipe
    from sheaf.train.evaluate import evaluate_on
    from sheaf.train.setup import order_of

    said = orjson.loads(judge.read_bytes())
    recipe = Recipe.model_validate_json(orjson.dumps(said["recipe"]))
    corpus = CorpusVersion.open(run.folder.parent.parent, said["corpus"])
    order = order_of(recipe, corpus, "held_out")
    order = order if said["on"] is None else order.of_sources(said["on"])
    tokens, threads = recipe.train.evaluate_tokens, run.settings.threads
    figures = evaluate_on(run, corpus, order, step=step, threads=threads, tokens=tokens)
    return {key: figures[key] for key in ("step", "loss", "bits_per_byte", "tokens", "bytes")}


def _append(path: Path, line: dict[str, Any]) -> None:
    from contextlib import closing

    from sheaf.train.journal import Journal

    whole = path.stat().st_size if path.exists() else 0
    with closing(Journal(path, whole)) as lines:
        lines.append(line)
        lines.sync()


def _say(answer: Path, words: dict[str, Any]) -> None:
    answer.write_text(json.dumps(words))


if __name__ == "__main__":
    leave(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
