"""One item through its containers, down to records: detection, parsing, normalising, charging.

Recursion follows the containers (limits.depth bounds it); each member's stream is read while its container's parser
waits. Records go to a `Sink` as they come, each with its stream and its weight there; a `Node` for every stream stays
until the item's end, when the bytes of the item are split over them. A pure function of the item's bytes, its suffix,
media hint, options and limits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from sheaf.formats import encoding, labels
from sheaf.formats.charge import Int64, Node, charge
from sheaf.formats.detect import Kind, claims_text, detect
from sheaf.formats.guess import Guess
from sheaf.formats.member_path import join
from sheaf.formats.normalise import normalise
from sheaf.formats.opened import Opened, open_item
from sheaf.formats.piece import Batch, Columns, Context, Member, ParseOptions, ParserLimits, Record, Refused, Region
from sheaf.formats.settle import Settled, settled
from sheaf.formats.stream import BLOCK, Budget, Stream, from_file
from sheaf.formats.table import BY_MEDIA

MERGE_AFTER = 1000  # regions of one item, after which neighbours with the same reason become one
NOTES = 5


@dataclass(slots=True)
class RegionRow:
    member: str
    start: int
    end: int  # below start: not known
    reason: str
    detail: str
    place: dict[str, Any] | None = None  # what its format calls the place, instead of bytes

    @property
    def locator(self) -> str:
        if self.place is not None:
            return orjson.dumps(self.place).decode()
        return f'{{"bytes":[{self.start},{self.end}]}}' if self.end >= self.start else "{}"


@dataclass(slots=True)
class ItemResult:
    digest: str
    media: str
    notes: str
    structure: int
    cost: list[int]  # of each stream, and
    whole: list[int]  # its weight: `charge.Charges`
    regions: list[RegionRow]
    region_bytes: list[int]


class Sink(Protocol):
    """Takes the item's records in order; a batch is of the kind "text", has its bytes as locators, and as weights."""

    def record(
        self, kind: str, text: bytes | memoryview, messages: str, payload: bytes,
        meta: str, member: str, locator: str, media: str, encoding: str, repairs: str, stream: int, weight: int,
    ) -> None: ...  # fmt: skip

    def batch(
        self, ready: Settled, starts: Int64, ends: Int64, member: str, media: str, encoding: str, stream: int
    ) -> None: ...


def read_item(
    fd: int, size: int, name: str, media: str, about: str, options: ParseOptions, limits: ParserLimits, sink: Sink
) -> ItemResult:
    """Parse the item behind a descriptor. about: "" or a JSON object, what the place says of the item."""
    walk = _Walk(name, options, limits, sink, orjson.loads(about) if about else {})
    encoding.force(options.encoding)
    file: Opened | None = None
    try:
        file = open_item(fd, size)
        root, _ = walk.stream(from_file(file.file), "", name, media, 0)
    except _Enough as enough:
        return walk.sampled(size, min(enough.consumed, size))
    except Refused as refused:
        root = walk.node(1, walk.region("", 0, size, refused))
    if not walk.records and not walk.regions and walk.media != labels.MEDIA:
        root.add(1, walk.region("", 0, size, Refused("empty", "there is no member in it")))
    charges = charge(root, size, walk.streams, len(walk.regions), refused=not walk.records)
    notes = "; ".join(dict.fromkeys(walk.notes[:NOTES]))
    return ItemResult(
        file.digest() if file else "",
        walk.media,
        notes,
        charges.structure,
        charges.cost,
        charges.whole,
        walk.regions,
        charges.regions,
    )


