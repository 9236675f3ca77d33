"""Which stages over shards a recipe asks for, and what of each is missing.

Every stage is a set of tasks, one a shard, whose output lies beside the shard under the stage's name and version. So a
changed threshold asks for nothing, and a stage that a recipe newly asks for runs over all shards once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sheaf.console import Console
from sheaf.corpus.workspace import Workspace
from sheaf.engine.base import Engine, Json, Task
from sheaf.files import read_done
from sheaf.prepare import near, score, scorers
from sheaf.prepare.rules import Rules
from sheaf.recipe import Recipe


@dataclass(frozen=True)
class Asked:
    """What a recipe asks for between reading and selecting."""

    rules: Rules
    masked: tuple[str, ...]  # kinds of personal data
    near: float | None

    def about(self) -> Json:
        """Names, versions and parameters of the stages, for the manifest and for the digest of what selecting needs."""
        return {
            "score": score.STAGE,
            "rules": self.rules.about(),
            "near": near.minhash.stage(self.near) if self.near else None,
        }


def asked(recipe: Recipe) -> Asked:
    """Raises RecipeError for a filter that cannot be."""
    return Asked(Rules(recipe.prepare), masked(recipe), recipe.prepare.dedup.near)


def masked(recipe: Recipe) -> tuple[str, ...]:
    """The kinds of personal data that are masked, sorted."""
    return tuple(sorted(kind for kind, action in recipe.prepare.privacy.items() if action == "mask"))


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
    if (threshold := wanted.near) is not None:
        yield "minhash", near.minhash.stage(threshold), lambda shard: near.minhash.task(workspace, shard, threshold)
