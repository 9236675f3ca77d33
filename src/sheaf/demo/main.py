"""`sheaf demo`: from text scattered over this machine to a trained, traced model, and a verdict on every step.

Collect real text, scatter it over real places, prepare, compare the ledger with what was planted, train, measure on
held-out text beside simple means, write a sample, trace a training sample to its source bytes and read them again.
A ledger that differs from the truth ends the demo with an error. A second demo in the same folder reads nothing twice.
Cost: with 30 MB and the tiny preset about 5 minutes on two cores, 2 GB of memory, and 200 MB of disk.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from sheaf.console import Console, Silent, duration, size
from sheaf.corpus.version import CorpusVersion
from sheaf.demo.baselines import baselines
from sheaf.demo.collect import collect
from sheaf.demo.recipe_text import MINUTES, recipe_text
from sheaf.demo.scatter import Scattered, scatter
from sheaf.demo.server import serving
from sheaf.demo.truth import compare
from sheaf.demo.verdict import judge
from sheaf.errors import SheafError

PROMPT = "def "


def run_demo(
    folder: Path,
    *,
    megabytes: float = 30.0,
    minutes: float = MINUTES,
    nproc: int = 1,
    console: Console | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything, in `folder`, which is made. minutes: of training.

    overrides: "key=value" for the recipe that the demo writes. Returns what `sheaf demo --json` prints.
    Raises DemoFailed if the ledger is not what was planted.
    """
    started = time.monotonic()
    console = console or Silent()
    folder = folder.resolve()
    scattered = _gather(folder, megabytes, seed, console)
    with serving(scattered.data / "web") as url:
        recipe_path = folder / "sheaf.yaml"
        recipe_path.write_text(recipe_text(url, scattered.pages, minutes))
        recipe, prepared, corpus = _prepare(recipe_path, overrides, console)
        verdict = judge(scattered.truth, corpus, compare(scattered.truth, corpus.root), console)
        trained = _train(recipe, corpus, nproc, console)
        run = Path(trained["run"])
        held_out = _measure(run, console)
        sample = _generate(run, console)
        traced = _trace(run, seed, console)
    report = _report(run, console)
    console.note(f"\nThe demo took {duration(time.monotonic() - started)}.")
    return {
        "folder": str(folder),
        "recipe": str(recipe_path),
        "verdict": verdict,
        "prepare": prepared,
        "train": trained,
        "held_out": held_out,
        "sample": sample,
        "trace": traced,
        "run": str(run),
        "report": str(report),
        "seconds": round(time.monotonic() - started, 3),
    }


class TraceFailed(SheafError):
    """An origin's bytes do not give the text that was trained on."""

    exit_code = 3


def _gather(folder: Path, megabytes: float, seed: int, console: Console) -> Scattered:
    with console.stage("collect text from this machine", int(megabytes * 1e6), "B") as advance:
        pool = collect(megabytes, seed, seen=advance)
    with console.stage("scatter it", None, "items") as advance:
        scattered = scatter(pool, folder / "data")
        advance(len(scattered.truth.items))
        scattered.truth.save(folder / "truth.json")
    console.note("\nWhat lies where:")
    for name, counts in scattered.truth.counts().items():
        console.note(
            f"  {name:<10} {counts['items']:>5,} items  {size(counts['bytes']):>8}  {counts['records']:>6,} texts"
        )
    return scattered


def _prepare(path: Path, overrides: Sequence[str], console: Console) -> tuple[Any, dict[str, Any], CorpusVersion]:
    from sheaf.prepare.pipeline import prepare
    from sheaf.recipe_file import load

    recipe = load(path, list(overrides))
    prepared = prepare(recipe, workers=None, engine="local", console=console)
    corpus = CorpusVersion.open(Path(recipe.workspace))
    records, total = prepared["records"], prepared["bytes"]
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in records["dropped"].items()) or "none"
    console.note(f"\n{size(total['in'])} in = {size(total['kept'])} kept + {size(total['dropped'])} dropped")
    console.note(f"  + {size(total['quarantined'])} quarantined, to the byte")
    console.note(
        f"Records: {records['kept']:,} kept, {records['duplicate']:,} duplicates; dropped by rules: {dropped}."
    )
    for row in corpus.quarantine().group_by("reason").aggregate([("bytes", "sum"), ("bytes", "count")]).to_pylist():
        console.note(f"  quarantined: {row['reason']:<12} {row['bytes_count']:>3} regions  {size(row['bytes_sum']):>8}")
    for name, tokens in corpus.tokens_by_source().items():
        console.note(f"  tokens: {name:<10} {tokens:>10,}")
    return recipe, prepared, corpus


def _train(recipe: Any, corpus: CorpusVersion, nproc: int, console: Console) -> dict[str, Any]:
    from sheaf.train.launch import train

    console.note("\nTraining:")
    return train(recipe, corpus, nproc=nproc, console=console)


def _measure(run: Path, console: Console) -> dict[str, Any]:
    """The model beside xz and a unigram model, on the whole held-out text."""
    from sheaf.train.evaluate import evaluate_run
    from sheaf.train.run import Run
    from sheaf.train.setup import order_of

    opened = Run.open(run)
    corpus = opened.corpus()
    with console.stage("measure on held-out text", None, "B") as advance:
        ours = evaluate_run(run)["bits_per_byte"]
        others = baselines(corpus, order_of(opened.recipe, corpus, "held_out"))
        advance(others.bytes)
    console.note(f"\nBits per byte of {size(others.bytes)} of held-out text (less is better):")
    for name, bits in (("this model", ours), ("xz -9e", others.xz), ("unigram", others.unigram)):
        console.note(f"  {name:<10} {bits:.3f}")
    return {"bits_per_byte": ours, **asdict(others)}


def _generate(run: Path, console: Console) -> str:
    from sheaf.api import Run

    text = PROMPT + "".join(islice(Run(run).generate(PROMPT, max_tokens=96), 96))
    console.note("\nA sample of what it writes:\n")
    console.note("\n".join(f"  | {line}" for line in text.splitlines()))
    return text


def _trace(run: Path, seed: int, console: Console) -> dict[str, Any]:
    """One sample of the training, back to its source; every origin is read again. Raises TraceFailed."""
    from sheaf.train import journal
    from sheaf.train.trace import trace_run

    step = random.Random(seed).randrange(len(journal.read(run)))
    traced = trace_run(run, step, 0, verify=True)
    document = traced["samples"][0]["documents"][0]
    excerpt = " ".join(document["text"].split())[:70]
    console.note(f'\nStep {step}, sample 0 was trained on "{excerpt}…"')
    for origin in document["origins"]:
        where = origin["uri"] + (f" !/ {origin['member']}" if origin["member"] else "")
        console.note(f"  from {where}, {_place(origin['locator'])}")
    wrong = [o for s in traced["samples"] for d in s["documents"] for o in d["origins"] if not o["verified"]]
    if wrong:
        raise TraceFailed("an origin does not give the text that was trained on", where=wrong[0]["uri"])
    n = sum(len(d["origins"]) for s in traced["samples"] for d in s["documents"])
    console.note(f"  All {n} origins of the sample were read again and hold the very text.")
    return traced


def _place(locator: dict[str, Any]) -> str:
    if "bytes" in locator:
        return "bytes {:,} to {:,}".format(*locator["bytes"])
    return ", ".join(f"{name} {value}" for name, value in locator.items())


def _report(run: Path, console: Console) -> Path:
    from sheaf.report.build import write_report

    path = write_report(run)
    console.note(f"\nThe report: {path}")
    return path
