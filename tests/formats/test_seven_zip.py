"""7z: the methods that are read, those that are named, and archives that lie."""

from __future__ import annotations

import base64
import bz2
import lzma
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sheaf.recipe import Limits

Read = Callable[..., Any]
# Written by py7zr 1.1: a.txt, d/é.md and an empty file; the last two with a password, the last with encrypted names.
WRITTEN = {
    "LZMA1_BCJ": (
        "N3q8ryccAATP1UdvpwAAAAAAAAAWAAAAAAAAAGXJOmYAMJsKZySO8mLxT1s9b/AWOCX2d0jw3N3wApo2lC7QXC////GP8ADgAJoA"
        "eF0AAIEzB64P0Hif/J85EJyGgL4eAo1kMiRFf4eqGURT00LddoH/95fcZ6Wsf+2J3A1IEPRTkqCuHfIyVbmqzDKRyswnynUdOx0i"
        "2C7BTMHTjuYWXSRFLGsRcHykd5csviM9xSvYVdaPLpYviWYy/0nX+bcHYEPSIAAAABcGJwEJgIAABwsBAAEhIQEYDICbAAA="
    ),
    "LZMA2_DELTA": (
        "N3q8ryccAAScF83tqwAAAAAAAAAVAAAAAAAAAAPXJ8LgAIAAJl0AMJr9702WL4XpnEGQQw7DuXjkry3+LZkSATNEOiGaZd6k0ta8"
        "t2AA4ACWAHVdAACBMweuD9Dij7yfORCcbOpSd7TdTqEV9m0xaemE7fii+QvjAi/dwMKQvnXN3gejd8uNUpZVlyGq4A3NrLnjfQpX"
        "H8Zdp5E+878mp3aynPfnscoWTJ/fSsh1JK0R9sBK2nIX6d5TGEd8841ITE30grX4HAAAAAAXBi4BCX0ABwsBAAEhIQEYDICXAAA="
    ),
    "ARM_BZIP2": (
        "N3q8ryccAARAoXT2xgAAAAAAAAAVAAAAAAAAALoLpRRCWmg5MUFZJlNZVjrq4QAAF9OAABBIAAQANmVEACAAUIAAAikTNIeSYzpE"
        "nV+qQBGATdVn9Cwa58DUgwhfRdyRThQkFY66uEDgAJoAdl0AAIEzB64P0lo1/UC7lGFnhLQu2Avl541OnqQefzpaGdsCzzzY1B6p"
        "zWkj1OQQEa7a0EmxrZDjLPX50t3YGOIvfGvDHk7TMoYctIQokRSc9LYoedpaB5gHPQxtqVTQlaOgOHJ4wgOQjHxLJbqNjt00QXNL"
        "1gAAAAAXBkgBCX4ABwsBAAEhIQEYDICbAAA="
    ),
    "BCJ_DEFLATE": (
        "N3q8ryccAAQSDMDTmwAAAAAAAAAVAAAAAAAAAHlj+/5LzCnISFRIpJhMzUtRVgjJLMlJ5eJKSi1JVCCWAADgAJoAdV0AAIEzB64P"
        "z+swFA/Uakr1Bph7sSkH9K4k/L3YXXgRMeZeKA3mLOkFgeVkl7ponRd6yjONhAlqx5R+WMUreruexq/aE8WN/rs7jbcDEGpCJylf"
        "aAW6o4/CbixTQwHG5n2jrRFfxDo+V4fC003WYsjUw3kJAAAAABcGHgEJfQAHCwEAASEhARgMgJsAAA=="
    ),
    "ZSTD": (
        "N3q8ryccAAQA26QTowAAAAAAAAAVAAAAAAAAAOEM6XIotS/9AFgFAQC4YWxwaGEgZW5kIyBUaXRsZQoKYmV0YSACAKOU65FKEeAA"
        "kgByXQAAgTMHrg/QluR8nz9HQYTJbGQv9Z7ocyAsC1CdIg9FDJatRNkcB2PEUwRQ4u+WeB4DQr9i4gnBi5E5n8IWLI+rZkU8Sixr"
        "3O3WEMcklP6cyAJ/XbGr2kqkXw4jXWbeD34UcFZMKwFZA8GUfRCbtMEAAAAAFwYpAQl6AAcLAQABISEBGAyAkwAA"
    ),
    "PPMD": (
        "N3q8ryccAARmZmAUmgAAAAAAAAAVAAAAAAAAAIwLiVkAYQ0/j9qql688O+r5WIDRuKmim/qOyLpgfcBMAADgAJYAdF0AAIEzB64P"
        "z+swFA/r6p4BDujIgfX/0bzvODAXdLUqvGjUoS/BbkxEZeWB7zVjZEh7JTazDEELWBjRHdiFDpDJ6x9K6eSMmR+Bjn8O5DYMSTnr"
        "LvmVbzk20+l+w+Axl73X68CtNwO5hwSfnX0Y+Wv3x8sAAAAAFwYeAQl8AAcLAQABISEBGAyAlwAA"
    ),
    "AES": (
        "N3q8ryccAARFmI7BeQAAAAAAAAAUAAAAAAAAAIHWvcpTZnqMbefv/yUmm0RU2mSIAQBkAQQGAAEJEAoBqieZuQAHCwEAAiQG8QcB"
        "ElMPRhfAVj+ORwM7VpL2uQTyDCEhARgBAAwPCwAICgHsGiEiAAAFARENAGEALgB0AHgAdAAAABQKAQCwvvDIpXvdARUGAQAggICB"
        "AAAAFwYQAQlpAAcLAQABISEBGAxlAAA="
    ),
    "AESH": (
        "N3q8ryccAATUwWm3gAAAAAAAAAAoAAAAAAAAAJr6du0Cc7VS4tSims607C+GY4vwgRRneP2hLM0RoavovirhvvcxXQ1nn+JmAslp"
        "vFZmDmBE2QqzyPIl8UGLMxDSyXNlknv1/cWsLihWz/fBg6vIZyVMId0INj2wulMCwPDmUe6I+xJ5KPwqUZyL6q5h6McdivnFHVne"
        "zH7gANAhd8XDdhcGEAEJcAAHCwEAASQG8QcBElMPwHK7yEvUu0UkkNb53VJqMQxlAAA="
    ),
}
TEXTS = {"a.txt": "alpha " * 12 + "end", "d/é.md": "# Title\n\n" + ("beta " * 9).rstrip()}


