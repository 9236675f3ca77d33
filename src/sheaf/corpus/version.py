"""A version of the corpus: a manifest naming shards, decisions, ledger and tokens. Immutable; HEAD names one.

Opening reads the manifest and maps columns; nothing grows with the corpus. Two digests say what a version is: the
*corpus digest* (what was selected and from where, plus the tokenizer) and the narrower *fingerprint* (source, id and
length of the kept documents, plus the tokenizer), on which the order of training depends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sheaf.corpus import shards
from sheaf.corpus.documents import DTYPES, Documents
from sheaf.corpus.schema import DECISIONS
from sheaf.corpus.token_files import open_files
from sheaf.corpus.tokens import TokenFile, TokenFiles
from sheaf.corpus.workspace import Workspace
from sheaf.errors import CorruptStore, DataRefused, UsageError
from sheaf.files import checked, digest_of
from sheaf.formats.schema import CHATS, KINDS
from sheaf.privacy import masked_text

FORMAT = 1
SHORTEST_DIGEST = 6  # what of a digest names a version, if no other begins so


@dataclass(frozen=True)
class CorpusVersion:
    """One version, opened for reading. Document numbers are rows of `documents`."""

    workspace: Workspace
    root: Path
    manifest: dict[str, Any]

    @staticmethod
    def open(workspace: Path | str | Workspace, digest: str | None = None) -> CorpusVersion:
        """The newest version, or the newest one with this corpus digest. Raises DataRefused if there is none."""
        store = workspace if isinstance(workspace, Workspace) else Workspace.at(workspace)
        return CorpusVersion.named(store, _find(store, digest))

    @staticmethod
    def named(store: Workspace, name: str) -> CorpusVersion:
        """The version in this folder of corpora/."""
        root = store.corpus(name)
        manifest: dict[str, Any] = orjson.loads(checked(root / "manifest.json").read_bytes())
        return CorpusVersion(store, root, manifest)

    @property
    def digest(self) -> str:
        return self.manifest["corpus"]

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def source_names(self) -> list[str]:
        return [s["name"] for s in self.manifest["sources"]]

    @property
    def shard_names(self) -> list[str]:
        return self.manifest["shards"]

    @property
    def rendering(self) -> str:
        """Digest of what the tokens were made by (tokenizer, template, masks): the name of their folder."""
        return self.manifest["rendering"]["digest"]

    @property
    def masked(self) -> frozenset[str]:
        """The kinds of personal data that are masked where this corpus is trained."""
        return frozenset(self.manifest["rendering"]["masked"])

    def holds(self, content: str) -> bool:
        """Whether this is the version of a selection, by the digest of what was selected."""
        return self.digest == corpus_digest(content, self.rendering)

    @property
    def tokenizer_path(self) -> Path:
        return checked(self.workspace.tokenizer(self.manifest["tokenizer"]) / "tokenizer.json")

    @property
    def vocab_size(self) -> int:
        return self.manifest["vocab_size"]

    @property
    def end_of_text(self) -> int:
        return self.manifest["end_of_text"]

    @cached_property
    def documents(self) -> Documents:
        for name in DTYPES:
            checked(self.root / f"{name}.npy")
        return Documents.open(self.root)

    @cached_property
    def files(self) -> TokenFiles:
        """The flat files of the tokens. Nothing of them is read, or fetched, before it is wanted."""
        folders = [self.workspace.tokens(self.rendering, shard) for shard in self.shard_names]
        return open_files(self.workspace.where, self.root.name, folders, self.manifest["token_dtype"])

    def token_files(self) -> list[TokenFile]:
        """The tokens, one flat file a shard, in the order of `documents.shard`. Each reads like an array."""
        return self.files.tokens

    def loss_files(self) -> list[TokenFile | None]:
        """By shard, which of its tokens are to be predicted, 0 or 1 a token; None: all of them."""
        return self.files.losses

    def tokens_by_source(self) -> dict[str, int]:
        total = np.zeros(len(self.source_names), np.int64)
        np.add.at(total, self.documents.source, self.documents.length)
        return dict(zip(self.source_names, total.tolist(), strict=True))

    def text_bytes(self, numbers: NDArray[np.integer]) -> int:
        """UTF-8 bytes of the texts of these documents, in total."""
        return int(self._column("bytes")[numbers].sum())

    def texts(self, numbers: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """The texts of these documents as they are trained, in the order asked for: normalised, with what the recipe
        masks masked; of a conversation what its template made of it, control tokens and all."""
        return [
            self._decoded(int(number)) if row["kind"] in CHATS else masked_text(row["text"], self.masked).text
            for number, row in zip(numbers, self.records(numbers), strict=True)
        ]

    def text(self, number: int) -> str:
        return self.texts([number])[0]

    def records(self, numbers: Sequence[int] | NDArray[np.integer]) -> list[dict[str, Any]]:
        """Rows {id, kind, text, meta, origins (of the shard that speaks for it)} of these documents."""
        wanted = np.asarray(numbers, np.int64)
        shard, row = self.documents.shard[wanted], self._column("row")[wanted]
        result: list[dict[str, Any]] = [{}] * len(wanted)
        for s in np.unique(shard):
            here = np.flatnonzero(shard == s)
            for at, record in zip(here, read_rows(self.shard_path(int(s)), row[here]), strict=True):
                result[at] = record
        return result

    def records_of(self, kind: str) -> Iterator[dict[str, Any]]:
        """Every kept record of a kind (of formats.schema.KINDS), one at a time: {"id": hex, "source", "kind", "text",
        "messages", "payload": bytes, "meta": {…}, "origins": [of the shard that speaks for it]}.

        Shard by shard, sorted by id in each: which shard holds what is no part of the corpus' promise. Memory: one
        shard's records, some 64 MB, and 12 bytes a record. Raises UsageError for a kind that does not exist.
        """
        if kind not in KINDS:
            raise UsageError(f"no kind of record is called '{kind}'", fix=f"the kinds are {', '.join(KINDS)}")
        pieces: list[list[NDArray[np.int32]]] = []
        for batch in self.decision_batches(["shard", "row", "source", "kept"]):
            kept = batch.filter(batch["kept"])
            pieces.append([kept[name].to_numpy() for name in ("shard", "row", "source")])
        shard, row, source = (np.concatenate(column) for column in zip(*pieces, strict=True))
        for number in np.unique(shard):
            kinds = shards.read(self.shard_path(int(number)), "records", ["kind"])["kind"]
            here = np.flatnonzero(shard == number)
            here = here[np.array(kinds.take(pa.array(row[here])).to_pylist(), object) == kind]
            here = here[np.argsort(row[here])]
            for group in np.split(here, np.flatnonzero(np.diff(row[here] // shards.ROW_GROUP)) + 1):
                for at, record in zip(group, read_rows(self.shard_path(int(number)), row[group]), strict=True):
                    yield _opened(record, self.source_names[int(source[at])])

    def shard_path(self, number: int) -> Path:
        return self.workspace.shard(self.shard_names[number])

    def ledger(self) -> pa.Table:
        return pq.read_table(checked(self.root / "ledger.parquet"))

    def quarantine(self) -> pa.Table:
        return pq.read_table(checked(self.root / "quarantine.parquet"))

    def decisions(self) -> pa.Table:
        """All at once: some 60 bytes a record. `decision_batches` needs no more memory than a piece."""
        return pq.read_table(checked(self.root / "decisions.parquet"))

    def decision_batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The decisions piece by piece, sorted by (source, id)."""
        yield from pq.ParquetFile(checked(self.root / "decisions.parquet")).iter_batches(columns=columns)

    def _decoded(self, number: int) -> str:
        """A document's tokens, but for the last, as text."""
        d = self.documents
        first, length = int(d.offset[number]), int(d.length[number])
        ids = self.token_files()[int(d.shard[number])][first : first + length - 1]
        return _tokenizer(self.tokenizer_path).decode(ids.tolist(), skip_special_tokens=False)

    def dropped(self) -> pa.Table:
        """The decisions against records: memory by how many these are."""
        pieces = (pa.table(batch.filter(pc.invert(batch["kept"]))) for batch in self.decision_batches())
        return pa.concat_tables([DECISIONS.empty_table(), *(piece for piece in pieces if len(piece))])

    def _column(self, name: str) -> NDArray[np.integer]:
        return np.load(checked(self.root / f"{name}.npy"), mmap_mode="r", allow_pickle=False)


