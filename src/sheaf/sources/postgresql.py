"""The rows of a query over PostgreSQL, by ADBC: streamed as Arrow batches, in one read-only snapshot, as JSON lines.

The server writes each row as a JSON object (`row_to_json`: columns in the query's order, numeric as exact text, time
stamps in UTC, bytea as hex), so every type it has comes through and no Python object is made for a row. Without
`increment` the query is one item, sorted by its key; with it, the query is cut into blocks (see `database.py`). The
version of either is the number of its rows and a 64-bit sum of their digests, which the server computes for a listing.

Names are quoted, values bound, and the query alone must be one statement that the server accepts before it is put
into ours. Each statement may take `timeout` seconds. Nothing may be written: the transaction is READ ONLY.
Cost: a listing is one scan of the query on the server (7 µs a row of 270 bytes, and a sort by `increment` without an
index) and sends a line for each block; opening a block is a range scan. Memory: a batch of 16 MB.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import adbc_driver_postgresql.dbapi as postgresql
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from adbc_driver_manager import AdbcStatusCode
from adbc_driver_manager.dbapi import Connection, Cursor
from adbc_driver_manager.dbapi import Error as AdbcError

from sheaf.errors import DataRefused, RecipeError, TryAgain
from sheaf.recipe import SourceSpec
from sheaf.sources.base import Item, ItemChanged, ItemUnavailable, Refusal
from sheaf.sources.database import BLOCK_ROWS, MEDIA, Bounds, again, check_columns, distinct, query_of
from sheaf.sources.postgresql_server import Server, explain, judge
from sheaf.sources.retry import Line
from sheaf.sources.spool import spooled

WHOLE = "rows"
# Types whose order is one everywhere; the others are sorted as text by bytes, since a collation may differ by machine.
PLAIN_ORDER = frozenset({"int2", "int4", "int8", "float4", "float8", "numeric", "date", "timestamp", "timestamptz"})
SESSION = (
    # Dates, numbers and time stamps must read alike whatever the server, the database or the role has set.
    ("TimeZone", "UTC"),
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "iso_8601"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
    ("application_name", "sheaf"),
)
# Of a database without an encoding the bytes come as they are: the server would refuse all for one that is no UTF-8.
CLIENT_ENCODING = """set_config('client_encoding',
    CASE current_setting('server_encoding') WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END, true)"""


class PostgresqlSource:
    """Items are the query's rows, or blocks of them by `increment`."""

    def __init__(self, spec: SourceSpec, spool: Path | None = None) -> None:
        self.name = spec.name
        self._spec, self._spool = spec, spool
        self._server = Server.of(spec)
        self._query = query_of(spec)
        self._line = Line(what=f"the database of source '{spec.name}'")

    def list_items(self) -> Iterator[Item | Refusal]:
        """Every block. Raises DataRefused, EnvironmentProblem (not let in), RecipeError (wrong query), TryAgain."""
        for bounds, version, size in sorted(again(self._line, self._survey), key=lambda found: self._path(found[0])):
            path = self._path(bounds)
            yield Item(self.name, path, f"{self._server.uri}#{path}", version, size, MEDIA)

    def open_item(self, item: Item) -> BinaryIO:
        """The block's rows, one JSON object a line. Raises ItemChanged if they are not those that were listed."""
        try:
            return again(self._line, lambda: self._fetch(item), known=True)
        except (TryAgain, DataRefused) as error:
            raise ItemUnavailable(f"{item.uri}: {error.why or error.what}") from error

    def _path(self, bounds: Bounds | None) -> str:
        return WHOLE if bounds is None else bounds.path(self._spec.increment or "")

    def _survey(self) -> list[tuple[Bounds | None, str, int]]:
        """(bounds, version, size) of every block that has rows."""
        with self._session() as (cursor, statement):
            cursor.execute(statement.survey(self._spec.increment))
            found: list[tuple[Bounds | None, str, int]] = []
            for first, last, count, total, size in cursor.fetchall():
                bounds = None if self._spec.increment is None else Bounds(first, last)
                if count:
                    found.append((bounds, _version(int(count), int(total)), int(size)))
            return found

    def _fetch(self, item: Item) -> BinaryIO:
        bounds, count, total = Bounds.of(item.path), 0, 0
        with self._session() as (cursor, statement), spooled(self._spool) as spool:
            if bounds is not None and bounds.first is not None:
                # COPY, which streams, takes no parameters; settings of the transaction do, and the query reads them.
                cursor.execute(
                    "SELECT set_config('sheaf.first', $1, true), set_config('sheaf.last', $2, true)",
                    parameters=(bounds.first, bounds.last),
                )
                cursor.fetchall()
            cursor.execute(statement.rows(self._spec.increment, bounds))
            for batch in self._batches(cursor):
                spool.write(_lines(batch.column(0)))
                count += batch.num_rows
                total += int(np.sum(batch.column(1).to_numpy().view(np.uint64), dtype=np.uint64))
            if _version(count, total) != item.version:
                raise ItemChanged(f"{item.uri} has other rows than were listed")
        return spool

    def _batches(self, cursor: Cursor) -> Iterator[pa.RecordBatch]:
        """Of the statement that was executed. Errors amid the rows come without an SQLSTATE: it is guessed here."""
        begun = time.monotonic()
        try:
            yield from cursor.fetch_record_batch()
        except (pa.ArrowException, OSError) as error:
            state = ""
            try:
                cursor.execute("SELECT 1")
            except AdbcError as now:
                # The connection lives, in a transaction that has failed: so it was the statement.
                if now.status_code == AdbcStatusCode.INVALID_STATE:
                    state = "57014" if time.monotonic() - begun >= self._spec.timeout else "XX000"
            why = str(error).rpartition("]: ")[2]
            raise judge(state, why, self._spec, self._server) from error

    @contextlib.contextmanager
    def _session(self) -> Generator[tuple[Cursor, _Statement], None, None]:
        """A read-only transaction of one snapshot, and the query as the server understands it; its errors as ours."""
        password = self._server.password()
        try:
            with postgresql.connect(self._server.connection(password)) as connection, connection.cursor() as cursor:
                self._settle(cursor)
                statement = self._understand(connection, cursor)
                try:
                    yield cursor, statement
                finally:
                    # Explicit, for the driver warns of a connection that is dropped inside a transaction.
                    with contextlib.suppress(AdbcError):
                        connection.rollback()
        except AdbcError as error:
            raise explain(error, self._spec, self._server, password) from error

    def _settle(self, cursor: Cursor) -> None:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        limit = str(max(1, min(int(self._spec.timeout * 1000), 2**31 - 1)))
        settings = (*SESSION, ("statement_timeout", limit))
        calls = ", ".join(f"set_config(${2 * n + 1}, ${2 * n + 2}, true)" for n in range(len(settings)))
        cursor.execute(
            f"SELECT {calls}, {CLIENT_ENCODING}", parameters=[part for setting in settings for part in setting]
        )
        cursor.fetchall()

    def _understand(self, connection: Connection, cursor: Cursor) -> _Statement:
        """Ask the server what the query gives, without running it: alone, so that it cannot end our own statement."""
        try:
            schema = cursor.adbc_execute_schema(self._query)
        except AdbcError as error:
            raise explain(error, self._spec, self._server, "", self._query) from error
        names = distinct(schema.names)
        types = [(field.metadata or {}).get(b"POSTGRESQL:type", b"").decode() for field in schema]
        if not names:
            raise RecipeError(f"the query of source '{self.name}' gives no columns", where=f"source '{self.name}'")
        check_columns(self._spec, names)
        cursor.execute("SELECT current_setting('server_encoding')")
        [(encoding,)] = cursor.fetchall()
        key = self._spec.key or names[0]
        return _Statement(self._query, names, types, key, str(encoding) in ("UTF8", "SQL_ASCII"))


