"""What a folder source promises: all files, in order, nothing outside the root, nothing that was swapped."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf.errors import DataRefused, RecipeError
from sheaf.recipe import SourceSpec
from sheaf.sources import Item, ItemChanged, ItemUnavailable, Refusal, open_source, source_options
from sheaf.sources.folder import escape, real_path


def listed(root: Path | str, **spec: object) -> list[Item | Refusal]:
    return list(open_source(SourceSpec(name="s", uri=str(root), **spec)).list_items())  # pyright: ignore


def paths(root: Path | str, **spec: object) -> list[str]:
    return [i.path for i in listed(root, **spec)]


def plant(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def test_every_file_is_listed_once_in_the_order_of_paths(tmp_path: Path) -> None:
    names = ["a/b/c.txt", "a.txt", "a/z", "a-b/x", "é/ü.md", ".hidden/.x", "B", "a0"]
    plant(tmp_path, *names, ".git/config", "a/.git/HEAD")
    assert paths(tmp_path) == sorted(names)


def test_an_item_says_where_it_lies_how_large_it_is_and_changes_its_version_with_its_bytes(tmp_path: Path) -> None:
    plant(tmp_path, "x/a.txt")
    [item] = listed(tmp_path)
    assert isinstance(item, Item)
    assert (item.source, item.path, item.uri, item.size) == ("s", "x/a.txt", str(tmp_path / "x/a.txt"), 7)
    (tmp_path / "x/a.txt").write_text("longer than it was")
    [other] = listed(tmp_path)
    assert isinstance(other, Item) and other.version != item.version


def test_include_and_exclude_choose(tmp_path: Path) -> None:
    plant(tmp_path, "a.md", "x/b.md", "x/c.txt", "node_modules/d.md", "x/node_modules/e.md")
    assert paths(tmp_path, include=["**/*.md"], exclude=["**/node_modules/**"]) == ["a.md", "x/b.md"]
    assert paths(tmp_path, include=["*.nothing"]) == []


def test_a_single_file_is_a_source_with_one_item(tmp_path: Path) -> None:
    plant(tmp_path, "mail/support.mbox")
    for uri in (str(tmp_path / "mail/support.mbox"), f"file://{tmp_path}/mail/support.mbox"):
        source = open_source(SourceSpec(name="s", uri=uri))
        [item] = source.list_items()
        assert isinstance(item, Item)
        assert (item.path, item.uri) == ("support.mbox", str(tmp_path / "mail/support.mbox"))
        with source.open_item(item) as f:
            assert f.read() == b"mail/support.mbox"


def test_opened_items_are_seekable_files_with_a_descriptor(tmp_path: Path) -> None:
    plant(tmp_path, "a/b/c.txt")
    source = open_source(SourceSpec(name="s", uri=str(tmp_path)))
    [item] = source.list_items()
    assert isinstance(item, Item)
    with source.open_item(item) as f:
        assert os.fstat(f.fileno()).st_size == 9
        f.seek(4)
        assert f.read() == b"c.txt"


def test_links_inside_the_root_are_followed_and_links_out_of_it_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    plant(root, "real/a.txt", "real/deep/b.txt")
    plant(tmp_path, "secret/key.txt", "rooty/x")
    (root / "file-in").symlink_to("real/a.txt")
    (root / "folder-in").symlink_to("real")
    (root / "file-out").symlink_to("../secret/key.txt")
    (root / "folder-out").symlink_to(tmp_path / "secret")
    (root / "twice-out").symlink_to("folder-in/../../secret/key.txt")
    (root / "sibling").symlink_to("../rooty/x")  # shares the root's name as a prefix
    (root / "nowhere").symlink_to("missing")
    (root / "nowhere-out").symlink_to("/nonexistent/file")
    found = listed(root)
    items = [i.path for i in found if isinstance(i, Item)]
    assert items == ["file-in", "folder-in/a.txt", "folder-in/deep/b.txt", "real/a.txt", "real/deep/b.txt"]
    refused = {i.path: i.reason for i in found if isinstance(i, Refusal)}
    outside = ("file-out", "folder-out", "twice-out", "sibling", "nowhere-out")
    assert refused == {**dict.fromkeys(outside, "link-outside"), "nowhere": "unreadable"}
    source = open_source(SourceSpec(name="s", uri=str(root)))
    for item in found:
        if isinstance(item, Item):
            with source.open_item(item) as f:
                assert f.read().decode() in ("real/a.txt", "real/deep/b.txt")


def test_loops_of_links_end(tmp_path: Path) -> None:
    plant(tmp_path, "a/x.txt", "b/y.txt")
    (tmp_path / "a/up").symlink_to("..")
    (tmp_path / "a/self").symlink_to("self")
    (tmp_path / "a/to-b").symlink_to("../b")
    (tmp_path / "b/to-a").symlink_to("../a")
    found = listed(tmp_path)
    assert [i.path for i in found if isinstance(i, Item)] == ["a/to-b/y.txt", "a/x.txt", "b/to-a/x.txt", "b/y.txt"]
    refused = {i.path: i.reason for i in found if isinstance(i, Refusal)}
    assert refused["a/up"] == "link-loop"
    assert refused["a/self"] == "unreadable"
    assert refused["a/to-b/to-a"] == "link-nested"


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    plant(tmp_path, "real/x/a.txt")
    (tmp_path / "alias").symlink_to("real")
    source = open_source(SourceSpec(name="s", uri=str(tmp_path / "alias")))
    [item] = source.list_items()
    assert isinstance(item, Item) and item.uri == str(tmp_path / "alias/x/a.txt")
    with source.open_item(item) as f:
        assert f.read() == b"real/x/a.txt"


def test_what_is_no_file_is_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "socket"))
        found = listed(tmp_path)
    assert {i.path: i.reason for i in found if isinstance(i, Refusal)} == {
        "fifo": "not-a-file",
        "socket": "not-a-file",
        "device": "link-outside",
    }
    [fifo] = listed(tmp_path / "fifo")
    assert isinstance(fifo, Refusal) and "FIFO" in fifo.detail


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may look into."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_what_may_not_be_read_is_refused(open_folder: Path) -> None:
    plant(open_folder, "a.txt", "locked.txt", "locked/b.txt")
    (open_folder / "locked.txt").chmod(0)
    (open_folder / "locked").chmod(0)
    privileged = os.geteuid() == 0
    if privileged:
        os.seteuid(65534)
    try:
        found = listed(open_folder)
    finally:
        if privileged:
            os.seteuid(0)
        (open_folder / "locked").chmod(0o700)
    assert [i.path for i in found if isinstance(i, Item)] == ["a.txt"]
    assert {i.path: i.reason for i in found if isinstance(i, Refusal)} == {
        "locked.txt": "unreadable",
        "locked": "unreadable",
    }


def test_names_that_are_not_utf8_are_listed_and_opened(tmp_path: Path) -> None:
    names = [b"caf\xe9.txt", b"caf%E9.txt", b"caf%25E9.txt", b"plain%20.txt", b"new\nline", b"\xff\xfe/\x80"]
    for name in names:
        place = tmp_path / os.fsdecode(name)
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(name)
    source = open_source(SourceSpec(name="s", uri=str(tmp_path)))
    items = [i for i in source.list_items() if isinstance(i, Item)]
    assert [i.path for i in items] == sorted(i.path for i in items)
    assert len({i.path for i in items}) == len(names)
    assert "plain%20.txt" in {i.path for i in items}
    for item in items:
        item.uri.encode("utf-8")
        with source.open_item(item) as f:
            assert f.read() == os.fsencode(real_path(item.path))
        assert real_path(item.uri) == os.fsdecode(os.fsencode(tmp_path)) + "/" + real_path(item.path)


@settings(deadline=None)
@given(st.binary(max_size=12).map(os.fsdecode) | st.text(alphabet="%25F8aE\udcff", max_size=10))
def test_escaping_a_name_can_be_undone(name: str) -> None:
    name = os.fsdecode(os.fsencode(name))  # as the file system would give it
    escape(name).encode("utf-8")
    assert real_path(escape(name)) == name


def test_a_folder_swapped_for_a_link_leads_nowhere(tmp_path: Path) -> None:
    """To a file outside which looks like the listed one: same name, size and time."""
    plant(tmp_path, "root/d/e/x.txt", "away/d/e/x.txt")
    root, away = tmp_path / "root", tmp_path / "away"
    (away / "d/e/x.txt").write_text("X" * len("root/d/e/x.txt"))
    for path in (root / "d/e/x.txt", away / "d/e/x.txt"):
        os.utime(path, ns=(1, 1))
    source = open_source(SourceSpec(name="s", uri=str(root)))
    [item] = [i for i in source.list_items() if isinstance(i, Item)]
    source.open_item(item).close()
    for swapped in ("d", "d/e"):
        (root / swapped).rename(tmp_path / "before")
        (root / swapped).symlink_to(away / swapped)
        with pytest.raises(ItemUnavailable):
            source.open_item(item)
        (root / swapped).unlink()
        (tmp_path / "before").rename(root / swapped)


def test_an_item_that_changed_after_listing_is_not_read(tmp_path: Path) -> None:
    plant(tmp_path, "changed.txt", "gone.txt", "fifo.txt", "link.txt", "d/x.txt")
    source = open_source(SourceSpec(name="s", uri=str(tmp_path)))
    items = {i.path: i for i in source.list_items() if isinstance(i, Item)}
    (tmp_path / "changed.txt").write_text("other")
    (tmp_path / "gone.txt").unlink()
    (tmp_path / "fifo.txt").unlink()
    os.mkfifo(tmp_path / "fifo.txt")
    (tmp_path / "link.txt").unlink()
    (tmp_path / "link.txt").symlink_to("/etc/passwd")
    shutil.rmtree(tmp_path / "d")
    (tmp_path / "d").symlink_to("/etc")
    refused = []
    for path, item in items.items():
        try:
            source.open_item(item).close()
        except (ItemChanged, ItemUnavailable) as error:
            refused.append((path, type(error)))
    expected = {"changed.txt": ItemChanged, "gone.txt": ItemChanged, "fifo.txt": ItemChanged}
    assert dict(refused) == {**expected, "link.txt": ItemUnavailable, "d/x.txt": ItemUnavailable}


def test_a_missing_root_names_what_lies_beside_it(tmp_path: Path) -> None:
    plant(tmp_path, "documents/a")
    with pytest.raises(DataRefused) as raised:
        listed(tmp_path / "docuemnts")
    assert "documents" in raised.value.fix
    with pytest.raises(DataRefused):
        listed(tmp_path / "nowhere/at/all")


def test_very_deep_trees_are_walked(tmp_path: Path) -> None:
    deep = "d/" * 1100 + "leaf"
    here = os.open(tmp_path, os.O_DIRECTORY)
    for _ in range(1100):  # by descriptors, so that the test does not depend on the length of a path
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    try:
        assert paths(tmp_path) == [deep]
    finally:  # pytest would clean up by recursion, and fail at this depth in a later run
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_a_file_uri_on_another_host_is_refused() -> None:
    with pytest.raises(RecipeError, match="another host"):
        open_source(SourceSpec(name="s", uri="file://server/share"))


def test_an_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(RecipeError) as raised:
        open_source(SourceSpec(name="s", uri="gopher://bucket/x"))
    assert "gopher" in raised.value.what and "sqlite://" in raised.value.why


@pytest.mark.parametrize(
    ("uri", "way"),
    [("git+https://example.org/x.git", "git+file:///"), ("postgre://h/x", "mean postgres://"), ("gopher://h/", "copy")],
)
def test_an_unknown_scheme_comes_with_a_way_out(uri: str, way: str) -> None:
    with pytest.raises(RecipeError) as raised:
        open_source(SourceSpec(name="s", uri=uri))
    assert way in raised.value.fix


def test_source_options_change_only_with_what_changes_an_items_content() -> None:
    spec = SourceSpec(name="a", uri="sqlite:///x", query="SELECT 1", key="id", text="{x}")
    assert source_options(spec) == {"text": "{x}", "query": "SELECT 1", "key": "id", "map": None}
    renamed = spec.model_copy(update={"name": "b", "license": "MIT", "include": ("*",)})
    assert source_options(renamed) == source_options(spec)