def written(name: str) -> bytes:
    return base64.b64decode(WRITTEN[name])


def number(n: int) -> bytes:
    return b"\xff" + n.to_bytes(8, "little")


def seven_zipped(
    files: dict[str, bytes],
    method: bytes = b"\0",
    properties: bytes = b"",
    pack: Callable[[bytes], bytes] = bytes,
    sizes: list[int] | None = None,
    count: int | None = None,
    attributes: list[int] | None = None,
) -> bytes:
    """One folder with all files. sizes, count: what the directory claims instead."""
    data = b"".join(files.values())
    packed, sizes = pack(data), sizes or [len(content) for content in files.values()]
    names = b"\0" + "".join(f"{name}\0" for name in files).encode("utf-16-le")
    coder = bytes([len(method) | (32 if properties else 0)]) + method
    coder += number(len(properties)) + properties if properties else b""
    crcs = b"".join(struct.pack("<I", zlib.crc32(content)) for content in files.values())
    header = b"\1\4\6" + number(0) + number(1) + b"\x09" + number(len(packed)) + b"\0"
    header += b"\7\x0b" + number(1) + b"\0" + number(1) + coder + b"\x0c" + number(len(data)) + b"\0"
    header += b"\x08\x0d" + number(len(files)) + b"\x09" + b"".join(number(size) for size in sizes[:-1])
    header += b"\x0a\1" + crcs + b"\0\0\5" + number(len(files) if count is None else count)
    header += b"\x11" + number(len(names)) + names
    if attributes:
        values = b"\1\0" + b"".join(struct.pack("<I", value) for value in attributes)
        header += b"\x15" + number(len(values)) + values
    return framed(packed, header + b"\0\0")


def framed(packed: bytes, header: bytes) -> bytes:
    start = number(len(packed))[1:] + number(len(header))[1:] + struct.pack("<I", zlib.crc32(header))
    return b"7z\xbc\xaf\x27\x1c\0\4" + struct.pack("<I", zlib.crc32(start)) + start + packed + header


