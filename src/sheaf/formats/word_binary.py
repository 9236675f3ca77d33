"""DOC, Word's binary format (MS-DOC; Word 6 and 95 as far as their text goes): one record a document.

The text lies in pieces in the stream WordDocument, each in Windows-1252 or UTF-16; a piece table, in the stream 0Table
or 1Table, says in which order. Footnotes, comments, endnotes and text boxes follow the text; headers and footers go to
meta. Field codes are left out, and tracked deletions where Word 97 or later wrote the file (`word_deletions`). Locator:
{"paragraphs": [first, last]}. Embedded files are members as far as they are whole streams. Holds the text in memory.
"""

from __future__ import annotations

import re
import struct

from sheaf.formats.office_text import Lines, place
from sheaf.formats.ole import Compound, open_compound
from sheaf.formats.piece import Context, Member, Pieces, Record, Refused, Region
from sheaf.formats.stream import Stream, from_bytes
from sheaf.formats.word_deletions import Deletions

_CLX_AT, _CLX_AT_6 = 0x01A2, 0x0160
_ENCRYPTED, _TABLE_1, _COMPLEX = 0x0100, 0x0200, 0x0004
_WORD_97 = 0x00C1
_CHARACTERS = str.maketrans(
    {
        "\x0b": "\n",
        "\x1e": "\u2011",
        "\x1f": "",
        "\x01": "",
        "\x02": "",
        "\x03": "",
        "\x04": "",
        "\x05": "",
        "\x08": "",
        "\xa0": " ",
    }
)
_ROW = "\x07\x07"
_MARKS = re.compile("[\x13\x14\x15]")
_LANGUAGES = {
    **dict.fromkeys((0x0419, 0x0422, 0x0402), "cp1251"),
    **dict.fromkeys((0x0405, 0x0415, 0x040E), "cp1250"),
    **{0x0408: "cp1253", 0x041F: "cp1254", 0x0411: "cp932", 0x0412: "cp949", 0x0804: "gbk", 0x0404: "cp950"},
}


def parse(stream: Stream, context: Context) -> Pieces:
    compound, size = open_compound(stream, context)
    limit = context.limits.document_bytes
    main = compound.read("WordDocument", limit=limit) or b""
    if len(main) < 0x60:
        raise Refused("corrupt", "the stream WordDocument is too short")
    (flags,) = struct.unpack_from("<H", main, 0x0A)
    if flags & _ENCRYPTED:
        raise Refused("encrypted", "a password is needed")
    try:
        characters, used = _characters(compound, main, flags, limit)
    except (struct.error, ValueError) as error:
        raise Refused("corrupt", f"the piece table: {error}"[:200]) from None
    stories = _stories(main, characters)
    lines = Lines()
    for story in (stories[0], stories[1], stories[4], stories[5], stories[6]):
        add_story(lines, story)
    header = " ".join(_without_fields(stories[2]).translate(_CHARACTERS).replace("\x07", " ").split())[:1000]
    if not lines.count:
        lines.add(header)
    count = lines.count
    yield Record(lines.take(), 0, size, "utf-8", {"header": header} if header else None, used, locator=place(1, count))
    expected = struct.unpack_from("<I", main, 0x4C if _is_97(main) else 0x34)[0]
    if len(characters) < expected:
        yield Region(0, size, "truncated", f"{expected - len(characters):,} characters are missing", 0)
    yield from _objects(compound, size, limit)


def add_story(lines: Lines, story: str) -> None:
    """Paragraphs and rows out of Word's characters: \\x07 ends a cell, and a second one the row."""
    for paragraph in re.split("[\r\x0c\x0e]", _without_fields(story)):
        if "\x07" not in paragraph:
            lines.add(paragraph.translate(_CHARACTERS).rstrip())
            continue
        *rows, rest = paragraph.split(_ROW)
        for row in rows:
            lines.add(
                "\t".join(" ".join(cell.translate(_CHARACTERS).split()) for cell in row.split("\x07")), tight=True
            )
        lines.add("\t".join(rest.translate(_CHARACTERS).split("\x07")).strip(), tight="\x07" in rest)


