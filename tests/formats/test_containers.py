"""Containers around containers: what is inside is read, what is hostile or broken is named, and bytes add up."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sheaf.recipe import Limits

Read = Callable[..., Any]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, mtime=0),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def prose(number: int, seed: int = 0) -> bytes:
    source = random.Random(seed)
    return " ".join(source.choice(["alpha", "beta", "gamma", "delta", "né"]) for _ in range(number)).encode()


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_compressed_text_is_a_record_that_is_charged_the_whole_stream(read: Read, suffix: str) -> None:
    data = PACKERS[suffix](prose(5000))
    outcome = read(f"notes.txt.{suffix}", data)
    assert outcome.texts == [prose(5000).decode()]
    assert outcome.members == ["notes.txt"]
    assert outcome.records[0]["bytes"] == len(data)


@pytest.mark.parametrize("suffix", PACKERS)
def test_streams_one_after_another_are_one(read: Read, suffix: str) -> None:
    data = PACKERS[suffix](b"one ") + PACKERS[suffix](b"two")
    assert read(f"a.txt.{suffix}", data).texts == ["one two"]


@pytest.mark.parametrize("suffix", PACKERS)
def test_what_can_be_read_of_a_truncated_stream_is_kept(read: Read, suffix: str) -> None:
    lines = b"".join(b'{"text":"%d %s"}\n' % (i, prose(30, i)) for i in range(10_000))
    data = PACKERS[suffix](lines)
    outcome = read(f"a.jsonl.{suffix}", data[: len(data) * 3 // 4])
    assert len(outcome.texts) > 20
    assert outcome.texts[0].startswith("0 ")
    assert "truncated" in outcome.reasons


def noise(size: int, seed: int = 0) -> bytes:
    """Text that hardly compresses: what is there of it can be told from its compressed bytes."""
    return random.Random(seed).randbytes(size // 2).hex().encode()


def broken(outcome: Any, reason: str = "truncated") -> int:
    return sum(r["bytes"] for r in outcome.regions if r["reason"] == reason)


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_the_break_of_a_stream_is_charged_what_gave_no_text(read: Read, suffix: str) -> None:
    data = PACKERS[suffix](noise(4_000_000))
    cut = data[: len(data) * 3 // 4]
    outcome = read(f"a.txt.{suffix}", cut)
    (record,) = outcome.records
    kept = len(PACKERS[suffix](record["text"].encode()))  # what the text that was kept takes by itself
    assert broken(outcome) >= 1 and record["bytes"] + broken(outcome) == len(cut)
    assert abs(record["bytes"] - kept) < 20_000


@pytest.mark.parametrize("packed", [True, False])
def test_what_is_whole_in_a_truncated_zip_is_charged_its_own_bytes(read: Read, packed: bool) -> None:
    files = {"a.txt": noise(9000, 1), "b.txt": noise(5000, 2), "c.txt": noise(9000, 3)}
    data = zipped(files, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
    sizes = [i.compress_size for i in zipfile.ZipFile(io.BytesIO(data)).infolist()]
    header = 30 + len("a.txt")
    start = header * 3 + sizes[0] + sizes[1]  # of the third member's content
    for present in (2000, 1, 0):
        outcome = read("a.zip", data[: start + present])
        assert [r["bytes"] for r in outcome.records[:2]] == sizes[:2]
        assert outcome.item["structure_bytes"] == 2 * header
        text = sum(r["bytes"] for r in outcome.records[2:])
        assert broken(outcome) == header + present - text
        assert (text == 0) is (present < 2) and present - text < 100
        assert [r["reason"] for r in outcome.regions] == ["truncated"] * 2


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_what_is_whole_in_a_truncated_tar_is_charged_its_own_bytes(read: Read, suffix: str) -> None:
    files = {"a.txt": noise(2048, 1), "b.txt": noise(1000, 2), "c.txt": noise(9000, 3)}
    start = 3 * 512 + 2048 + 1024
    data = tarred(files)
    if suffix == "tar":
        for present in (2000, 1, 0, -100):
            outcome = read("a.tar", data[: start + present])
            assert [r["bytes"] for r in outcome.records[:2]] == [2048, 1024]
            assert [r["bytes"] for r in outcome.records[2:]] == ([present - 1] if present > 0 else [])
            assert set(outcome.reasons) == {"truncated"}
            assert broken(outcome) == (1 if present > 0 else 512 + present if present < 0 else 0)
    else:
        packed = gzip.compress(data)
        outcome = read("a.tar.gz", packed[: len(packed) * 2 // 3])
        whole = [len(zlib.compress(files[n])) for n in ("a.txt", "b.txt")]
        assert set(outcome.reasons) == {"truncated"} and broken(outcome) >= 1
        assert all(abs(r["bytes"] - size) < 0.3 * size for r, size in zip(outcome.records, whole, strict=False))


def test_a_member_with_a_bad_checksum_charges_its_break(read: Read) -> None:
    data = bytearray(zipped({"a.txt": noise(600_000)}, zipfile.ZIP_STORED))
    data[2000] ^= 1
    outcome = read("a.zip", bytes(data))
    (record,) = outcome.records
    assert record["bytes"] == len(record["text"]) > 500_000 and outcome.reasons == ["corrupt"]
    assert broken(outcome, "corrupt") == 600_000 - record["bytes"]


def test_names_that_look_like_paths_stay_apart(read: Read) -> None:
    inner = zipped({"a.txt": b"inside"})
    outcome = read("a.tar", tarred({"x.zip": inner, "x.zip!/a.txt": b"beside", "50%": b"plain"}))
    assert dict(zip(outcome.members, outcome.texts, strict=True)) == {
        "x.zip!/a.txt": "inside",
        "x.zip%21/a.txt": "beside",
        "50%": "plain",
    }


def test_a_stream_cut_in_its_first_bytes_is_refused(read: Read) -> None:
    data = gzip.compress(prose(100))[:12]
    outcome = read("a.txt.gz", data)
    assert outcome.texts == [] and set(outcome.reasons) == {"truncated"}
    assert sum(r["bytes"] for r in outcome.regions) == 12


def test_bytes_after_a_stream_are_refused_and_zeros_are_padding(read: Read) -> None:
    packed = gzip.compress(b"some text")
    outcome = read("a.gz", packed + b"garbage")
    assert outcome.texts == ["some text"]
    assert [(r["reason"], r["bytes"]) for r in outcome.regions] == [("corrupt", 7)]
    assert read("a.gz", packed + bytes(500)).reasons == []


def test_a_bad_checksum_is_named(read: Read) -> None:
    packed = bytearray(gzip.compress(b"some text"))
    packed[-6] ^= 1
    assert "corrupt" in read("a.gz", bytes(packed)).reasons


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_of_a_zip_are_charged_their_compressed_bytes(read: Read, method: int) -> None:
    files = {"a.txt": prose(400), "sub/b.jsonl": b'{"text":"one"}\n{"text":"two"}\n', "sub/": b"", "e.txt": b""}
    data = zipped(files, method)
    outcome = read("a.zip", data)
    assert outcome.members == ["a.txt", "sub/b.jsonl", "sub/b.jsonl"]
    sizes = {i.filename: i.compress_size for i in zipfile.ZipFile(io.BytesIO(data)).infolist()}
    assert outcome.records[0]["bytes"] == sizes["a.txt"]
    assert sum(r["bytes"] for r in outcome.records[1:]) == sizes["sub/b.jsonl"]
    assert outcome.reasons == ["empty"]
    read_bytes = sizes["a.txt"] + sizes["sub/b.jsonl"] + outcome.regions[0]["bytes"]
    assert outcome.item["structure_bytes"] == len(data) - read_bytes


def test_a_zip_in_a_tar_gz_is_read_through(read: Read) -> None:
    inner = zipped({"deep/a.txt": b"found it", "b.png": b"\x89PNG\r\n\x1a\n"})
    data = gzip.compress(tarred({"x/inner.zip": inner, "readme.md": b"# Title"}))
    outcome = read("outer.tar.gz", data)
    assert dict(zip(outcome.members, outcome.texts, strict=True)) == {
        "outer.tar!/x/inner.zip!/deep/a.txt": "found it",
        "outer.tar!/readme.md": "# Title",
    }
    assert [r["member"] for r in outcome.regions] == ["outer.tar!/x/inner.zip!/b.png"]


def test_members_with_one_name_stay_apart(read: Read) -> None:
    data = tarred({"a.txt": b"first"})[:1024] + tarred({"a.txt": b"second"})
    assert read("a.tar", data).members == ["a.txt", "a.txt#2"]


def test_links_devices_and_folders_of_a_tar_are_structure(read: Read) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("../../etc/passwd")
            info.type, info.linkname = kind, "/etc/shadow"
            archive.addfile(info)
        info = tarfile.TarInfo("/abs/../a.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"text"))
    outcome = read("a.tar", buffer.getvalue())
    assert (outcome.texts, outcome.members, outcome.reasons) == (["text"], ["/abs/../a.txt"], [])


def test_a_truncated_tar_keeps_what_came_before(read: Read) -> None:
    data = tarred({"a.txt": b"first", "b.txt": prose(2000)})
    outcome = read("a.tar", data[:3000])
    assert outcome.texts[0] == "first"
    assert "truncated" in outcome.reasons


def test_a_tar_that_goes_on_as_something_else_says_so(read: Read) -> None:
    data = tarred({"a.txt": b"first"})[:1024] + b"not a header" * 200
    outcome = read("a.tar", data)
    assert outcome.texts == ["first"] and outcome.reasons == ["corrupt"]


@pytest.mark.parametrize("keep", [0.9, 0.5])
def test_a_truncated_zip_is_read_by_its_local_headers(read: Read, keep: float) -> None:
    data = zipped({f"{i}.txt": prose(3000, i) for i in range(10)})
    outcome = read("a.zip", data[: int(len(data) * keep)])
    assert outcome.texts[:4] == [prose(3000, i).decode() for i in range(4)]
    assert "truncated" in outcome.reasons


def test_a_zip_cut_in_its_first_member_is_refused_or_read_in_part(read: Read) -> None:
    data = zipped({"a.txt": prose(5000)})
    outcome = read("a.zip", data[:20])
    assert (outcome.texts, outcome.reasons) == ([], ["truncated"])


def test_an_empty_container_is_refused_as_empty(read: Read) -> None:
    assert read("a.zip", zipped({})).reasons == ["empty"]
    assert read("a.gz", gzip.compress(b"")).reasons == ["empty"]


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_bomb_stops_at_the_limit(read: Read, suffix: str) -> None:
    data = PACKERS[suffix](bytes(64 << 20))
    outcome = read(f"a.txt.{suffix}", data, limits=Limits(expanded_mb=16, seconds=30))
    assert (outcome.texts, set(outcome.reasons)) == ([], {"bomb"})
    assert outcome.item["structure_bytes"] == 0


def test_the_ratio_alone_makes_a_bomb(read: Read) -> None:
    data = gzip.compress(b"a" * (8 << 20))
    assert set(read("a.txt.gz", data).reasons) == {"bomb"}
    assert read("a.txt.gz", data, limits=Limits(ratio=5000.0)).reasons == []


def test_members_before_a_bomb_are_kept(read: Read) -> None:
    bomb = bytes(64 << 20)
    for name, data in (
        ("a.zip", zipped({"a.txt": b"good", "bomb.txt": bomb, "z.txt": b"also good"})),
        ("a.tar.gz", gzip.compress(tarred({"a.txt": b"good", "bomb.txt": bomb}))),
    ):
        outcome = read(name, data)
        assert outcome.texts[0] == "good"
        assert set(outcome.reasons) == {"bomb"}


def test_overlapping_entries_are_refused(read: Read) -> None:
    data = bytearray(zipped({"a.txt": prose(500), "b.txt": prose(500)}))
    directory = data.index(b"PK\1\2")
    second = data.index(b"PK\1\2", directory + 4)
    data[second + 42 : second + 46] = data[directory + 42 : directory + 46]  # both at the same local header
    outcome = read("a.zip", bytes(data))
    assert (outcome.texts, outcome.reasons) == ([], ["bomb"])


def test_a_size_that_lies_is_found_out(read: Read) -> None:
    data = bytearray(zipped({"a.txt": prose(500)}))
    at = data.index(b"PK\1\2") + 24
    data[at : at + 4] = struct.pack("<I", 10)  # claims 10 bytes
    assert read("a.zip", bytes(data)).reasons == ["corrupt"]


def test_encrypted_members_are_named(read: Read) -> None:
    data = bytearray(zipped({"a.txt": b"secret"}))
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    assert read("a.zip", bytes(data)).reasons == ["encrypted"]


def test_depth_and_members_are_limited(read: Read) -> None:
    data = b"text"
    for _ in range(12):
        data = gzip.compress(data)
    assert read("a.gz", data).reasons == ["bomb"]
    many = zipped({f"{i}.txt": b"text" for i in range(40)})
    outcome = read("a.zip", many, limits=Limits(members=30))
    assert len(outcome.texts) == 30 and outcome.reasons == ["bomb"]


def test_a_record_that_is_too_large_is_a_region(read: Read) -> None:
    lines = b'{"text":"small"}\n{"text":"' + b"x" * (3 << 20) + b'"}\n{"text":"after"}\n'
    outcome = read("a.jsonl", lines, limits=Limits(record_mb=1))
    assert (outcome.texts, outcome.reasons) == (["small", "after"], ["record-too-large"])
    assert read("a.txt", prose(400_000), limits=Limits(record_mb=1)).reasons == ["record-too-large"]


def test_locators_inside_members_are_places_in_the_expanded_bytes(read: Read) -> None:
    lines = b'{"text":"one"}\n{"text":"two"}\n'
    outcome = read("a.jsonl.gz", gzip.compress(lines))
    assert [json.loads(r["locator"])["bytes"] for r in outcome.records] == [[0, 15], [15, 30]]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.integers(1, 12), st.sampled_from(["zip", "tar.gz", "tar", "gz", "tar.xz", "tar.zst"]))
def test_damaged_containers_are_accounted_for(read: Read, seed: int, flips: int, kind: str) -> None:
    source = random.Random(seed)
    files = {"a.txt": prose(200, seed), "b.jsonl": b'{"text":"one"}\n' * 20, "c.zip": zipped({"d.txt": prose(50)})}
    data = bytearray(zipped(files) if kind == "zip" else tarred(files))
    if "." in kind or kind == "gz":
        data = bytearray(PACKERS[kind.rpartition(".")[2]](bytes(data)))
    for _ in range(flips):
        data[source.randrange(len(data))] = source.randrange(256)
    read(f"a.{kind}", bytes(data[: source.randrange(1, len(data) + 1)]))  # the fixture checks the sum


def test_a_raw_deflate_stream_is_not_taken_for_text(read: Read) -> None:
    assert read("thing", zlib.compress(prose(5000))).reasons[0] in ("unsupported", "undecodable")
