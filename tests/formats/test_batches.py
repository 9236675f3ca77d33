"""What is read many records at a time gives what the same bytes give one record at a time."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sheaf.formats import fast, kernel_rows, rows, stream
from sheaf.formats import normalise as normalising
from sheaf.formats.charge import Int64
from sheaf.formats.item import ItemResult, read_item
from sheaf.formats.normalise import normalise, normalise_all
from sheaf.formats.piece import ParseOptions, ParserLimits
from sheaf.formats.settle import Settled
from sheaf.recipe import Limits

USUAL = ParseOptions()
LIMITS = ParserLimits(**Limits().model_dump())


class Sink:
    """All that an item gives, record by record, and how many of them came in batches, and from kernels."""

    def __init__(self) -> None:
        self.records: list[tuple[Any, ...]] = []
        self.batched = self.compiled = 0

    def record(
        self, kind: str, text: bytes | memoryview, messages: str, payload: bytes,
        meta: str, member: str, locator: str, media: str, encoding: str, repairs: str, stream: int, weight: int,
    ) -> None:  # fmt: skip
        row = (kind, bytes(text).decode(), messages, payload, meta, member, locator, media, encoding, repairs)
        self.records.append((*row, stream, weight))

    def batch(
        self, ready: Settled, starts: Int64, ends: Int64, member: str, media: str, encoding: str, stream: int
    ) -> None:
        self.batched += len(starts)
        for column in (ready.texts, ready.metas, ready.locators):
            column.validate(full=True)
        repairs = ready.repairs or [""] * len(starts)
        columns = (ready.texts.to_pylist(), ready.metas.to_pylist(), ready.locators.to_pylist(), repairs)
        assert ready.text_bytes == sum(len(text.encode()) for text in columns[0])
        for text, meta, locator, repaired, weight in zip(*columns, (ends - starts).tolist(), strict=True):
            row = ("text", text, "", b"", meta, member, locator, media, encoding, repaired)
            self.records.append((*row, stream, weight))


def read(data: bytes, name: str, options: ParseOptions, limits: ParserLimits, about: str) -> tuple[Sink, ItemResult]:
    sink = Sink()
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return sink, read_item(file.fileno(), len(data), name, "", about, options, limits, sink)


def compare(
    data: bytes, name: str, options: ParseOptions = USUAL, limits: ParserLimits = LIMITS, about: str = ""
) -> Sink:
    """Read it all three ways: by kernels, by batches, and one by one; everything must be equal. What the way by kernels
    gave."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "plain", lambda options: False)
        single, expected = read(data, name, options, limits, about)
    assert single.batched == 0
    batched, result = read(data, name, options, limits, about)
    assert batched.records == single.records
    assert result == expected
    columns = 0

    def counted(room: Any, rows: int, start: int, limit: int) -> Any:
        nonlocal columns
        columns += rows
        return made(room, rows, start, limit)

    made = kernel_rows._Room.columns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "worth", lambda size: True)
        patch.setattr(kernel_rows._Room, "columns", counted)
        sink, result = read(data, name, options, limits, about)
    assert sink.records == single.records
    assert result == expected
    sink.compiled = columns
    return sink


def as_json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # integers of more than 64 bits
        return b'{"text": "number", "n": 98765432109876543210}'


SCALARS = st.one_of(
    st.text(max_size=12), st.integers(), st.floats(allow_nan=False), st.booleans(), st.none(), st.just("\x00\x85 é")
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner))
NAMES = st.sampled_from(["text", "content", "body", "id", "ключ"])
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)
TEXTS = st.builds(lambda text, more: {**more, "text": text}, st.text(min_size=1, max_size=30), OBJECTS)
ODD_LINES = [
    b"", b" \t", b"\xff\xfe broken", b'{"text": "\xe9"}', b'{"text": "a\\ud800"}', b'{"text": NaN}', b'"alone"',
    b"[1,2]", b"null", b'{"text": "a", "text": "b"}', b'{"text": 123456789012345678901234567890}', b'{"text": "a"',
    b"\x00",
    b'{"text": "tab\\tnul\\u0000"}', b'{"text": "", "body": "b"}', b'{"text": "   "}',
    b'{"text": "\xc3\xa9 \xc3\x83\xc2\xa9"}',
    b'{"text": "x", "n": ' + b"[" * 300 + b"]" * 300 + b"}", b'\xef\xbb\xbf{"text": "mark"}', b'{"text": "cr"}\r',
    b'{"id": 1e400, "text": "infinite"}', b'{"text": "\\ufeffbom"}', b'{"text": "new\\nline  "}',
]  # fmt: skip
LINES = st.one_of((TEXTS | OBJECTS).map(as_json), st.sampled_from(ODD_LINES))
ENDS = st.sampled_from([b"\n", b"\n", b"\r\n"])


def lines(lines: list[tuple[bytes, bytes]], last: bool) -> bytes:
    data = b"".join(line + end for line, end in lines)
    return data if last else data.removesuffix(b"\n")


FILES = st.builds(lines, st.lists(st.tuples(LINES, ENDS), max_size=12), st.booleans())
SMALL_BLOCKS = st.sampled_from([7, 40, 100, 1 << 18])


