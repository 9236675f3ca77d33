"""Outlook messages and the binary formats of Word and PowerPoint, built byte by byte from their specifications."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from office_files import compound

from sheaf.formats.msg import expand_rtf

Read = Callable[..., Any]
DATE = (132_537_600_000_000_000).to_bytes(8, "little")  # 2020-12-30T00:00:00Z


def word(
    pieces: list[str | bytes], footnote: str = "", flags: int = 0x0200, deleted: tuple[str | bytes, ...] = ()
) -> bytes:
    """A Word 97 file: str pieces lie in UTF-16, bytes in Windows-1252; the piece table puts them in order.
    deleted: parts of them that are marked so."""
    lengths = [len(piece) for piece in pieces]
    main = bytearray(0x400)
    struct.pack_into("<HH", main, 0, 0xA5EC, 0x00C1)
    struct.pack_into("<H", main, 0x0A, flags)
    if footnote:
        pieces = [*pieces, footnote]
    struct.pack_into("<II", main, 0x4C, sum(lengths), len(footnote))
    places: list[int] = []
    for piece in reversed(pieces):  # not in the order of the text
        places.insert(0, len(main) if isinstance(piece, str) else len(main) * 2 | 0x40000000)
        main += piece.encode("utf-16-le") if isinstance(piece, str) else piece
        main += bytes(len(main) % 2)
    ends = [sum(len(piece) for piece in pieces[:n]) for n in range(len(pieces) + 1)]
    plc = struct.pack(f"<{len(ends)}I", *ends) + b"".join(struct.pack("<HIH", 0, at, 0) for at in places)
    clx = b"\x01\x02\0ab\x02" + struct.pack("<I", len(plc)) + plc
    struct.pack_into("<II", main, 0x01A2, 4, len(clx))
    marks = formatting(main, [part.encode("utf-16-le") if isinstance(part, str) else part for part in deleted])
    struct.pack_into("<II", main, 0x00FA, 4 + len(clx), len(marks))
    return compound({"WordDocument": bytes(main), "1Table": b"junk" + clx + marks})


def formatting(main: bytearray, deleted: list[bytes]) -> bytes:
    """The table of pages of formatting, of which one follows the text: bold runs, and the deleted ones bold too."""
    cuts = sorted(
        {0x400, len(main)} | {at for part in deleted for at in (main.index(part), main.index(part) + len(part))}
    )
    gone = {main.index(part) for part in deleted}
    bold, struck = b"\x03\x35\x08\x01", b"\x06\x35\x08\x01\x00\x08\x01"
    page = bytearray(512)
    struct.pack_into(f"<{len(cuts)}I", page, 0, *cuts)
    page[500 : 500 + len(struck)], page[490 : 490 + len(bold)] = struck, bold
    for run, start in enumerate(cuts[:-1]):
        page[4 * len(cuts) + run] = 250 if start in gone else 245
    page[511] = len(cuts) - 1
    last = len(main)
    main += bytes(-len(main) % 512) + page
    return struct.pack("<III", 0x400, last, len(main) // 512 - 1)


def test_a_word_file_is_put_together_from_its_pieces(read: Read) -> None:
    outcome = read("a.doc", word([b"One\rTw\xf6\r", "Ω three\r"], footnote="\x02 a note\r"))
    assert outcome.texts == ["One\n\nTwö\n\nΩ three\n\n a note"]
    assert outcome.records[0]["locator"] == '{"paragraphs":[1,4]}'
    assert outcome.item["media"] == "application/msword"


def test_word_fields_give_their_result_and_tables_their_cells(read: Read) -> None:
    text = b"see \x13 HYPERLINK x \x14this \x13 PAGE \x142\x15\x15.\ra\x07b\x07\x07c\x07d\x07\x07end\r"
    assert read("a.doc", word([text])).texts == ["see this 2.\n\na\tb\nc\td\n\nend"]


def test_what_a_word_file_marks_as_deleted_is_left_out(read: Read) -> None:
    pieces: list[str | bytes] = [b"One old new\rTwo\r", "Ω was is\r"]
    assert read("a.doc", word(pieces, "a note\r")).texts == ["One old new\n\nTwo\n\nΩ was is\n\na note"]
    changed = word(pieces, "a note\r", deleted=(b"old ", b"\rTwo", "was ", "note"))
    assert read("a.doc", changed).texts == ["One new\n\nΩ is\n\na"]


def test_a_word_file_with_a_password_says_so(read: Read) -> None:
    assert read("a.doc", word([b"secret\r"], flags=0x0300)).reasons == ["encrypted"]


def test_pieces_that_are_missing_are_told(read: Read) -> None:
    data = bytearray(word([b"One\r"]))
    at = data.index(struct.pack("<II", 4, 0), 512 + 0x4C)
    data[at : at + 4] = (400).to_bytes(4, "little")
    outcome = read("a.doc", bytes(data))
    assert (outcome.texts, outcome.reasons) == (["One"], ["truncated"])


def atom(kind: int, data: bytes, instance: int = 0, container: bool = False) -> bytes:
    return struct.pack("<HHI", instance << 4 | (15 if container else 0), kind, len(data)) + data


def powerpoint(slides: list[tuple[str, str, str]], encrypted: bool = False) -> bytes:
    """slides: (in the outline, in a shape, notes). The slides' containers lie in the reverse order of the show."""
    stream = b""
    objects: dict[int, int] = {}
    for number, (_, text, notes) in reversed(list(enumerate(slides, 1))):
        objects[2 * number] = len(stream)
        box = atom(0xF00D, atom(3999, bytes(4)) + atom(4000, text.encode("utf-16-le")), container=True)
        stream += atom(1006, atom(1036, box, container=True), container=True)
        objects[2 * number + 1] = len(stream)
        box = atom(0xF00D, atom(4008, notes.encode("latin-1")), container=True)
        stream += atom(1008, atom(1009, struct.pack("<II", 255 + number, 0)) + box, container=True)
    listed, noted = b"", b""
    for number, (outline, _, _) in enumerate(slides, 1):
        listed += atom(1011, struct.pack("<IIIII", 2 * number, 0, 1, 255 + number, 0)) + atom(3999, bytes(4))
        listed += atom(4000, outline.encode("utf-16-le"))
        noted += atom(1011, struct.pack("<IIIII", 2 * number + 1, 0, 0, 900 + number, 0))
    objects[1] = len(stream)
    stream += atom(1000, atom(4080, listed, 0, True) + atom(4080, noted, 2, True), container=True)
    directory = len(stream)
    entries = b"".join(struct.pack("<II", number | 1 << 20, at) for number, at in sorted(objects.items()))
    stream += atom(6002, entries)
    edit = len(stream)
    stream += atom(4085, struct.pack("<IIIIIII", 0, 0, 0, directory, 1, 9, 0))
    token = 0xF3D1C4DF if encrypted else 0xE391C05F
    user = atom(0x0FF6, struct.pack("<III", 0x14, token, edit))
    return compound({"PowerPoint Document": stream, "Current User": user})


