"""Archives that attack: each guard is met by an archive that it alone stops. More of them: test_containers.py."""

from __future__ import annotations

import gzip
import io
import lzma
import random
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from test_containers import prose, tarred, zipped
from test_seven_zip import seven_zipped

from sheaf.formats import zip_archive
from sheaf.formats.piece import Context, Member, ParseOptions, ParserLimits, Refused, Region
from sheaf.formats.stream import Budget, from_bytes
from sheaf.recipe import Limits

Read = Callable[..., Any]
ESCAPED = "tmp/sheaf-escaped.txt"
HOSTILE = [f"../../../../{ESCAPED}", f"/{ESCAPED}", "..\\..\\sheaf-escaped.txt", "a/../../b.txt", "line\n"]


@pytest.mark.parametrize("kind", ["zip", "tar", "7z"])
def test_names_that_lead_out_are_data_and_nothing_is_written(read: Read, kind: str) -> None:
    files = {name: f"text {i}".encode() for i, name in enumerate(HOSTILE)}
    data = {"zip": zipped, "tar": tarred, "7z": seven_zipped}[kind](files)
    outcome = read(f"a.{kind}", data)
    assert outcome.texts == [content.decode() for content in files.values()]
    assert not Path(f"/{ESCAPED}").exists()


def link_entry(name: str, target: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, target)
        archive.writestr("a.txt", b"beside it")
    return buffer.getvalue()


def test_a_link_in_a_zip_is_not_followed_and_its_target_is_no_text(read: Read) -> None:
    outcome = read("a.zip", link_entry("passwd", b"/etc/passwd"))
    assert (outcome.texts, outcome.reasons) == (["beside it"], [])


def test_a_hard_link_in_a_tar_gives_no_second_copy(read: Read) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("a.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"text"))
        for kind, target in ((tarfile.LNKTYPE, "a.txt"), (tarfile.SYMTYPE, "/etc/hostname"), (tarfile.BLKTYPE, "")):
            info = tarfile.TarInfo("b.txt")
            info.type, info.linkname, info.size = kind, target, 0
            archive.addfile(info)
    outcome = read("a.tar", buffer.getvalue())
    assert (outcome.texts, outcome.reasons) == (["text"], [])


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_of_one_name_are_all_kept_under_names_of_their_own(read: Read, kind: str) -> None:
    first, second = {"a.txt": b"first"}, {"b.txt": b"second"}
    data = zipped(first | second).replace(b"b.txt", b"a.txt") if kind == "zip" else tarred(first)[:1024] + tarred(first)
    outcome = read(f"a.{kind}", data)
    assert outcome.members == ["a.txt", "a.txt#2"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_more_members_than_allowed_end_the_item_and_those_before_are_kept(read: Read, kind: str) -> None:
    files = {f"{i}.txt": b"text" for i in range(40)}
    data = {"zip": zipped, "tar": tarred}[kind](files)
    outcome = read(f"a.{kind}", data, limits=Limits(members=30))
    assert (len(outcome.texts), outcome.reasons) == (30, ["bomb"])


def test_members_are_counted_over_all_the_containers_of_an_item(read: Read) -> None:
    inner = zipped({f"{i}.txt": b"text" for i in range(10)})
    data = tarred({f"{i}.zip": inner for i in range(10)})
    outcome = read("a.tar", data, limits=Limits(members=50))
    assert 40 <= len(outcome.texts) < 50 and "bomb" in outcome.reasons


def test_a_nested_bomb_is_counted_over_all_layers(read: Read) -> None:
    layer = zipped({f"{i}.txt": prose(60_000, i) for i in range(4)})  # 1.3 MB of text, expanding 4 times
    data = zipped({f"{i}.zip": layer for i in range(8)})
    outcome = read("a.zip", data, limits=Limits(expanded_mb=4))
    assert len(outcome.texts) > 4 and "bomb" in outcome.reasons
    assert read("a.zip", data).reasons == []


def test_a_bomb_of_bombs_is_stopped_by_its_ratio(read: Read) -> None:
    """42.zip's way: each layer alone is modest, and the next is made of many copies of it."""
    layer = bytes(8 << 20)
    for _ in range(3):
        layer = gzip.compress(layer, mtime=0) * 2
    assert set(read("a.gz", layer).reasons) == {"bomb"}


def quine() -> bytes:
    """A gzip stream of a gzip stream of … deeper than any limit: what a quine is to its reader."""
    data = b"text"
    for _ in range(200):
        data = gzip.compress(data, mtime=0)
    return data


def test_containers_without_end_stop_at_the_depth(read: Read) -> None:
    for limit in (2, 8):
        outcome = read("a.gz", quine(), limits=Limits(depth=limit))
        assert outcome.reasons == ["bomb"] and f"more than {limit} containers" in outcome.regions[0]["detail"]


def test_archives_that_contain_themselves_end(read: Read, testdata: Path) -> None:
    for name in ("quine.gz", "droste.zip"):
        outcome = read(name, (testdata / "tika" / "test-documents" / name).read_bytes())
        assert "bomb" in outcome.reasons


def overlapping(count: int) -> bytes:
    """Fifield's quoted overlap: each local header is quoted by the one before, and all share one kernel."""
    kernel = zlib.compress(bytes(1 << 20), 9, wbits=-15)
    crc = zlib.crc32(bytes(1 << 20))
    name = b"a.txt"
    sizes = (20, 0, 8, 0, 0, crc, len(kernel), 1 << 20, len(name), 0)
    local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", *sizes) + name + kernel
    entry = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, *sizes, 0, 0, 0, 0, 0)
    directory = (entry + name) * count
    return local + directory + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, len(directory), len(local), 0)


