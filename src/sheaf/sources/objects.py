"""Objects under a prefix of S3, Google Cloud Storage or Azure Blob Storage, and of what speaks their protocols.

    s3://BUCKET/PREFIX   gs://BUCKET/PREFIX   az://CONTAINER/PREFIX   abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX

Listing takes pages of 1,000 and goes on after the last name when one fails. An item's path is its key below the
prefix, its version the object's etag. An item is fetched into an unlinked temporary file; a body that breaks off is
taken up where it broke, under the same etag. When to try again is decided in `retry.py` alone: the library's own
retries are off. Where credentials come from is in `object_options.py`.

Cost: a request a 1,000 objects when listing (50 µs of processor time an object), one an item when opening; disk for
the items that are open. No message repeats what the library says: it quotes URLs, and those may hold signatures.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeVar

import obstore
from obstore.exceptions import BaseError, InvalidPathError, PreconditionError
from obstore.store import ObjectStore

from sheaf.errors import DataRefused, EnvironmentProblem, RecipeError, SheafError, TryAgain
from sheaf.recipe import SourceSpec
from sheaf.sources.base import Item, ItemChanged, ItemRefused, ItemUnavailable, Refusal
from sheaf.sources.globs import Selection
from sheaf.sources.object_options import Place, open_store
from sheaf.sources.retry import Line, Pace, Unreachable, enough, patience
from sheaf.sources.spool import spooled

PAGE_OBJECTS = 1000
T = TypeVar("T")
CHUNK_BYTES = 1 << 20
STATUS = re.compile(r"status code: (\d{3})")
CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
AWAY = {429, 502, 503, 504}  # 503 is also S3's SlowDown
NOT_NOW = {408, 409, 425, 429}
# They are about our credentials, not about the object: another run, with good ones, may have it.
CREDENTIALS = {
    *("ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "TokenRefreshRequired", "RequestTimeTooSkewed"),
    *("InvalidToken", "AuthenticationFailed", "InvalidAuthenticationInfo"),
}


class ObjectSource:
    """Items are objects; path is the key below the prefix. Safe for threads."""

    connections = 16  # how many items are worth opening at once

    def __init__(self, spec: SourceSpec, spool: Path | None = None) -> None:
        self.name = spec.name
        self._spec, self._spool = spec, spool
        self._place = Place.of(spec)
        self._select = Selection.of(spec.include, spec.exclude)
        self._line = Line(patience(spec))

    def list_items(self) -> Iterator[Item | Refusal]:
        """Every object below the prefix, or the one that the uri names.

        Raises DataRefused (no such bucket), EnvironmentProblem (credentials refused), RecipeError (wrong region),
        TryAgain (no answer).
        """
        try:
            found = self._list() or self._single()
        except BaseError as error:
            self._refuse(error)
        except Unreachable as error:
            raise TryAgain(
                f"source '{self.name}': the object store does not answer",
                where=self._spec.uri,
                why=str(error),
                fix="check the uri, the endpoint and the network, then run again; what was done is kept",
            ) from None
        for path, meta in sorted(found.items()):
            if self._select.wants(path):
                yield Item(self.name, path, self._place.uri(meta["path"]), _version(meta), meta["size"])

    def open_item(self, item: Item) -> BinaryIO:
        """The object in an unlinked file. Raises ItemChanged, ItemUnavailable, ItemRefused ("denied", "http-NNN")."""
        download = _Download(self._store, self._place.key(item.uri), item, self._place.scheme == "s3")
        try:
            with spooled(self._spool) as spool:
                if item.size > 0:  # an empty object need not be asked for; some are only a folder's name
                    self._line.run(lambda: _ask(lambda: download.go_on(spool)), known=True)
        except Unreachable as error:
            raise ItemUnavailable(f"{item.uri}: {error}") from None
        except (FileNotFoundError, PreconditionError):
            raise ItemChanged(f"{item.uri} changed after it was listed") from None
        except BaseError as error:
            status, code = _status(error)
            if code in CREDENTIALS or status == 401:
                raise ItemUnavailable(f"{item.uri}: the store refuses the credentials: {code or status}") from None
            reason = "denied" if status == 403 else f"http-{status}"
            raise ItemRefused(reason, f"the store answers {status} {code}".rstrip()) from None
        return spool

    @functools.cached_property
    def _store(self) -> ObjectStore:
        return open_store(self._spec, self._place)

    def _list(self) -> dict[str, obstore.ObjectMeta]:
        """Path → object, of all that lies below the prefix."""
        listing = _Listing(self._store, self._place.prefix)
        self._line.run(lambda: _ask(listing.go_on))
        start = len(self._place.prefix) + 1 if self._place.prefix else 0
        return {meta["path"][start:]: meta for meta in _without_folders(listing.found)}

    def _single(self) -> dict[str, obstore.ObjectMeta]:
        """The object that the uri names, if it names one."""
        prefix = self._place.prefix
        if not prefix or self._spec.uri.endswith("/"):
            return {}
        try:
            meta = self._line.run(lambda: _ask(lambda: obstore.head(self._store, prefix)))
        except FileNotFoundError:
            return {}
        return {prefix.rpartition("/")[2]: meta}

    def _refuse(self, error: BaseError) -> NoReturn:
        """Why the place cannot be listed, in our words."""
        raise _explain(error, self.name, self._spec.uri) from None


class _Listing:
    """The names so far; goes on after the last of them. A store that lists out of order is listed anew."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store, self._prefix = store, prefix
        self.found: list[obstore.ObjectMeta] = []

    def go_on(self) -> None:
        before = len(self.found)
        paths = [meta["path"] for meta in self.found]
        if paths != sorted(paths):
            self.found, paths, before = [], [], 0
        last = paths[-1] if paths else None
        try:
            for page in obstore.list(self._store, self._prefix or None, offset=last, chunk_size=PAGE_OBJECTS):
                self.found.extend(page)
        except BaseError as error:
            raise _unless_final(error, progress=len(self.found) > before) from None


