"""Near duplicates: MinHash finds candidates (`minhash.py`, `buckets.py`, `candidates.py`), the true Jaccard similarity
decides (`greedy.py`). What the outcome means for sources and clusters: `clusters.py`."""

from sheaf.prepare.near import clusters, minhash
from sheaf.prepare.near.greedy import Near, decide

__all__ = ["Near", "clusters", "decide", "minhash"]
