"""S3's own protocol, for what the library of `objects.py` cannot say: an object by its key as it is, whatever it holds.

That library takes a key for a path. It refuses a whole listing for one key such as `a//b`, `../x` or one with a line
break, takes `/a` and `a/` for `a`, and goes wherever the endpoint redirects it. A key is data: here every one is listed
and can be read, and no redirect is followed. Two requests are enough: ListObjectsV2, with names percent-encoded, since
XML cannot hold control characters; and GetObject, with its signature (AWS Signature Version 4, in the "authorization
header" form of its documentation; of its three parts only GET without a body).

Used wherever the credentials are plain keys, or none are needed; temporary ones that a service must be asked for are
the library's. Cost: a request a 1,000 objects, 20 µs of processor time an object listed, 1 ms a request.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree

import httpx

# What this client understands of the library's settings; with any other the library is used.
SETTINGS = {
    "endpoint": ("endpoint", "endpoint_url"),
    "region": ("region", "default_region"),
    "key_id": ("access_key_id",),
    "secret": ("secret_access_key",),
    "token": ("session_token", "token"),
    "virtual": ("virtual_hosted_style_request",),
    "anonymous": ("skip_signature",),
}
MAX_PAGE_BYTES = 32 << 20  # 1,000 keys of 1,024 bytes, each byte as %HH, and more
MAX_ERROR_BYTES = 1 << 16
EMPTY = hashlib.sha256(b"").hexdigest()
SAFE = "-_.~"


class Answer(Exception):
    """An answer that is no 2xx. code: the store's own word."""

    def __init__(self, status: int, code: str = "") -> None:
        super().__init__(f"{status} {code}")
        self.status, self.code = status, code


@dataclass(frozen=True, slots=True)
class Found:
    """An object as a listing tells it. etag: as the store writes it; modified: its time, as text."""

    key: str
    size: int
    etag: str
    modified: str


@dataclass(frozen=True, slots=True)
class Access:
    """Where a bucket is, and who asks. base: URL of the bucket, without a slash at its end."""

    base: str
    region: str
    key_id: str = ""
    secret: str = ""
    token: str = ""

    def __repr__(self) -> str:
        return f"Access({self.base!r})"  # a traceback's reader may see it

    @staticmethod
    def of(bucket: str, config: Mapping[str, str]) -> Access | None:
        """From the settings and the environment, as the library reads them; None if they say what is not known here."""
        names = {f"{prefix}{name}" for known in SETTINGS.values() for name in known for prefix in ("", "aws_")}
        if not {name.lower() for name in config} <= names:
            return None
        said = {what: _setting(config, known) for what, known in SETTINGS.items()}
        anonymous = said["anonymous"].lower() == "true"
        if not anonymous and not (said["key_id"] and said["secret"]):
            return None
        region = said["region"] or "us-east-1"
        virtual = said["virtual"].lower() == "true"
        base = said["endpoint"].rstrip("/")
        if not base:
            base = f"https://{bucket}.s3.{region}.amazonaws.com" if virtual else f"https://s3.{region}.amazonaws.com"
        base = base if virtual else f"{base}/{_encoded(bucket)}"
        if anonymous:
            return Access(base, region)
        return Access(base, region, said["key_id"], said["secret"], said["token"])


