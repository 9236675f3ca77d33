"""Small office files, built here: zips of XML, and OLE compound files (MS-CFB, version 3) of streams."""

from __future__ import annotations

import io
import struct
import zipfile

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
R = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE_RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"
FREE, END, FAT_SECTOR = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD


def zipped(files: dict[str, str | bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_STORED if name == "mimetype" else method)
    return buffer.getvalue()


def relations(targets: dict[str, tuple[str, str]]) -> str:
    """id → (kind, target)"""
    inner = "".join(f'<Relationship Id="{i}" Type="{R}/{kind}" Target="{t}"/>' for i, (kind, t) in targets.items())
    return f'<?xml version="1.0"?><Relationships xmlns="{PACKAGE_RELATIONS}">{inner}</Relationships>'


def ooxml(main: str, content: str, files: dict[str, str | bytes]) -> dict[str, str | bytes]:
    """The parts every package has, then the others. The list of types comes last: writers may put it anywhere."""
    types = (
        '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        '<Default Extension="xml" ContentType="application/xml"/>'
        f'<Override PartName="/{main}" ContentType="{content}.main+xml"/></Types>'
    )
    return {**files, "_rels/.rels": relations({"r1": ("officeDocument", main)}), "[Content_Types].xml": types}


def docx(body: str, files: dict[str, str | bytes] | None = None, **links: tuple[str, str]) -> bytes:
    """links: relationships of the document."""
    document = f'<?xml version="1.0"?><w:document xmlns:w="{W}" xmlns:r="{R}"><w:body>{body}</w:body></w:document>'
    parts: dict[str, str | bytes] = {"word/document.xml": document, "word/_rels/document.xml.rels": relations(links)}
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    return zipped(ooxml("word/document.xml", kind, {**parts, **(files or {})}))


def p(text: str, properties: str = "") -> str:
    return f"<w:p>{properties}<w:r><w:t>{text}</w:t></w:r></w:p>"


def table(*rows: tuple[str, ...]) -> str:
    cells = ("".join(f"<w:tc>{p(cell)}</w:tc>" for cell in row) for row in rows)
    return f"<w:tbl>{''.join(f'<w:tr>{row}</w:tr>' for row in cells)}</w:tbl>"


def pptx(slides: list[str], files: dict[str, str | bytes] | None = None) -> bytes:
    """slides: the XML inside each shape tree; shown in the reverse order of their numbers."""
    spaces = (
        'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" '
        f'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" xmlns:r="{R}"'
    )
    parts: dict[str, str | bytes] = {}
    count = len(slides)
    for number, tree in enumerate(slides, 1):
        parts[f"ppt/slides/slide{count - number + 1}.xml"] = (
            f"<p:sld {spaces}><p:cSld><p:spTree>{tree}</p:spTree></p:cSld></p:sld>"
        )
    listed = "".join(f'<p:sldId id="{255 + n}" r:id="r{n}"/>' for n in range(1, count + 1))
    parts["ppt/presentation.xml"] = f"<p:presentation {spaces}><p:sldIdLst>{listed}</p:sldIdLst></p:presentation>"
    links = {f"r{n}": ("slide", f"slides/slide{count - n + 1}.xml") for n in range(1, count + 1)}
    parts["ppt/_rels/presentation.xml.rels"] = relations(links)
    kind = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
    return zipped(ooxml("ppt/presentation.xml", kind, {**parts, **(files or {})}))


def shape(*paragraphs: str, placeholder: str = "") -> str:
    mark = f'<p:nvSpPr><p:nvPr><p:ph type="{placeholder}"/></p:nvPr></p:nvSpPr>' if placeholder else ""
    inner = "".join(f"<a:p><a:r><a:t>{text}</a:t></a:r></a:p>" for text in paragraphs)
    return f"<p:sp>{mark}<p:txBody>{inner}</p:txBody></p:sp>"


def opendocument(kind: str, body: str, files: dict[str, str | bytes] | None = None, styles: str = "") -> bytes:
    """kind: text, presentation, …; body: the XML inside office:text or its like."""
    urn = "urn:oasis:names:tc:opendocument:xmlns"
    names = ("office", "text", "table", "style", "presentation")
    spaces = " ".join(f'xmlns:{name}="{urn}:{name}:1.0"' for name in names) + f' xmlns:draw="{urn}:drawing:1.0"'
    content = (
        f"<office:document-content {spaces}><office:automatic-styles>{styles}</office:automatic-styles>"
        f"<office:body><office:{kind}>{body}</office:{kind}></office:body></office:document-content>"
    )
    mimetype = f"application/vnd.oasis.opendocument.{kind}"
    return zipped({"mimetype": mimetype, "content.xml": content, **(files or {})})


def compound(streams: dict[str, bytes]) -> bytes:
    """An OLE file with these streams; "storage/stream" puts one into a storage."""
    names = ["Root Entry"]
    for path in streams:
        steps = path.split("/")
        for depth in range(1, len(steps) + 1):
            name = "/".join(steps[:depth])
            if name not in names:
                names.append(name)
    sectors: list[bytes] = []
    fat: list[int] = []
    mini = b""
    mini_fat: list[int] = []
    starts: dict[str, int] = {}
    for path, data in streams.items():
        if len(data) >= 4096:
            starts[path] = _chain(data, sectors, fat)
        else:
            count = -(-len(data) // 64)
            starts[path] = len(mini_fat) if count else END
            mini_fat += [*range(len(mini_fat) + 1, len(mini_fat) + count), END] if count else []
            mini += data.ljust(count * 64, b"\0")
    mini_start = _chain(mini, sectors, fat) if mini else END
    mini_fat_start = _chain(struct.pack(f"<{len(mini_fat)}I", *mini_fat), sectors, fat, b"\xff") if mini_fat else END
    directory = b"".join(_directory_entry(names, i, streams, starts, mini_start, len(mini)) for i in range(len(names)))
    directory_start = _chain(directory, sectors, fat)
    fat_at = len(sectors)
    fat_count = -(-(len(fat) + 1) // 127)
    fat += [FAT_SECTOR] * fat_count
    fat += [FREE] * (fat_count * 128 - len(fat))
    header = struct.pack(
        "<8s16sHHHHH6xIIIIIIIII", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"", 0x3E, 3, 0xFFFE, 9, 6, 0, fat_count,
        directory_start, 0, 4096, mini_fat_start, -(-len(mini_fat) // 128), END, 0,
    )  # fmt: skip
    sheets = [fat_at + i if i < fat_count else FREE for i in range(109)]
    return header + struct.pack("<109I", *sheets) + b"".join(sectors) + struct.pack(f"<{len(fat)}I", *fat)


def _chain(data: bytes, sectors: list[bytes], fat: list[int], filler: bytes = b"\0") -> int:
    start = len(sectors)
    count = -(-len(data) // 512)
    sectors += [data[i * 512 : (i + 1) * 512].ljust(512, filler) for i in range(count)]
    fat += [*range(start + 1, start + count), END]
    return start


def _directory_entry(
    names: list[str], number: int, streams: dict[str, bytes], starts: dict[str, int], mini_start: int, mini_size: int
) -> bytes:
    name = names[number]
    parent = "" if number == 0 else name
    children = [i for i, other in enumerate(names) if i and other.rpartition("/")[0] == parent]
    child = children[0] if children and name not in streams else FREE
    siblings = [i for i, other in enumerate(names) if i and other.rpartition("/")[0] == name.rpartition("/")[0]]
    after = [i for i in siblings if i > number] if number else []
    title = (name if number == 0 else name.rpartition("/")[2]).encode("utf-16-le") + b"\0\0"
    kind = 5 if number == 0 else 2 if name in streams else 1
    start, size = (mini_start, mini_size) if number == 0 else (starts.get(name, 0), len(streams.get(name, b"")))
    right = after[0] if after else FREE
    return struct.pack(
        "<64sHBBIII16sIQQIQ", title.ljust(64, b"\0"), len(title), kind, 1, FREE, right, child, b"", 0, 0, 0, start, size
    )