class _Download:
    """One object on its way into a spool; a further try takes up where the last one broke off."""

    def __init__(self, store: ObjectStore, key: str, item: Item, if_match: bool) -> None:
        self._store, self._key, self._item = store, key, item
        etag = item.version.removeprefix("etag:")
        # S3's etags are the same in a listing and as a condition; others quote them in one place only.
        self._options: obstore.GetOptions = {"if_match": etag} if if_match and etag != item.version else {}
        self._size = 0

    def go_on(self, spool: BinaryIO) -> None:
        """Raises ItemChanged, Unreachable, FileNotFoundError, obstore's errors."""
        rest: obstore.GetOptions = {"range": {"offset": self._size}} if self._size else {}
        answer = obstore.get(self._store, self._key, options={**self._options, **rest})
        if _version(answer.meta) != self._item.version or answer.meta["size"] != self._item.size:
            raise ItemChanged(f"{self._item.uri} changed after it was listed")
        before, pace = self._size, Pace()
        spool.seek(before)
        try:
            for chunk in answer.stream(CHUNK_BYTES):
                spool.write(chunk)
                self._size += len(chunk)
                pace.check(self._size - before)
        except BaseError:
            raise self._cut(before) from None
        if self._size != self._item.size:
            raise self._cut(before)

    def _cut(self, before: int) -> Unreachable:
        why = f"the body breaks off at byte {self._size:,} of {self._item.size:,}"
        if self._size > self._item.size:
            why, self._size = f"more than the {self._item.size:,} bytes that were announced", 0
        return Unreachable(why, progress=enough(self._size - before, self._item.size))


def _version(meta: obstore.ObjectMeta) -> str:
    """Azure quotes the etag of an object and not the same etag in a listing."""
    if etag := meta["e_tag"]:
        return f'etag:"{etag.strip(chr(34))}"'
    return f"modified:{meta['last_modified'].isoformat()},{meta['size']}"


def _without_folders(found: list[obstore.ObjectMeta]) -> list[obstore.ObjectMeta]:
    """Consoles write an empty object "a/" for a folder; the library calls it "a". It is no item if a/… exists."""
    folders = {meta["path"].rpartition("/")[0] for meta in found if "/" in meta["path"]}
    return [meta for meta in found if meta["size"] or meta["path"] not in folders]


def _ask(call: Callable[[], T]) -> T:
    """The call's result; its errors that may pass as Unreachable."""
    try:
        return call()
    except BaseError as error:
        raise _unless_final(error) from None


def _unless_final(error: BaseError, *, progress: bool = False) -> BaseError | Unreachable:
    """The error itself if it is the store's last word."""
    status, code = _status(error)
    if status == 0 and type(error).__name__ == "GenericError":
        return Unreachable("there is no answer", outage=True, progress=progress)
    if status in NOT_NOW or status >= 500:
        return Unreachable(f"it answers {status} {code}".rstrip(), outage=status in AWAY, progress=progress)
    return error


def _status(error: BaseError) -> tuple[int, str]:
    """The HTTP status and the store's own word for it; 0 or "" where the error has none."""
    text = str(error)
    if "BareRedirect" in text:  # a redirect that does not say where to: S3's way to say "another region"
        return 301, "PermanentRedirect"
    status, code = STATUS.search(text), CODE.search(text)
    return int(status[1]) if status else 0, code[1] if code else ""


def _explain(error: BaseError, name: str, uri: str) -> SheafError:
    status, code = _status(error)
    why = f"the store answers {status} {code}".rstrip()
    if isinstance(error, InvalidPathError):
        return DataRefused(
            f"source '{name}' holds a key that cannot be listed",
            where=uri,
            why="a key has an empty part (a//b), a part . or .., or a control character",
            fix="rename that object, or name prefixes beside it as sources of their own",
        )
    if status == 404:
        return DataRefused(f"the bucket of source '{name}' does not exist", where=uri, why=why, fix="check the uri")
    if status in (301, 307) or code in ("AuthorizationHeaderMalformed", "PermanentRedirect"):
        fix = "add options: {region: …} with the bucket's region, or AWS_REGION to the environment"
        return RecipeError(f"the bucket of source '{name}' lies in another region", where=uri, why=why, fix=fix)
    if status in (401, 403):
        fix = "check which credentials are in the environment, and that they may list and read this prefix"
        return EnvironmentProblem(f"the store does not let source '{name}' list", where=uri, why=why, fix=fix)
    return DataRefused(f"source '{name}' cannot be listed", where=uri, why=why or type(error).__name__)