def test_slides_of_powerpoint_come_in_the_order_of_the_show(read: Read) -> None:
    outcome = read("a.ppt", powerpoint([("Title", "in a shape\rΩ", "say this"), ("Next", "", ""), ("", "third", "")]))
    assert outcome.texts == ["Title\n\nin a shape\nΩ\n\nsay this", "Next", "third"]
    assert [r["locator"] for r in outcome.records] == ['{"slide":1}', '{"slide":2}', '{"slide":3}']


def test_a_presentation_with_a_password_says_so(read: Read) -> None:
    assert read("a.ppt", powerpoint([("a", "b", "")], encrypted=True)).reasons == ["encrypted"]


def test_a_presentation_whose_edits_are_lost_gives_all_its_text(read: Read) -> None:
    data = bytearray(powerpoint([("Title", "shape", "")]))
    at = data.index(struct.pack("<II", 0x14, 0xE391C05F)) + 8
    data[at : at + 4] = (7).to_bytes(4, "little")
    (text,) = read("a.ppt", bytes(data)).texts
    assert "Title" in text and "shape" in text


def properties(head: int, *values: tuple[int, int, bytes]) -> bytes:
    return bytes(head) + b"".join(
        struct.pack("<HHI", kind, tag, 0) + value.ljust(8, b"\0") for tag, kind, value in values
    )


