"""HTTP(S) URLs: each one an item, fetched whole into an unlinked temporary file when it is opened.

Listing asks for headers on 8 connections that are kept alive: HEAD, or where that is refused GET of one byte. A body is
read only where no header says whether it changed. The version is the ETag, else Last-Modified and length, else the
body's digest. Bytes are taken as the server sends them (`Accept-Encoding: identity`, nothing decoded), so that lengths
can be checked. A body that breaks off is taken up where it broke, if the server can and it still is that version (Range
and If-Range, RFC 9110, 13.1.5). Redirects are followed by hand, five at most, and each target's address is checked (see
`address.py`). With `follow`, the URLs are listings or sitemaps and their links are the items (see `http_index.py`).

An item's size is -1 when the server does not tell it; the reader learns it from fstat of the opened file.
Cost: one round trip an item when listing, one when opening; disk for the items that are open.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import httpx

from sheaf.errors import DataRefused, TryAgain
from sheaf.recipe import SourceSpec
from sheaf.sources.base import Item, ItemChanged, ItemRefused, ItemUnavailable, Refusal
from sheaf.sources.connections import Connections
from sheaf.sources.fetch import BadAnswer, Fetcher, body, length_of, part_of
from sheaf.sources.globs import Selection
from sheaf.sources.http_index import MAX_PAGE_BYTES, Page, follow_index, follow_sitemap
from sheaf.sources.retry import TRIES, Unreachable, enough
from sheaf.sources.spool import spooled

CONNECTIONS = 8
WINDOW = 256  # URLs asked for ahead of the consumer: bounds memory, keeps the connections busy
MAX_BYTES = 4 << 30
CHARSET = re.compile(r"charset\s*=\s*[\"']?([A-Za-z0-9_.:-]{1,40})", re.I)


class HttpSource:
    """Items are URLs; path is the URL as the recipe writes it, so that a moved server changes nothing."""

    connections = CONNECTIONS

    def __init__(self, spec: SourceSpec, spool: Path | None = None, max_bytes: int = MAX_BYTES) -> None:
        """max_bytes: what one item may take on the disk; a larger one is refused as "too-large"."""
        self.name = spec.name
        self._spec, self._spool, self._max_bytes = spec, spool, max_bytes
        self._urls = _urls(spec)
        self._select = Selection.of(spec.include, spec.exclude)
        self._fetcher = Fetcher(spec, [spec.uri, *self._urls.values()])

    def list_items(self) -> Iterator[Item | Refusal]:
        """Every URL, sorted by path.

        Raises TryAgain if a server does not answer after all tries, DataRefused if a listing or sitemap that the
        recipe names is none.
        """
        with Connections(CONNECTIONS, "sheaf-http") as pool:
            found: dict[str, str | Refusal] = {**self._urls} if self._spec.follow is None else self._followed(pool)
            paths = sorted(found)
            for start in range(0, len(paths), WINDOW):
                yield from pool.map(lambda p: self._probe(p, found[p]), paths[start : start + WINDOW])

    def open_item(self, item: Item) -> BinaryIO:
        """The body in an unlinked file, after checking its length and version.

        Raises ItemChanged; ItemUnavailable; ItemRefused for an answer that is final: a 4xx, too much, or the same
        wrong length at every try.
        """
        url = item.uri if self._spec.follow else self._urls.get(item.path, item.uri)
        download = _Download(self._fetcher, item, url, self._max_bytes)
        try:
            with spooled(self._spool) as spool:
                self._fetcher.retry(url, lambda: download.go_on(spool), known=True)
        except BadAnswer as error:
            raise ItemRefused(error.reason, str(error)) from error
        except Unreachable as error:
            if len(download.wrong) >= TRIES and len(set(download.wrong)) == 1:
                raise ItemRefused("http-length", str(error)) from error
            raise ItemUnavailable(f"{url}: {error}") from error
        return spool

    def _followed(self, pool: Connections) -> dict[str, str | Refusal]:
        """path → URL, of what the listings or sitemaps lead to, or why not."""
        starts = {path if self._spec.urls else "": url for path, url in self._urls.items()}
        follow = follow_sitemap if self._spec.follow == "sitemap" else follow_index
        try:
            links = follow(self._page, starts, self._select, pool)
        except BadAnswer as error:
            raise DataRefused(
                f"source '{self.name}': what the recipe names is no {self._spec.follow} that can be followed",
                where=self._spec.uri,
                why=f"{error.reason}: {error}",
                fix="correct uri and urls, or leave `follow` out to take the URL itself",
            ) from error
        refused = {path: Refusal(self.name, path, url, 0, *why) for path, url, *why in links.refused}
        return {**refused, **links.urls}

    def _page(self, url: str) -> Page:
        def ask() -> Page:
            with self._fetcher.send("GET", url) as answer:
                self._fetcher.check(answer)
                return Page(str(answer.url), b"".join(body(answer, MAX_PAGE_BYTES)))

        try:
            return self._fetcher.retry(url, ask)
        except Unreachable as error:
            raise self._away(url, error) from error

    def _probe(self, path: str, url: str | Refusal) -> Item | Refusal:
        if isinstance(url, Refusal):
            return url
        try:
            return self._fetcher.retry(url, lambda: self._ask(path, url))
        except BadAnswer as error:
            return Refusal(self.name, path, url, 0, error.reason, str(error))
        except Unreachable as error:
            raise self._away(url, error) from error

    def _away(self, url: str, error: Unreachable) -> TryAgain:
        return TryAgain(
            f"source '{self.name}': a server does not answer",
            where=url,
            why=str(error),
            fix="check the URL and the network, then run again; what was done is kept",
        )

    def _ask(self, path: str, url: str) -> Item:
        with self._fetcher.send("HEAD", url) as head:
            if head.status_code < 400 and _version(head):
                return self._item(path, url, head)
        # HEAD is refused or says too little: GET one byte, whose headers say as much and whose connection stays.
        with self._fetcher.send("GET", url, {"Range": "bytes=0-0"}) as answer:
            if answer.headers.get("content-length") == "1":
                answer.read()  # only then is the connection kept alive
            if answer.status_code not in (206, 416):
                self._fetcher.check(answer)
            if answer.status_code != 416 and _version(answer):
                return self._item(path, url, answer)
            if answer.status_code == 200:  # all of it, with nothing but its bytes to tell a change
                return self._digested(path, url, answer)
        with self._fetcher.send("GET", url) as answer:
            self._fetcher.check(answer)
            return self._item(path, url, answer) if _version(answer) else self._digested(path, url, answer)

    def _digested(self, path: str, url: str, answer: httpx.Response) -> Item:
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


class _Download:
    """One body on its way into a spool; a further try takes up where the last one broke off, if the server can."""

    def __init__(self, fetcher: Fetcher, item: Item, url: str, max_bytes: int) -> None:
        self._fetcher, self._item, self._url, self._max_bytes = fetcher, item, url, max_bytes
        self._restart()
        self.wrong: list[int] = []  # lengths of bodies that were not as long as announced

    def _restart(self) -> None:
        self._size, self._digest = 0, hashlib.blake2b(digest_size=16)

    def go_on(self, spool: BinaryIO) -> None:
        """One try. Raises ItemChanged, BadAnswer, Unreachable, httpx's errors."""
        with self._fetcher.send("GET", self._url, self._range()) as answer:
            if not (self._size and answer.status_code == 206 and part_of(answer) == self._rest()):
                self._restart()
                if answer.status_code in (206, 416):
                    raise Unreachable("the server does not send the part that it was asked for")
                self._fetcher.check(answer)
            if not _same_version(self._item.version, _version(answer)):
                raise ItemChanged(f"{self._url} changed after it was listed")
            self._take(answer, spool)

    def _range(self) -> dict[str, str]:
        """For the rest, and only of the version that was listed; else all of it."""
        kind, _, version = self._item.version.partition(":")
        if not self._size or self._item.size < 0 or kind == "digest" or version.startswith("W/"):
            return {}
        validator = version if kind == "etag" else version.rpartition(",")[0]
        return {"Range": f"bytes={self._size}-", "If-Range": validator}

    def _rest(self) -> tuple[int, int]:
        return self._size, self._item.size

    def _take(self, answer: httpx.Response, spool: BinaryIO) -> None:
        before = self._size
        spool.seek(before)
        spool.truncate()
        try:
            for chunk in body(answer, self._max_bytes - before):
                spool.write(chunk)
                self._digest.update(chunk)
                self._size += len(chunk)
        except (httpx.TransportError, Unreachable) as error:
            if isinstance(error, httpx.RemoteProtocolError):
                self.wrong.append(self._size)
            got_on = self._item.size > 0 and enough(self._size - before, self._item.size) and bool(self._range())
            # What a server that cannot resume sent is sent again: that is no progress.
            progress = got_on and (before > 0 or answer.headers.get("accept-ranges", "").lower() == "bytes")
            raise Unreachable(self._announced(str(error)), progress=progress) from error
        if self._item.version.startswith("digest:") and self._item.version != f"digest:{self._digest.hexdigest()}":
            raise ItemChanged(f"{self._url} changed after it was listed")
        if self._item.size not in (-1, self._size):
            self.wrong.append(self._size)
            why = self._announced("")
            self._restart()
            raise Unreachable(why)  # not ItemChanged: the version is the listed one

    def _announced(self, why: str) -> str:
        if self._item.size < 0:
            return why
        return f"the server announced {self._item.size:,} bytes and sent {self._size:,}"


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
