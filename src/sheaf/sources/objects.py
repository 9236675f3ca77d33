"""Objects under a prefix of S3, Google Cloud Storage or Azure Blob Storage, and of what speaks their protocols.

    s3://BUCKET/PREFIX   gs://BUCKET/PREFIX   az://CONTAINER/PREFIX   abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX

Listing takes pages of 1,000 and goes on after the last name when one fails. An item's path is its key below the
prefix, its version the object's etag. An item is fetched into an unlinked temporary file; a body that breaks off is
taken up where it broke, under the same etag. When to try again is decided in `retry.py` alone: the library's own
retries are off. Where credentials come from is in `object_options.py`.

The library takes keys for paths and follows redirects to any address, so S3 is listed and read by `s3.py`. On Google's
and Azure's stores, and on S3 with credentials that a service gives out, it is the library: there one key such as `a//b`
ends the listing, and the user is told; and an endpoint must be trusted as far as this machine's network reaches.

Cost: a request a 1,000 objects when listing (50 µs of processor time an object), one an item when opening; disk for
the items that are open. No message repeats what the library says: it quotes URLs, and those may hold signatures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

import httpx
import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from sheaf.errors import TryAgain
from sheaf.recipe import SourceSpec
from sheaf.sources.base import Item, ItemChanged, ItemRefused, ItemUnavailable, Refusal
from sheaf.sources.connections import promptly
from sheaf.sources.fetch import length_of, part_of
from sheaf.sources.globs import Selection
from sheaf.sources.object_errors import CREDENTIALS, ask, explain, judged
from sheaf.sources.object_options import Place, open_s3, open_store
from sheaf.sources.retry import Line, Pace, Unreachable, enough, patience
from sheaf.sources.s3 import S3, Answer, Found
from sheaf.sources.spool import spooled

PAGE_OBJECTS = 1000
CHUNK_BYTES = 1 << 20
Pages = Callable[[str], Iterable[list[Found]]]  # from after a key on
Opened = tuple[str, int, int, Iterator[bytes]]  # version, size of the whole, first byte, the bytes from there on


class ObjectSource:
    """Items are objects; path is the key below the prefix. Safe for threads."""

    connections = 16  # how many items are worth opening at once

    def __init__(self, spec: SourceSpec, spool: Path | None = None) -> None:
        self.name = spec.name
        self._spec, self._spool = spec, spool
        self._place = Place.of(spec)
        self._select = Selection.of(spec.include, spec.exclude)
        self._line = Line(patience(spec), what=f"the object store of source '{spec.name}'")

    def list_items(self) -> Iterator[Item | Refusal]:
        """Every object below the prefix, or the one that the uri names.

        Raises DataRefused (no such bucket), EnvironmentProblem (credentials refused), RecipeError (wrong region),
        TryAgain (no answer).
        """
        try:
            found = self._list() or self._single()
        except Answer as error:
            raise explain(error, self.name, self._spec.uri) from None
        except Unreachable as error:
            raise TryAgain(
                f"source '{self.name}': the object store does not answer",
                where=self._spec.uri,
                why=str(error),
                fix="check the uri, the endpoint and the network, then run again; what was done is kept",
            ) from None
        for path, item in sorted(found.items()):
            if self._select.wants(path):
                yield Item(self.name, path, self._place.uri(item.key), _version(item), item.size)

    def open_item(self, item: Item) -> BinaryIO:
        """The object in an unlinked file. Raises ItemChanged, ItemUnavailable, ItemRefused ("denied", "http-NNN")."""
        download = _Download(functools.partial(self._opened, self._place.key(item.uri), _etag(item.version)), item)
        try:
            with spooled(self._spool) as spool:
                if item.size:  # an empty object need not be asked for; some are only a folder's name
                    self._line.run(lambda: ask(lambda: download.go_on(spool)), known=True)
        except Unreachable as error:
            raise ItemUnavailable(f"{item.uri}: {error}") from None
        except Answer as error:
            status, code = error.status, error.code
            if status in (404, 412):
                raise ItemChanged(f"{item.uri} changed after it was listed") from None
            if code in CREDENTIALS or status == 401:
                raise ItemUnavailable(f"{item.uri}: the store refuses the credentials: {code or status}") from None
            reason = "denied" if status == 403 else f"http-{status}" if status else "unreadable"
            raise ItemRefused(reason, f"the store answers {status} {code}".rstrip()) from None
        return spool

    @functools.cached_property
    def _store(self) -> ObjectStore:
        return open_store(self._spec, self._place)

    @functools.cached_property
    def _s3(self) -> S3 | None:
        return open_s3(self._spec, self._place, self.connections)

    def _list(self) -> dict[str, Found]:
        """Path → object, of all that lies below the prefix."""
        prefix = f"{self._place.prefix}/" if self._place.prefix else ""
        s3 = self._s3
        pages = functools.partial(_pages, self._store, self._place.prefix) if s3 is None else _after(s3, prefix)
        listing = _Listing(pages)
        self._line.run(lambda: promptly(lambda: ask(listing.go_on)))
        return {item.key[len(prefix) :]: item for item in _without_folders(listing.found)}

    def _single(self) -> dict[str, Found]:
        """The object that the uri names, if it names one."""
        prefix = self._place.prefix
        if not prefix or self._spec.uri.endswith("/"):
            return {}
        found = self._line.run(lambda: promptly(lambda: ask(lambda: self._first(prefix))))
        return {prefix.rpartition("/")[2]: found} if found is not None and found.key == prefix else {}

    def _first(self, prefix: str) -> Found | None:
        """Of all keys with a prefix the key that is no longer than it comes first."""
        if self._s3 is not None:
            return next((item for page in self._s3.list(prefix, most=1) for item in page), None)
        try:
            return _found(obstore.head(self._store, prefix))
        except FileNotFoundError:
            return None

    @contextmanager
    def _opened(self, key: str, etag: str, start: int) -> Generator[Opened, None, None]:
        """The object from a byte on."""
        # S3's etags are the same in a listing and as a condition; others quote them in one place only.
        condition = etag if self._place.scheme == "s3" else ""
        if self._s3 is not None:  # the library would follow a redirect to wherever the endpoint says
            with self._s3.read(key, condition, start) as answer:
                yield _as_sent(answer, start)
            return
        options: obstore.GetOptions = {}
        if condition:
            options["if_match"] = condition
        if start:
            options["range"] = {"offset": start}
        answer = obstore.get(self._store, key, options=options)
        yield _version(_found(answer.meta)), answer.meta["size"], start, map(bytes, answer.stream(CHUNK_BYTES))


class _Listing:
    """The objects so far; goes on after the last of them. A store that lists out of order is listed anew."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self.found: list[Found] = []

    def go_on(self) -> None:
        before = len(self.found)
        keys = [item.key for item in self.found]
        if keys != sorted(keys):
            self.found, keys, before = [], [], 0
        try:
            for page in self._pages(keys[-1] if keys else ""):
                self.found.extend(page)
        except (BaseError, Answer, httpx.HTTPError) as error:
            raise judged(error, progress=len(self.found) > before) from None