class S3:
    """A bucket. Safe for threads. Raises Answer, and httpx's errors."""

    def __init__(self, access: Access, timeout_seconds: float, connections: int) -> None:
        self._access = access
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._client = httpx.Client(
            timeout=httpx.Timeout(timeout_seconds, connect=10.0),
            limits=limits,
            headers={"User-Agent": "sheaf", "Accept-Encoding": "identity"},
            follow_redirects=False,
        )

    def list(self, prefix: str, after: str = "", most: int = 1000) -> Iterator[list[Found]]:
        """Pages of all objects whose key begins with the prefix and comes after `after`, in the order of the keys."""
        asked = {"list-type": "2", "encoding-type": "url", "max-keys": str(most), "prefix": prefix}
        more = {"start-after": after} if after else {}
        while True:
            with self._get("/" if urlsplit(self._access.base).path == "" else "", {**asked, **more}) as answer:
                page, following = _page(_bounded(answer, MAX_PAGE_BYTES))
            yield page
            if not following:
                return
            more = {"continuation-token": following}

    @contextmanager
    def read(self, key: str, etag: str = "", start: int = 0) -> Generator[httpx.Response, None, None]:
        """The object from a byte on, body unread. etag: the version that it must have (412 otherwise)."""
        headers = {"If-Match": etag} if etag else {}
        if start:
            headers["Range"] = f"bytes={start}-"
        with self._get("/" + _encoded(key, slashes=True), {}, headers) as answer:
            yield answer

    @contextmanager
    def _get(
        self, path: str, query: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> Generator[httpx.Response, None, None]:
        base = urlsplit(self._access.base)
        path = base.path + path
        pairs = "&".join(f"{_encoded(name)}={_encoded(value)}" for name, value in sorted(query.items()))
        host = httpx.URL(self._access.base).netloc.decode()
        signed = signature(self._access, host, path, pairs, datetime.datetime.now(datetime.UTC))
        # As `target`: the HTTP library would resolve a `..` in the path, which here is a part of a name.
        target = f"{path}?{pairs}" if pairs else path
        request = self._client.build_request(
            "GET",
            f"{base.scheme}://{host}/",
            headers={**signed, **(headers or {})},
            extensions={"target": target.encode("ascii")},
        )
        answer = self._client.send(request, stream=True)
        try:
            if not 200 <= answer.status_code < 300:
                raise Answer(answer.status_code, _code(_bounded(answer, MAX_ERROR_BYTES)))
            yield answer
        finally:
            answer.close()


def signature(access: Access, host: str, path: str, query: str, now: datetime.datetime) -> dict[str, str]:
    """The headers of a signed GET; none for an anonymous one. path, query: percent-encoded, the query sorted."""
    if not access.key_id:
        return {}
    time = now.strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": host, "x-amz-content-sha256": EMPTY, "x-amz-date": time}
    if access.token:
        headers["x-amz-security-token"] = access.token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name].strip()}\n" for name in sorted(headers))
    scope = f"{time[:8]}/{access.region}/s3/aws4_request"
    asked = "\n".join(("GET", path, query, lines, names, EMPTY))
    text = "\n".join(("AWS4-HMAC-SHA256", time, scope, hashlib.sha256(asked.encode()).hexdigest()))
    key = f"AWS4{access.secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    sign = hmac.digest(key, text.encode(), "sha256").hex()
    del headers["host"]
    authorization = f"AWS4-HMAC-SHA256 Credential={access.key_id}/{scope}, SignedHeaders={names}, Signature={sign}"
    return {**headers, "authorization": authorization}


def _setting(config: Mapping[str, str], known: tuple[str, ...]) -> str:
    given = {name.lower().removeprefix("aws_"): value for name, value in config.items()}
    return next(
        (v for name in known if (v := given.get(name) or os.environ.get(f"AWS_{name.upper()}"))),
        "",
    )


def _encoded(text: str, *, slashes: bool = False) -> str:
    return quote(text, safe=SAFE + "/" if slashes else SAFE)


def _bounded(answer: httpx.Response, most: int) -> bytes:
    data = bytearray()
    for chunk in answer.iter_raw():
        data += chunk
        if len(data) > most:
            raise Answer(answer.status_code, "TooMuch")
    return bytes(data)


def _page(data: bytes) -> tuple[list[Found], str]:
    """The objects, and the token of the next page ("" if this is the last). Raises Answer for what is no listing."""
    try:
        # A listing has no DTD; refused before it is parsed, and so are encodings in which one could hide.
        if b"<!" in data or b"\0" in data:
            raise ValueError("a DTD")
        root = ElementTree.fromstring(data.decode())
        name = root.tag.rpartition("ListBucketResult")[0]  # the namespace, which not every store gives
        decode = unquote if root.findtext(f"{name}EncodingType") == "url" else str
        found = [
            _found(entry, name, decode(entry.findtext(f"{name}Key") or "")) for entry in root.iter(f"{name}Contents")
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise Answer(200, "NoListing") from error
    more = root.findtext(f"{name}IsTruncated") == "true"
    return found, (root.findtext(f"{name}NextContinuationToken") or "") if more else ""


def _found(entry: ElementTree.Element, name: str, key: str) -> Found:
    told = {tag: entry.findtext(name + tag) or "" for tag in ("Size", "ETag", "LastModified")}
    return Found(key, int(told["Size"]), told["ETag"], told["LastModified"])


def _code(data: bytes) -> str:
    head, _, rest = data.partition(b"<Code>")
    word = rest.partition(b"</Code>")[0][:60]
    return word.decode("ascii", "replace") if head != data and word.isalnum() else ""
