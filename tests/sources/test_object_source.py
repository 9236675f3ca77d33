"""What an object-store source promises, against a real S3-protocol server (moto) behind a proxy that misbehaves."""

from __future__ import annotations

import base64
import http.client
import os
import threading
import traceback
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
import pytest
from chaos_proxy import Proxy, at_random, proxied, refuse, reset
from obstore.store import S3Store

from sheaf.errors import DataRefused, EnvironmentProblem, RecipeError, TryAgain
from sheaf.recipe import Secret, SourceSpec
from sheaf.sources import Item, ItemChanged, ItemRefused, ItemUnavailable, open_source, retry
from sheaf.sources.objects import ObjectSource

CANARY = "canary-4711"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    monkeypatch.setattr(retry, "FIRST_SECONDS", 0.01)


class Bucket:
    """A bucket of its own for each test, seen through the proxy."""

    def __init__(self, name: str, proxy: Proxy, port: int) -> None:
        self.name, self.proxy = name, proxy
        config = {"endpoint": f"http://127.0.0.1:{port}", "access_key_id": "id", "secret_access_key": "x"}
        self.direct = S3Store(name, config=config, client_options={"allow_http": True})

    def put(self, key: str, data: bytes) -> None:
        obstore.put(self.direct, key, data)

    def source(self, prefix: str = "", spool: Path | None = None, **spec: Any) -> ObjectSource:
        options = {"endpoint": self.proxy.url, **spec.pop("options", {})}
        found = open_source(SourceSpec(name="s", uri=f"s3://{self.name}/{prefix}", options=options, **spec), spool)
        assert isinstance(found, ObjectSource)
        return found

    def items(self, prefix: str = "", **spec: Any) -> list[Item]:
        found = list(self.source(prefix, **spec).list_items())
        assert all(isinstance(x, Item) for x in found)
        return [x for x in found if isinstance(x, Item)]


@pytest.fixture
def bucket(moto: int, request: pytest.FixtureRequest) -> Iterator[Bucket]:
    name = f"bucket{zlib.crc32(request.node.name.encode())}"
    connection = http.client.HTTPConnection("127.0.0.1", moto)
    connection.request("PUT", f"/{name}")
    assert connection.getresponse().status == 200
    connection.close()
    with proxied(moto) as proxy:
        yield Bucket(name, proxy, moto)


def read(source: ObjectSource, item: Item) -> bytes:
    with source.open_item(item) as f:
        assert os.fstat(f.fileno()).st_nlink == 0
        return f.read()


def test_objects_below_the_prefix_are_items_sorted_by_path_with_etag_and_size(bucket: Bucket) -> None:
    for key in ("data/b.txt", "data/a/z.txt", "data/a.txt", "data2/no.txt", "no.txt", "data/skip.tmp"):
        bucket.put(key, key.encode())
    items = bucket.items("data/", exclude=("**/*.tmp",))
    assert [i.path for i in items] == ["a.txt", "a/z.txt", "b.txt"]
    assert [i.uri for i in items] == [f"s3://{bucket.name}/data/{p}" for p in ("a.txt", "a/z.txt", "b.txt")]
    assert [i.size for i in items] == [10, 12, 10] and len({i.version for i in items}) == 3
    assert bucket.items("data") == [*items[:3], *bucket.items("data")[3:]]
    assert [i.path for i in bucket.items("", include=("*.txt",))] == ["no.txt"]
    source = bucket.source("data/")
    assert [read(source, i) for i in items] == [b"data/" + i.path.encode() for i in items]


def test_a_uri_may_name_one_object(bucket: Bucket) -> None:
    bucket.put("data/a.txt", b"one")
    [item] = bucket.items("data/a.txt")
    assert item.path == "a.txt" and read(bucket.source("data/a.txt"), item) == b"one"
    assert bucket.items("data/none.txt") == [] and bucket.items("data/a.txt/") == []


@pytest.mark.parametrize("name", ["b c.txt", "日本.txt", "x%20y.txt", "a+b&c=d#e?.txt", "it's.txt", "~`[]{}|^.txt"])
def test_names_are_taken_as_they_are(bucket: Bucket, name: str) -> None:
    bucket.put(f"p/{name}", name.encode())
    [item] = bucket.items("p")
    assert item.path == name and read(bucket.source("p"), item) == name.encode()


