"""Near duplicates: MinHash finds candidates (`minhash.py`, `candidates.py`), the true Jaccard similarity decides
(`greedy.py`). What the outcome means for sources and clusters: `clusters.py`."""

from sheaf.prepare.near import minhash

__all__ = ["minhash"]