def with_blocks(size: int, run: Callable[[], object]) -> None:
    """Blocks of so many bytes, so that their borders fall anywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BLOCK", size)
        patch.setattr(rows, "AT_ONCE", size)
        run()


@settings(max_examples=150, deadline=None)
@given(FILES, SMALL_BLOCKS, st.sampled_from(["", "text", "id", "{id}: {text}"]), st.booleans())
@example(b"\xef\xbb\xbf" + b'{"text": "a"}\n' * 3, 40, "", False)
def test_json_lines_in_batches_are_the_same_as_line_by_line(data: bytes, block: int, text: str, about: bool) -> None:
    options = ParseOptions(text=text or None, format="application/x-ndjson")
    place = '{"text": "over", "label": "x"}' if about else ""
    with_blocks(block, lambda: compare(data, "a.jsonl", options, about=place))


def test_ordinary_json_lines_come_in_batches() -> None:
    data = b"".join(orjson.dumps({"id": n, "text": f"Line {n} é"}) + b"\n" for n in range(5000))
    assert compare(data, "a.jsonl").batched == 5000


def test_a_bad_line_costs_its_batch_and_no_record() -> None:
    rows = [orjson.dumps({"id": n, "text": f"Line {n}" * 10}) for n in range(9000)]
    rows[4000] = b'{"id": 4000, "text": '
    sink = compare(b"\n".join(rows), "a.jsonl")
    assert len(sink.records) == 8999
    assert 3000 < sink.batched < 8999


def test_the_limit_of_records_holds_inside_a_batch() -> None:
    data = b"".join(b'{"text": "%d"}\n' % n for n in range(100))
    limits = ParserLimits(**Limits(records=42).model_dump())
    assert len(compare(data, "a.jsonl", limits=limits).records) == 42


def test_a_line_longer_than_a_record_may_be_is_refused_between_batches() -> None:
    limits = ParserLimits(**Limits(record_mb=1).model_dump())
    row = b'{"text": "short"}\n'
    data = row * 3 + b'{"text": "' + b"x" * (3 << 19) + b'"}\n' + row * 4
    sink = compare(data, "a.jsonl", limits=limits)
    assert len(sink.records) == 7
    assert sink.batched >= 4


LEADS = st.characters(max_codepoint=0x2600) | st.sampled_from("ÂÃâĂРСВГ√¬‚∆├┬Γ╨╤\x85")


@settings(deadline=None)
@given(st.lists(LEADS, max_size=6).map("".join))
def test_tables_find_mojibake_where_the_regular_expression_does(text: str) -> None:
    for sample in (text, "", "plain " * 400 + text, text + " plain" * 400):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(normalising, "_SHORT", 0)
            long = normalise(sample)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(normalising, "_SHORT", 1 << 30)
            assert normalise(sample) == long


CELLS = st.sampled_from(
    ["a", "two words", "", " ", "é", "7", '"quoted"', '"a, b"', '"say ""no"""', '"open', 'in"side', '"a"b',
     '"two\nlines"', "\t", "x;y", "c\rd", "\u2028", "\x00", '""', "Ã©"]
)  # fmt: skip
TABLE_LINES = st.one_of(
    st.lists(CELLS, min_size=3, max_size=3), st.lists(CELLS, min_size=3, max_size=3), st.lists(CELLS, max_size=4)
)
TABLES = st.builds(
    lambda head, lines, end, last: (head + "".join(",".join(x) + end for x in lines) + last).encode(),
    st.sampled_from(["id,text,lang\n", "id,text,lang\r\n", "\ufeffid,text\n", "", "title,body,text\n1,2,3\n"]),
    st.lists(TABLE_LINES, max_size=14),
    st.sampled_from(["\n", "\n", "\r\n"]),
    st.sampled_from(["", "a,b,c", "\n\n", '9,"x']),
)


@settings(max_examples=250, deadline=None)
@given(TABLES, SMALL_BLOCKS, st.sampled_from(["", "text", "id"]), st.sampled_from([b"", b"\xff,bad,x\n", b"1,a,b\n"]))
def test_tables_in_batches_are_the_same_as_row_by_row(data: bytes, block: int, text: str, more: bytes) -> None:
    options = ParseOptions(text=text or None, format="text/csv")
    with_blocks(block, lambda: compare(data + more, "a.csv", options))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("cell", ["plain é {}", '"quoted, ""{}"""'])
def test_ordinary_tables_come_in_batches_but_for_their_first_lines(end: str, cell: str) -> None:
    data = "id,text,lang" + end + "".join(f"{n},{cell.format(n)},en{end}" for n in range(30_000))
    sink = compare(data.encode(), "a.csv")
    assert len(sink.records) == 30_000
    assert sink.batched > 10_000


@settings(deadline=None)
@given(st.lists(st.text() | st.sampled_from(["", "a\r\nb", "Ã©tÃ©", "\x07", "\ud800", "x  \n"])), st.booleans())
def test_texts_are_normalised_together_as_alone(texts: list[str], mojibake: bool) -> None:
    together = normalise_all(texts, mojibake)
    alone = [normalise(text, mojibake) for text in texts]
    assert list(zip(*together, strict=True)) == alone


@settings(deadline=None)
@given(st.binary(max_size=400), st.integers(1, 60), st.integers(1, 50))
def test_blocks_hold_every_byte_once_and_end_with_lines(data: bytes, block: int, limit: int) -> None:
    def run() -> None:
        at = 0
        for start, end, content in stream.from_file(io.BytesIO(data)).blocks(limit):
            assert start == at
            at = end
            if content is None:
                assert data[start:end].count(b"\n") <= 1
                assert end - start > limit
            else:
                assert content == data[start:end]
                assert content.endswith(b"\n") or end == len(data)
        assert at == len(data)

    with_blocks(block, run)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=8).map(b"\n".join), st.integers(1, 60), st.integers(1, 50))
def test_lines_are_those_of_a_split_whatever_the_blocks(data: bytes, block: int, limit: int) -> None:
    def run() -> None:
        found = [line for _, _, line in stream.from_file(io.BytesIO(data)).lines(limit)]
        assert found == [line if len(line) <= limit else None for line in data.splitlines(keepends=True)]

    data = data.replace(b"\r", b"r").translate(None, b"\x0b\x0c\x1c\x1d\x1e\x85")
    with_blocks(block, run)