def test_many_entries_over_one_kernel_are_refused(read: Read) -> None:
    outcome = read("a.zip", overlapping(500), limits=Limits(ratio=1e9))
    assert outcome.reasons == ["bomb"] and "overlap" in outcome.regions[0]["detail"]


def test_a_zstd_window_that_does_not_fit_is_refused(read: Read) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, compression_level=1)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = writer.compress(b"some text") + writer.flush()  # its window is only claimed
    assert set(read("a.txt.zst", data).reasons) == {"corrupt"}


def test_an_xz_dictionary_that_does_not_fit_is_refused(read: Read) -> None:
    huge = lzma.compress(b"some text", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 200 << 20}])
    assert set(read("a.txt.xz", huge, limits=Limits(memory_mb=256)).reasons) == {"corrupt"}
    assert read("a.txt.xz", huge).texts == ["some text"]


def tar_header(kind: bytes, size: int, name: bytes = b"a.txt") -> bytes:
    """One ustar header, with its size in base 256, which reaches any number."""
    info = tarfile.TarInfo(name.decode())
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)[:512]


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.CONTTYPE, b"Z"])
def test_a_tar_member_that_claims_exabytes_ends_the_archive_at_once(read: Read, kind: bytes) -> None:
    data = tarred({"good.txt": b"good"})[:1024] + tar_header(kind, 1 << 62) + b"text"
    outcome = read("a.tar", data, limits=Limits(seconds=3))
    assert outcome.texts[0] == "good" and set(outcome.reasons) == {"truncated"}


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_long_name_or_field_of_a_tar_is_not_read_into_the_memory(read: Read, kind: bytes) -> None:
    data = gzip.compress(tarred({"good.txt": b"good"})[:1024] + tar_header(kind, 300 << 20) + bytes(300 << 20), 1)
    outcome = read("a.tar.gz", data, limits=Limits(memory_mb=256, ratio=1e6))
    assert outcome.texts == ["good"] and "corrupt" in outcome.reasons


def test_headers_that_announce_headers_without_end_are_named(read: Read) -> None:
    announce = tar_header(tarfile.GNUTYPE_LONGNAME, 4) + b"name".ljust(512, b"\0")
    outcome = read("a.tar", tarred({"good.txt": b"good"})[:1024] + announce * 3000)
    assert outcome.texts == ["good"] and outcome.reasons == ["corrupt"]


def test_a_zip_member_that_claims_less_than_it_holds_gives_no_more_than_it_claims(read: Read) -> None:
    data = bytearray(zipped({"a.txt": prose(500), "b.txt": b"beside"}))
    at = data.index(b"PK\1\2") + 24
    data[at : at + 4] = struct.pack("<I", 10)
    outcome = read("a.zip", bytes(data))
    assert outcome.texts[-1] == "beside" and outcome.reasons == ["corrupt"]


