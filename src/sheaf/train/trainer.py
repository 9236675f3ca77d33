"""A run from its first step, or its newest checkpoint, to its end, on one rank.

The loop: take a batch, make a step, write a journal line; evaluate and save when they are due. Rank 0 alone writes
files. All that decides a number (weights, optimiser, position in the order, lengths of the journals) is in the
checkpoint or in run.json, and nothing random happens between steps; so a run that is killed anywhere and resumed
computes what an undisturbed one does, bit for bit on one process with the same number of threads.
Cost outside the steps: one copy of the tensors a checkpoint; evaluation as said in `evaluate`.
"""

from __future__ import annotations

import resource
import signal
import statistics
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sheaf.console import Console
from sheaf.errors import Interrupted, UsageError
from sheaf.model.adapters import stored, trained
from sheaf.model.compile import compile_decoder
from sheaf.model.families import load_state
from sheaf.model.other import OtherModel
from sheaf.order.loader import Batch, Loader
from sheaf.order.mix import LARGEST_DRAW
from sheaf.parallel.ranks import Ranks
from sheaf.processes import StopSignals
from sheaf.train import journal
from sheaf.train.checkpoint import Checkpoint, CheckpointWriter, list_checkpoints, newest_valid, saved_model, step_of
from sheaf.train.evaluate import evaluate, predicts, steps_within
from sheaf.train.journal import Journal
from sheaf.train.learner import Learner
from sheaf.train.optimizer import Update
from sheaf.train.run import Run
from sheaf.train.schedule import learning_rate
from sheaf.train.settings import attention_span, with_steps
from sheaf.train.setup import DTYPES, hold_still, new_model, order_of
from sheaf.train.spikes import RollBack, SpikeGuard, knows, rolled_back

NOTES_A_RUN = 20
PROBE_STEPS, PROBE_SECONDS = 17, 10.0  # the first one compiles and does not count


def train_run(run: Run, ranks: Ranks, console: Console) -> Run:
    """Train a run to its end. Returns it with its result (on rank 0). Called by every rank.

    Raises Interrupted after SIGINT or SIGTERM, with a checkpoint written; TrainingFailed if the numbers went wrong;
    EnvironmentProblem if the disk is full. Whatever is raised, the run can be resumed.
    """
    while True:
        trainer = Trainer(run, ranks, console)
        try:
            with StopSignals(patient=ranks.world > 1) as signals, trainer.writing() as files:
                trainer.fit(files, signals)
            return trainer.run
        except RollBack as spike:
            console.note(f"step {spike.step:,} is a spike: {spike.why}; going back before it")
            run = rolled_back(trainer.run, spike, ranks)