def _is_97(main: bytes) -> bool:
    return struct.unpack_from("<H", main, 2)[0] >= _WORD_97


def _characters(compound: Compound, main: bytes, flags: int, limit: int) -> tuple[str, int]:
    """All text, in the order of the document, and the bytes that it takes."""
    if _is_97(main):
        names = ("1Table", "0Table") if flags & _TABLE_1 else ("0Table", "1Table")
        table = compound.read(names[0], limit=limit) or compound.read(names[1], limit=limit) or b""
        at, size = struct.unpack_from("<II", main, _CLX_AT)
        return _pieces(main, table[at : at + size], "cp1252", True, Deletions(main, table))
    language = struct.unpack_from("<H", main, 6)[0]
    codec = _LANGUAGES.get(language, "cp1252")
    if flags & _COMPLEX:
        at, size = struct.unpack_from("<II", main, _CLX_AT_6)
        return _pieces(main, main[at : at + size], codec, False)
    start, end = struct.unpack_from("<II", main, 0x18)
    raw = main[start:end]
    return raw.decode(codec, "replace"), len(raw)


def _pieces(main: bytes, clx: bytes, codec: str, wide: bool, deletions: Deletions | None = None) -> tuple[str, int]:
    at = 0
    while at < len(clx) and clx[at] == 1:  # formatting that the pieces refer to
        at += 3 + struct.unpack_from("<H", clx, at + 1)[0]
    if at >= len(clx) or clx[at] != 2:
        raise ValueError("it is missing")
    (size,) = struct.unpack_from("<I", clx, at + 1)
    plc = clx[at + 5 : at + 5 + size]
    count = (len(plc) - 4) // 12
    ends = struct.unpack_from(f"<{count + 1}I", plc, 0)
    texts: list[str] = []
    used = 0
    for number in range(count):
        characters = ends[number + 1] - ends[number]
        (where,) = struct.unpack_from("<I", plc, 4 * (count + 1) + 8 * number + 2)
        if not 0 < characters <= len(main):
            continue
        if wide and not where & 0x40000000:
            start, blank, encoding = where, b"\x1f\0", "utf-16-le"
            raw = main[start : start + 2 * characters]
        else:
            start, blank, encoding = (where & 0x3FFFFFFF) // 2 if wide else where, b"\x1f", codec
            raw = main[start : start + characters]
        # 0x1F is dropped later (_CHARACTERS): until then the lengths of the stories hold
        texts.append((deletions.blanked(raw, start, blank) if deletions else raw).decode(encoding, "replace"))
        used += len(raw)
        if used > 2 * len(main):
            raise ValueError("pieces overlap")
    return "".join(texts), min(used, len(main))


def _stories(main: bytes, characters: str) -> list[str]:
    """The text, footnotes, headers, macros, comments, endnotes and text boxes, which lie one after another."""
    lengths = struct.unpack_from("<7I", main, 0x4C if _is_97(main) else 0x34)
    if not _is_97(main):
        lengths = (*lengths[:6], 0)
    stories: list[str] = []
    at = 0
    for length in lengths:
        stories.append(characters[at : at + length])
        at += length
    return stories


def _without_fields(text: str) -> str:
    """Fields are \\x13 code \\x14 result \\x15, one inside another; the results stay."""
    out: list[str] = []
    codes: list[bool] = []  # for each open field, whether its code is being read
    at = 0
    for mark in _MARKS.finditer(text):
        if not any(codes):
            out.append(text[at : mark.start()])
        at = mark.end()
        if mark[0] == "\x13":
            codes.append(True)
        elif codes and mark[0] == "\x14":
            codes[-1] = False
        elif codes:
            codes.pop()
        if len(codes) > 1000:
            raise Refused("bomb", "fields nested too deep")
    if not any(codes):
        out.append(text[at:])
    return "".join(out)


def _objects(compound: Compound, size: int, limit: int) -> Pieces:
    for path in compound.paths:
        if len(path) == 3 and path[0].lower() == "objectpool" and path[2].lower() in ("package", "contents"):
            data = compound.read(*path, limit=limit)
            if data:
                yield Member(f"{path[1]}/{path[2].lower()}", from_bytes(data), min(len(data), size))
