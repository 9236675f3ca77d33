"""What damaged blocks of the corpus change in a run: said on the console, written into the journal, read back from it.

A rank knows what it replaced; the journal says what the step held, so the ranks tell each other, in the steps in which
any of them replaced something.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheaf.console import Console
from sheaf.corpus.tokens import Damage, TokenFile
from sheaf.corpus.version import CorpusVersion
from sheaf.order.loader import Batch
from sheaf.order.order import Order, Use
from sheaf.order.replace import Replaced, corrected
from sheaf.parallel.ranks import Ranks

COLUMNS = 8


class Damages:
    """What one rank of a run has met."""

    def __init__(self, corpus: CorpusVersion, ranks: Ranks, console: Console) -> None:
        self._files: list[TokenFile | None] = [*corpus.token_files(), *corpus.loss_files()]
        self._numbers = {str(f.path): number for number, f in enumerate(self._files) if f is not None}
        self._ranks, self._console = ranks, console
        self._told: set[tuple[str, int]] = set()

    def of_step(self, batch: Batch, count: int) -> tuple[Replaced, ...]:
        """What all ranks replaced in this step, by slot; count: how many that are. Called by every rank."""
        if not count:
            return ()
        rows = self._ranks.rows([self._numbered(one) for one in batch.replaced], COLUMNS)
        own = {one.slot: one for one in batch.replaced}
        all_of_them = (own.get(int(row[0])) or self._named(batch.step, row) for row in rows)
        found = tuple(sorted(all_of_them, key=lambda one: one.slot))
        if self._ranks.rank == 0:
            for one in found:
                self.tell(one)
        return found

    def tell(self, one: Replaced) -> None:
        """Once for each block."""
        damage = one.damage
        if (damage.file, damage.block) not in self._told:
            self._told.add((damage.file, damage.block))
            error = damage.error()
            self._console.note(f"damaged: {error.where} ({error.why}); other samples stand in for those that lie there")
            self._console.note(f"to mend it: {error.fix}")

    def _numbered(self, one: Replaced) -> list[float]:
        numbers = (one.slot, one.source, one.epoch, one.index, one.by, one.predicted)
        return [*map(float, numbers), float(self._numbers[one.damage.file]), float(one.damage.block)]

    def _named(self, step: int, row: Sequence[float]) -> Replaced:
        slot, source, epoch, index, by, predicted, number, block = map(int, row)
        file = self._files[number]
        assert file is not None
        damage = Damage(
            str(file.path), block, file.table.span(block), "another rank could not have it as it was written"
        )
        return Replaced(step, slot, source, epoch, index, by, predicted, damage)


def replaced_in(line: dict[str, Any]) -> list[Replaced]:
    """What a line of the journal says was replaced in its step."""
    return [Replaced.from_json(line["step"], said) for said in line.get("replaced", ())]


def uses_of(order: Order, documents: NDArray[np.int64], lines: Sequence[dict[str, Any]]) -> list[Use]:
    """Every use of these documents in the steps of a journal, as it was and not only as it was planned."""
    replaced = [one for line in lines for one in replaced_in(line)]
    return corrected(order, order.steps_of(documents, len(lines)), documents, replaced)