@dataclass(frozen=True, slots=True)
class _Statement:
    """Puts the user's query into ours. utf8: the server's own bytes are those that will be sent."""

    query: str
    names: Sequence[str]
    types: Sequence[str]
    key: str
    utf8: bool

    def survey(self, increment: str | None) -> str:
        """first, last, count, sum of digests, bytes: of every block, or of all rows if there is no increment."""
        sent = "line" if self.utf8 else "convert_to(line, 'UTF8')"
        column = "NULL::text" if increment is None else f"q.{_name(increment)}"
        rows = f"""SELECT k, hashtextextended(line, 0) AS digest, octet_length({sent}) + 1 AS size
            FROM (SELECT {column} AS k, {self._json} AS line FROM {self._from} OFFSET 0) AS lines"""
        told = "count(*), coalesce(sum(digest), 0)::text, coalesce(sum(size), 0)::int8"
        if increment is None:
            return f"SELECT NULL::text, NULL::text, {told} FROM ({rows}) AS r"
        # The frame ends with the last row of the same value, so a value's rows are all in one block.
        edge = f"(hashtextextended(k::text, 0) & {BLOCK_ROWS - 1} = 0)::int"
        blocks = f"SELECT *, k IS NULL AS absent, sum({edge}) OVER (ORDER BY k) AS block FROM ({rows}) AS r"
        return f"SELECT min(k)::text, max(k)::text, {told} FROM ({blocks}) AS b GROUP BY absent, block"

    def rows(self, increment: str | None, bounds: Bounds | None) -> str:
        """line, digest: of a block or of all rows. Reads the bounds from sheaf.first and sheaf.last."""
        where = ""
        order = [self._order(self.key), "line"]
        if increment is not None and bounds is not None:
            column, kind = f"q.{_name(increment)}", self._type(increment)
            order.insert(0, column)
            if bounds.first is None:
                where = f"WHERE {column} IS NULL"
            else:
                first, last = (f"CAST(current_setting('sheaf.{end}') AS {kind})" for end in ("first", "last"))
                where = f"WHERE {column} >= {first} AND {column} <= {last}"
        # The inner ORDER BY also keeps the server from writing each line twice, once for its digest.
        inner = f"SELECT {self._json} AS line FROM {self._from} {where} ORDER BY {', '.join(order)}"
        return f"SELECT line, hashtextextended(line, 0) AS digest FROM ({inner}) AS lines"

    @property
    def _from(self) -> str:
        """The query under the names that we gave its columns, and beside each row `r`, as it is written."""
        columns = ", ".join(_name(name) for name in self.names)
        written = ", ".join(
            f"q.{_name(n)}{_exact(t)} AS {_name(n)}" for n, t in zip(self.names, self.types, strict=True)
        )
        # The line break ends a comment at the query's end.
        return f"({self.query}\n) AS q({columns}) CROSS JOIN LATERAL (SELECT {written}) AS r"

    @property
    def _json(self) -> str:
        """A column of type json keeps its own blanks; a line break inside JSON can be no more than that."""
        return r"""(translate(row_to_json(r)::text, E'\n\r', '  ') COLLATE "C")"""

    def _type(self, name: str) -> str:
        kind = self.types[list(self.names).index(name)]
        return _name(kind) if kind else "text"

    def _order(self, name: str) -> str:
        column = f"q.{_name(name)}"
        return column if self.types[list(self.names).index(name)] in PLAIN_ORDER else f'{column}::text COLLATE "C"'


def _name(text: str) -> str:
    """A name as SQL quotes it. (A NUL cannot be sent: the server has given the name.)"""
    return '"' + text.replace('"', '""') + '"'


def _exact(kind: str) -> str:
    """JSON's readers take numbers for floats, which a numeric may not fit."""
    return {"numeric": "::text", "_numeric": "::text[]"}.get(kind, "")


def _version(count: int, total: int) -> str:
    return f"{count}-{total % 2**64:016x}"


def _lines(column: pa.Array) -> memoryview:
    """The texts of a column, each with a line break, as they lie in the result of one vectorised join."""
    joined = pc.binary_join_element_wise(column, "", "\n")
    offsets, data = joined.buffers()[1:]
    end = np.frombuffer(offsets, np.int64 if pa.types.is_large_string(joined.type) else np.int32)[len(joined)]
    return memoryview(data)[: int(end)]
