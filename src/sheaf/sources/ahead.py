"""Fetch items before they are wanted, on several connections, while earlier ones are parsed.

A place far away answers an item in tens of milliseconds; opened one after another, 2 KB objects would come at 50 a
second. So a reader that knows which items come next says so, and those are opened by threads, in order, never more than
64 items or 64 MB ahead of the reader (of disk: they lie in unlinked files). The reader sees the same files and the same
errors, in the order in which it asks. Sources without `connections` (a folder, SQLite) are opened when asked, as ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import BinaryIO

from sheaf.sources.base import Item, Source
from sheaf.sources.connections import Connections

AHEAD_ITEMS = 64
AHEAD_BYTES = 64 << 20


class Ahead:
    """Opens a source's items for one reader, which asks in the order announced; a context that ends the fetching."""

    def __init__(self, source: Source, items: Iterable[Item]) -> None:
        """items: what will be asked for, in that order."""
        connections = int(getattr(source, "connections", 1))
        self._source = source
        self._pool = Connections(connections, "sheaf-ahead") if connections > 1 else None
        self._next = iter(items if self._pool else ())
        self._begun: deque[tuple[Item, Future[BinaryIO]]] = deque()
        self._bytes = 0

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            interrupted = error is not None and not isinstance(error, Exception)
            self._pool.close(wait=not interrupted)  # Ctrl-C waits for no server
        for _, future in self._begun:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().close()
        self._begun.clear()

    def open_item(self, item: Item) -> BinaryIO:
        """What the source's open_item gives or raises."""
        if self._pool is None:
            return self._source.open_item(item)
        self._begin(self._pool)
        if not self._begun or self._begun[0][0] is not item:
            return self._source.open_item(item)
        _, future = self._begun.popleft()
        self._bytes -= max(item.size, 0)
        self._begin(self._pool)
        return future.result()

    def _begin(self, pool: Connections) -> None:
        while not self._begun or (len(self._begun) < AHEAD_ITEMS and self._bytes < AHEAD_BYTES):
            item = next(self._next, None)
            if item is None:
                return
            self._begun.append((item, pool.submit(self._source.open_item, item)))
            self._bytes += max(item.size, 0)
