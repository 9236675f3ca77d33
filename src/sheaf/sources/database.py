"""What the sources of rows share: how blocks are named and cut, which columns a query must give, trying again.

With `increment`, a query's rows are cut into blocks at values of that column which their own digest chooses (about one
in BLOCK_ROWS): new rows make new blocks at the end, a row that changes or goes touches its block alone, and no block
moves because another grew (content-defined chunking: Muthitacharoen et al., LBFS, SOSP 2001). A block is named by its
first and last value, so that it can be asked for without counting rows, and its version is a digest of its rows.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote, unquote

import orjson

from sheaf.errors import RecipeError, TryAgain
from sheaf.recipe import SourceSpec
from sheaf.sources.retry import Line, Unreachable

MEDIA = "application/x-ndjson;source=sql"
BLOCK_ROWS = 8192  # on average; a power of two
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bounds:
    """The first and last value of a block's column, as text; both None: the rows where it is NULL."""

    first: str | None
    last: str | None

    def path(self, column: str) -> str:
        """ "id=1,4095", "id=null" (no range: that has a comma)"""
        if self.first is None or self.last is None:
            return f"{_quoted(column)}=null"
        return f"{_quoted(column)}={_quoted(self.first)},{_quoted(self.last)}"

    @staticmethod
    def of(path: str) -> Bounds | None:
        """What `path` wrote; None for the path of a whole query."""
        _, sign, values = path.partition("=")
        if not sign:
            return None
        first, comma, last = values.partition(",")
        return Bounds(unquote(first), unquote(last)) if comma else Bounds(None, None)


def query_of(spec: SourceSpec) -> str:
    """The query without the semicolon at its end. Raises RecipeError if there is none."""
    if not spec.query:
        raise RecipeError(
            f"source '{spec.name}' needs a query",
            where=f"source '{spec.name}', uri: {spec.uri}",
            fix='add query: "SELECT id, body FROM … ORDER BY id"',
        )
    return spec.query.strip().rstrip(";").rstrip()


@dataclass(frozen=True, slots=True)
class Page:
    """What an item holds. size: bytes of its lines; version: their digest."""

    rows: int
    size: int
    version: str


def cut(lines: Iterable[bytes], column: str) -> Iterator[tuple[Bounds, Page]]:
    """Blocks of rows, JSON objects in the order of the column, where no server cuts them. Values are named as JSON."""
    first, last = b"", b""
    digest, size, count = hashlib.blake2b(digest_size=16), 0, 0
    for line in lines:
        value = orjson.dumps(orjson.loads(line)[column])
        if count and value != last and (_starts_block(value) or b"null" in (value, last)):
            yield _named(first, last), Page(count, size, digest.hexdigest())
            digest, size, count = hashlib.blake2b(digest_size=16), 0, 0
        first, last = value if not count else first, value
        digest.update(line)
        size, count = size + len(line), count + 1
    if count:
        yield _named(first, last), Page(count, size, digest.hexdigest())


def check_columns(spec: SourceSpec, names: Sequence[str]) -> None:
    """Raises RecipeError if the query does not give the columns that the recipe's key and increment name."""
    for role, name in (("key", spec.key), ("increment", spec.increment)):
        if name is not None and name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise RecipeError(
                f"the query of source '{spec.name}' gives no column '{name}'",
                where=f"source '{spec.name}', {role}",
                why=f"columns: {', '.join(names)}",
                fix=f"did you mean '{near[0]}'?" if near else f"name one of the columns, or leave the {role} out",
            )


def distinct(names: Sequence[str]) -> list[str]:
    """The columns' names, made different where two are equal, as SQLite does: id, id:1, id:2."""
    found: list[str] = []
    for name in names:
        number, chosen = 0, name
        while chosen in found:
            number += 1
            chosen = f"{name}:{number}"
        found.append(chosen)
    return found


class NotNow(TryAgain):
    """The database does not answer; it is asked again. (A statement that took too long is not: it would again.)"""


def again(line: Line, attempt: Callable[[], T], *, known: bool = False) -> T:
    """What the attempt gives, after as many tries as `retry.Line` allows. Raises the last NotNow; others at once."""
    last: list[NotNow] = []

    def once() -> T:
        try:
            return attempt()
        except NotNow as error:
            last.append(error)
            raise Unreachable(error.why, outage=True) from error

    try:
        return line.run(once, known=known)
    except Unreachable as error:
        raise (last[-1] if last else NotNow("the database does not answer now", why=str(error))) from error


def _named(first: bytes, last: bytes) -> Bounds:
    return Bounds(None, None) if first == b"null" else Bounds(first.decode(), last.decode())


def _starts_block(value: bytes) -> bool:
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest()) % BLOCK_ROWS == 0


def _quoted(text: str) -> str:
    return quote(text, safe=" :+-")
