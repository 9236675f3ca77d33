r"""RTF (Rich Text Format 1.9.1): one record a document, at its bytes; a text larger than a record goes on in another.

One pass over control words, groups and bytes. Bytes are decoded by the code page of the font that is set (East Asian
ones take two), \u by Unicode. Set out as a DOCX is: cells are separated by tabs, footnotes and comments stand behind
the text where [n] points to them, headers and footers go to meta. Deleted text, field codes, pictures, embedded objects
and destinations that nobody knows are left out; nothing that a field or template names is opened. \bin data is jumped
over. Groups are kept on a list, so depth costs no recursion. Holds the file in memory.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from typing import ClassVar

from sheaf.formats.office_text import Lines
from sheaf.formats.piece import Context, Pieces, Record, Refused, Region
from sheaf.formats.stream import Stream, progress

DEPTH = 100_000
_TOKEN = re.compile(
    rb"\\([a-zA-Z]{1,40})(-?[0-9]{1,10})? ?|\\'([0-9a-fA-F]{2})|\\(.)|([{}])|[\r\n\0]+|([^\\{}\r\n\0]+)|\\", re.S
)
_BRACES = re.compile(rb"\\bin([0-9]{1,10}) ?|\\.|[{}]", re.S)
_WORDS = {
    **{"tab": "\t", "line": "\n", "lbr": "\n", "emdash": "—", "endash": "–", "emspace": "\u2003", "enspace": "\u2002"},
    **{"qmspace": "\u2005", "bullet": "•", "lquote": "‘", "rquote": "’", "ldblquote": "“", "rdblquote": "”"},
    **{"zwj": "\u200d", "zwnj": "\u200c", "ltrmark": "\u200e", "rtlmark": "\u200f"},
}
_SIGNS = {b"~": "\u00a0", b"_": "\u2011", b"\\": "\\", b"{": "{", b"}": "}", b"\t": "\t"}
_ENDS = frozenset(("par", "sect", "page", "column"))
_CAPTURES = {
    **{"footnote": "note", "annotation": "note", "title": "title", "author": "author", "subject": "subject"},
    **dict.fromkeys(("header", "headerl", "headerr", "headerf"), "header"),
    **dict.fromkeys(("footer", "footerl", "footerr", "footerf"), "footer"),
}
_SKIPPED = frozenset(
    ("colortbl", "stylesheet", "pict", "objdata", "themedata", "datastore", "listtable", "listoverridetable",
     "fldinst", "generator", "revtbl", "rsidtbl", "latentstyles", "xmlnstbl", "bkmkstart", "bkmkend", "nonshppict",
     "shprslt", "sp", "xe", "tc", "tcn", "template", "filetbl", "atnid", "atnauthor", "atntime", "atndate", "atnref",
     "atrfstart", "atrfend", "pn", "operator", "creatim", "revtim", "printim", "buptim", "doccomm", "comment",
     "keywords", "company", "manager", "category", "hlinkbase", "passwordhash", "userprops", "ftnsep", "ftnsepc",
     "aftnsep", "aftnsepc", "ftncn", "aftncn", "objclass", "objname", "objalias", "falt", "panose", "background",
     "private", "mmathPr", "nextfile", "listname", "leveltext", "levelnumbers", "list", "listlevel", "lfolevel")
)  # fmt: skip
_STARRED = frozenset(
    ("shpinst", "annotation", "footnote", "do", "shppict", "cs", "ts")
)  # {\* destinations that are read
_CHARSETS = {
    **{0: "cp1252", 2: "cp1252", 77: "mac_roman", 128: "cp932", 129: "cp949", 130: "johab", 134: "gbk", 136: "cp950"},
    **{161: "cp1253", 162: "cp1254", 163: "cp1258", 177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251"},
    **{222: "cp874", 238: "cp1250", 254: "cp437", 255: "cp850"},
}


def parse(stream: Stream, context: Context) -> Pieces:
    data = stream.read_all(context.limits.document_bytes)
    reader = _Reader(data)
    limit = context.limits.record_bytes // 4  # characters: at most so many bytes
    start = told = 0
    for end in reader.run():
        progress(end - told)
        told = end
        if reader.lines.characters > limit:
            yield Record(reader.lines.take(), start, end, reader.ansi, reader.meta or None)
            start = end
    reader.finish()
    if not reader.lines.count:
        reader.lines.add("\n".join(reader.meta.get(edge, "") for edge in ("header", "footer")).strip())
    if reader.lines.characters or not start:
        yield Record(reader.lines.take(), start, len(data), reader.ansi, reader.meta or None)
    if reader.open_groups:
        yield Region(len(data), len(data), "truncated", f"{reader.open_groups:,} groups are not closed")


def plain_text(data: bytes) -> str:
    """The text of a small RTF file, such as a message's body."""
    reader = _Reader(data)
    for _ in reader.run():
        pass
    reader.finish()
    return reader.lines.take()