def message(prefix: str = "", subject: str = "Hello", **more: bytes) -> dict[str, bytes]:
    head = 24 if prefix else 32
    streams = {
        f"{prefix}__properties_version1.0": properties(
            head, (0x0039, 0x40, DATE), (0x3FFD, 3, struct.pack("<I", 1251))
        ),
        f"{prefix}__substg1.0_0037001F": subject.encode("utf-16-le"),
        f"{prefix}__substg1.0_0C1A001F": "Ann".encode("utf-16-le"),
        f"{prefix}__substg1.0_5D01001F": "ann@example.org".encode("utf-16-le"),
    }
    return {**streams, **{f"{prefix}__substg1.0_{name[1:]}": data for name, data in more.items()}}


def test_an_outlook_message_is_its_subject_and_text(read: Read) -> None:
    outcome = read("a.msg", compound(message(_1000001E="Привет, мир".encode("cp1251"))))
    assert outcome.texts == ["Hello\n\nПривет, мир"]
    record = outcome.records[0]
    assert record["locator"] == '{"part":"0"}'
    assert record["meta"] == ('{"subject":"Hello","from":"Ann <ann@example.org>","date":"2020-12-30T00:00:00+00:00"}')


def test_attachments_are_members_and_attached_messages_records(read: Read) -> None:
    first, second = "__attach_version1.0_#00000000/", "__attach_version1.0_#00000001/"
    streams = message(_1000001F="body".encode("utf-16-le"))
    streams[f"{first}__substg1.0_37010102"] = b"attached text"
    streams[f"{first}__substg1.0_3707001F"] = "notes.txt".encode("utf-16-le")
    inner = f"{second}__substg1.0_3701000D/"
    streams |= message(inner, "Inner", _1000001F="inner body".encode("utf-16-le"))
    streams[f"{inner}{first}__substg1.0_37010102"] = b"attached deeper"
    outcome = read("a.msg", compound(streams))
    assert outcome.texts == ["Hello\n\nbody", "attached text", "Inner\n\ninner body", "attached deeper"]
    assert outcome.members == ["", "notes.txt", "", "part-2!/part-1"]
    assert outcome.records[2]["locator"] == '{"part":"2"}'


def test_the_html_of_a_message_is_read_if_it_has_no_text(read: Read) -> None:
    page = b"<html><body><p>from the page</p></body></html>"
    assert read("a.msg", compound(message(_10130102=page))).texts == ["Hello\n\nfrom the page"]


def test_compressed_rtf_is_expanded_as_the_specification_shows() -> None:
    # MS-OXRTFCP 4.1 and 4.2
    simple = bytes.fromhex(
        "2d0000002b0000004c5a4675f1c5c7a703000a007263706731323542320af820681eb0651120026c6c6f1000"
        "20776f726c641003617d0ac0"
    )  # fmt: skip
    crossing = bytes.fromhex("1a0000001c0000004c5a4675e2d44b51410004205758595a0d6e7d010eb0")
    assert expand_rtf(crossing, 1000) == b"{\\rtf1 WXYZWXYZWXYZWXYZWXYZ}"
    assert expand_rtf(simple, 1000).startswith(b"{\\rtf1\\ansi\\ansicpg1252\\pard")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=12))
def test_no_damage_to_an_old_file_upsets_the_reader(read: Read, at: int, noise: bytes) -> None:
    data = bytearray(DAMAGED[at % len(DAMAGED)])
    at %= len(data)
    data[at : at + len(noise)] = noise
    outcome = read("a.doc", bytes(data))
    assert "parser-bug" not in outcome.reasons and (outcome.texts or outcome.reasons)


DAMAGED = [
    word([b"One\r", "Two\r"]),
    powerpoint([("Title", "shape", "notes")]),
    compound(message(_1000001F="body".encode("utf-16-le"))),
]


@pytest.mark.parametrize(
    "pattern", ["*.doc", "*.dot", "*.ppt", "*.msg", "*.rtf", "*.docx", "*.pptx", "*.odt", "*.od[pgf]"]
)
def test_office_files_of_other_projects_are_read_or_refused(testdata: Any, read: Read, pattern: str) -> None:
    paths = [path for folder in ("tika", "poi") for path in sorted((testdata / folder).rglob(pattern))]
    assert paths
    for path in paths:
        outcome = read(path.name, path.read_bytes())
        assert outcome.texts or outcome.reasons, path.name
        assert not {"parser-bug", "crash", "timeout", "memory"} & set(outcome.reasons), path.name
        if "passtika" in path.name or "protected" in path.name or "Encrypted" in path.name:
            assert outcome.reasons == ["encrypted"], path.name