@dataclass(slots=True)
class _Walk:
    name: str
    options: ParseOptions
    limits: ParserLimits
    sink: Sink
    about: dict[str, Any]
    media: str = ""
    notes: list[str] = field(default_factory=list)
    regions: list[RegionRow] = field(default_factory=list)
    records: int = 0
    sent: int = 0
    streams: int = 0
    budget: Budget = field(init=False)

    def __post_init__(self) -> None:
        limits = self.limits
        self.budget = Budget(limits.expanded_mb << 20, limits.ratio, limits.members)

    def stream(self, stream: Stream, path: str, name: str, media: str, depth: int) -> tuple[Node, int | None]:
        """What lies in a stream, and the target that takes the bytes of it which nobody read, if it was refused."""
        node = self.node()
        opened: list[tuple[Member, Node, int | None]] = []
        problem: Refused | None = None
        if self.options.excerpt and self.options.excerpt[0] == path:
            self._excerpt(stream, *self.options.excerpt[1:])
        try:
            self._pieces(stream, path, name, media, depth, node, opened)
        except Refused as refused:
            problem = _named(refused, name, media)
            if depth == 0 and problem is not refused:
                self.media = "application/octet-stream"
        _settle(opened, node)
        problem = stream.problem or problem
        target = None
        if problem is not None:
            start, end = node.reached, stream.position
            target = self.region(path, start, max(start, end) or -1, problem)
            node.add(max(end - start, 0 if start else 1), target)
        node.extent = max(stream.position, node.weight)
        return node, target

    def node(self, extent: int = 0, target: int | None = None) -> Node:
        """Of another stream; target: the region that all of it is."""
        node = Node(self.streams, extent)
        self.streams += 1
        if target is not None:
            node.add(extent, target)
        return node

    def region(self, member: str, start: int, end: int, refused: Refused, place: dict[str, Any] | None = None) -> int:
        """Note a refused region; its target number."""
        last = self.regions[-1] if len(self.regions) >= MERGE_AFTER and place is None else None
        if last and last.place is not None:
            last = None
        if last and last.member == member and last.reason == refused.reason and 0 <= last.start <= last.end == start:
            last.end = end
        else:
            self.regions.append(RegionRow(member, start, end, refused.reason, refused.detail, place))
        return ~(len(self.regions) - 1)

    def _excerpt(self, stream: Stream, start: int, length: int) -> None:
        while stream.position < start and stream.read(min(BLOCK, start - stream.position)):
            pass
        parts: list[bytes] = []
        while length > 0 and (block := stream.read(length)):
            parts.append(block)
            length -= len(block)
        self.sink.record("text", b"", "", b"".join(parts), "{}", "", "{}", "", "", "", 0, 0)
        raise _Enough(0)

    def sampled(self, size: int, consumed: int) -> ItemResult:
        """The answer for an item of which only the beginning was wanted."""
        self.region("", consumed, size, Refused("sampled", "only the beginning was read"))
        regions = [0] * (len(self.regions) - 1) + [size - consumed]
        return ItemResult("", self.media, "", consumed, [0] * self.streams, [1] * self.streams, self.regions, regions)

    def _pieces(
        self, stream: Stream, path: str, name: str, media: str, depth: int, node: Node,
        opened: list[tuple[Member, Node, int | None]],
    ) -> None:  # fmt: skip
        forced = BY_MEDIA[self.options.format] if self.options.format and depth == 0 else None
        kind = Kind(forced.media, forced) if forced else detect(stream, name, media, self.limits.document_bytes)
        if depth == 0:
            self.media = kind.media
        if stream.problem and not stream.peek(1):
            raise stream.problem
        if kind.note and len(self.notes) < NOTES:
            self.notes.append(f"{path}: {kind.note}" if path else kind.note)
        if kind.format is None:
            raise Refused("unsupported", kind.detail)
        context = Context(
            name, media, kind.media, self.options, self.limits, self.budget, depth, self.notes, self.about
        )
        names: dict[str, int] = {}
        for piece in kind.format.parser()(stream, context):
            _settle(opened, node)
            if isinstance(piece, Record):
                self._guessed(piece.encoding, path)
                self._record(piece, path, kind.media, node)
            elif isinstance(piece, (Batch, Columns)):
                self._guessed(piece.encoding, path)
                if not self._batch(piece, path, kind.media, node):
                    for record in piece.records():
                        self._record(record, path, kind.media, node)
            elif isinstance(piece, Region):
                node.reached = max(node.reached, piece.end)
                weight = piece.end - piece.start if piece.weight < 0 else piece.weight
                refused = Refused(piece.reason, piece.detail)
                node.add(weight, self.region(path, piece.start, piece.end, refused, piece.locator))
            else:
                try:
                    opened.append((piece, *self._member(piece, path, depth + 1, names)))
                except _Enough as enough:
                    before = node.weight
                    if piece.expected:
                        share = piece.weight * min(enough.consumed, piece.expected) // piece.expected
                    else:
                        share = max(0, stream.position - before)
                    raise _Enough(before + share) from None

    def _guessed(self, codec: str, path: str) -> None:
        if isinstance(codec, Guess) and len(self.notes) < NOTES:
            note = f"{codec} is a guess (confidence {codec.confidence:.2f})"
            note = f"{path}: {note}" if path else note
            if note not in self.notes:
                self.notes.append(note)

    def _record(self, piece: Record, path: str, media: str, node: Node) -> None:
        node.reached = max(node.reached, piece.end)
        self._normal(piece, path, media, node)
        if self.options.sample_bytes and self.sent >= self.options.sample_bytes:
            raise _Enough(node.weight)

    def _batch(self, piece: Batch | Columns, path: str, media: str, node: Node) -> bool:
        """Take all its records, as `_record` would; False, and none is taken, if one of them is no usual record."""
        n = len(piece.starts)
        if self.options.sample_bytes or self.records + n > self.limits.records:
            return False
        ready = settled(piece, self.about, self.options.mojibake)
        if ready is None:
            return False
        self.sink.batch(ready, piece.starts, piece.ends, path, media, piece.encoding, node.number)
        node.reached = max(node.reached, int(piece.ends[-1]))
        node.records += int((piece.ends - piece.starts).sum())
        self.records += n
        self.sent += ready.text_bytes
        return True

    def _normal(self, piece: Record, path: str, media: str, node: Node) -> None:
        weight = piece.end - piece.start if piece.weight < 0 else piece.weight
        if self.records >= self.limits.records:
            raise Refused("bomb", f"more than {self.limits.records:,} records")
        data, repairs = piece.normal, ""
        if not data:
            text, repairs = normalise(piece.text, self.options.mojibake)
            data = b"" if text.isspace() else text.encode()
        if piece.gaps:
            repairs = f"{repairs},lines" if repairs else "lines"
        if not piece.payload and not data:
            node.add(weight, self.region(path, piece.start, piece.end, Refused("empty", "no text"), piece.locator))
            return
        if piece.locator is None:
            locator = f'{{"bytes":[{piece.start},{piece.end}]}}'
        else:
            locator = orjson.dumps(piece.locator).decode()
        try:
            about = {**self.about, **(piece.meta or {})} if self.about else piece.meta
            meta = orjson.dumps(about).decode() if about else "{}"
            messages = b"" if piece.messages is None else orjson.dumps(piece.messages)
        except TypeError:
            refused = Refused("bad-json", "nested too deep to write")
            node.add(weight, self.region(path, piece.start, piece.end, refused, piece.locator))
            return
        self.sink.record(
            piece.kind, data, messages.decode(), piece.payload,
            meta, path, locator, media, piece.encoding, repairs, node.number, weight,
        )  # fmt: skip
        node.records += weight
        self.records += 1
        self.sent += len(data) + len(piece.payload)

    def _member(self, member: Member, path: str, depth: int, names: dict[str, int]) -> tuple[Node, int | None]:
        self.budget.open_member()
        inner = join(path, member.within, member.name, names)
        if depth > self.limits.depth:
            refused = Refused("bomb", f"more than {self.limits.depth} containers inside each other")
            target = self.region(inner, 0, -1, refused)
            return self.node(1, target), target
        outer = self.about
        self.about = {**outer, **member.about} if member.about else outer
        try:
            return self.stream(member.stream, inner, member.name, member.media, depth)
        finally:
            self.about = outer


class _Enough(Exception):
    """A survey has seen what it wanted. consumed: bytes of the stream that it took."""

    def __init__(self, consumed: int) -> None:
        super().__init__(consumed)
        self.consumed = consumed


def _settle(opened: list[tuple[Member, Node, int | None]], node: Node) -> None:
    """Charge the members whose container has been resumed, and let go of them: each holds a codec and its window."""
    for member, child, refusal in opened:
        node.add(member.weight, child)
        if member.rest:
            node.add(member.rest, child if refusal is None else refusal)
        node.reached = max(node.reached, member.end)
    opened.clear()


def _named(refused: Refused, name: str, media: str) -> Refused:
    """Bytes that are no text, and that nothing says should be: another type, not a damaged text."""
    binary = refused.reason == "undecodable" and ("NUL" in refused.detail or "control" in refused.detail)
    return Refused("unsupported", "unknown binary data") if binary and not claims_text(name, media) else refused
