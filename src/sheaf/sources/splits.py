"""The splits of a dataset folder, by the names that Hugging Face's layouts give them.

`data/train-00000-of-00002.parquet`, `test/cat/1.png`, `squad_dev.jsonl`: a word for a split, between characters that
are no letters, in any folder's name or the file's. The last such word of the path decides.
"""

from __future__ import annotations

import re

_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT = {word: split for split, words in _WORDS.items() for word in words}
_FOUND = re.compile(rf"(?<![A-Za-z])({'|'.join(sorted(_SPLIT, key=len, reverse=True))})(?![A-Za-z])", re.I)


def is_split(name: str) -> bool:
    """Whether a folder's name is nothing but a word for a split."""
    return name.lower() in _SPLIT


def split_of(path: str) -> str:
    """ "train", "validation", "test", or "" if no name in the path says."""
    words = _FOUND.findall(path)
    return _SPLIT[words[-1].lower()] if words else ""
