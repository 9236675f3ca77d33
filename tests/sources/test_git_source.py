"""What a git source promises: the files of a commit, exact, whatever the repository is or tries."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from sheaf.errors import DataRefused, RecipeError
from sheaf.recipe import SourceSpec
from sheaf.sources import Item, ItemRefused, ItemUnavailable, Refusal, open_source
from sheaf.sources.git import GitSource

CLEAN = {"PATH": os.environ.get("PATH", os.defpath), "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
WHO = "committer Somebody <s@example.org> 1700000000 +0000\n"


def git(repository: Path, *arguments: str, data: bytes | None = None) -> str:
    command = ["git", "-c", "protocol.file.allow=always", "-C", str(repository), *arguments]
    return subprocess.run(command, env=CLEAN, input=data, capture_output=True, check=True).stdout.decode().strip()


def commit(
    repository: Path, files: dict[bytes, bytes], branch: str = "main", parent: str = "", more: bytes = b""
) -> str:
    """One commit by fast-import: path → content. more: further commands of it."""
    stream = [f"commit refs/heads/{branch}\n{WHO}data 4\ntest\n".encode()]
    if parent:
        stream.append(f"from {parent}\n".encode())
    for path, content in files.items():
        quoted = b'"' + path.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") + b'"'
        stream.append(b"M 100644 inline %s\ndata %d\n%s\n" % (quoted, len(content), content))
    git(repository, "fast-import", "--quiet", data=b"".join(stream) + more + b"\n")
    return git(repository, "rev-parse", branch)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    path = tmp_path / "repo.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(path)], env=CLEAN, check=True)
    return path


def source(repository: Path, **more: object) -> GitSource:
    found = open_source(SourceSpec.model_validate({"name": "code", "uri": f"git+file://{repository}", **more}))
    assert isinstance(found, GitSource)
    return found


def items(found: GitSource) -> dict[str, Item]:
    return {i.path: i for i in found.list_items() if isinstance(i, Item)}


def content(found: GitSource, item: Item) -> bytes:
    with found.open_item(item) as f:
        return f.read()


def test_every_file_of_the_commit_is_an_item_with_its_bytes(bare: Path) -> None:
    files = {
        b"README.md": b"# hello\n",
        b"src/a.py": b"print()\n",
        b"src/empty": b"",
        b"z/" + b"x" * 200: b"\0\1" * 70000,
    }
    first = commit(bare, files)
    found = source(bare)
    listed = items(found)
    assert list(listed) == sorted(p.decode() for p in files)
    assert {p.encode(): content(found, i) for p, i in listed.items()} == files
    assert all(i.size == len(files[p.encode()]) for p, i in listed.items())
    one = listed["src/a.py"]
    assert one.uri == f"git+file://{bare}#src/a.py" and json.loads(one.about) == {"commit": first}


def test_a_new_commit_costs_the_files_that_it_changed(bare: Path) -> None:
    first = commit(bare, {b"a.txt": b"a", b"b.txt": b"b"})
    before = set(items(source(bare)).values())
    second = commit(bare, {b"b.txt": b"changed"}, parent="refs/heads/main^0")
    after = items(source(bare))
    assert len(set(after.values()) - before) == 1  # an item's key is made of its fields
    assert json.loads(after["a.txt"].about) == {"commit": first} and json.loads(after["b.txt"].about) == {
        "commit": second
    }


def test_a_ref_names_the_commit_and_what_was_listed_is_read_although_the_branch_moved(bare: Path) -> None:
    first = commit(bare, {b"a.txt": b"old"})
    git(bare, "tag", "v1", first)
    found = source(bare, ref="main")
    listed = items(found)
    commit(bare, {b"a.txt": b"new"}, parent="refs/heads/main^0")
    assert content(found, listed["a.txt"]) == b"old"
    for ref in ("v1", first, first[:12], "refs/tags/v1", "main~1"):
        assert content(found, items(source(bare, ref=ref))["a.txt"]) == b"old"


@pytest.mark.parametrize("ref", ["nowhere", "--output=/tmp/x", "-h", "main:a.txt", "main^{tree}", "a b", ""])
def test_a_ref_that_is_no_commit_is_refused_by_name(bare: Path, ref: str) -> None:
    commit(bare, {b"a.txt": b"a"})
    if ref == "":
        assert items(source(bare, ref=None))
        return
    with pytest.raises(DataRefused, match="has no commit") as raised:
        items(source(bare, ref=ref))
    assert "main" in raised.value.fix


def test_working_trees_linked_trees_and_bare_repositories_are_read_alike(bare: Path, tmp_path: Path) -> None:
    commit(bare, {b"a.txt": b"a"})
    clone, linked = tmp_path / "clone", tmp_path / "linked"
    git(tmp_path, "clone", "-q", str(bare), str(clone))
    git(clone, "worktree", "add", "-q", "-b", "side", str(linked))
    (clone / "a.txt").write_text("not committed")
    for place in (bare, clone, linked):
        found = source(place)
        assert content(found, items(found)["a.txt"]) == b"a"


def test_links_submodules_and_lfs_pointers_are_refused_by_name(bare: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 12345\n" % (b"0" * 64)
    extra = b"M 120000 inline link\ndata 11\n/etc/passwd\nM 160000 %s sub\n" % (b"1" * 40)
    commit(bare, {b"model.bin": pointer, b"ok.txt": b"version https://example.org\n"}, more=extra)
    found = source(bare)
    listed = list(found.list_items())
    assert {r.path: r.reason for r in listed if isinstance(r, Refusal)} == {"link": "git-link", "sub": "git-submodule"}
    assert content(found, items(found)["ok.txt"])
    with pytest.raises(ItemRefused) as raised:
        found.open_item(items(found)["model.bin"])
    assert raised.value.reason == "git-lfs"


def test_names_are_data(bare: Path) -> None:
    names = [
        b"-rf",
        b":(top)x",
        b"with space",
        b"new\nline",
        b'quo"te\\',
        b"caf\xe9.txt",
        "漢字/é.txt".encode(),
        b"50%25",
    ]
    commit(bare, {name: name for name in names})
    found = source(bare)
    listed = items(found)
    assert sorted(content(found, i) for i in listed.values()) == sorted(names)
    assert "caf%E9.txt" in listed and len({json.loads(i.about)["commit"] for i in listed.values()}) == 1


def test_include_and_exclude_choose_files(bare: Path) -> None:
    commit(bare, {b"a.md": b"a", b"docs/b.md": b"b", b"docs/c.py": b"c", b"old/d.md": b"d"})
    assert list(items(source(bare, include=["**/*.md"], exclude=["old/"]))) == ["a.md", "docs/b.md"]


def test_nothing_that_the_repository_configures_is_run(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(bare, {b"a.txt": b"a", b".gitattributes": b"* filter=evil diff=evil\n"})
    mark = tmp_path / "was-run"
    run = f"touch {mark}"
    for key, value in (
        ("core.fsmonitor", run), ("core.pager", run), ("core.sshCommand", run), ("filter.evil.smudge", run),
        ("diff.evil.textconv", run), ("diff.evil.command", run), ("diff.external", run), ("log.showSignature", "true"),
        ("gpg.program", run), ("core.alternateRefsCommand", run), ("core.hooksPath", str(tmp_path)),
        ("extensions.partialClone", "evil"), ("remote.evil.promisor", "true"), ("protocol.ext.allow", "always"),
        ("remote.evil.url", f"ext::sh -c {run.replace(' ', '% ')}"), ("core.repositoryformatversion", "1"),
    ):  # fmt: skip
        git(bare, "config", key, value)
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", run)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.pager")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", run)
    found = source(bare)
    listed = items(found)
    assert content(found, listed["a.txt"]) == b"a"
    absent = Item("code", "b", "u", "2" * 40, 1)  # a partial clone would fetch it, by running the remote's command
    with pytest.raises(ItemUnavailable):
        found.open_item(absent)
    assert content(found, listed["a.txt"]) == b"a"
    assert not mark.exists()


def test_a_forged_version_reads_no_more_than_an_object(bare: Path) -> None:
    commit(bare, {b"a.txt": b"a"})
    found = source(bare)
    for version in ("main:a.txt", "main", git(bare, "rev-parse", "main"), ""):
        with pytest.raises(ItemUnavailable):
            found.open_item(Item("code", "a.txt", "u", version, 1))


def test_a_damaged_object_costs_one_item(bare: Path) -> None:
    commit(bare, {b"a.txt": b"a" * 5000, b"b.txt": b"b"})
    found = source(bare)
    listed = items(found)
    blob = listed["a.txt"].version
    loose = bare / "objects" / blob[:2] / blob[2:]
    loose.chmod(0o644)
    loose.write_bytes(loose.read_bytes()[:-5])
    with pytest.raises(ItemUnavailable):
        found.open_item(listed["a.txt"])
    assert content(found, listed["b.txt"]) == b"b"


def test_what_is_no_repository_is_said(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="does not exist"):
        items(source(tmp_path))
    with pytest.raises(DataRefused, match="has no commit"):
        items(source(bare))
    with pytest.raises(RecipeError, match="absolute path"):
        open_source(SourceSpec(name="x", uri="git+file://relative/repo"))


def test_ten_thousand_files_are_listed_once_and_read_with_one_process(bare: Path) -> None:
    files = {b"d%02d/f%05d.txt" % (n % 100, n): b"file %d\n" % n for n in range(10_000)}
    commit(bare, files)
    found = source(bare)
    listed = items(found)
    assert len(listed) == 10_000
    process = None
    for path in list(listed)[::50]:
        assert content(found, listed[path]) == files[path.encode()]
        process = process or found._blobs
        assert found._blobs is process