class _Group:
    """What holds inside a group, and ends with it."""

    __slots__ = ("capture", "codec", "deleted", "label", "skip", "star", "table", "uc")

    def __init__(self, outer: _Group | None, codec: str = "cp1252") -> None:
        self.skip = outer.skip if outer else False
        self.codec = outer.codec if outer else codec
        self.uc = outer.uc if outer else 1  # how many characters stand behind \u for readers that do not know it
        self.table = outer.table if outer else False
        self.deleted = outer.deleted if outer else False
        self.capture = ""  # what its text is, if it is not part of the paragraph
        self.star = self.label = False


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._group = _Group(None)
        self._outer: list[_Group] = []
        self._out: list[str] = []  # the text of the paragraph, or of what is captured
        self._held: list[list[str]] = []
        self._raw = bytearray()  # bytes that wait for the rest of their character
        self._fallback = 0
        self._fonts: dict[int, str] = {}
        self._font = self._default_font = -1
        self._in_fonts = 0
        self._notes: list[str] = []
        self._numbered = 0
        self._labelled = False
        self.ansi = "cp1252"
        self.lines = Lines()
        self.meta: dict[str, str] = {}

    @property
    def open_groups(self) -> int:
        return len(self._outer)

    def run(self) -> Iterator[int]:
        """Read everything; gives the position after each paragraph. Ends where the outermost group does."""
        at = 0
        data = self._data
        while at < len(data) and (found := _TOKEN.match(data, at)):
            at = found.end()
            kind = found.lastindex
            if kind == 6:
                self._bytes(found[6])
            elif kind in (1, 2):
                word, number = found[1].decode(), found[2]
                if word == "bin":
                    at += max(0, int(number or 0))
                    continue
                self._word(word, int(number) if number else None)
                if self._group.skip and word != "upr":
                    at = self._end_of_group(at)
                if word in _ENDS or word == "row":
                    yield at
            elif kind == 3:
                self._bytes(bytes.fromhex(found[3].decode()))
            elif kind == 4:
                self._sign(found[4])
            elif kind == 5 and found[5] == b"{":
                self._open()
            elif kind == 5:
                self._close()
                if not self._outer:
                    return

    def _end_of_group(self, at: int) -> int:
        """Where the brace is that closes the group: nothing in between is looked at."""
        depth = 1
        while found := _BRACES.search(self._data, at):
            at = found.end()
            if found[1]:
                at += int(found[1])
            elif found[0] == b"{":
                depth += 1
            elif found[0] == b"}":
                depth -= 1
                if depth == 0:
                    return found.start()
        return len(self._data)

    def finish(self) -> None:
        """The last paragraph, and the notes."""
        while self._held:
            self._end_capture("")
        self._end_paragraph(False)
        for number, note in enumerate(self._notes, 1):
            words = " ".join(note.split())
            if words:
                self.lines.add(f"[{number}] {words}")

    def _open(self) -> None:
        self._flush()
        if len(self._outer) >= DEPTH:
            raise Refused("bomb", f"more than {DEPTH:,} groups inside each other")
        self._outer.append(self._group)
        self._group = _Group(self._group)
        self._fallback = 0

    def _close(self) -> None:
        self._flush()
        group = self._group
        if group.capture:
            self._end_capture(group.capture)
        if self._in_fonts and len(self._outer) <= self._in_fonts:
            self._in_fonts = 0
        if self._outer:
            self._group = self._outer.pop()
        self._fallback = 0
        if group.label and not self._group.skip:
            self._labelled = True

    def _end_capture(self, kind: str) -> None:
        text = _joined(self._out)
        self._out = self._held.pop()
        if kind == "note":
            self._notes.append(text)
        elif kind and text.strip():
            words = " ".join(text.split())[:1000]
            known = self.meta.get(kind)
            self.meta[kind] = f"{known}\n{words}"[:4000] if known and words not in known.split("\n") else known or words

    def _bytes(self, data: bytes) -> None:
        if self._fallback:
            used = min(self._fallback, len(data))
            self._fallback -= used
            data = data[used:]
        group = self._group
        if not group.skip and not group.deleted and not self._in_fonts:
            self._raw += data

    def _text(self, text: str) -> None:
        self._flush()
        if self._fallback:
            self._fallback -= 1
        elif not self._group.skip and not self._group.deleted and not self._in_fonts:
            self._out.append(" " if text == "\t" and self._group.label else text)

    def _flush(self) -> None:
        if self._raw:
            text = self._raw.decode(self._group.codec, "replace")
            bullet = self._group.label and not any(c.isalnum() for c in text)
            self._out.append("•" if bullet else text)
            self._raw.clear()

    def _sign(self, sign: bytes) -> None:
        if sign == b"*":
            self._group.star = True
        elif sign in (b"\n", b"\r"):
            self._word("par", None)
        elif sign in _SIGNS:
            self._text(_SIGNS[sign])

    def _word(self, word: str, number: int | None) -> None:
        group = self._group
        if group.star and word not in _STARRED:
            group.skip = True
        group.star = False
        if word == "u":
            self._unicode(number or 0)
        elif word in _WORDS:
            self._text(_WORDS[word])
        elif word in _SKIPPED:
            self._flush()
            group.skip = True
        elif word in _CAPTURES:
            self._capture(_CAPTURES[word])
        elif word == "upr":  # its text once in the code page, once in Unicode: \ud, which is taken
            group.skip = True
        elif word == "ud" and len(self._outer) > 1:
            group.skip = self._outer[-2].skip
        elif word == "fonttbl":
            self._in_fonts = len(self._outer)
        else:
            change = self.changes.get(word)
            if change is not None:
                self._flush()
                change(self, number)

    def _unicode(self, number: int) -> None:
        self._flush()
        group = self._group
        self._fallback = group.uc
        code = number + 0x10000 if number < 0 else number
        if not group.skip and not group.deleted and not self._in_fonts and 0 <= code <= 0x10FFFF:
            self._out.append("•" if code == 0xF0B7 else "" if 0xE000 <= code <= 0xF8FF else chr(code))

    def _capture(self, kind: str) -> None:
        self._flush()
        group = self._group
        if group.skip or group.capture or not self._outer:
            return
        if kind == "note":
            self._numbered += 1
            self._out.append(f"[{self._numbered}]")
        group.capture = kind
        group.table = False
        self._held.append(self._out)
        self._out = []

    def _end_paragraph(self, row: bool) -> None:
        self._flush()
        if self._group.skip:
            return
        if self._held or (self._group.table and not row):
            self._out.append(" ")
            return
        text = _joined(self._out)
        text = text.rstrip("\t ") if row else text.rstrip()
        self._out = []
        self.lines.add(text, tight=row or self._labelled)
        self._labelled = False

    def _set_font(self, number: int | None) -> None:
        self._font = number or 0
        if not self._in_fonts:
            self._group.codec = self._fonts.get(self._font, self.ansi)

    def _charset(self, number: int | None) -> None:
        if self._in_fonts:
            codec = _CHARSETS.get(number or 0)
            self._fonts[self._font] = self.ansi if codec is None or number == 0 else codec

    def _page(self, number: int | None) -> None:
        self.ansi = self._group.codec = _codec(number or 1252)

    def _mac(self, _: int | None) -> None:
        self._page(10000)

    def _pc(self, _: int | None) -> None:
        self._page(437)

    def _pca(self, _: int | None) -> None:
        self._page(850)

    def _deleted(self, number: int | None) -> None:
        self._group.deleted = number != 0

    def _uc(self, number: int | None) -> None:
        self._group.uc = max(0, min(number if number is not None else 1, 16))

    def _plain(self, _: int | None) -> None:
        self._group.deleted = False
        if self._default_font >= 0:
            self._set_font(self._default_font)

    def _default(self, number: int | None) -> None:
        self._default_font = number or 0

    def _in_table(self, _: int | None) -> None:
        self._group.table = True

    def _out_of_table(self, _: int | None) -> None:
        self._group.table = False

    def _cell(self, _: int | None) -> None:
        if not self._group.skip:
            while self._out and self._out[-1] == " ":  # the ends of paragraphs inside the cell
                self._out.pop()
            self._out.append("\t")

    def _row(self, _: int | None) -> None:
        self._end_paragraph(True)

    def _end(self, _: int | None) -> None:
        self._end_paragraph(False)

    def _label(self, _: int | None) -> None:
        self._group.label = True

    # What control words change, once the bytes before them are decoded.
    changes: ClassVar[dict[str, Callable[[_Reader, int | None], None]]] = {
        **{"f": _set_font, "fcharset": _charset, "ansicpg": _page, "deff": _default, "plain": _plain, "uc": _uc},
        **{"mac": _mac, "pc": _pc, "pca": _pca, "deleted": _deleted, "intbl": _in_table, "pard": _out_of_table},
        **{"cell": _cell, "nestcell": _cell, "row": _row, "nestrow": _row, "listtext": _label, "pntext": _label},
        **dict.fromkeys(_ENDS, _end),
    }


def _joined(parts: list[str]) -> str:
    """The parts as one text; two \\u that are a surrogate pair become one character."""
    return "".join(parts).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _codec(page: int) -> str:
    """The codec of a code page; Windows' 10000 and above are the Macintosh's."""
    name = {
        10000: "mac_roman",
        10001: "shift_jis",
        10007: "mac_cyrillic",
        10029: "mac_latin2",
        65001: "utf-8",
        936: "gbk",
    }.get(page, f"cp{page}")
    try:
        codecs.lookup(name)
    except LookupError:
        return "cp1252"
    return name
