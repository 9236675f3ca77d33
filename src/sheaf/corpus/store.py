"""A workspace in an object store: what is finished lies there, and a folder on each machine mirrors what it needs.

The same names here and there; an object is put when its file gets its final name, and of a task's folder DONE comes
last, so that a folder with DONE is complete there too. Nothing but HEAD and a few pointers ever changes. Whoever reads
a file that is not here fetches it, and `files.checked` compares it with DONE. Two that finish the same task at once put
the same bytes, as tasks are deterministic; if they did not, the digests would tell.

Credentials come from the environment, or the files of the store's own tools, as for sources; nothing of them is
written. An outage is waited out as in `sources/retry.py`. Cost: one request a file, one a folder that is asked for and
is not there, one a 1,000 names listed; the machine's disk for what it reads and writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError, PreconditionError

from sheaf.errors import EnvironmentProblem, RecipeError, TryAgain
from sheaf.files import DONE, MARK, add_mirror, disk_errors, folder_of, temporary_name, write_file
from sheaf.recipe import Secret, SourceSpec
from sheaf.sources.object_errors import ask
from sheaf.sources.object_options import Place, open_store
from sheaf.sources.retry import Line, Unreachable
from sheaf.sources.s3 import Answer

URL = re.compile(r"(s3|gs|az|abfss?)://[^/]")
CHUNK_BYTES = 4 << 20
OUT_OF_RANGE = re.compile(r"status code: 416|[Rr]ange")
T = TypeVar("T")


class NoConditions(Exception):
    """The store cannot put an object on a condition."""


class ObjectStore:
    """One workspace's objects, seen from its folder here. Safe for threads."""

    def __init__(self, url: str, root: Path) -> None:
        spec = SourceSpec(name="workspace", uri=url, options=_options())
        self.url, self.root = url, root
        self._place = Place.of(spec)
        self._client = open_store(spec, self._place)
        self._line = Line(what=f"the object store of {url}")
        self._answered = False

    def fetch(self, path: Path) -> bool:
        temporary = temporary_name(path)
        try:
            with disk_errors(path):
                found = self._ask(lambda: self._download(path, temporary))
                if found:
                    temporary.rename(path)
            return found
        finally:
            temporary.unlink(missing_ok=True)

    def read_range(self, path: Path, start: int, stop: int) -> bytes:
        def get() -> bytes:
            try:
                return bytes(obstore.get_range(self._client, self._key(path), start=start, end=stop))
            except BaseError as error:
                if OUT_OF_RANGE.search(str(error)):  # it is shorter than it was: no outage
                    return b""
                raise

        found = self._found(get)
        if found is None:
            raise FileNotFoundError(path)
        return found

    def upload(self, folder: Path, final: Path, names: Sequence[str]) -> None:
        for name in names:
            self._ask(lambda name=name: obstore.put(self._client, self._key(final / name), folder / name))

    def put(self, path: Path, data: bytes) -> None:
        self._ask(lambda: obstore.put(self._client, self._key(path), data))

    def remove(self, folder: Path) -> None:
        prefix = self._key(folder)
        keys = [meta["path"] for page in self._ask(lambda: list(obstore.list(self._client, prefix))) for meta in page]
        for key in sorted(keys, key=lambda key: not key.endswith(f"/{DONE}")):
            self._ask(lambda key=key: obstore.delete(self._client, key))

    def names(self, folder: Path) -> list[str]:
        """Of the folders in a folder, sorted."""
        found = self._ask(lambda: obstore.list_with_delimiter(self._client, self._key(folder)))
        return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"])

    def read(self, path: Path) -> tuple[bytes, str] | None:
        """A small object and its etag, or None."""

        def get() -> tuple[bytes, str]:
            answer = obstore.get(self._client, self._key(path))
            return bytes(answer.bytes()), answer.meta["e_tag"] or ""

        return self._found(get)

    def put_if(self, path: Path, data: bytes, etag: str | None) -> str | None:
        """Put where there is none yet (etag None), or where it still has this etag.

        The new etag; None if somebody was faster. Raises NoConditions where the store cannot say so.
        """

        def put() -> str | None:
            try:
                mode: obstore.PutMode = "create" if etag is None else {"e_tag": etag}
                return obstore.put(self._client, self._key(path), data, mode=mode)["e_tag"] or ""
            except (AlreadyExistsError, PreconditionError):
                return None
            except FileNotFoundError:
                if etag is None:  # not even a bucket
                    raise
                return None
            except BaseError as error:
                if _unconditional(error):
                    raise NoConditions from None
                raise

        return self._ask(put)

    def delete(self, path: Path) -> None:
        self._found(lambda: obstore.delete(self._client, self._key(path)))

    def _key(self, path: Path) -> str:
        relative = path.relative_to(self.root).as_posix()
        return f"{self._place.prefix}/{relative}" if self._place.prefix else relative

    def _download(self, path: Path, to: Path) -> bool:
        try:
            answer = obstore.get(self._client, self._key(path))
        except FileNotFoundError:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with to.open("wb") as file:
            for chunk in answer.stream(CHUNK_BYTES):
                file.write(chunk)
        modified = answer.meta["last_modified"].timestamp()
        os.utime(to, (modified, modified))  # a version was made when it was put there
        return True

    def _found(self, call: Callable[[], T]) -> T | None:
        def attempt() -> T | None:
            try:
                return call()
            except FileNotFoundError:
                return None

        return self._ask(attempt)

    def _ask(self, call: Callable[[], T]) -> T:
        try:
            result = self._line.run(lambda: ask(call), known=self._answered)
        except Unreachable as error:
            raise TryAgain(
                "the object store of the workspace does not answer",
                where=self.url,
                why=str(error),
                fix="check the network, then run again; what was finished is kept",
            ) from None
        except Answer as error:
            raise _refused(error, self.url) from None
        self._answered = True
        return result


_open: dict[Path, ObjectStore] = {}


def opened(url: str) -> Path:
    """The folder here that mirrors the URL, made and ready. Raises RecipeError for what is no URL of a store."""
    if not URL.match(url):
        raise RecipeError(
            "a workspace is a folder, or a prefix in an object store",
            where=url,
            fix="write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, or a path",
        )
    root = folder_of(url)
    if root not in _open:
        store = ObjectStore(url.rstrip("/"), root)
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
        write_file(root / MARK, store.url.encode())
        _open[root] = store
        add_mirror(root, store)
    return root


def store_of(root: Path) -> ObjectStore | None:
    """The store that a workspace's folder mirrors, if it is such a folder."""
    root = root.resolve()
    if root not in _open:
        try:
            url = (root / MARK).read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if opened(url) != root:
            raise EnvironmentProblem(
                "this folder mirrors a workspace in an object store, and has been moved",
                where=str(root),
                why=f"it stands for {url}, whose folder on this machine is {folder_of(url)}",
                fix="move it back, or set XDG_DATA_HOME as it was",
            )
    return _open[root]


def _options() -> dict[str, Secret | str]:
    """The environment says the rest by the usual names; the library hears this one as an option alone."""
    plain = any(os.environ.get(name, "").lower() == "true" for name in ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP"))
    return {"allow_http": "true"} if plain else {}


def _unconditional(error: BaseError) -> bool:
    return isinstance(error, NotSupportedError) or "status code: 501" in str(error)


def _refused(error: Answer, url: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        "the object store of the workspace refuses",
        where=url,
        why=f"it answers {error.status} {error.code}".rstrip() if error.status else error.code,
        fix="check that the bucket exists, and that the credentials in the environment may list, read and write there",
    )