def test_a_listing_has_as_many_pages_as_it_needs_and_goes_on_where_one_failed(bucket: Bucket) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: bucket.put(f"{n:05d}", b"x"), range(1100)))
    bucket.proxy.paths.clear()
    failed: set[str] = set()

    def once(request: Any) -> bool:
        if request.path in failed or "continuation" not in request.path:
            return False
        failed.add(request.path)
        return refuse(request, 503)

    bucket.proxy.disturb = once
    assert [i.path for i in bucket.items()] == [f"{n:05d}" for n in range(1100)]
    assert len(failed) >= 1 and any("start-after" in path for path in bucket.proxy.paths)


def test_an_empty_object_is_an_item_and_the_folder_names_of_consoles_are_none(bucket: Bucket) -> None:
    for key, data in (("d/", b""), ("d/a", b"a"), ("e/empty", b"")):
        connection = http.client.HTTPConnection("127.0.0.1", int(bucket.direct.config["endpoint"].rpartition(":")[2]))
        connection.request("PUT", f"/{bucket.name}/{key}", body=data)
        assert connection.getresponse().status == 200
        connection.close()
    items = bucket.items()
    assert [(i.path, i.size) for i in items] == [("d/a", 1), ("e/empty", 0)]
    assert [read(bucket.source(), i) for i in items] == [b"a", b""]


def test_the_version_changes_with_the_bytes_and_an_object_changed_since_is_not_read(bucket: Bucket) -> None:
    bucket.put("a", b"old")
    bucket.put("gone", b"x")
    [a, gone] = bucket.items()
    assert [a, gone] == bucket.items()
    bucket.put("a", b"new")
    obstore.delete(bucket.direct, "gone")
    source = bucket.source()
    for item in (a, gone):
        with pytest.raises(ItemChanged):
            source.open_item(item)
    assert bucket.items()[0].version != a.version


def test_a_body_that_breaks_off_is_taken_up_where_it_broke(bucket: Bucket) -> None:
    data = os.urandom(8 << 20)
    bucket.put("big", data)
    [item] = bucket.items()
    ranges: list[str | None] = []

    def cut(request: Any) -> int:
        ranges.append(request.headers.get("range"))
        return 3 << 20

    bucket.proxy.cut_after = cut
    assert read(bucket.source(), item) == data
    assert ranges[0] is None and len(ranges) >= 3
    starts = [int(r.removeprefix("bytes=").rstrip("-")) for r in ranges[1:] if r]
    assert starts == sorted(starts) and starts[0] > 0


def test_an_object_that_changes_while_it_is_read_is_not_mixed(bucket: Bucket) -> None:
    bucket.put("big", b"a" * (4 << 20))
    [item] = bucket.items()

    def cut(request: Any) -> int:
        bucket.put("big", b"b" * (4 << 20))
        return 2 << 20

    bucket.proxy.cut_after = cut
    with pytest.raises(ItemChanged):
        bucket.source().open_item(item)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_store_that_fails_for_a_while_is_tried_again_and_one_that_goes_on_is_deferred(
    bucket: Bucket, status: int
) -> None:
    bucket.put("a", b"x")
    [item] = bucket.items()
    left = [3]

    def some(request: Any) -> bool:
        left[0] -= 1
        return left[0] >= 0 and refuse(request, status)

    bucket.proxy.disturb = some
    assert read(bucket.source(), item) == b"x"
    bucket.proxy.disturb = lambda request: refuse(request, status)
    with pytest.raises(ItemUnavailable, match=str(status)):
        bucket.source(options={"patience": "0"}).open_item(item)
    with pytest.raises(TryAgain) as raised:
        list(bucket.source(options={"patience": "0"}).list_items())
    assert str(status) in raised.value.why and CANARY not in str(raised.value)


def test_a_store_that_is_away_is_try_again_or_deferred(bucket: Bucket) -> None:
    bucket.put("a", b"x")
    [item] = bucket.items()
    bucket.proxy.disturb = lambda request: reset(request) or True
    with pytest.raises(TryAgain):
        list(bucket.source().list_items())
    with pytest.raises(ItemUnavailable):
        bucket.source(options={"patience": "0"}).open_item(item)


def test_an_object_that_these_credentials_may_not_read_costs_itself_alone(bucket: Bucket) -> None:
    bucket.put("a", b"x")
    bucket.put("b", b"y")
    a, b = bucket.items()

    def denied(request: Any) -> bool:
        body = b"<Error><Code>AccessDenied</Code></Error>"
        return request.path.endswith("/a") and refuse(request, 403, body)

    bucket.proxy.disturb = denied
    source = bucket.source()
    with pytest.raises(ItemRefused, match="AccessDenied") as raised:
        source.open_item(a)
    assert raised.value.reason == "denied" and read(source, b) == b"y"


