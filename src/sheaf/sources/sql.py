"""The rows of a query over an SQLite database, in pages: an item is up to 2,000 rows (or 16 MiB) as JSON lines.

A row is one object, column → value, columns in the query's order. SQL's text, integers, reals and null are JSON's; a
blob, or text that is not UTF-8, is {"base64": "…"}; infinities are the words "Infinity" and "-Infinity". A page is
named by the number of its first row; its version is the digest of its bytes, so a page is read again only if it says
something else. Give the query an ORDER BY, so that added rows come last and leave the earlier pages as they are; or an
`increment`, and the items are blocks of it (see `database.py`), which leaves all but the touched ones as they are.

The database is opened read-only, may not attach others or load extensions, and a query that computes for five minutes
between two rows is stopped. Cost: listing runs the query once (2.5 µs a short row) and holds one row; opening a page
lets SQLite step over the rows before it (0.1 µs each) and holds the page on disk.
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import hashlib
import math
import sqlite3
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import orjson

from sheaf.errors import DataRefused, RecipeError, SheafError, TryAgain
from sheaf.recipe import SourceSpec
from sheaf.sources.base import Item, ItemChanged, ItemUnavailable, Refusal
from sheaf.sources.database import MEDIA, Bounds, Page, check_columns, cut, query_of
from sheaf.sources.folder import escape
from sheaf.sources.spool import spooled

SQLITE = "sqlite:///"
PAGE_ROWS = 2000
PAGE_BYTES = 16 << 20
BUSY_SECONDS = 10.0
STEPS = 100_000  # virtual machine steps between looks at the clock: about a millisecond
ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
NOT_NOW = {"SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_INTERRUPT", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_PROTOCOL"}
_PAGES = "LIMIT -1 OFFSET ?"
_IN_ORDER = "ORDER BY {column}, {order}"
_BETWEEN = "WHERE {column} >= ? AND {column} <= ? ORDER BY {column}, {order}"
_ABSENT = "WHERE {column} IS NULL ORDER BY {order}"
NOT_A_DATABASE = {"SQLITE_NOTADB", "SQLITE_CORRUPT"}


class SqlSource:
    """Items are pages of a query's rows."""

    def __init__(
        self,
        spec: SourceSpec,
        spool: Path | None = None,
        busy_seconds: float = BUSY_SECONDS,
        query_seconds: float | None = None,
    ) -> None:
        """busy_seconds: how long to wait for a lock; query_seconds: longest computation between two rows
        (default: the recipe's `timeout`)."""
        self.name = spec.name
        self._spec, self._spool = spec, spool
        self._busy_seconds = busy_seconds
        self._query_seconds = spec.timeout if query_seconds is None else query_seconds
        self._file = Path(spec.uri.removeprefix(SQLITE)).absolute()
        self._query = query_of(spec)

    def list_items(self) -> Iterator[Item | Refusal]:
        """Every page. Raises DataRefused (no such database), RecipeError (wrong query), TryAgain (locked)."""
        if self._spec.increment is not None:
            yield from sorted(self._blocks(), key=lambda item: item.path)
            return
        with self._rows(_PAGES, (0,)) as rows:
            first = 0
            while (page := self._page(rows, None)).rows:
                yield self._item(f"rows-{first:010d}", page)
                first += page.rows

    def open_item(self, item: Item) -> BinaryIO:
        """The page's rows, one JSON object a line. Raises ItemChanged if they are not those that were listed."""
        bounds = Bounds.of(item.path)
        try:
            with self._opened(item.path, bounds) as rows, spooled(self._spool) as spool:
                page = self._page(rows, spool, whole=bounds is not None)
                if page.version != item.version:
                    raise ItemChanged(f"{item.uri} has other rows than were listed")
        except (TryAgain, DataRefused) as error:
            raise ItemUnavailable(f"{item.uri}: {error.why or error.what}") from error
        return spool

    def _item(self, path: str, page: Page) -> Item:
        uri = f"{SQLITE}{escape(str(self._file))}#{path}"
        return Item(self.name, path, uri, page.version, page.size, MEDIA)

    def _blocks(self) -> Iterator[Item]:
        column = self._spec.increment or ""
        with self._rows(_IN_ORDER, ()) as rows:
            for bounds, page in cut(rows, column):
                yield self._item(bounds.path(column), page)

    def _opened(self, path: str, bounds: Bounds | None) -> contextlib.AbstractContextManager[Iterator[bytes]]:
        if bounds is None:
            return self._rows(_PAGES, (int(path.removeprefix("rows-")),))
        if bounds.first is None or bounds.last is None:
            return self._rows(_ABSENT, ())
        return self._rows(_BETWEEN, (orjson.loads(bounds.first), orjson.loads(bounds.last)))

    def _page(self, rows: Iterator[bytes], spool: BinaryIO | None, whole: bool = False) -> Page:
        """Take one page's rows, or all; the lines go to the spool, if there is one."""
        digest, size, count = hashlib.blake2b(digest_size=16), 0, 0
        while (whole or (count < PAGE_ROWS and size < PAGE_BYTES)) and (line := next(rows, None)) is not None:
            digest.update(line)
            size += len(line)
            count += 1
            if spool is not None:
                spool.write(line)
        return Page(count, size, digest.hexdigest())

    @contextlib.contextmanager
    def _rows(self, which: str, values: tuple[Any, ...]) -> Generator[Iterator[bytes], None, None]:
        """Rows of the query as JSON lines; SQLite's errors as ours. which: the statement's end, values: bound in it."""
        if not self._file.is_file():
            raise self._missing()
        try:
            with contextlib.closing(self._connect()) as connection:
                clock = _Clock(self._query_seconds)
                connection.set_progress_handler(clock.late, STEPS)
                connection.execute(
                    f"EXPLAIN {self._query}"
                ).close()  # the query alone, for a clear message if it is wrong
                # Listing and opening run the same statement, so that SQLite orders the rows in the same way.
                with contextlib.closing(connection.execute(f"SELECT * FROM ({self._query}\n) LIMIT 0")) as empty:
                    names = [str(column[0]) for column in empty.description]
                check_columns(self._spec, names)
                # All columns: rows of one value of the increment must come in the same order at listing and opening.
                order = ", ".join(str(n + 1) for n in range(len(names)))
                column = '"' + (self._spec.increment or "").replace('"', '""') + '"'
                end = which.format(column=column, order=order)
                yield _lines(connection.execute(f"SELECT * FROM ({self._query}\n) {end}", values), names, clock)
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _connect(self) -> sqlite3.Connection:
        uri = f"file:{quote(str(self._file))}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=self._busy_seconds, isolation_level=None)
        connection.execute("PRAGMA query_only = ON").close()
        connection.set_authorizer(_authorize)
        connection.text_factory = _text
        return connection

    def _explain(self, error: sqlite3.Error) -> SheafError:
        code = getattr(error, "sqlite_errorname", "")
        place = f"source '{self.name}', {SQLITE}{escape(str(self._file))}"
        if any(code.startswith(name) for name in NOT_A_DATABASE):
            return DataRefused("this is not a sound SQLite database", where=place, why=str(error))
        if code.startswith("SQLITE_CANTOPEN"):
            return DataRefused("the database cannot be opened", where=place, why=str(error), fix="check permissions")
        if any(code.startswith(name) for name in NOT_NOW):
            why = f"{error} (no row for {self._query_seconds:g} s)" if code == "SQLITE_INTERRUPT" else str(error)
            fix = "make the query faster" if code == "SQLITE_INTERRUPT" else "run again when nobody writes to it"
            return TryAgain("the database does not answer now", where=place, why=why, fix=fix)
        return RecipeError(
            f"SQLite refuses the query of source '{self.name}'",
            where=place,
            why=str(error),
            fix="correct `query:`; it is one SELECT, and may not write or attach",
        )

    def _missing(self) -> DataRefused:
        folder, near = self._file.parent, list[str]()
        with contextlib.suppress(OSError):
            names = [p.name for p in folder.iterdir()]
            near = difflib.get_close_matches(self._file.name, names, n=3, cutoff=0.5) or sorted(names)[:5]
        return DataRefused(
            f"the database of source '{self.name}' does not exist",
            where=escape(str(self._file)),
            fix=escape(f"in {folder} there are: {', '.join(near)}") if near else "check the path",
        )


class _Clock:
    """Stops a statement that computes too long without giving a row."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        self._end = time.monotonic() + self._seconds

    def late(self) -> int:
        return int(time.monotonic() > self._end)


def _lines(cursor: sqlite3.Cursor, names: list[str], clock: _Clock) -> Iterator[bytes]:
    for row in cursor:
        values = {name: _value(value) for name, value in zip(names, row, strict=True)}
        yield orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE)
        clock.restart()


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _authorize(action: int, *_: str | None) -> int:
    return sqlite3.SQLITE_OK if action in ALLOWED else sqlite3.SQLITE_DENY
