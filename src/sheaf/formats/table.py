"""The formats that are read. A new one is one new file with a `parse(stream, context)` generator, and one line here.

A format is recognised by the magic bytes at the start, or by `looks`, which sees the beginning as text, in the order of
the table; suffixes only decide where content leaves it open (a table or plain text, Markdown or plain text).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from sheaf.formats import labels, ole, peek, zip_documents
from sheaf.formats.piece import Context, Pieces
from sheaf.formats.stream import Stream

Parser = Callable[[Stream, Context], Pieces]


@dataclass(frozen=True, slots=True)
class Format:
    """parse: "module:function" in this package, imported when first needed. looks: certain enough to overrule a suffix.
    may: for the formats of `suffixes`, whether the content allows it (default: any text)."""

    media: str
    parse: str
    suffixes: tuple[str, ...] = ()
    magic: tuple[bytes, ...] = ()
    looks: Callable[[peek.Peek], bool] | None = None
    may: Callable[[peek.Peek], bool] | None = None
    binary: bool = False

    def parser(self) -> Parser:
        return _imported(self.parse)


@functools.cache
def _imported(place: str) -> Parser:
    module, _, function = place.partition(":")
    return cast(Parser, getattr(import_module(f"sheaf.formats.{module}"), function))


FORMATS: list[Format] = [
    Format("application/gzip", "compressed:parse_gzip", (".gz", ".tgz"), (b"\x1f\x8b\x08",), binary=True),
    Format("application/x-bzip2", "compressed:parse_bzip2", (".bz2", ".tbz2"), peek.BZIP2, binary=True),
    Format("application/x-xz", "compressed:parse_xz", (".xz", ".txz"), (b"\xfd7zXZ\x00",), binary=True),
    Format("application/zstd", "compressed:parse_zstd", (".zst", ".tzst"), peek.ZSTD, binary=True),
    Format("application/epub+zip", "epub:parse", (".epub",), binary=True),
    Format("application/zip", "zip_archive:parse", (".zip",), (b"PK\x03\x04", b"PK\x05\x06"), binary=True),
    Format("application/x-ole-encrypted", "ole:parse_encrypted", binary=True),
    Format("application/x-ole-object", "ole:parse_object", binary=True),
    Format(zip_documents.DOCX, "docx:parse", (".docx", ".docm", ".dotx", ".dotm"), binary=True),
    Format(zip_documents.PPTX, "pptx:parse", (".pptx", ".pptm", ".ppsx", ".ppsm", ".potx", ".potm"), binary=True),
    Format(zip_documents.ODF, "opendocument:parse", (".odt", ".ott", ".odp", ".odg", ".sxw", ".sxi"), binary=True),
    Format(zip_documents.XLSX, "spreadsheet:parse_xlsx", (".xlsx", ".xlsm", ".xltx", ".xltm"), binary=True),
    Format(zip_documents.XLSB, "spreadsheet:parse_binary", (".xlsb",), binary=True),
    Format(zip_documents.ODS, "spreadsheet:parse_opendocument", (".ods", ".ots"), binary=True),
    Format("application/vnd.ms-excel", "spreadsheet:parse_binary", (".xls", ".xlt"), binary=True),
    Format(ole.DOC, "word_binary:parse", (".doc", ".dot"), binary=True),
    Format(ole.PPT, "powerpoint_binary:parse", (".ppt", ".pps", ".pot"), binary=True),
    Format(ole.MSG, "msg:parse", (".msg",), binary=True),
    Format("text/rtf", "rtf:parse", (".rtf",), (b"{\\rtf",), binary=True),
    Format("application/warc", "warc:parse_warc", (".warc",), (b"WARC/",), binary=True),
    Format("application/x-arc", "warc:parse_arc", (".arc",), (b"filedesc://",), looks=peek.is_arc, binary=True),
    Format("application/vnd.apache.parquet", "parquet:parse", (".parquet",), looks=peek.is_parquet, binary=True),
    Format("application/vnd.apache.arrow.file", "arrow_file:parse_file", (".arrow",), (b"ARROW1\0\0",), binary=True),
    Format(
        "application/vnd.apache.arrow.stream",
        "arrow_file:parse_stream",
        (".arrows",),
        looks=peek.is_arrow_stream,
        binary=True,
    ),
    Format("application/vnd.apache.feather", "arrow_file:parse_feather", (), (b"FEA1\0",), binary=True),
    Format("application/vnd.apache.orc", "orc:parse", (".orc",), looks=peek.is_orc, binary=True),
    Format("application/avro", "avro:parse", (".avro",), (b"Obj\x01",), binary=True),
    Format("application/x-7z-compressed", "seven_zip:parse", (".7z",), (b"7z\xbc\xaf\x27\x1c",), binary=True),
    Format("application/x-tar", "tar_archive:parse", (".tar",), looks=peek.is_tar, binary=True),
    Format("image/png", "image:parse", (".png",), (b"\x89PNG\r\n\x1a\n",), binary=True),
    Format("image/jpeg", "image:parse", (".jpg", ".jpeg"), (b"\xff\xd8\xff",), binary=True),
    Format("image/gif", "image:parse", (".gif",), (b"GIF87a", b"GIF89a"), binary=True),
    Format("image/tiff", "image:parse", (".tif", ".tiff"), (b"II*\0", b"MM\0*"), binary=True),
    Format("image/webp", "image:parse", (".webp",), looks=peek.is_webp, binary=True),
    Format("image/bmp", "image:parse", (".bmp",), looks=peek.is_bmp, binary=True),
    Format("audio/wav", "audio:parse", (".wav",), looks=peek.is_wav, binary=True),
    Format("audio/flac", "audio:parse", (".flac",), (b"fLaC",), binary=True),
    Format("audio/ogg", "audio:parse", (".ogg", ".oga", ".opus"), (b"OggS",), binary=True),
    Format("audio/mpeg", "audio:parse", (".mp3",), looks=peek.is_mp3, binary=True),
    Format(labels.MEDIA, "labels:parse", binary=True),
    Format("application/pdf", "pdf:parse", (".pdf",), (b"%PDF-",), looks=peek.is_pdf, binary=True),
    Format("application/mbox", "mail:parse_mbox", (".mbox",), looks=peek.is_mbox),
    Format("message/rfc822", "mail:parse_message", (".eml", ".mht"), looks=peek.is_message, may=peek.may_be_message),
    Format("text/html", "html:parse", (".html", ".htm", ".xhtml", ".shtml"), looks=peek.is_html),
    Format("application/x-ipynb+json", "notebook:parse", (".ipynb",), looks=peek.is_notebook),
    Format("application/x-ndjson", "json_lines:parse", (".jsonl", ".ndjson"), looks=peek.is_json_lines),
    Format("application/json", "json_document:parse", (".json", ".geojson"), looks=peek.is_json),
    Format("text/tab-separated-values", "csv_rows:parse", (".tsv", ".tab")),
    Format("text/csv", "csv_rows:parse", (".csv",), looks=peek.is_table),
    Format("text/vtt", "subtitles:parse_vtt", (".vtt",), looks=peek.is_vtt, may=peek.is_vtt),
    Format("application/x-subrip", "subtitles:parse_srt", (".srt",), looks=peek.is_srt, may=peek.may_be_srt),
    Format("application/yaml", "yaml_toml:parse_yaml", (".yaml", ".yml")),
    Format("application/toml", "yaml_toml:parse_toml", (".toml",)),
    Format("text/markdown", "text:parse", (".md", ".markdown", ".mdx")),
    Format("text/xml", "xml_text:parse", peek.XML_SUFFIXES, looks=peek.is_xml, may=peek.may_be_xml),
    Format("text/x-python", "text:parse", (".py", ".pyi", ".pyx")),
    Format("text/x-c", "text:parse", (".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".cu")),
    Format("text/x-java", "text:parse", (".java", ".kt", ".scala")),
    Format("text/javascript", "text:parse", (".js", ".mjs", ".cjs", ".jsx", ".ts", ".tsx")),
    Format("text/x-rust", "text:parse", (".rs",)),
    Format("text/x-go", "text:parse", (".go",)),
    Format("text/x-ruby", "text:parse", (".rb",)),
    Format("text/x-perl", "text:parse", (".pl", ".pm")),
    Format("text/x-shellscript", "text:parse", (".sh", ".bash", ".zsh")),
    Format("text/css", "text:parse", (".css", ".scss")),
    Format("text/x-sql", "text:parse", (".sql",)),
    Format("text/x-tex", "text:parse", (".tex", ".sty", ".bib")),
    Format("text/troff", "text:parse", tuple(f".{n}" for n in range(1, 10)), looks=peek.is_troff),
    Format("text/plain", "text:parse", (".txt", ".text", ".log", ".rst")),
]
BY_MEDIA: dict[str, Format] = {f.media: f for f in FORMATS}
BY_SUFFIX: dict[str, Format] = {suffix: f for f in FORMATS for suffix in f.suffixes}
TEXT = BY_MEDIA["text/plain"]


def register(extra: Format) -> None:
    """Only for tests: put a format before the others, in this process. No data, recipe or environment leads here."""
    FORMATS.insert(0, extra)
    BY_MEDIA[extra.media] = extra
    BY_SUFFIX.update(dict.fromkeys(extra.suffixes, extra))
