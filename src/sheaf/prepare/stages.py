"""Which stages over shards a recipe asks for, and what of each is missing.

Every stage is a set of tasks, one a shard, whose output lies beside the shard under the stage's name and version. So a
changed threshold asks for nothing, and a stage that a recipe newly asks for runs over all shards once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from sheaf.console import Console
from sheaf.corpus.workspace import Workspace
from sheaf.engine.base import Engine, Json, Task
from sheaf.files import read_done
from sheaf.prepare import decontaminate, near, protect, score, scorers
from sheaf.prepare.rules import Rules
from sheaf.privacy import KINDS
from sheaf.recipe import Recipe


@dataclass(frozen=True)
class Asked:
    """What a recipe asks for between reading and selecting."""

    rules: Rules
    private: bool  # whether personal data is looked for
    masked: tuple[str, ...]  # kinds of it that are masked
    refused: tuple[str, ...]  # kinds of it whose records are dropped
    near: float | None
    exams: str | None = None  # digest of the evaluation files

    def about(self) -> Json:
        """Names, versions and parameters of the stages, for the manifest and for the digest of what selecting needs."""
        about: Json = {"score": score.STAGE, "rules": self.rules.about()}
        if self.private:
            about["privacy"] = {"stage": protect.STAGE, "masked": self.masked, "dropped": self.refused}
        if self.exams is not None:
            about["evaluation"] = {"stage": decontaminate.stage(self.exams), "files": self.exams}
        if self.near is not None:
            about["near"] = {"stage": near.minhash.stage(self.near), "threshold": self.near}
        return about


def asked(recipe: Recipe) -> Asked:
    """Without the evaluation files, which need a workspace. Raises RecipeError for a filter that cannot be."""
    privacy = recipe.prepare.privacy
    refused = tuple(kind for kind in KINDS if privacy.get(kind) == "drop")
    return Asked(Rules(recipe.prepare), bool(privacy), masked(recipe), refused, recipe.prepare.dedup.near)


def with_exams(wanted: Asked, workspace: Workspace, recipe: Recipe, console: Console) -> Asked:
    """With the table of the recipe's evaluation files, which is made if it is not there. Raises as its `build`."""
    return replace(wanted, exams=decontaminate.build(workspace, recipe, console))


def masked(recipe: Recipe) -> tuple[str, ...]:
    """The kinds of personal data that are masked, sorted."""
    return tuple(protect.masks({**recipe.prepare.privacy}))


def run(workspace: Workspace, wanted: Asked, shards: Sequence[str], pool: Engine, console: Console) -> None:
    """Run what is missing, stage by stage."""
    for title, stage, task in _stages(workspace, wanted):
        missing = [s for s in shards if read_done(workspace.scores(s, stage)) is None]
        run_tasks(pool, console, title, [task(s) for s in missing])


def run_tasks(pool: Engine, console: Console, title: str, tasks: Sequence[Task]) -> None:
    if tasks:
        with console.stage(title, sum(t.weight for t in tasks), "shards") as advance:
            for _ in pool.run(tasks, advance):
                pass


def _stages(workspace: Workspace, wanted: Asked) -> Iterator[tuple[str, str, Callable[[str], Task]]]:
    """Title, name with version, and task of a shard."""
    yield "score", score.STAGE, lambda shard: score.task(workspace, shard)
    for scorer in wanted.rules.used:
        yield f"score {scorer.name}", scorer.stage, lambda shard, s=scorer: scorers.task(workspace, shard, s)
    if wanted.private:
        yield "privacy", protect.STAGE, lambda shard: protect.task(workspace, shard)
    if (exams := wanted.exams) is not None:
        yield "evaluation", decontaminate.stage(exams), lambda shard: decontaminate.task(workspace, exams, shard)
    if (threshold := wanted.near) is not None:
        yield "minhash", near.minhash.stage(threshold), lambda shard: near.minhash.task(workspace, shard, threshold)