@dataclass
class Files:
    """What rank 0 writes while training."""

    steps: Journal
    evaluations: Journal
    checkpoints: CheckpointWriter


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
        self.micro_samples = self.settings.micro_samples(self.train.sequence_length, ranks.world)
        note = console.note if ranks.rank == 0 else lambda _: None
        self.checkpoint = newest_valid(run.folder, note, lambda manifest: knows(manifest, run))
        self.learner = self._learner(self.checkpoint)
        self.done, self.tokens = 0, 0
        if self.checkpoint is not None:
            self._restore(self.checkpoint)
        self.evaluation: dict[str, Any] | None = None

    # ---- the loop

    def fit(self, files: Files | None, signals: StopSignals) -> None:
        """All remaining steps. files: on rank 0."""
        self.learner.check_ranks_agree()
        if self.settings.steps is None:
            self._set_steps(self._steps_for_hours(self.train.budget.hours or 0.0))
        steps = self.settings.steps or 0
        stage = self.console.stage("train", steps - self.done, "steps")
        with stage as advance, self._loader(self.done, steps) as loader:
            for batch, data_seconds in _timed(iter(loader)):
                line = self._step(batch, data_seconds, signals)
                stop = line.pop("stop")
                self._after_step(files, line, stop)
                advance(1)
                if stop and self.done < steps:
                    self._stop(files, signals)
        if self.evaluation is None:  # killed between the last checkpoint and the result
            self._evaluate(files)
        (memory,) = self.ranks.sum([peak_memory_bytes()])
        if files is not None:
            files.checkpoints.wait()
            self.run = self.run.updated(result={**self._result(files), "peak_memory_bytes": int(memory)})

    def _step(self, batch: Batch, data_seconds: float, signals: StopSignals) -> dict[str, Any]:
        """One step and its journal line (plus "stop")."""
        start = time.perf_counter()
        rate = learning_rate(batch.step, self.settings.steps or 0, self.settings.learning_rate, self.train.schedule)
        waited = self.learner.gradients.waited_seconds
        result = self.learner.step(batch, rate, stop=signals.received is not None)
        seconds = time.perf_counter() - start + data_seconds
        self.done = batch.step + 1
        self.tokens += batch.valid_tokens
        return {
            "step": batch.step,
            "loss": result.loss,
            "tokens": self.tokens,
            "samples": batch.digest if self.ranks.rank == 0 else "",
            "lr": rate,
            "grad_norm": result.gradient_norm,
            "skipped": result.skipped,
            "tokens_per_second": batch.inputs / seconds,
            "seconds": seconds,
            "bytes_sent": self.learner.gradients.bytes_sent,
            "ranks": self.ranks.world,
            "valid_tokens": batch.valid_tokens,
            "padding": 1.0 - batch.inputs / result.positions,
            "data_seconds": data_seconds,
            "communication_seconds": self.learner.gradients.waited_seconds - waited,
            "stop": result.stop,
        }

    def _after_step(self, files: Files | None, line: dict[str, Any], stop: bool) -> None:
        last = self.done == self.settings.steps
        if files is not None:
            files.steps.append(line)
            files.checkpoints.check()
        self._note_progress(line)
        if self.done % self.settings.evaluate_every == 0 or last:
            self._evaluate(files)
        if self.done % self.settings.checkpoint_every == 0 or last or stop:
            self._save(files)

    def _stop(self, files: Files | None, signals: StopSignals) -> None:
        if files is not None:
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
            + (f"  about {_duration(left)} left" if 1 < self.done < steps else "")
        )

    # ---- evaluation

    def _evaluate(self, files: Files | None) -> None:
        if not predicts(self.held_out, self.train.evaluate_tokens):
            return
        start = time.perf_counter()
        with self.learner.optimizer.as_evaluated():
            figures = evaluate(
                self.learner.model,
                self.corpus,
                self.held_out,
                self.token_files,
                ranks=self.ranks,
                micro_samples=self.micro_samples,
                tokens=self.train.evaluate_tokens,
            )
        self.evaluation = {"step": self.done, **figures}
        if files is not None:
            files.evaluations.append({**self.evaluation, "seconds": time.perf_counter() - start})
        bits = figures["bits_per_byte"]  # none where no byte is said, but the ends of turns
        said = "" if bits is None else f", {bits:.4f} bits per byte"
        self.console.note(f"held-out loss {figures['loss']:.4f}{said} after {self.done:,} steps")

    # ---- checkpoints

    @contextmanager
    def writing(self) -> Generator[Files | None]:
        """The files of rank 0, open and cut back to the checkpoint; None on other ranks."""
        if self.ranks.rank != 0:
            yield None
            return
        lengths = {"steps_bytes": 0, "evaluations_bytes": 0} if self.checkpoint is None else self.checkpoint.manifest
        folder = self.run.folder
        with ExitStack() as stack:
            files = Files(
                stack.enter_context(closing(Journal(folder / journal.STEPS, lengths["steps_bytes"]))),
                stack.enter_context(closing(Journal(folder / journal.EVALUATIONS, lengths["evaluations_bytes"]))),
                stack.enter_context(closing(CheckpointWriter(folder, self.train.keep))),
            )
            files.checkpoints.go_on_from(self.checkpoint)
            if self.checkpoint is not None:
                self.evaluation = self._evaluation_of_now()
            yield files

    def _evaluation_of_now(self) -> dict[str, Any] | None:
        """The evaluation that was made at the very step of the checkpoint, if there was one."""
        return next((e for e in journal.read_evaluations(self.run.folder) if e["step"] == self.done), None)

    def _save(self, files: Files | None) -> None:
        self.learner.check_ranks_agree()
        if files is None:
            return
        learner, settings = self.learner, self.settings
        manifest = {
            "step": self.done,
            "tokens": self.tokens,
            "updates": learner.optimizer.updates,
            "order": self.order.state(self.done),
            "schedule": {
                **self.train.schedule.model_dump(),
                "peak": settings.learning_rate,
                "steps": settings.steps,
            },
            "random": {"seed": settings.seed},  # nothing random happens after initialisation
            "steps_bytes": files.steps.sync(),
            "evaluations_bytes": files.evaluations.sync(),
            "model": learner.model.config.to_hf(),
            "adapters": learner.model.lora and learner.model.lora.to_json(),
            "precision": self.train.precision,
            "optimizer": settings.optimizer,
            "averaging": learner.optimizer.averaging,
            "spikes": learner.guard.state(),
        }
        with learner.optimizer.as_evaluated():
            files.checkpoints.save(manifest, stored(learner.model), learner.optimizer.state())

    def _restore(self, checkpoint: Checkpoint) -> None:
        manifest = checkpoint.manifest
        self.done = self.order.check(manifest["order"])
        self.tokens = manifest["tokens"]
        if manifest["optimizer"] != self.settings.optimizer:
            raise UsageError("the checkpoint is of another optimizer", where=str(checkpoint.path))
        self.learner.optimizer.load(checkpoint.optimizer(), manifest["updates"], manifest["averaging"])
        self.learner.guard.load(manifest["spikes"])
        self.console.note(f"going on after step {self.done:,}, from {checkpoint.path.name}")

    # ---- beginnings and ends

    def _learner(self, checkpoint: Checkpoint | None) -> Learner:
        if checkpoint is None:
            model = new_model(self.recipe, self.corpus, self.ranks.device)
        else:
            model = saved_model(checkpoint, DTYPES[self.train.precision]).to(self.ranks.device)
        hold_still(model, self.train.freeze)
        if isinstance(model, OtherModel):
            self.console.note(f"the model is transformers' {model.config.model_type}; {model.isolation_in_words}")
        compile_decoder(model, "on" if self.settings.compile else "off")
        train = self.train
        update = Update(self.settings.optimizer, train.weight_decay, train.betas, train.precision, train.rates)
        guard = SpikeGuard(train.spikes, self.run.avoided)
        return Learner(model, update, train.clip, self.micro_samples, self.ranks, guard)

    def _loader(self, start: int, stop: int) -> Loader:
        return Loader(
            self.order, self.token_files, rank=self.ranks.rank, world=self.ranks.world, start=start, stop=stop
        )

    def _steps_for_hours(self, hours: float) -> int:
        """Steps that fit into a budget of hours, from some steps at rate 0 whose traces are wiped out afterwards.

        Measured before step 0 and then written down, so that schedule and end are known from the first step on. The
        lower quartile counts: what else runs on the machine now may be gone in a minute.
        """
        before = {name: parameter.detach().clone() for name, parameter in self.learner.model.named_parameters()}
        seconds: list[float] = []
        with self._loader(0, min(PROBE_STEPS, self.order.steps or PROBE_STEPS)) as loader:
            for batch in loader:
                start = time.perf_counter()
                self.learner.step(batch, rate=0.0)
                seconds.append(time.perf_counter() - start)
                if self.ranks.from_first([len(seconds) > 4 and sum(seconds[1:]) > PROBE_SECONDS])[0]:
                    break
        load_state(self.learner.model, before)
        self.learner.reset_optimizer()
        step_seconds = sorted(seconds[1:] or seconds)[(len(seconds) - 1) // 4]
        evaluations = 10 * steps_within(self.held_out, self.train.evaluate_tokens) * step_seconds / 3
        (steps,) = self.ranks.from_first([max(1, (3600 * hours - sum(seconds) - evaluations) // step_seconds)])
        self.console.note(
            f"{int(steps):,} steps: {hours:g} hours at the {step_seconds:.2f} s a step that were measured"
        )
        return min(int(steps), self.order.steps or LARGEST_DRAW // self.order.batch)

    def _set_steps(self, steps: int) -> None:
        self.settings = with_steps(self.settings, steps, self.train)
        if self.ranks.rank == 0:
            self.run = self.run.updated(settings=self.settings.to_json())

    def _result(self, files: Files) -> dict[str, Any]:
        lines = journal.read(self.run.folder)
        speed = statistics.median(line["tokens_per_second"] for line in lines)
        model, span = self.learner.model, attention_span(self.order)
        learned = sum(p.numel() for p in trained(model).values()) / sum(p.numel() for p in model.parameters())
        return {
            "run": str(self.run.folder),
            "steps": self.done,
            "loss": lines[-1]["loss"],
            "validation_loss": self.evaluation["loss"] if self.evaluation else None,
            "bits_per_byte": self.evaluation["bits_per_byte"] if self.evaluation else None,
            "tokens": self.tokens,
            "tokens_per_second": speed,
            "model_flops_per_second": speed * model.config.flops_per_token(span, learned),
            "seconds": sum(line["seconds"] for line in lines),
            "first_step_seconds": lines[0]["seconds"],
            "skipped_steps": sum(line["skipped"] for line in lines),
            "ranks": self.ranks.world,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "checkpoint": str(files.checkpoints.last),
        }


def interrupted(run: Path, number: int) -> Interrupted:
    """What to raise after a signal; it says what there is to go on from."""
    stopped, newest = f"stopped by {signal.Signals(number).name}", next(iter(list_checkpoints(run)), None)
    if newest is None:
        error = Interrupted(
            f"{stopped}; no checkpoint yet", where=str(run), fix=f"start again with: sheaf resume {run}"
        )
    else:
        what = f"{stopped}; there is a checkpoint of step {step_of(newest):,}"
        error = Interrupted(what, where=str(run), fix=f"go on with: sheaf resume {run}")
    error.exit_code = 128 + number
    return error


def peak_memory_bytes() -> int:
    """Most memory this process had resident at any time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds that were spent waiting for it."""
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - start


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