def test_credentials_that_run_out_defer_the_rest(bucket: Bucket) -> None:
    bucket.put("a", b"x")
    [item] = bucket.items()
    bucket.proxy.disturb = lambda r: refuse(r, 400, b"<Error><Code>ExpiredToken</Code></Error>")
    with pytest.raises(ItemUnavailable, match="ExpiredToken"):
        bucket.source().open_item(item)


@pytest.mark.parametrize(
    ("status", "code", "error", "word"),
    [
        (403, "AccessDenied", EnvironmentProblem, "does not let"),
        (403, "SignatureDoesNotMatch", EnvironmentProblem, "does not let"),
        (301, "PermanentRedirect", RecipeError, "region"),
        (400, "AuthorizationHeaderMalformed", RecipeError, "region"),
        (404, "NoSuchBucket", DataRefused, "does not exist"),
    ],
)
def test_why_a_place_cannot_be_listed_is_said(
    bucket: Bucket, status: int, code: str, error: type[Exception], word: str
) -> None:
    body = f"<Error><Code>{code}</Code><Message>{CANARY}</Message></Error>".encode()
    bucket.proxy.disturb = lambda request: refuse(request, status, body)
    with pytest.raises(error, match=word) as raised:
        list(bucket.source().list_items())
    assert code in str(raised.value) and bucket.proxy.count["GET"] == 1  # final: not tried again
    assert CANARY not in "".join(traceback.format_exception(raised.value))


def test_a_bucket_that_does_not_exist_is_said(bucket: Bucket) -> None:
    spec = SourceSpec(name="s", uri="s3://no-such-bucket/x", options={"endpoint": bucket.proxy.url})
    with pytest.raises(DataRefused, match="does not exist"):
        list(open_source(spec).list_items())


