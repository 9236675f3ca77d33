"""The buckets of a run's gradients: as its recipe or checkpoint says, else as the link that is measured wants them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sheaf.model.families import AnyConfig
from sheaf.parallel.buckets import MIB, Buckets, chosen, measure
from sheaf.parallel.mesh import Mesh
from sheaf.parallel.parallelize import Spread
from sheaf.recipe import Communication
from sheaf.train.checkpoint import Checkpoint


def buckets_of(
    mesh: Mesh, how: Communication, config: AnyConfig, checkpoint: Checkpoint | None, note: Callable[[str], None]
) -> Buckets:
    """A run that goes on in its layout has the buckets it had. Called by every rank; those of rank 0 count."""
    layout = mesh.layout
    if checkpoint is not None and checkpoint.manifest["layout"] == layout.model_dump():
        return Buckets(checkpoint.manifest["buckets"]["bytes"], tuple(checkpoint.manifest["buckets"]["order"]))
    if how.bucket_mb is not None:
        return Buckets(how.bucket_mb * MIB)
    link = measure(mesh)
    if link is None:
        return Buckets()
    gradient_bytes = 4.0 * config.parameters() / (layout.tensor * layout.pipeline)
    buckets = chosen(link, gradient_bytes, how, mesh.sums("cut").size)
    note(
        f"gradients in buckets of {buckets.bytes // MIB} MiB: a message takes {1000 * link.latency:.2g} ms and"
        f" {link.bytes_per_second / 1e6:,.0f} MB/s go over the link (train.communication.bucket_mb)"
    )
    return buckets


def buckets_state(spread: Spread) -> dict[str, Any]:
    """For a checkpoint."""
    buckets = spread.sums.buckets_now
    return {"bytes": buckets.bytes, "order": buckets.order}
