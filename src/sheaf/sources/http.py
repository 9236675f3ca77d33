"""HTTP(S) URLs: each one an item, fetched whole into an unlinked temporary file when it is opened.

Listing asks for headers (HEAD, or GET where HEAD is refused) on 8 connections that are kept alive; a body is read only
where no header says whether it changed. The version is the ETag, else Last-Modified and length, else the body's digest.
Bytes are taken as the server sends them (`Accept-Encoding: identity`, nothing decoded), so lengths can be checked.
Redirects are followed by hand, five at most, and each target's address is checked (see `address.py`).

An item's size is -1 when the server does not tell it; the reader learns it from fstat of the opened file.
Cost: one round trip an item when listing, one when opening; disk for the items that are open.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import httpx

from sheaf.errors import TryAgain
from sheaf.recipe import SourceSpec
from sheaf.sources.base import Item, ItemChanged, ItemRefused, ItemUnavailable, Refusal
from sheaf.sources.fetch import TRIES, BadAnswer, Fetcher, Unreachable, WrongLength, body, length_of
from sheaf.sources.spool import spooled

CONNECTIONS = 8
WINDOW = 256  # URLs asked for ahead of the consumer: bounds memory, keeps the connections busy
MAX_BYTES = 4 << 30
CHARSET = re.compile(r"charset\s*=\s*[\"']?([A-Za-z0-9_.:-]{1,40})", re.I)


class HttpSource:
    """Items are URLs; path is the URL as the recipe writes it, so that a moved server changes nothing."""

    def __init__(self, spec: SourceSpec, spool: Path | None = None, max_bytes: int = MAX_BYTES) -> None:
        """max_bytes: what one item may take on the disk; a larger one is refused as "too-large"."""
        self.name = spec.name
        self._spec, self._spool, self._max_bytes = spec, spool, max_bytes
        self._urls = _urls(spec)
        self._fetcher = Fetcher(spec, [spec.uri, *self._urls.values()])

    def list_items(self) -> Iterator[Item | Refusal]:
        """Every URL, sorted by path. Raises TryAgain if a server does not answer after three tries."""
        paths = sorted(self._urls)
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="sheaf-http") as pool:
            for start in range(0, len(paths), WINDOW):
                yield from pool.map(self._probe, paths[start : start + WINDOW])

    def open_item(self, item: Item) -> BinaryIO:
        """The body in an unlinked file, after checking its length and version.

        Raises ItemChanged; ItemUnavailable; ItemRefused for an answer that is final: a 4xx, too much, or the same
        wrong length at every try.
        """
        url = self._urls.get(item.path, item.uri)
        wrong: list[int] = []
        try:
            return self._fetcher.retry(lambda: self._fetch(item, url, wrong))
        except BadAnswer as error:
            raise ItemRefused(error.reason, str(error)) from error
        except Unreachable as error:
            if len(wrong) == TRIES and len(set(wrong)) == 1:
                raise ItemRefused("http-length", str(error)) from error
            raise ItemUnavailable(f"{url}: {error}") from error

    def _probe(self, path: str) -> Item | Refusal:
        url = self._urls[path]
        try:
            return self._fetcher.retry(lambda: self._ask(path, url))
        except BadAnswer as error:
            return Refusal(self.name, path, url, 0, error.reason, str(error))
        except Unreachable as error:
            raise TryAgain(
                f"source '{self.name}': a server does not answer",
                where=url,
                why=str(error),
                fix="check the URL and the network, then run again; what was done is kept",
            ) from error

    def _ask(self, path: str, url: str) -> Item:
        with self._fetcher.send("HEAD", url) as head:
            if head.status_code < 400 and _version(head):
                return self._item(path, url, head)
        # HEAD is refused or says too little: GET, and let the body go unless it is all that tells a change.
        with self._fetcher.send("GET", url) as answer:
            self._fetcher.check(answer)
            if _version(answer):
                return self._item(path, url, answer)
            digest, size = hashlib.blake2b(digest_size=16), 0
            for chunk in body(answer, self._max_bytes):
                digest.update(chunk)
                size += len(chunk)
            return Item(self.name, path, url, f"digest:{digest.hexdigest()}", size, _media(answer))

    def _item(self, path: str, url: str, answer: httpx.Response) -> Item:
        size = length_of(answer)
        if size is not None and size > self._max_bytes:
            raise BadAnswer("too-large", f"{size:,} bytes of {self._max_bytes:,}")
        return Item(self.name, path, url, _version(answer), -1 if size is None else size, _media(answer))

    def _fetch(self, item: Item, url: str, wrong: list[int]) -> BinaryIO:
        """One try. wrong: gets the length of a body that is not as long as announced."""
        digest, size = hashlib.blake2b(digest_size=16), 0
        with self._fetcher.send("GET", url) as answer:
            self._fetcher.check(answer)
            if not _same_version(item.version, _version(answer)):
                raise ItemChanged(f"{url} changed after it was listed")
            with spooled(self._spool) as spool:
                try:
                    for chunk in body(answer, self._max_bytes):
                        spool.write(chunk)
                        digest.update(chunk)
                        size += len(chunk)
                    _check_whole(item, size, digest.hexdigest())
                except (httpx.RemoteProtocolError, WrongLength):
                    wrong.append(answer.num_bytes_downloaded)
                    raise
            return spool


def _urls(spec: SourceSpec) -> dict[str, str]:
    """path → URL. `uri` is a folder for the relative ones, with or without a slash at its end."""
    if not spec.urls:
        url = httpx.URL(spec.uri)
        return {url.raw_path.decode("ascii").lstrip("/") or "index": spec.uri}
    base = httpx.URL(spec.uri if spec.uri.endswith("/") else spec.uri + "/")
    return {url: str(base.join(url)) for url in spec.urls}


def _version(answer: httpx.Response) -> str:
    """What the headers say of the version, or ""."""
    etag, modified, size = answer.headers.get("etag"), answer.headers.get("last-modified"), length_of(answer)
    if etag:
        return f"etag:{etag}"
    return f"modified:{modified},{size}" if modified and size is not None else ""


def _same_version(listed: str, now: str) -> bool:
    """False only if both are of one kind and differ: some servers say less on GET than on HEAD."""
    return listed.partition(":")[0] != now.partition(":")[0] or listed == now


def _media(answer: httpx.Response) -> str:
    """The content type, with the charset if one is declared: "text/html; charset=koi8-r"."""
    kind, _, parameters = answer.headers.get("content-type", "").partition(";")
    charset = CHARSET.search(parameters)
    return kind.strip().lower() + (f"; charset={charset[1].lower()}" if charset else "")


def _check_whole(item: Item, size: int, digest: str) -> None:
    if item.version.startswith("digest:") and item.version != f"digest:{digest}":
        raise ItemChanged(f"{item.uri} changed after it was listed")
    if item.size not in (-1, size):
        raise WrongLength(item.size, size)  # not ItemChanged: the version is the listed one