def test_without_credentials_nothing_is_asked_and_the_message_says_where_they_are_looked_for(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for uri, word in ((f"s3://{bucket.name}/", "AWS_ACCESS"), ("gs://b/", "GOOGLE_"), ("abfss://c@acc.x/", "AZURE_")):
        source = open_source(SourceSpec(name="s", uri=uri, options={"endpoint": bucket.proxy.url}))
        with pytest.raises(EnvironmentProblem, match="no credentials") as raised:
            list(source.list_items())
        assert word in raised.value.why and "anonymous" in raised.value.fix
    assert not bucket.proxy.count
    bucket.put("a", b"x")
    bucket.proxy.disturb = lambda r: "authorization" in r.headers and refuse(r, 403)
    assert len(bucket.items(options={"anonymous": "true"})) == 1


def test_credentials_come_from_options_the_environment_or_the_file_of_the_store_s_own_tools(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []

    def note(request: Any) -> bool:
        seen.append(request.headers.get("authorization", ""))
        return False

    bucket.proxy.disturb = note
    bucket.items()
    monkeypatch.setenv("MY_ID", "fromoption")
    options = {"access_key_id": Secret(env="MY_ID"), "secret_access_key": Secret(env="AWS_SECRET_ACCESS_KEY")}
    bucket.items(options=options)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    (tmp_path / ".aws").mkdir()
    lines = "[default]\naws_access_key_id = fromfile\naws_secret_access_key = s\n"
    (tmp_path / ".aws/credentials").write_text(lines + "[other]\naws_access_key_id = other\naws_secret_access_key=s")
    bucket.items()
    bucket.items(options={"profile": "other"})
    ids = [text.partition("Credential=")[2].partition("/")[0] for text in seen]
    assert ids == ["id", "fromoption", "fromfile", "other"]
    (tmp_path / ".aws/credentials").write_text(f"{CANARY}\n[default]")
    with pytest.raises(EnvironmentProblem, match="cannot be read") as raised:
        bucket.items()
    assert CANARY not in "".join(traceback.format_exception(raised.value))


def test_an_unknown_option_or_a_uri_that_is_none_is_the_recipe_s_fault(bucket: Bucket) -> None:
    with pytest.raises(RecipeError, match="unknown option 'regoin'"):
        bucket.items(options={"regoin": "x"})
    with pytest.raises(RecipeError, match="seconds"):
        bucket.items(options={"patience": "long"})
    for uri in ("s3:///x", "s3://", "az:///"):
        with pytest.raises(RecipeError, match="no URI"):
            open_source(SourceSpec(name="s", uri=uri))


def test_no_secret_is_in_a_source_its_items_or_its_errors(bucket: Bucket) -> None:
    bucket.put("a", b"x")
    source = bucket.source(options={"patience": "0"})
    text = repr(list(source.list_items())) + repr(source) + repr(vars(source).get("_place"))
    bucket.proxy.disturb = lambda request: refuse(request, 500, CANARY.encode())
    with pytest.raises(TryAgain) as raised:
        list(source.list_items())
    text += "".join(traceback.format_exception(raised.value))
    assert CANARY not in text


def test_google_s_store_is_read_by_the_same_protocol(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto's S3 stands in for Google's XML interface, which lists and reads objects in the same way."""
    for key in ("p/a.txt", "p/b c.txt", "q"):
        bucket.put(key, key.encode())
    monkeypatch.setenv("GOOGLE_TOKEN_OF_MINE", CANARY)
    options = {"base_url": bucket.proxy.url, "bearer_token": Secret(env="GOOGLE_TOKEN_OF_MINE")}
    sent: list[str | None] = []
    bucket.proxy.disturb = lambda request: sent.append(request.headers.get("authorization"))
    source = open_source(SourceSpec(name="g", uri=f"gs://{bucket.name}/p/", options=options))
    items = [x for x in source.list_items() if isinstance(x, Item)]
    assert [i.uri for i in items] == [f"gs://{bucket.name}/p/a.txt", f"gs://{bucket.name}/p/b c.txt"]
    assert [source.open_item(i).read() for i in items] == [b"p/a.txt", b"p/b c.txt"]
    assert set(sent) == {f"Bearer {CANARY}"} and CANARY not in repr(items)


AZURE_LISTING = """<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="c"><Blobs>
<Blob><Name>p/a.txt</Name><Properties><Last-Modified>Mon, 23 Nov 2026 00:00:00 GMT</Last-Modified><Etag>0x8D</Etag>
<Content-Length>5</Content-Length><Content-Type>text/plain</Content-Type><BlobType>BlockBlob</BlobType></Properties>
</Blob></Blobs><NextMarker /></EnumerationResults>"""


@pytest.mark.parametrize("uri", ["az://c/p/", "abfss://c@acme.dfs.core.windows.net/p/"])
def test_azure_s_store_as_far_as_its_documents_say(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    """Not a real server: one listing and one blob as Azure's reference describes them. Its own has not been seen."""
    asked: list[str] = []

    def azure(request: Any) -> bool:
        asked.append(request.path)
        if "comp=list" in request.path:
            return refuse(request, 200, AZURE_LISTING.encode())
        date = "Mon, 23 Nov 2026 00:00:00 GMT"
        return refuse(request, 200, b"hello", ETag='"0x8D"', Last_Modified=date)

    bucket.proxy.disturb = azure
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(CANARY.encode()).decode())
    options = {"endpoint": f"{bucket.proxy.url}/acme"} | ({"account_name": "acme"} if uri.startswith("az:") else {})
    source = open_source(SourceSpec(name="a", uri=uri, options=options))
    [item] = [x for x in source.list_items() if isinstance(x, Item)]
    assert (item.path, item.uri, item.size) == ("a.txt", uri + "a.txt", 5)
    assert source.open_item(item).read() == b"hello"
    assert all(path.startswith("/acme/c") for path in asked) and "sig" not in "".join(asked)


def test_a_source_is_safe_for_threads_and_a_network_that_fails_at_random_changes_nothing(bucket: Bucket) -> None:
    for n in range(120):
        bucket.put(f"{n:03d}", os.urandom(100 * n))
    items = bucket.items()
    calm = [read(bucket.source(), i) for i in items]
    bucket.proxy.disturb = at_random(0.1)
    source, before = bucket.source(), threading.active_count()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: read(source, i), items)) == calm
    assert bucket.items() == items
    assert threading.active_count() < before + 50


def test_a_store_cannot_send_us_elsewhere_by_a_redirect(bucket: Bucket) -> None:
    bucket.put("a", b"alpha")
    [item] = bucket.items()
    reached: list[str] = []

    def lead_away(request: Any) -> bool:
        if request.path.startswith("/elsewhere"):
            reached.append(request.path)
            return refuse(request, 200, b"alpha", ETag=item.version.removeprefix("etag:"))
        return refuse(request, 302, Location=f"{bucket.proxy.url}/elsewhere")

    bucket.proxy.disturb = lead_away
    with pytest.raises(ItemRefused, match="302"):
        bucket.source().open_item(item)
    with pytest.raises(RecipeError):
        list(bucket.source().list_items())
    assert reached == []
