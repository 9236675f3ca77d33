"""One task of a survey: read the beginnings of some items in the sandbox, and say what they are, never what they hold.

What comes back is one small object an item: type, encoding, records, letters, languages, kinds of personal data by
number, licences, digests of records and of the item's ends, and why parts of it were refused. Cost: parsing `look`
bytes of text an item.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import zstandard

from sheaf import privacy
from sheaf.corpus.reading import USUAL, Manner, parse_options
from sheaf.engine.base import Json, Task
from sheaf.errors import TryAgain
from sheaf.formats.sandbox import ItemInput, kept_sandbox
from sheaf.prepare import language, score
from sheaf.recipe import Limits, Recipe, SourceSpec
from sheaf.scan.licences import licences
from sheaf.sources.ahead import Ahead
from sheaf.sources.base import Item, ItemChanged, ItemRefused, ItemUnavailable
from sheaf.sources.registry import open_source

GROUP = 64  # items open at once
ENDS = 64 << 10  # bytes at either end of an item that its digest is made of, for items that are larger
LANGUAGE_RECORDS, LANGUAGE_CHARACTERS = 20, 400  # of an item: what a language is told by
PRIVATE_CHARACTERS = 50_000  # of an item
MOST_IDS = 500  # of an item
ITEM_BYTES = 2000  # which take about as long as opening and closing an item


def task(recipe: Recipe, spec: SourceSpec, items: Sequence[tuple[Item, int]], manner: Manner = USUAL) -> Task:
    """items: with how many bytes of text to read of each. manner: how all of them are read."""
    return Task(
        function="sheaf.scan.look:look_at",
        arguments={
            "source": spec.model_dump(mode="json", by_alias=True),
            "limits": (manner.limits or recipe.prepare.limits).model_dump(mode="json"),
            "mojibake": recipe.prepare.mojibake,
            "manner": manner.as_json(),
            "items": [[look, x.path, x.uri, x.version, x.size, x.media, x.about] for x, look in items],
        },
        label=f"look at {len(items)} items of {spec.name}",
        weight=len(items),
    )


def look_at(source: Json, limits: Json, mojibake: bool, manner: Json, items: list[list[Any]]) -> Json:
    """{"items": [what is known of each, in order]}; {"failed": why} for one not to be had."""
    spec = SourceSpec.model_validate(source)
    listed = [(look, Item(spec.name, *fields)) for look, *fields in items]
    plain = parse_options(spec, mojibake=mojibake, manner=Manner.from_json(manner))
    found: list[Json] = []
    sandbox = kept_sandbox(Limits.model_validate(limits))
    sandbox.level()  # starting it is no part of the time that parsing takes
    with Ahead(open_source(spec), [item for _, item in listed]) as ahead:
        for look, group in _groups(listed):
            options = replace(plain, sample_bytes=look)
            with ExitStack() as stack:
                opened = [_open(ahead, item, stack) for item in group]
                files = [(i, file) for i, file in enumerate(opened) if not isinstance(file, str)]
                inputs = [
                    ItemInput(file, group[i].path, os.fstat(file.fileno()).st_size, group[i].media, group[i].about)
                    for i, file in files
                ]
                begun = time.perf_counter()
                parsed = sandbox.parse(inputs, options)
                seconds = time.perf_counter() - begun
                described = _describe(inputs, parsed.records, parsed.regions, parsed.items)
                known = iter(_timed(described, seconds))
                found += [{"failed": file} if isinstance(file, str) else next(known) for file in opened]
    return {"items": found}


def _groups(listed: list[tuple[int, Item]]) -> Iterator[tuple[int, list[Item]]]:
    """Neighbours of which as much is to be read, a few at a time."""
    for look, alike in groupby(listed, key=lambda pair: pair[0]):
        items = [item for _, item in alike]
        yield from ((look, items[start : start + GROUP]) for start in range(0, len(items), GROUP))


def _open(ahead: Ahead, item: Item, stack: ExitStack) -> BinaryIO | str:
    try:
        return stack.enter_context(ahead.open_item(item))
    except (ItemChanged, ItemUnavailable, ItemRefused, TryAgain) as error:
        return privacy.without_secrets(str(error))[:300]


def _timed(described: list[Json], seconds: float) -> list[Json]:
    """With the share of the time that parsing them together took: by their bytes, and as if each had some more."""
    whole = sum(known["read"] + ITEM_BYTES for known in described)
    return [{**known, "seconds": seconds * (known["read"] + ITEM_BYTES) / whole} for known in described]


def _describe(inputs: list[ItemInput], records: pa.Table, regions: pa.Table, about: pa.Table) -> list[Json]:
    owner = records["item"].to_numpy()
    bounds = np.searchsorted(owner, np.arange(len(inputs) + 1))
    refused: dict[int, list[tuple[str, str, int]]] = {}
    columns = (regions[c].to_pylist() for c in ("item", "reason", "detail", "bytes"))
    for item, reason, detail, size in zip(*columns, strict=True):
        refused.setdefault(item, []).append((reason, privacy.hidden(detail), size))
    medias, notes = about["media"].to_pylist(), privacy.hidden_column(about["notes"]).to_pylist()
    described: list[Json] = []
    for n, given in enumerate(inputs):
        lost = refused.get(n, [])
        unread = sum(size for reason, _, size in lost if reason == "sampled")
        described.append(
            {
                **{"size": given.size, "read": given.size - unread, "ends": _ends(given.file, given.size)},
                **{"media": medias[n], "notes": notes[n]},
                "refused": [list(p) for p in sorted({(why, what) for why, what, _ in lost if why != "sampled"})],
                "lost": _by_reason(lost),
                **_contents(records.slice(int(bounds[n]), int(bounds[n + 1] - bounds[n]))),
            }
        )
    return described


def _by_reason(lost: list[tuple[str, str, int]]) -> dict[str, int]:
    """Bytes that are refused, by reason."""
    found: Counter[str] = Counter()
    for reason, _, size in lost:
        found[reason] += size
    del found["sampled"]
    return dict(found)


def _contents(rows: pa.Table) -> Json:
    text = rows["text"]
    characters = pc.utf8_length(text).to_numpy()
    joined = _first(text, PRIVATE_CHARACTERS)
    seen = max(len(joined), 1)
    return {
        "records": len(rows),
        "kinds": dict(Counter(rows["kind"].to_pylist())),
        "inner": dict(Counter(rows["media"].to_pylist())),
        "encodings": dict(Counter(x for x in rows["encoding"].to_pylist() if x)),
        "characters": int(characters.sum()),
        "text_bytes": _sum(pc.binary_length(text)),
        "payload_bytes": _sum(pc.binary_length(rows["payload"])),
        "packed_bytes": len(zstandard.ZstdCompressor(1).compress(joined.encode())) * int(characters.sum()) // seen,
        "languages": _languages(text),
        "privacy": {kind: n * int(characters.sum()) / seen for kind, n in privacy.counts(joined).items()},
        "licences": sorted(licences(joined)),
        "ids": [i[:8].hex() for i in rows["id"].slice(0, MOST_IDS).to_pylist()],
    }


def _first(text: pa.ChunkedArray, most: int) -> str:
    """The beginning of the texts, joined."""
    parts: list[str] = []
    have = 0
    for value in text:
        part = value.as_py()[: most - have]
        parts.append(part)
        have += len(part)
        if have >= most:
            break
    return "\n".join(parts)


def _languages(text: pa.ChunkedArray) -> dict[str, int]:
    """Characters by language, of some records of the item; `prepare` names the same."""
    sample = pc.utf8_slice_codeunits(text.slice(0, LANGUAGE_RECORDS), 0, LANGUAGE_CHARACTERS)
    codes, _ = language.classify(*score.bytes_of(sample.combine_chunks().cast(pa.large_string())))
    found: Counter[str] = Counter()
    for value, code in zip(sample.to_pylist(), codes.to_pylist(), strict=True):
        if code and sum(c.isalpha() for c in value) >= 20:
            found[code] += len(value)
    return dict(found)


def _ends(file: BinaryIO, size: int) -> str:
    """Digest of an item's size and its first and last bytes: equal for copies, and hardly ever for others."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=12)
    digest.update(os.pread(file.fileno(), 2 * ENDS if size <= 2 * ENDS else ENDS, 0))
    if size > 2 * ENDS:
        digest.update(os.pread(file.fileno(), ENDS, size - ENDS))
    return digest.hexdigest()


def _sum(column: Any) -> int:
    return int(pc.sum(column).as_py() or 0)