def lzma2(data: bytes, dictionary: int = 1 << 16) -> bytes:
    return lzma.compress(data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": dictionary}])


def prose(number: int, seed: int = 0) -> bytes:
    source = random.Random(seed)
    return " ".join(source.choice(["alpha", "beta", "gamma", "né"]) for _ in range(number)).encode()


@pytest.mark.parametrize("name", ["LZMA1_BCJ", "LZMA2_DELTA", "ARM_BZIP2", "BCJ_DEFLATE", "ZSTD"])
def test_methods_and_filters_are_undone(read: Read, name: str) -> None:
    outcome = read("a.7z", written(name))
    assert dict(zip(outcome.members, outcome.texts, strict=True)) == TEXTS
    assert (outcome.reasons, outcome.regions[0]["member"]) == (["empty"], "empty.txt")


def test_a_method_that_is_not_read_is_named(read: Read) -> None:
    outcome = read("a.7z", written("PPMD"))
    assert outcome.texts == []
    assert {r["detail"] for r in outcome.regions if r["reason"] == "unsupported"} == {"7z method PPMd"}


@pytest.mark.parametrize("name", ["AES", "AESH"])
def test_encrypted_archives_are_named(read: Read, name: str) -> None:
    assert read("a.7z", written(name)).reasons == ["encrypted"]


@pytest.mark.parametrize(
    ("method", "properties", "pack"),
    [
        ("00", "", bytes),
        ("21", "08", lzma2),
        ("040108", "", lambda data: zlib.compress(data, wbits=-15)),
        ("040202", "", bz2.compress),
        ("04f71101", "0105000000", zstandard.ZstdCompressor().compress),
    ],
)
def test_a_file_is_charged_its_share_of_the_packed_bytes(
    read: Read, method: str, properties: str, pack: Callable[[bytes], bytes]
) -> None:
    files = {"a.txt": prose(9000, 1), "b.txt": prose(3000, 2), "c.txt": b"short"}
    data = seven_zipped(files, bytes.fromhex(method), bytes.fromhex(properties), pack)
    outcome = read("a.7z", data)
    assert outcome.texts == [content.decode() for content in files.values()]
    packed = len(pack(b"".join(files.values())))
    assert sum(r["bytes"] for r in outcome.records) == packed
    assert abs(outcome.records[0]["bytes"] - packed * len(files["a.txt"]) / sum(map(len, files.values()))) <= 1


def test_a_break_costs_what_lies_behind_it(read: Read) -> None:
    files = {f"{i}.txt": random.Random(i).randbytes(20_000).hex().encode() for i in range(8)}
    data = bytearray(seven_zipped(files, b"\x21", b"\x08", lzma2))
    data[len(data) // 2] ^= 0xFF
    outcome = read("a.7z", bytes(data))
    assert outcome.texts[:3] == [files[f"{i}.txt"].decode() for i in range(3)]
    assert set(outcome.reasons) <= {"corrupt", "truncated"} and "corrupt" in outcome.reasons
    assert {r["member"] for r in outcome.regions} >= {"5.txt", "6.txt", "7.txt"}  # every lost file is named


def test_a_bad_checksum_of_a_file_is_named_and_the_others_are_kept(read: Read) -> None:
    data = bytearray(seven_zipped({"a.txt": b"the first", "b.txt": b"the second"}))
    data[32] ^= 1
    outcome = read("a.7z", bytes(data))
    assert outcome.texts[1] == "the second" and outcome.reasons == ["corrupt"]


@pytest.mark.parametrize("cut", [10, 31, 60, -1])
def test_an_archive_that_is_cut_off_says_where(read: Read, cut: int) -> None:
    outcome = read("a.7z", seven_zipped({"a.txt": prose(100)})[:cut])
    assert (outcome.texts, outcome.reasons) == ([], ["truncated"])
    assert f"ends at byte {outcome.size}" in outcome.regions[0]["detail"]


def test_an_archive_in_an_archive_is_read(read: Read) -> None:
    inner = seven_zipped({"deep.txt": b"found it"}, b"\x21", b"\x08", lzma2)
    outcome = read("a.7z", seven_zipped({"in.7z": inner, "b.txt": b"beside"}))
    assert dict(zip(outcome.members, outcome.texts, strict=True)) == {"in.7z!/deep.txt": "found it", "b.txt": "beside"}


def test_names_are_data_and_links_are_structure(read: Read) -> None:
    files = {"../../etc/passwd": b"text", "/abs.txt": b"more", "link": b"/etc/shadow", "C:\\x.txt": b"other"}
    link = 0x8000 | 0o120777 << 16
    outcome = read("a.7z", seven_zipped(files, attributes=[0, 0x8000 | 0o100644 << 16, link, 0]))
    assert dict(zip(outcome.members, outcome.texts, strict=True)) == {
        "../../etc/passwd": "text",
        "/abs.txt": "more",
        "C:\\x.txt": "other",
    }


def test_a_bomb_stops_at_the_limit(read: Read) -> None:
    data = seven_zipped({"good.txt": b"good", "bomb.txt": bytes(40 << 20)}, b"\x21", b"\x08", lzma2)
    outcome = read("a.7z", data, limits=Limits(expanded_mb=8))
    assert (outcome.texts, set(outcome.reasons)) == (["good"], {"bomb"})


def test_more_members_than_allowed_are_a_bomb(read: Read) -> None:
    outcome = read("a.7z", seven_zipped({f"{i}": b"text" for i in range(40)}), limits=Limits(members=30))
    assert (outcome.texts, outcome.reasons) == ([], ["bomb"])


def test_counts_that_the_directory_has_no_room_for_are_refused(read: Read) -> None:
    for data in (
        seven_zipped({"a.txt": b"text"}, count=1 << 40),
        framed(b"", b"\1\4\7\x0b" + number(1 << 60) + b"\0"),
        framed(b"", b"\1\4\6" + number(0) + number(1 << 50)),
        framed(b"", b"\1\4\7\x0b" + number(1) + b"\0" + number(1 << 30)),
    ):
        assert read("a.7z", data).reasons == ["corrupt"]


def test_sizes_that_lie_are_found_out(read: Read) -> None:
    assert read("a.7z", seven_zipped({"a.txt": b"text", "b.txt": b"more"}, sizes=[100, 0])).reasons == ["corrupt"]
    outcome = read("a.7z", seven_zipped({"a.txt": b"text", "b.txt": b"more"}, sizes=[3, 5]))
    assert set(outcome.reasons) == {"corrupt"} and len(outcome.reasons) == 2


def test_a_dictionary_that_does_not_fit_is_refused_before_it_is_made(read: Read) -> None:
    outcome = read("a.7z", seven_zipped({"a.txt": b"text"}, b"\x21", b"\x28", lzma2))
    assert outcome.reasons == ["memory"] and "4095 MB" in outcome.regions[0]["detail"]
    properties = b"\x5d" + struct.pack("<I", 3 << 30)
    assert read("a.7z", seven_zipped({"a.txt": b"text"}, b"\3\1\1", properties)).reasons == ["memory"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.sampled_from(sorted(WRITTEN)), st.booleans())
@example(417, "AES", True)
def test_damaged_directories_are_accounted_for(read: Read, seed: int, name: str, plain: bool) -> None:
    """The checksums are made right again, so that what is damaged is parsed."""
    source = random.Random(seed)
    data = seven_zipped({"a.txt": prose(20), "b.txt": prose(9), "c": b""}) if plain else written(name)
    at, length = (int.from_bytes(data[i : i + 8], "little") for i in (12, 20))
    header = bytearray(data[32 + at : 32 + at + length])
    for _ in range(source.randrange(1, 4)):
        header[source.randrange(len(header))] = source.choice([0, 1, 5, 0x7F, 0xFF, source.randrange(256)])
    outcome = read("a.7z", framed(data[32 : 32 + at], bytes(header)))  # the fixture checks the sum
    assert not set(outcome.reasons) & {"crash", "parser-bug", "timeout"}


def test_archives_of_libarchive_and_tika_are_read_or_named(read: Read, testdata: Path) -> None:
    found = {path.name: read(path.name, path.read_bytes()) for path in testdata.rglob("*.7z")}
    reasons = {name: set(outcome.reasons) for name, outcome in found.items()}
    encrypted = {"test_read_format_7zip_encryption.7z", "full_encrypted.7z", "test7Z_protected_passTika.7z"}
    assert {name for name, why in reasons.items() if why == {"encrypted"}} == encrypted
    assert all(
        why & {"corrupt", "truncated"} and not found[name].texts for name, why in reasons.items() if "malformed" in name
    )
    for name in ("bzip2", "copy_2", "delta_lzma2", "lzma1"):
        assert reasons[f"test_read_format_7zip_{name}.7z"] == set()
    assert "Test d'indexation de Txt\nhttp://www.apache.org" in found["test-documents.7z"].texts