def corpus_digest(content: str, rendering: str) -> str:
    """content: digest of what was selected and from where. rendering: of what its tokens were made by."""
    return digest_of(FORMAT, content, rendering)


def _opened(record: dict[str, Any], source: str) -> dict[str, Any]:
    """A row of a shard, with its JSON as objects."""
    origins = [{**origin, "locator": orjson.loads(origin["locator"])} for origin in record["origins"]]
    messages = orjson.loads(record["messages"]) if record["messages"] else None
    meta = orjson.loads(record["meta"])
    opened = {"id": record["id"].hex(), "source": source, "meta": meta, "messages": messages, "origins": origins}
    return record | opened


def read_rows(shard: Path, rows: Iterable[int], columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Rows of a shard's records in the order asked for; only their row groups are read."""
    wanted = np.asarray(list(rows), np.int64)
    file = _parquet(checked(shard / "records.parquet"))
    result: list[dict[str, Any]] = [{}] * len(wanted)
    group = wanted // shards.ROW_GROUP
    for g in np.unique(group):
        here = np.flatnonzero(group == g)
        table = file.read_row_group(int(g), columns=columns)
        for at, record in zip(here, table.take(pa.array(wanted[here] % shards.ROW_GROUP)).to_pylist(), strict=True):
            result[at] = record
    return result


@lru_cache(maxsize=2)
def _tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


@lru_cache(maxsize=64)
def _parquet(path: Path) -> Any:
    return pq.ParquetFile(path)


def _find(store: Workspace, digest: str | None) -> str:
    head = store.head.read_text().strip() if store.head.exists() else ""
    if digest is None and head:
        return head
    if digest is None or not store.versions():
        raise DataRefused("there is no corpus yet", where=str(store.root), fix="run `sheaf prepare` first")
    if head.startswith(f"{digest}."):
        return head
    versions = sorted((store.corpus(name) for name in store.versions()), key=lambda p: (p / "DONE").stat().st_mtime_ns)
    names = [p.name for p in versions if len(digest) >= SHORTEST_DIGEST and p.name.startswith(digest)]
    if len({name.partition(".")[0] for name in names}) == 1:
        return names[-1]
    there = dict.fromkeys(p.name.partition(".")[0] for p in reversed(versions))
    found = "more than one corpus has" if names else "no corpus has"
    raise CorruptStore(
        "the workspace no longer has this version of the corpus",
        where=str(store.root),
        why=f"{found} the digest {digest}; the newest are {', '.join(list(there)[:5])}",
        fix="run `sheaf prepare` with the recipe and the data of that time: it gives the same digest",
    )
