"""What every kind of place offers: list its items, open one of them.

A source knows where data lies and nothing about formats. Listing is cheap and reads no item; an item's `version`
changes whenever its bytes may have changed, so that an unchanged item is never opened twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from sheaf.sources.reasons import checked


@dataclass(frozen=True, slots=True)
class Item:
    """One addressable thing in a source.

    path: its name inside the source, unique there, free of machine paths: it enters the corpus digest.
    uri: where it really lies, what `trace` prints and a reader can open (an absolute file path, a URL, …).
    version: changes when the bytes may have changed (size and mtime_ns, etag, row digest).
    size: bytes as they lie at the source; the ledger accounts for exactly that many.
    media: the content type the place claims ("text/html"), or ""; a hint, content decides.
    about: what the place says of it that no byte of it does (a label, a commit), as a JSON object; "" if nothing.
    It joins the meta of the item's records.
    """

    source: str
    path: str
    uri: str
    version: str
    size: int
    media: str = ""
    about: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something listed that will not be read: a FIFO, a link out of the root, a URL that answers 404.

    It has a ledger line like every item. size is what is known of it (0 if nothing is). reason: a code of `reasons`.
    """

    source: str
    path: str
    uri: str
    size: int
    reason: str
    detail: str

    def __post_init__(self) -> None:
        checked(self.reason)


class Source(Protocol):
    """A named place where data lies."""

    name: str

    def list_items(self) -> Iterator[Item | Refusal]:
        """Every item, sorted by path. Raises DataRefused if the place itself is missing, TryAgain if it is down."""
        ...

    def open_item(self, item: Item) -> BinaryIO:
        """The item's bytes as a seekable file with a real descriptor (a local file, or an unlinked spool).

        Raises ItemChanged if it no longer has the version that was listed, ItemUnavailable if it cannot be had now,
        ItemRefused if the place says that it will not be had.
        """
        ...


class ItemChanged(Exception):
    """The item's bytes are not those that were listed; it will be read at the next run."""


class ItemUnavailable(Exception):
    """The item could not be fetched now (after retries)."""


class ItemRefused(Exception):
    """The place has given its last word on this item: it will not be had. reason: a code; detail: what it said."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = checked(reason), detail
