"""What a source on a file server promises, against real FTP and SFTP servers on the loopback interface."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from file_servers import PASSWORD, USER, Ftp, Sftp, certificate, ftp_server, sftp_server

from sheaf.errors import DataRefused, EnvironmentProblem, MissingExtra, RecipeError, TryAgain
from sheaf.recipe import Secret, SourceSpec
from sheaf.sources import Item, ItemChanged, ItemRefused, ItemUnavailable, Refusal, open_source
from sheaf.sources.fileserver import Account, FileServerSource
from sheaf.sources.other_servers import FsspecServer
from sheaf.sources.retry import Line

Open = Callable[..., FileServerSource]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHEAF_TEST_FILES", PASSWORD)
    root = tmp_path / "root"
    (root / "docs" / "deep er").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"alpha")
    (root / "docs" / "big.bin").write_bytes(bytes(range(256)) * 8192)
    (root / "docs" / "deep er" / "é漢 #?%41.txt").write_bytes(b"odd name")
    (root / "empty").write_bytes(b"")
    return root


@pytest.fixture(params=["sftp", "ftp", "ftp-list", "ftps"])
def opened(
    request: pytest.FixtureRequest, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    """Opens a source on a server of each kind; ftp-list knows neither MLSD nor MLST."""
    if request.param == "sftp":
        with sftp_server(root) as server:
            yield lambda path="", **more: source(server, path, **more)
    elif request.param == "ftps":
        pem = certificate(tmp_path, "127.0.0.1")
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        with ftp_server(root, certificate=pem) as server:
            yield lambda path="", **more: source(server, path, **more)
    else:
        with ftp_server(root, ("MLSD", "MLST") if request.param == "ftp-list" else ()) as server:
            yield lambda path="", **more: source(server, path, **more)


def source(server: Ftp | Sftp, path: str = "", **more: Any) -> FileServerSource:
    scheme = "sftp" if isinstance(server, Sftp) else "ftps" if server.secure else "ftp"
    if isinstance(server, Sftp):
        more = {"options": {"host_key": server.key.fingerprint}, **more}
    uri = f"{scheme}://{USER}@127.0.0.1:{server.port}/{path}"
    spec = {"name": "files", "uri": uri, "password": Secret(env="SHEAF_TEST_FILES"), **more}
    found = open_source(SourceSpec.model_validate(spec))
    assert isinstance(found, FileServerSource)
    found._line = Line(outage_seconds=0, sleep=lambda _: None)
    return found


def items(found: FileServerSource) -> dict[str, Item]:
    return {i.path: i for i in found.list_items() if isinstance(i, Item)}


def content(found: FileServerSource, item: Item) -> bytes:
    with found.open_item(item) as f:
        data = f.read()
    assert len(data) == item.size
    return data


def test_every_file_is_listed_in_order_and_read_exactly(opened: Open, root: Path) -> None:
    found = opened()
    listed = items(found)
    assert list(listed) == sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    for path, item in listed.items():
        assert content(found, item) == (root / path).read_bytes()
        assert (
            item.uri.startswith(("sftp://reader@127", "ftp://reader@127", "ftps://reader@127"))
            and PASSWORD not in item.uri
        )


def test_a_folder_below_and_globs_choose_files(opened: Open) -> None:
    assert list(items(opened("docs/deep%20er/"))) == ["é漢 #?%41.txt"]
    assert list(items(opened(include=["**/*.bin", "a*"]))) == ["a.txt", "docs/big.bin"]
    assert list(items(opened(exclude=["docs/"]))) == ["a.txt", "empty"]


def test_an_unchanged_file_keeps_its_version_and_a_changed_one_is_not_read_as_the_old(opened: Open, root: Path) -> None:
    before = items(opened())
    os.utime(root / "a.txt", (1_000_000_000, 1_000_000_000))
    found = opened()
    after = items(found)
    assert {p for p in before if before[p] != after[p]} == {"a.txt"}
    (root / "a.txt").write_bytes(b"alpha and more")
    with pytest.raises(ItemChanged):
        found.open_item(after["a.txt"])
    (root / "empty").unlink()
    with pytest.raises(ItemRefused):
        found.open_item(after["empty"])
    assert content(found, after["docs/big.bin"]) == (root / "docs" / "big.bin").read_bytes()


def test_a_missing_folder_and_a_wrong_password_are_told_apart(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataRefused, match="cannot be listed"):
        items(opened("nowhere"))
    monkeypatch.setenv("SHEAF_TEST_FILES", "canary-wrong")
    with pytest.raises(EnvironmentProblem, match="does not let us in") as raised:
        items(opened())
    assert "canary" not in "".join(traceback.format_exception(raised.value))


def test_links_on_an_sftp_server_are_refused_by_name(root: Path) -> None:
    (root / "link").symlink_to("/etc/passwd")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe")
    with sftp_server(root) as server:
        refused = {r.path: r.reason for r in source(server).list_items() if isinstance(r, Refusal)}
    assert refused == {"link": "link-remote", "loop": "link-remote", "pipe": "not-a-file"}


def test_an_ftp_name_that_is_not_utf8_is_listed_and_read(root: Path) -> None:
    (root / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"latin")
    with ftp_server(root) as server:
        server.handler.encoding = "utf8"
        server.handler.unicode_errors = "surrogateescape"
        found = source(server, include=["caf*"])
        [(path, item)] = items(found).items()
        assert path == "caf%E9.txt" and content(found, item) == b"latin"


def test_an_sftp_server_whose_key_nobody_knows_is_not_talked_to(root: Path, tmp_path: Path) -> None:
    with sftp_server(root) as server, sftp_server(root) as other:
        known = tmp_path / "known_hosts"
        known.write_text("")
        with pytest.raises(EnvironmentProblem, match="nobody knows") as raised:
            items(source(server, options={"known_hosts": str(known)}))
        assert server.key.fingerprint in raised.value.why
        with pytest.raises(EnvironmentProblem, match="not the one that the recipe names"):
            items(source(server, options={"host_key": other.key.fingerprint}))
        line = f"[127.0.0.1]:{server.port} {server.key.get_name()} {{}}\n"
        known.write_text(line.format(other.key.get_base64()))
        with pytest.raises(EnvironmentProblem, match="another key"):
            items(source(server, options={"known_hosts": str(known)}))
        known.write_text(line.format(server.key.get_base64()))
        assert items(source(server, options={"known_hosts": str(known)}))


def test_a_connection_that_breaks_is_taken_up_where_it_stopped(root: Path) -> None:
    with sftp_server(root) as server:
        found = source(server)
        item = items(found)["docs/big.bin"]
        server.breaks, server.break_after = 3, 1 << 20
        assert content(found, item) == (root / "docs" / "big.bin").read_bytes()
        assert server.breaks == 0


def test_a_server_that_is_away_defers(root: Path) -> None:
    for kind in (sftp_server, ftp_server):
        with kind(root) as server:
            found = source(server)
            listed = items(found)
        with pytest.raises(ItemUnavailable):
            found.open_item(listed["a.txt"])
        with pytest.raises(TryAgain, match="does not answer"):
            items(source(server))


def test_a_server_that_makes_up_folders_without_end_is_left(root: Path) -> None:
    class Endless:
        def entries(self, folder: str) -> list[Any]:
            from sheaf.sources.fileserver import Entry

            return [Entry(n, "folder", 0, "") for n in ("x", "..", ".", "", "a/b")] + [Entry("f", "file", 1, "1")]

        def close(self) -> None: ...

    with sftp_server(root) as server:
        found = source(server)
        found._server = Endless()  # type: ignore[assignment]
        listed = list(found.list_items())
    assert [r.reason for r in listed if isinstance(r, Refusal)] == ["link-loop"]
    assert all(set(i.path.split("/")) <= {"x", "f"} for i in listed)


def test_an_unknown_option_or_a_uri_without_host_is_refused(root: Path) -> None:
    with sftp_server(root) as server, pytest.raises(RecipeError, match="unknown option 'colour'"):
        items(source(server, options={"colour": "red"}))
    with pytest.raises(RecipeError, match="names a host"):
        open_source(SourceSpec(name="x", uri="ftp:///path"))
    with pytest.raises(RecipeError, match="no kind of source reads gopher") as raised:
        open_source(SourceSpec(name="x", uri="gopher://h/x"))
    assert "sftp://" in raised.value.why and "postgresql://" in raised.value.why


def test_any_file_system_of_fsspec_can_be_listed_and_read(root: Path) -> None:
    found = open_source(SourceSpec(name="files", uri=f"smb://server{root}"))
    assert isinstance(found, FileServerSource)
    found._server = FsspecServer(Account("smb", "server", None, "", "", {}), "", fsspec.filesystem("file"))
    listed = list(found._walk())
    assert [i.path for i in listed] == sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    for item in listed:
        assert isinstance(item, Item) and content(found, item) == (root / item.path).read_bytes()


@pytest.mark.parametrize(
    ("library", "module", "uri", "extra"),
    [
        ("paramiko", "sheaf.sources.sftp", "sftp://h/x", "sheaf[sftp]"),
        ("sqlalchemy", "sheaf.sources.other_databases", "mysql+pymysql://h/x", "sheaf[sql]"),
    ],
)
def test_a_missing_extra_is_named_with_its_pip_command(
    monkeypatch: pytest.MonkeyPatch, library: str, module: str, uri: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(MissingExtra) as raised:
        list(open_source(SourceSpec(name="x", uri=uri, query="SELECT 1")).list_items())
    assert extra in raised.value.fix


def test_no_thread_is_left_behind(root: Path) -> None:
    with sftp_server(root) as server:
        before = {t for t in threading.enumerate() if not t.daemon}
        items(source(server))
        assert {t for t in threading.enumerate() if not t.daemon} == before


@pytest.mark.parametrize("wrong", ["nobody knows it", "it names another host"])
def test_an_ftps_server_with_a_certificate_that_is_not_good_never_sees_the_password(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    pem = certificate(tmp_path, "127.0.0.1" if wrong == "nobody knows it" else "192.0.2.7")
    if wrong != "nobody knows it":
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    asked: list[str] = []
    with ftp_server(root, certificate=pem) as server:
        server.handler.ftp_PASS = lambda handler, line: asked.append(line)
        with pytest.raises(EnvironmentProblem, match="certificate"):
            list(source(server).list_items())
    assert asked == []
