"""Workbooks give a record a row, at the sheet and row that the user sees."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from typing import Any
from xml.sax.saxutils import escape

from office_files import compound

from sheaf.recipe import Limits

Read = Callable[..., Any]
Cells = dict[str, Any]
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"


class Raw(str):
    """The inside of a cell's element, as it is."""


def cell(place: str, value: Any) -> str:
    if isinstance(value, Raw):
        return f'<c r="{place}"{value}</c>'
    if isinstance(value, bool):
        return f'<c r="{place}" t="b"><v>{int(value)}</v></c>'
    if isinstance(value, str):
        return f'<c r="{place}" t="inlineStr"><is><t>{escape(value)}</t></is></c>'
    return f'<c r="{place}"><v>{value}</v></c>'


def sheet(cells: Cells, dimension: str = "") -> str:
    rows: dict[int, list[str]] = {}
    for place, value in cells.items():
        rows.setdefault(int(place.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")), []).append(cell(place, value))
    body = "".join(f'<row r="{n}">{"".join(row)}</row>' for n, row in sorted(rows.items()))
    size = f'<dimension ref="{dimension}"/>' if dimension else ""
    return f'<worksheet xmlns="{_MAIN}">{size}<sheetData>{body}</sheetData></worksheet>'


def xlsx(sheets: dict[str, str], **files: bytes) -> bytes:
    """A workbook of worksheet XML by name. Cell style 1 is a date."""
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    names = list(sheets)
    parts: dict[str, str | bytes] = {
        "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
        f'<Relationship Id="r1" Type="{_RELATIONS}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{_MAIN}" xmlns:r="{_RELATIONS}"><sheets>'
        + "".join(f'<sheet name="{escape(name)}" sheetId="{n}" r:id="s{n}"/>' for n, name in enumerate(names, 1))
        + "</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
        + "".join(
            f'<Relationship Id="s{n}" Type="{_RELATIONS}/worksheet" Target="worksheets/sheet{n}.xml"/>'
            for n in range(1, len(names) + 1)
        )
        + f'<Relationship Id="st" Type="{_RELATIONS}/styles" Target="styles.xml"/></Relationships>',
        "xl/styles.xml": f'<styleSheet xmlns="{_MAIN}"><cellXfs><xf numFmtId="0"/><xf numFmtId="22"/></cellXfs>'
        "</styleSheet>",
    }
    parts |= {f"xl/worksheets/sheet{n}.xml": sheets[name] for n, name in enumerate(names, 1)}
    parts |= files
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return sink.getvalue()


def ods(rows: str) -> bytes:
    office = "urn:oasis:names:tc:opendocument:xmlns"
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("mimetype"), "application/vnd.oasis.opendocument.spreadsheet")
        archive.writestr(
            "content.xml",
            f'<o:document-content xmlns:o="{office}:office:1.0" xmlns:table="{office}:table:1.0" '
            f'xmlns:office="{office}:office:1.0" xmlns:text="{office}:text:1.0"><office:body><office:spreadsheet>'
            f'<table:table table:name="Blatt 1">{rows}</table:table></office:spreadsheet></office:body>'
            "</o:document-content>",
        )
        archive.writestr(
            "META-INF/manifest.xml", '<m:manifest xmlns:m="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"/>'
        )
    return sink.getvalue()


def xls(cells: dict[tuple[int, int], float]) -> bytes:
    """A workbook of BIFF 8 with one sheet of numbers by row and column."""

    def biff(kind: int, data: bytes) -> bytes:
        return struct.pack("<HH", kind, len(data)) + data

    start, end = struct.pack("<HHHHII", 0x0600, 0x0005, 0, 1997, 0, 6), biff(0x0A, b"")
    globals_ = biff(0x0809, start) + biff(0x85, struct.pack("<IBBBB", 0, 0, 0, 1, 0) + b"S") + end
    globals_ = globals_.replace(b"\x85\0\x09\0" + bytes(4), b"\x85\0\x09\0" + struct.pack("<I", len(globals_)))
    numbers = (biff(0x0203, struct.pack("<HHHd", *place, 0, value)) for place, value in sorted(cells.items()))
    sheet = biff(0x0809, start.replace(b"\x05\0", b"\x10\0")) + b"".join(numbers) + end
    return compound({"Workbook": (globals_ + sheet).ljust(4096, b"\0")})


def locators(outcome: Any) -> list[Any]:
    return [json.loads(r["locator"]) for r in outcome.records]


TABLE: Cells = {
    **{"B3": "name", "C3": "when", "D3": "n", "B4": "x", "C4": Raw(' s="1"><v>43832.5</v>'), "D4": 3.0},
    **{"B6": "y", "D6": Raw("><f>D4*2</f><v>7.5</v>"), "B7": "z", "D7": True},
}


def test_rows_are_records_named_by_the_header_at_the_row_that_the_user_sees(read: Read) -> None:
    outcome = read("a.xlsx", xlsx({"Q1": sheet(TABLE), "empty": sheet({}), "Q2": sheet({"A1": "a line"})}))
    assert outcome.texts == [
        "name: x\nwhen: 2020-01-02 12:00:00\nn: 3",
        "name: y\nn: 7.5",
        "name: z\nn: true",
        "a line",
    ]
    assert locators(outcome) == [
        *({"sheet": "Q1", "row": n} for n in (4, 6, 7)),
        {"sheet": "Q2", "row": 1},
    ]
    assert outcome.item["notes"] == "sheet Q1: columns named by row 3"
    assert outcome.item["media"].endswith("spreadsheetml.sheet")


def test_lines_above_the_header_are_records_and_the_header_still_names(read: Read) -> None:
    cells = {"A1": "Report of the year", "A3": "id", "B3": "text", "A4": 1, "B4": "words", "A5": 2, "B5": "more words"}
    outcome = read("a.xlsx", xlsx({"S": sheet(cells)}))
    assert outcome.texts == ["Report of the year", "words", "more words"]
    assert [json.loads(r["meta"]) for r in outcome.records] == [{}, {"id": 1}, {"id": 2}]
    assert [place["row"] for place in locators(outcome)] == [1, 4, 5]


def test_a_table_without_a_header_has_letters_and_loses_no_row(read: Read) -> None:
    outcome = read("a.xlsx", xlsx({"S": sheet({"B1": 1, "C1": 2, "AA1": 3, "B2": 4, "C2": 5})}))
    assert outcome.texts == ["B: 1\nC: 2\nAA: 3", "B: 4\nC: 5"]
    assert outcome.item["notes"] == ""


def test_the_recipe_s_columns_make_a_header_and_rows_without_them_are_refused(read: Read) -> None:
    cells = {"A1": "one", "B1": "two", "A2": "a", "B2": "b", "A3": "c", "A4": "d", "A5": "e", "B5": "f"}
    outcome = read("a.xlsx", xlsx({"S": sheet(cells)}), text="{one}/{two}")
    assert outcome.texts == ["a/b", "e/f"]
    assert outcome.reasons == ["no-text"]
    assert json.loads(outcome.regions[0]["locator"]) == {"sheet": "S", "row": [3, 4]}


def test_opendocument_sheets_are_read_alike(read: Read) -> None:
    def row(*words: str) -> str:
        return "<table:table-row>" + "".join(map(one, words)) + "</table:table-row>"

    def one(word: str) -> str:
        kind = f'"float" office:value="{word}"' if word.isdigit() else '"string"'
        return f"<table:table-cell office:value-type={kind}><text:p>{word}</text:p></table:table-cell>"

    outcome = read("a.ods", ods(row("name", "n") + row("ä", "1") + row("b", "2")))
    assert outcome.texts == ["name: ä\nn: 1", "name: b\nn: 2"]
    assert locators(outcome) == [{"sheet": "Blatt 1", "row": 2}, {"sheet": "Blatt 1", "row": 3}]


def test_a_workbook_inside_an_archive_is_read_as_outside(read: Read) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("in/a.xlsx", xlsx({"Q1": sheet(TABLE)}))
    outcome = read("a.zip", sink.getvalue())
    assert len(outcome.texts) == 3
    assert set(outcome.members) == {"in/a.xlsx"}


def test_a_sheet_that_cannot_be_read_costs_itself(read: Read) -> None:
    book = xlsx(
        {"good": sheet(TABLE), "bad": "<worksheet><sheetData><row r='1'><c r='A1'><v>1</v>", "last": sheet(TABLE)}
    )
    outcome = read("a.xlsx", book)
    assert {place["sheet"] for place in locators(outcome)} >= {"good", "last"}
    assert outcome.reasons in ([], ["corrupt"])


def test_a_sheet_is_read_row_by_row_however_far_its_cells_lie_apart(read: Read) -> None:
    far = {"A1": "a", "XFD1048576": "far"}
    for dimension in ("", "A1:B2", "A1:XFD1048576"):
        outcome = read("a.xlsx", xlsx({"S": sheet(far, dimension)}), limits=Limits(memory_mb=512))
        assert outcome.texts == ["a", "far"]
        assert locators(outcome) == [{"sheet": "S", "row": 1}, {"sheet": "S", "row": 1048576}]


def test_the_binary_formats_refuse_cells_that_span_too_much(read: Read) -> None:
    near, far = xls({(0, 0): 1.0, (1, 1): 2.5}), xls({(0, 0): 1.0, (65535, 255): 2.5})
    assert read("a.xls", near).texts == ["1", "2.5"]
    outcome = read("a.xls", far)
    assert outcome.reasons == ["bomb"]
    assert "16,777,216" in outcome.regions[0]["detail"]
    assert read("a.xls", far, limits=Limits(memory_mb=16384)).texts == ["1", "2.5"]


def test_a_sheet_that_breaks_off_keeps_its_rows_and_the_other_sheets(read: Read) -> None:
    cells = {f"{c}{n}": f"{c} of row {n}" for n in range(1, 200) for c in "ABC"}
    broken = sheet(cells).replace('<row r="150">', "<row r=<<")
    outcome = read("a.xlsx", xlsx({"bad": broken, "good": sheet({"A1": "kept"})}))
    assert len([place for place in locators(outcome) if place["sheet"] == "bad"]) >= 149
    assert outcome.texts[-1] == "kept"
    assert outcome.reasons == ["corrupt"]
    assert json.loads(outcome.regions[0]["locator"]) == {"sheet": "bad"}


def test_a_workbook_without_its_directory_is_read_by_its_parts(read: Read) -> None:
    book = xlsx({"Q1": sheet(TABLE)})
    whole, cut = read("a.xlsx", book), read("a.xlsx", book[: book.index(b"PK\x01\x02")])
    assert cut.texts == whole.texts
    assert locators(cut) == locators(whole)


def test_a_text_that_the_workbook_does_not_have_costs_its_row(read: Read) -> None:
    shared = (
        '<sst xmlns="x"><si><t>one</t></si><si><r><t>tw</t></r><r><t>o_x0041_</t></r><rPh><t>no</t></rPh></si></sst>'
    )
    cells = {f"A{n}": Raw(f' t="s"><v>{n - 1}</v>') for n in range(1, 5)} | {"A5": "five"}
    outcome = read("a.xlsx", xlsx({"S": sheet(cells)}, **{"xl/sharedStrings.xml": shared.encode()}))
    assert outcome.texts == ["one", "twoA", "five"]
    assert outcome.reasons == ["corrupt"]
    assert json.loads(outcome.regions[0]["locator"]) == {"sheet": "S", "row": [3, 4]}


def test_numbers_are_what_their_style_says(read: Read) -> None:
    codes = ["0.00", "yyyy-mm-dd", "[h]:mm:ss", '"day" 0', "[Red]0;[Blue]d", "hh:mm"]
    styles = "<styleSheet><numFmts>" + "".join(
        f'<numFmt numFmtId="{164 + n}" formatCode="{escape(code, {chr(34): "&quot;"})}"/>'
        for n, code in enumerate(codes)
    )
    styles += "</numFmts><cellXfs>" + "".join(f'<xf numFmtId="{164 + n}"/>' for n in range(len(codes))) + "</cellXfs>"
    cells = {f"{'ABCDEF'[n]}1": Raw(f' s="{n}"><v>1.5</v>') for n in range(len(codes))}
    cells |= {"A2": Raw(' s="1"><v>61</v>'), "B2": Raw(' s="1"><v>59</v>'), "C2": Raw(' s="5"><v>0.5</v>')}
    cells |= {"D2": Raw(' t="e"><v>#DIV/0!</v>'), "E2": Raw(' t="d"><v>2020-01-02T03:04:05</v>')}
    outcome = read("a.xlsx", xlsx({"S": sheet(cells)}, **{"xl/styles.xml": (styles + "</styleSheet>").encode()}))
    assert outcome.texts == [
        "A: 1.5\nB: 1900-01-01 12:00:00\nC: 129600\nD: 1.5\nE: 1.5\nF: 1900-01-01 12:00:00",
        "A: 1900-03-01\nB: 1900-02-28\nC: 12:00:00\nE: 2020-01-02 03:04:05",
    ]


def test_files_in_a_workbook_are_members(read: Read) -> None:
    outcome = read("a.xlsx", xlsx({"S": sheet({"A1": "x"})}, **{"xl/embeddings/note.txt": b"a note inside"}))
    assert outcome.texts == ["x", "a note inside"]
    assert set(outcome.members) == {"", "xl/embeddings/note.txt"}


def test_what_opendocument_repeats_is_counted_and_bounded(read: Read) -> None:
    def row(cells: str, count: int = 1) -> str:
        return f'<table:table-row table:number-rows-repeated="{count}">{cells}</table:table-row>'

    def one(word: str, count: int = 1) -> str:
        return (
            f'<table:table-cell table:number-columns-repeated="{count}" office:value-type="string">'
            f"<text:p>{word}</text:p></table:table-cell>"
        )

    few = ods(row("", 5) + row(one("a", 2) + "<table:table-cell/>" + one("b"), 3) + row("", 10**6) + row(one("last")))
    outcome = read("a.ods", few)
    assert outcome.texts == ["A: a\nB: a\nD: b"] * 3 + ["last"]
    assert [place["row"] for place in locators(outcome)] == [6, 7, 8, 1000009]
    for many in (row(one("text"), 999_999_999), row(one("text" * 100, 99_999), 999_999)):
        outcome = read("a.ods", ods(many), limits=Limits(memory_mb=512))
        assert outcome.reasons == ["bomb"]
        assert len(outcome.texts) < 100_000


def test_a_part_that_expands_too_far_is_a_bomb(read: Read) -> None:
    book = xlsx({"S": sheet(TABLE)}, **{"xl/sharedStrings.xml": b" " * (8 << 20)})
    assert read("a.xlsx", book).reasons == ["bomb"]


def test_too_many_sheets_are_refused(read: Read) -> None:
    book = xlsx({f"S{n}": sheet({"A1": "x"}) for n in range(6)})
    assert read("a.xlsx", book, limits=Limits(pages=5)).reasons == ["bomb"]


def test_damage_never_ends_in_a_bug_of_ours(read: Read) -> None:
    book = xlsx({"Q1": sheet(TABLE)})
    for at in range(30, len(book), 97):
        outcome = read("a.xlsx", book[:at] + bytes([book[at] ^ 0x55]) + book[at + 1 :])
        assert "parser-bug" not in outcome.reasons