class _Download:
    """One object on its way into a spool; a further try takes up where the last one broke off."""

    def __init__(self, opened: Callable[[int], AbstractContextManager[Opened]], item: Item) -> None:
        self._opened, self._item, self._size = opened, item, 0

    def go_on(self, spool: BinaryIO) -> None:
        """Raises ItemChanged, Unreachable, Answer, the libraries' errors."""
        with self._opened(self._size) as (version, size, start, chunks):
            # A reader of one origin knows the version and not the size.
            if version != self._item.version or self._item.size not in (-1, size):
                raise ItemChanged(f"{self._item.uri} changed after it was listed")
            before, pace, self._size = self._size, Pace(), start
            spool.seek(start)
            spool.truncate()
            try:
                for chunk in chunks:
                    spool.write(chunk)
                    self._size += len(chunk)
                    pace.check(self._size - start)
            except (BaseError, httpx.TransportError):
                raise self._cut(before, size) from None
            if self._size != size:
                raise self._cut(before, size)

    def _cut(self, before: int, size: int) -> Unreachable:
        why = f"the body breaks off at byte {self._size:,} of {size:,}"
        if self._size > size:
            why, self._size = f"more than the {size:,} bytes that were announced", 0
        return Unreachable(why, progress=enough(self._size - before, size))


def _after(s3: S3, prefix: str) -> Pages:
    return lambda after: s3.list(prefix, after, PAGE_OBJECTS)


def _pages(store: ObjectStore, prefix: str, after: str) -> Iterator[list[Found]]:
    for page in obstore.list(store, prefix or None, offset=after or None, chunk_size=PAGE_OBJECTS):
        yield [_found(meta) for meta in page]


def _found(meta: obstore.ObjectMeta) -> Found:
    return Found(meta["path"], meta["size"], meta["e_tag"] or "", meta["last_modified"].isoformat())


def _as_sent(answer: httpx.Response, start: int) -> Opened:
    """Raises Unreachable for another part than was asked for; all of it will do."""
    size, part = length_of(answer), part_of(answer)
    if size is None or (answer.status_code == 206 and (part is None or part[0] != start)):
        raise Unreachable("the store does not send the part that it was asked for")
    start = start if answer.status_code == 206 else 0
    found = Found("", size, answer.headers.get("etag", ""), answer.headers.get("last-modified", ""))
    return _version(found), size, start, answer.iter_raw()


def _version(found: Found) -> str:
    """Azure quotes the etag of an object and not the same etag in a listing."""
    if found.etag:
        return f'etag:"{found.etag.strip(chr(34))}"'
    return f"modified:{found.modified},{found.size}"


def _etag(version: str) -> str:
    return version.removeprefix("etag:") if version.startswith("etag:") else ""


def _without_folders(found: list[Found]) -> list[Found]:
    """Consoles write an empty object "a/" for a folder; the library calls it "a". It is no item if a/… exists."""
    folders = {item.key.rpartition("/")[0] for item in found if "/" in item.key}
    return [item for item in found if item.size or not (item.key.endswith("/") or item.key in folders)]