def test_a_count_of_entries_that_lies_is_no_list_of_that_length(read: Read) -> None:
    data = bytearray(zipped({"a.txt": b"text"}))
    end = data.rindex(b"PK\5\6")
    data[end + 8 : end + 12] = b"\xff\xff\xff\xff"
    assert read("a.zip", bytes(data)).texts == ["text"]


def streamed(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip as it is written to a pipe: sizes follow their member."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, block: Any, /) -> int:
            self.data += bytes(block)
            return len(block)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", method) as archive:  # type: ignore[arg-type]
        for name, data in files.items():
            archive.writestr(name, data)
    return pipe.data


def streamed_members(data: bytes, expanded: int = 1 << 30) -> tuple[dict[str, bytes], list[Any]]:
    """What the zip parser gives where the zip is too large to be held: members, and regions and problems."""
    limits = ParserLimits(**{**Limits().model_dump(), "memory_mb": 1, "record_mb": 0})
    context = Context("a.zip", "", "application/zip", ParseOptions(), limits, Budget(expanded, 200, 1000))
    assert len(data) > limits.document_bytes
    stream = from_bytes(data)
    found: dict[str, bytes] = {}
    problems: list[Any] = []
    weight = 0
    for piece in zip_archive.parse(stream, context):
        if isinstance(piece, Member):
            found[piece.name] = piece.stream.read_all(1 << 30)
            problems += [piece.stream.problem] if piece.stream.problem else []
        elif isinstance(piece, Region):
            problems.append(piece)
            weight += piece.weight
    assert stream.position == len(data) and weight <= len(data)
    return found, problems


def incompressible(count: int) -> dict[str, bytes]:
    return {f"{i}.txt": random.Random(i).randbytes(60_000).hex().encode() for i in range(count)}


@pytest.mark.parametrize("descriptors", [True, False])
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_zip_too_large_to_hold_is_streamed_by_its_local_headers(descriptors: bool, method: int) -> None:
    files = incompressible(5) | {"small.txt": b"small"}
    data = streamed(files, method) if descriptors else zipped(files, method)
    found, problems = streamed_members(data)
    if descriptors and method == zipfile.ZIP_STORED:  # nobody can say where such a member ends
        assert found == {} and [p.reason for p in problems] == ["unsupported"]
    else:
        assert (found, problems) == (files, [])


def test_a_bomb_in_a_zip_that_is_streamed_stops_at_the_limit() -> None:
    data = zipped(incompressible(3) | {"bomb.txt": bytes(9 << 20)})
    with pytest.raises(Refused, match="bomb"):
        streamed_members(data, expanded=4 << 20)
    with pytest.raises(Refused, match="bomb"):
        streamed_members(data)  # by its ratio


def test_a_zip_that_is_streamed_names_what_is_broken_encrypted_or_cut() -> None:
    data = bytearray(zipped(incompressible(5)))
    second, third = data.index(b"PK\3\4", 4), data.index(b"PK\3\4", data.index(b"PK\3\4", 4) + 4)
    data[second + 14] ^= 1  # checksum
    data[third + 6] |= 1
    found, problems = streamed_members(bytes(data))
    assert [p.reason for p in problems] == ["corrupt", "encrypted"]
    assert found["4.txt"] == incompressible(5)["4.txt"]
    cut, problems = streamed_members(bytes(data[: len(data) * 3 // 4]))
    assert problems[-1].reason == "truncated" and set(cut) < set(found) | {"3.txt"}


@pytest.mark.parametrize("kind", ["gz", "zip", "tar.gz"])
def test_what_expands_to_more_than_the_limit_is_a_bomb_however_little_it_is_packed(read: Read, kind: str) -> None:
    """Three megabytes that pack to two: far below any ratio."""
    text = random.Random(4).randbytes(3 << 19).hex().encode()
    pack = {"gz": gzip.compress, "zip": lambda data: zipped({"a.txt": data}, zipfile.ZIP_DEFLATED)}
    data = pack[kind](text) if kind in pack else gzip.compress(tarred({"a.txt": text}))
    outcome = read(f"a.{kind}", data, limits=Limits(expanded_mb=1))
    assert outcome.texts == [] and set(outcome.reasons) == {"bomb"}
    assert "more than 1 MB" in outcome.regions[0]["detail"]
    assert read(f"a.{kind}", data, limits=Limits(expanded_mb=8)).texts == [text.decode()]
