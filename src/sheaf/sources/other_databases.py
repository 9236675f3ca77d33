"""The rows of a query over any database that SQLAlchemy knows: MySQL, MariaDB, SQL Server, Oracle and more.

The uri is SQLAlchemy's without a password (`mysql+pymysql://reader@db.local/help`); any other dialect is written
`sqlalchemy+DIALECT+DRIVER://…`. The driver is the user's to install. Rows are streamed, 1,000 at a time, and become
JSON lines here: decimals and times as exact text, bytes as {"base64": …}. The query is one item, or with `increment`
blocks (see `database.py`). Every transaction is rolled back, and read-only where the dialect can say so.
Cost: a listing transfers all rows (10 µs each), for only the client can digest them.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import math
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from sheaf.errors import DataRefused, EnvironmentProblem, MissingExtra, RecipeError, TryAgain
from sheaf.recipe import SourceSpec
from sheaf.recipe_file import resolve_secret
from sheaf.sources.base import Item, ItemChanged, ItemUnavailable, Refusal
from sheaf.sources.database import MEDIA, Bounds, NotNow, Page, again, check_columns, cut, distinct, query_of
from sheaf.sources.retry import Line
from sheaf.sources.spool import spooled

try:
    import sqlalchemy
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError
except ModuleNotFoundError as error:
    raise MissingExtra("sql", "a source of this database") from error

WHOLE = "rows"
BATCH_ROWS = 1000
# What is said before the first statement; other dialects have no words for it, and are rolled back.
READ_ONLY = {
    "postgresql": "SET TRANSACTION READ ONLY",
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
    "oracle": "SET TRANSACTION READ ONLY",
    "sqlite": "PRAGMA query_only = ON",
}


class OtherDatabaseSource:
    """Items are the query's rows, or blocks of them by `increment`."""

    def __init__(self, spec: SourceSpec, spool: Path | None = None) -> None:
        self.name = spec.name
        self._spec, self._spool = spec, spool
        self._query = query_of(spec)
        self._line = Line(what=f"the database of source '{spec.name}'")
        try:
            self._url = sqlalchemy.make_url(spec.uri.removeprefix("sqlalchemy+"))
        except (SQLAlchemyError, ValueError) as error:
            raise RecipeError("the uri is not one of SQLAlchemy's", where=f"source '{spec.name}', uri") from error
        if self._url.password is not None:
            raise RecipeError(
                "the uri holds a password", where=f"source '{spec.name}', uri", fix="write password: {env: NAME}"
            )

    def list_items(self) -> Iterator[Item | Refusal]:
        """Every block, sorted by path. Raises RecipeError (wrong query), DataRefused, TryAgain."""
        for path, page in sorted(again(self._line, lambda: list(self._pages())), key=lambda found: found[0]):
            yield Item(self.name, path, f"{self._url}#{path}", page.version, page.size, MEDIA)

    def open_item(self, item: Item) -> BinaryIO:
        """The block's rows, one JSON object a line. Raises ItemChanged if they are not those that were listed."""
        try:
            return again(self._line, lambda: self._fetch(item), known=True)
        except (TryAgain, DataRefused) as error:
            raise ItemUnavailable(f"{item.uri}: {error.why or error.what}") from error

    def _pages(self) -> Iterator[tuple[str, Page]]:
        column = self._spec.increment
        with self._lines(None) as lines:
            if column is not None:
                yield from ((bounds.path(column), page) for bounds, page in cut(lines, column))
                return
            digest, size, count = hashlib.blake2b(digest_size=16), 0, 0
            for line in lines:
                digest.update(line)
                size, count = size + len(line), count + 1
        if count:
            yield WHOLE, Page(count, size, digest.hexdigest())

    def _fetch(self, item: Item) -> BinaryIO:
        digest = hashlib.blake2b(digest_size=16)
        with self._lines(Bounds.of(item.path)) as lines, spooled(self._spool) as spool:
            for line in lines:
                digest.update(line)
                spool.write(line)
            if digest.hexdigest() != item.version:
                raise ItemChanged(f"{item.uri} has other rows than were listed")
        return spool

    @contextlib.contextmanager
    def _lines(self, bounds: Bounds | None) -> Generator[Iterator[bytes], None, None]:
        password = None if self._spec.password is None else resolve_secret(self._spec.password)
        engine: sqlalchemy.Engine | None = None
        try:
            engine = sqlalchemy.create_engine(self._url.set(password=password), poolclass=sqlalchemy.NullPool)
            with engine.connect() as connection:
                if engine.dialect.name in READ_ONLY:
                    connection.exec_driver_sql(READ_ONLY[engine.dialect.name])
                yield self._run(connection, bounds)
                connection.rollback()
        except ModuleNotFoundError as error:
            raise EnvironmentProblem(
                "the database's driver is not installed",
                where=str(self._url),
                why=str(error),
                fix="install it, or name one that is installed, as in mysql+pymysql://",
            ) from error
        except SQLAlchemyError as error:
            raise self._explain(error, password or "") from error
        finally:
            if engine is not None:
                engine.dispose()

    def _run(self, connection: sqlalchemy.Connection, bounds: Bounds | None) -> Iterator[bytes]:
        # exec_driver_sql takes the text as it is; text() would see parameters in its colons.
        with connection.exec_driver_sql(f"SELECT * FROM ({self._query}\n) q WHERE 1 = 0") as empty:
            raw = list(empty.keys())
        names = distinct(raw)
        check_columns(self._spec, names)
        query = sqlalchemy.literal_column("*")
        rows = sqlalchemy.text(f"({self._query.replace(':', chr(92) + ':')}\n) q")
        statement = sqlalchemy.select(query).select_from(rows)
        if self._spec.increment is not None:
            column = sqlalchemy.column(self._spec.increment)
            if bounds is not None and bounds.first is not None and bounds.last is not None:
                first, last = (orjson.loads(value) for value in (bounds.first, bounds.last))
                statement = statement.where(column >= first, column <= last)
            elif bounds is not None:
                statement = statement.where(column.is_(None))
            statement = statement.order_by(column)
        statement = statement.order_by(*(sqlalchemy.text(str(n + 1)) for n in range(len(names))))
        result = connection.execution_options(stream_results=True, yield_per=BATCH_ROWS).execute(statement)
        for row in result:
            values = {name: _value(value) for name, value in zip(names, row, strict=True)}
            yield orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE)

    def _explain(self, error: SQLAlchemyError, password: str) -> Exception:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        why = " ".join(str(cause).split())[:500]
        why = why.replace(password, "…") if password else why
        where = f"source '{self.name}', {self._url}"
        # No statement: it was the connection itself that failed.
        away = isinstance(error, DBAPIError) and (error.connection_invalidated or error.statement is None)
        if away:
            return NotNow("the database does not answer now", where=where, why=why, fix="run again")
        return RecipeError(
            f"the database refuses the query of source '{self.name}'", where=where, why=why, fix="correct `query:`"
        )


def _value(value: Any) -> Any:
    """As JSON, exact: what JSON has no word for is text."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"base64": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return [_value(inner) for inner in cast(Sequence[Any], value)]
    if isinstance(value, dict):
        return {str(key): _value(inner) for key, inner in cast(dict[Any, Any], value).items()}
    return str(value)
