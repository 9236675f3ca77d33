"""How the tokens of a version are read and written: all that a run needs of its corpus to generate and to be exported.

A version that is purged leaves it behind, in `vocabularies/<corpus digest>.json`: digests, and the template of
conversations; nothing of the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sheaf.corpus.version import CorpusVersion
from sheaf.corpus.workspace import Workspace
from sheaf.errors import CorruptStore, DataRefused
from sheaf.files import checked, refreshed, write_json


@dataclass(frozen=True)
class Vocabulary:
    """corpus: the version's digest. tokenizer: of its tokenizer's folder. rendering: as in the manifest."""

    workspace: Workspace
    corpus: str
    tokenizer: str
    rendering: Mapping[str, Any]
    end_of_text: int

    @staticmethod
    def of(corpus: CorpusVersion) -> Vocabulary:
        about = corpus.manifest
        return Vocabulary(corpus.workspace, corpus.digest, about["tokenizer"], about["rendering"], corpus.end_of_text)

    @staticmethod
    def open(workspace: Workspace, digest: str) -> Vocabulary:
        """Of a version that is there, or that was purged. Raises as CorpusVersion.open."""
        try:
            return Vocabulary.of(CorpusVersion.open(workspace, digest))
        except (CorruptStore, DataRefused):
            path = refreshed(_place(workspace, digest))
            if not path.exists():
                raise
            return Vocabulary(workspace, digest, **orjson.loads(path.read_bytes()))

    @property
    def tokenizer_path(self) -> Path:
        return checked(self.workspace.tokenizer(self.tokenizer) / "tokenizer.json")

    def keep(self) -> None:
        """Write down what `open` needs once the version is gone."""
        path = _place(self.workspace, self.corpus)
        path.parent.mkdir(exist_ok=True)
        told = {"tokenizer": self.tokenizer, "rendering": self.rendering, "end_of_text": self.end_of_text}
        write_json(path, told)


def _place(workspace: Workspace, digest: str) -> Path:
    return workspace.root / "vocabularies" / f"{digest}.json"
