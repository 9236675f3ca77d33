"""What lossy sums of gradients carry from one step to the next, in a checkpoint and out of it.

    kept-<rank>.<parameter>     what that rank of the run had not sent yet
    basis-<rank>.<parameter>    PowerSGD's basis, the same on all ranks that sum the parameter; of the first of them

A run that goes on in the same layout takes back what is its own, and computes what an undisturbed one does. In another
layout, or on another number of ranks, the ranks that now sum a parameter share out what there was: the sum over ranks,
which is what the steps so far lack, is the same. On a rank that sums with nobody it goes into the next gradient. Bases
start anew then, which costs PowerSGD some steps of less precision.

Cost: 4 bytes a weight and rank in a checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sheaf.model.pieces import Piece
from sheaf.parallel.parallelize import Spread
from sheaf.train.checkpoint import Checkpoint


def kept_state(spread: Spread) -> dict[str, tuple[Piece, Tensor]]:
    """What this rank writes."""
    me, found = spread.mesh.ranks.rank, dict[str, tuple[Piece, Tensor]]()
    for one in spread.sums.summed():
        if one.kept is not None:
            found[f"kept-{me}.{one.name}"] = (spread.pieces[one.name], one.kept)
        if one.basis is not None and one.place == 0:
            found[f"basis-{me}.{one.name}"] = (Piece.whole(tuple(one.basis.shape)), one.basis)
    return found


@torch.no_grad()
def restore_kept(spread: Spread, checkpoint: Checkpoint) -> None:
    """Take over what a checkpoint has for this rank. Called before the first step."""
    stored = _ranks_by_name(checkpoint, "kept")
    same = checkpoint.manifest["layout"] == spread.mesh.layout.model_dump()
    for one in spread.sums.summed():
        piece, into = spread.pieces[one.name], one.gradient if one.kept is None else one.kept
        overlapping = 0
        for rank in stored.get(one.name, ()):
            parts = list(checkpoint.parts(f"kept-{rank}.{one.name}", piece))
            if parts and overlapping % one.places == one.place:
                for where, part in parts:
                    into[where] += part.to(into.device)
            overlapping += bool(parts)
        key = f"basis-{one.first}.{one.name}"
        if one.basis is not None and same and key in checkpoint.manifest["tensors"]:
            one.basis.copy_(checkpoint.read(key, Piece.whole(tuple(one.basis.shape))))


def _ranks_by_name(checkpoint: Checkpoint, kind: str) -> dict[str, list[int]]:
    """By parameter, the ranks that have left a tensor of this kind, rising."""
    found: dict[str, list[int]] = {}
    for key in checkpoint.manifest["tensors"]:
        which, _, name = key.partition(".")
        if which.startswith(f"{kind}-"):
            found.setdefault(name, []).append(int(which.removeprefix(f"{kind}-")))
    return {name: sorted(ranks) for name, ranks in found.items()}
