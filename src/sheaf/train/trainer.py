"""A run from its first step, or its newest checkpoint, to its end, on one rank.

The loop: take a batch, make a step, write a journal line; evaluate and save when they are due. Rank 0 alone writes
files. All that decides a number (weights, optimiser, position in the order, lengths of the journals) is in the
checkpoint or in run.json, and nothing random happens between steps; so a run that is killed anywhere and resumed
computes what an undisturbed one does, bit for bit on one process with the same number of threads.
Cost outside the steps: one copy of the tensors a checkpoint; evaluation as said in `evaluate`.
"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from sheaf.console import Console, duration
from sheaf.errors import UsageError
from sheaf.model.memory import peak_memory_bytes
from sheaf.order.figures import step_figures
from sheaf.order.loader import Batch, Loader
from sheaf.order.mix import LARGEST_DRAW
from sheaf.order.replace import digest
from sheaf.parallel.collectives import traffic
from sheaf.parallel.layout import layout_on
from sheaf.parallel.mesh import Mesh
from sheaf.parallel.pulse import Phase, pulse
from sheaf.parallel.ranks import Ranks
from sheaf.processes import StopSignals
from sheaf.train import journal
from sheaf.train.assemble import learner_of
from sheaf.train.auto_layout import laid_out
from sheaf.train.buckets import buckets_state
from sheaf.train.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    find_checkpoint,
    list_checkpoints,
    newest_valid,
    step_of,
)
from sheaf.train.damage import Damages
from sheaf.train.evaluate import evaluate, predicts, steps_within
from sheaf.train.hours import PROBE_STEPS, steps_for_hours
from sheaf.train.journal import Journal
from sheaf.train.keep import LOSS, best_of, loss_of
from sheaf.train.kept import restore_kept
from sheaf.train.learner import NotFinite
from sheaf.train.not_finite import explained as traced
from sheaf.train.out_of_memory import explained
from sheaf.train.pace import Pace, timed
from sheaf.train.run import Run
from sheaf.train.schedule import learning_rate
from sheaf.train.settings import attention_span, with_steps
from sheaf.train.setup import order_of
from sheaf.train.spikes import RollBack, rolled_back
from sheaf.train.stopped import interrupted

NOTES_A_RUN = 20


def train_run(run: Run, ranks: Ranks, console: Console) -> Run:
    """Train a run to its end, or to `run.until`. Returns it with its result (on rank 0). Called by every rank.

    Raises Interrupted after SIGINT or SIGTERM, with a checkpoint written; TrainingFailed if the numbers went wrong;
    EnvironmentProblem if the disk is full; OutOfMemory. Whatever is raised, the run can be resumed.
    """
    # Autograd's threads start with the first backward: this one, while there is memory for them.
    torch.zeros((), requires_grad=True).backward()
    run = laid_out(run, ranks, console)
    while True:
        try:
            return _train_on(run, ranks, console)
        except RollBack as error:
            spike = error.without_frames()  # which would keep the old model beside the new one
        console.note(f"step {spike.step:,} is a spike: {spike.why}; going back before it")
        run = rolled_back(run, spike, ranks)


def _train_on(run: Run, ranks: Ranks, console: Console) -> Run:
    with explained(run, ranks.rank, ranks.world, in_steps=False):
        trainer = Trainer(run, ranks, console)
    with (
        explained(run, ranks.rank, ranks.world, in_steps=True),
        StopSignals(patient=ranks.world > 1) as signals,
        trainer.writing() as files,
    ):
        trainer.fit(files, signals)
    return trainer.run


@dataclass
class Files:
    """What a rank writes while training: its part of the checkpoints, and rank 0 the journals."""

    checkpoints: CheckpointWriter
    steps: Journal | None = None
    evaluations: Journal | None = None


class Trainer:
    """The state of one run on one rank. `done`: steps made so far; `tokens`: predictions made so far."""

    def __init__(self, run: Run, ranks: Ranks, console: Console) -> None:
        self.run, self.ranks, self.console = run, ranks, console
        self.recipe, self.settings = run.recipe, run.settings
        self.train = self.recipe.train
        self.corpus = run.corpus()
        self.token_files = self.corpus.token_files()
        self.order = order_of(self.recipe, self.corpus, "train")
        self.held_out = order_of(self.recipe, self.corpus, "held_out")
        self.mesh = Mesh(ranks, layout_on(run.layout, ranks.world))
        self.micro_samples = self.settings.micro_samples(self.train.sequence_length, self.mesh.samples.size)
        self.pace = Pace(self.mesh)
        self.checkpoint = self._newest_valid()
        self.plan, self.learner = learner_of(run, self.corpus, self.mesh, self.checkpoint, self.micro_samples, console)
        self.done, self.tokens = 0, 0
        if self.checkpoint is not None:
            self._restore(self.checkpoint)
        self.evaluation: dict[str, Any] | None = None
        self.damage = Damages(self.corpus, ranks, console)

    # ---- the loop

    def fit(self, files: Files, signals: StopSignals) -> None:
        """All remaining steps."""
        self.learner.check_ranks_agree()
        if self.settings.steps is None:
            self._set_steps(self._steps_for_hours(self.train.budget.hours or 0.0))
        steps = self.settings.steps or 0
        until = min(steps, self.run.until or steps)
        stage = self.console.stage("train", max(0, until - self.done), "steps")
        pulse.begin(self.done)
        with stage as advance:
            for batch, data_seconds in self._batches(until):
                line = self._step(batch, data_seconds, signals)
                stop = line.pop("stop")
                self._after_step(files, line, stop)
                advance(1)
                if stop and self.done < steps:
                    self._stop(files, signals)
        if self.done < steps:  # as far as it was asked to go for now
            pulse.end()
            files.checkpoints.wait()
            return
        if not self.ranks.from_first([self.evaluation is not None])[0]:  # rank 0 alone reads what was written
            with pulse.phase(Phase.EVALUATING):  # killed between the last checkpoint and the result
                self._evaluate(files)
        pulse.end()
        (memory,) = self.ranks.sum([peak_memory_bytes(self.ranks.device)])
        files.checkpoints.wait()
        if self.ranks.rank == 0:
            self.run = self.run.updated(result={**self._result(files), "peak_memory_bytes": int(memory)})

    def _batches(self, stop: int) -> Generator[tuple[Batch, float]]:
        """This rank's parts of the remaining steps, each with the seconds that it was waited for."""
        while self.done < stop:
            split_by = self.pace.speeds
            with self._loader(self.done, stop) as loader:
                for one in timed(iter(loader)):
                    yield one
                    if self.pace.speeds != split_by:
                        break
                else:
                    return

    def _step(self, batch: Batch, data_seconds: float, signals: StopSignals) -> dict[str, Any]:
        """One step and its journal line (plus "stop")."""
        start = time.perf_counter()
        rate = learning_rate(batch.step, self.settings.steps or 0, self.settings.learning_rate, self.train.schedule)
        before = replace(traffic)
        try:
            result = self.learner.step(batch, rate, stop=signals.received is not None)
        except RollBack:
            pulse.start_again()
            raise
        except NotFinite as error:
            replaced = self.damage.of_step(batch, error.replaced)
            raise traced(error, self.learner, batch, replaced, self.corpus, self.run.folder) from error
        seconds = time.perf_counter() - start + data_seconds
        self.done = batch.step + 1
        self.tokens += batch.valid_tokens
        pulse.stepped(self.done, seconds)
        replaced = self.damage.of_step(batch, result.replaced)
        speeds = self.pace.speeds
        figures = step_figures(self.order, batch.step, self.mesh.samples.size, speeds) if self.ranks.rank == 0 else None
        if self.train.balance == "measured":
            self.pace.note(batch, result.busy)
        return {
            "step": batch.step,
            "loss": result.loss,
            "tokens": self.tokens,
            "samples": digest(self.order, batch.step, replaced) if self.ranks.rank == 0 else "",
            "lr": rate,
            "grad_norm": result.gradient_norm,
            "skipped": result.skipped,
            "tokens_per_second": batch.inputs / seconds,
            "seconds": seconds,
            "bytes_sent": traffic.bytes - before.bytes,
            "ranks": self.ranks.world,
            "sample_ranks": self.mesh.samples.size,  # over which the samples of a step are divided
            "valid_tokens": batch.valid_tokens,
            "micro_samples": self.micro_samples,
            "peak_memory_bytes": result.peak_memory_bytes,  # of the rank that has had most so far
            "padding": 1.0 - batch.inputs / result.positions,
            **({} if figures is None else figures.to_json()),
            "data_seconds": data_seconds,
            "communication_seconds": traffic.seconds - before.seconds,
            "hidden_communication": traffic.hidden - before.hidden,  # seconds as well, behind the computing
            "busy": [round(seconds, 4) for seconds in result.busy],  # by rank: what its passes took, without waiting
            **({"speeds": speeds} if speeds else {}),  # by which this step is split, where not evenly
            **({"replaced": [one.to_json() for one in replaced]} if replaced else {}),
            "stop": result.stop,
        }

    def _after_step(self, files: Files, line: dict[str, Any], stop: bool) -> None:
        last = self.done == self.settings.steps
        stop = stop or self.done == self.run.until
        if files.steps is not None:
            files.steps.append(line)
        files.checkpoints.check()
        self._note_progress(line)
        if self.done % self.settings.evaluate_every == 0 or last:
            with pulse.phase(Phase.EVALUATING):
                self._evaluate(files)
        if self.done % self.settings.checkpoint_every == 0 or last or stop:
            with pulse.phase(Phase.SAVING):
                self._save(files)

    def _stop(self, files: Files, signals: StopSignals) -> None:
        pulse.end()
        files.checkpoints.wait()
        number = signals.received or signal.SIGTERM
        raise interrupted(self.run.folder, number)

    def _note_progress(self, line: dict[str, Any]) -> None:
        steps = self.settings.steps or 1
        if self.done % -(-steps // NOTES_A_RUN) and self.done not in (1, steps):
            return
        left = (steps - self.done) * line["seconds"]
        self.console.note(
            f"step {self.done:,}/{steps:,}  loss {line['loss']:.4f}  {line['tokens_per_second']:,.0f} tokens/s"
            + (f"  about {duration(left)} left" if 1 < self.done < steps else "")
        )

    # ---- evaluation

    def _evaluate(self, files: Files) -> None:
        if not predicts(self.held_out, self.train.evaluate_tokens):
            return
        start = time.perf_counter()
        with self.learner.optimizer.as_evaluated():
            figures = evaluate(
                self.learner.spread,
                self.corpus,
                self.held_out,
                self.token_files,
                micro_samples=self.micro_samples,
                tokens=self.train.evaluate_tokens,
                tell=self.damage.tell,
            )
        self.evaluation = {"step": self.done, **figures}
        if files.evaluations is not None:
            files.evaluations.append({**self.evaluation, "seconds": time.perf_counter() - start})
        bits = figures["bits_per_byte"]  # none where no byte is said, but the ends of turns
        said = "" if bits is None else f", {bits:.4f} bits per byte"
        self.console.note(f"held-out loss {figures['loss']:.4f}{said} after {self.done:,} steps")

    # ---- checkpoints

    @contextmanager
    def writing(self) -> Generator[Files]:
        """What this rank writes, open and on rank 0 cut back to the checkpoint."""
        folder, ranks = self.run.folder, self.ranks
        lengths = {"steps_bytes": 0, "evaluations_bytes": 0} if self.checkpoint is None else self.checkpoint.manifest
        with ExitStack() as stack:
            writer = CheckpointWriter(folder, self.train.keep, ranks.rank, ranks.world, keep_best=self.train.keep_best)
            files = Files(stack.enter_context(closing(writer)))
            if ranks.rank == 0:
                files.steps = stack.enter_context(closing(Journal(folder / journal.STEPS, lengths["steps_bytes"])))
                path = folder / journal.EVALUATIONS
                files.evaluations = stack.enter_context(closing(Journal(path, lengths["evaluations_bytes"])))
                writer.go_on_from(self.checkpoint)
                if self.checkpoint is not None:
                    self.evaluation = self._evaluation_of_now()
            yield files

    def _evaluation_of_now(self) -> dict[str, Any] | None:
        """The evaluation that was made at the very step of the checkpoint, if there was one."""
        return next((e for e in journal.read_evaluations(self.run.folder) if e["step"] == self.done), None)

    def _save(self, files: Files) -> None:
        self.learner.check_ranks_agree()
        learner, settings = self.learner, self.settings
        manifest, buckets = {"step": self.done}, buckets_state(learner.spread)
        if files.steps is not None and files.evaluations is not None:
            manifest |= {
                "tokens": self.tokens,
                "updates": learner.optimizer.updates,
                "order": self.order.state(self.done),
                "schedule": {
                    **self.train.schedule.model_dump(),
                    "peak": settings.learning_rate,
                    "steps": settings.steps,
                },
                LOSS: self.evaluation["loss"] if self.evaluation and self.evaluation["step"] == self.done else None,
                "random": {"seed": settings.seed},  # nothing random happens after initialisation
                "steps_bytes": files.steps.sync(),
                "evaluations_bytes": files.evaluations.sync(),
                "model": learner.spread.config.to_hf(),
                "adapters": learner.spread.lora and learner.spread.lora.to_json(),
                "precision": self.train.precision,
                "optimizer": settings.optimizer,
                "averaging": learner.optimizer.averaging,
                "spikes": learner.guard.state(),
                "layout": self.mesh.layout.model_dump(),
                "buckets": buckets,
            }
        with learner.optimizer.as_evaluated():
            files.checkpoints.save(manifest, learner.state())

    def _newest_valid(self) -> Checkpoint | None:
        """Checked by rank 0, which tells the others which one it is; they read some of it."""
        if self.ranks.rank == 0:
            found = newest_valid(self.run.folder, self.console.note, self.run.wrote)
            self.ranks.from_first([-1 if found is None else found.step])
            return found
        (step,) = self.ranks.from_first([0])
        return None if step < 0 else find_checkpoint(self.run.folder, int(step), files=False)

    def _restore(self, checkpoint: Checkpoint) -> None:
        manifest = checkpoint.manifest
        self.done = self.order.check(manifest["order"])
        self.tokens = manifest["tokens"]
        if manifest["optimizer"] != self.settings.optimizer:
            raise UsageError("the checkpoint is of another optimizer", where=str(checkpoint.path))
        self.learner.optimizer.load(checkpoint.read, manifest["updates"], manifest["averaging"])
        self.learner.guard.load(manifest["spikes"])
        restore_kept(self.learner.spread, checkpoint)
        self.console.note(f"going on after step {self.done:,}, from {checkpoint.path.name}")

    # ---- beginnings and ends

    def _loader(self, start: int, stop: int) -> Loader:
        return Loader(
            self.order,
            self.token_files,
            rank=self.mesh.samples.rank,
            world=self.mesh.samples.size,
            start=start,
            stop=stop,
            tell=self.damage.tell,
            speeds=self.pace.speeds,
        )

    def _steps_for_hours(self, hours: float) -> int:
        evaluation = steps_within(self.held_out, self.train.evaluate_tokens)
        with self._loader(0, min(PROBE_STEPS, self.order.steps or PROBE_STEPS)) as loader:
            steps, seconds = steps_for_hours(hours, self.learner, loader, evaluation)
        self.console.note(f"{steps:,} steps: {hours:g} hours at the {seconds:.2f} s a step that were measured")
        return min(steps, self.order.steps or LARGEST_DRAW // self.order.batch)

    def _set_steps(self, steps: int) -> None:
        self.settings = with_steps(self.settings, steps, self.train)
        if self.ranks.rank == 0:
            self.run = self.run.updated(settings=self.settings.to_json())

    def _result(self, files: Files) -> dict[str, Any]:
        lines = journal.read(self.run.folder)
        best = best_of(list_checkpoints(self.run.folder))
        speed = statistics.median(line["tokens_per_second"] for line in lines)
        flops = self.learner.spread.config.flops_per_token(attention_span(self.order), self.plan.learned)
        return {
            "run": str(self.run.folder),
            "steps": self.done,
            "loss": lines[-1]["loss"],
            "validation_loss": self.evaluation["loss"] if self.evaluation else None,
            "bits_per_byte": self.evaluation["bits_per_byte"] if self.evaluation else None,
            "tokens": self.tokens,
            "replaced": sum(len(line.get("replaced", ())) for line in lines),
            "tokens_per_second": speed,
            "model_flops_per_second": speed * flops,
            "seconds": sum(line["seconds"] for line in lines),
            "first_step_seconds": lines[0]["seconds"],
            "skipped_steps": sum(line["skipped"] for line in lines),
            "ranks": self.ranks.world,
            "parameters": self.plan.total,
            "checkpoint": str(files.checkpoints.last),
            "best": None if best is None else {"step": step_of(best), "validation_loss": loss_of(best)},
        }
