"""Items from bytes, and one sandbox for all tests that do not break it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sheaf.formats.sandbox import ItemInput, Parsed, ParseOptions, Sandbox
from sheaf.recipe import Limits

Row = dict[str, Any]


class Outcome:
    """What became of one item, as Python rows."""

    def __init__(self, parsed: Parsed, size: int) -> None:
        self.records: list[Row] = parsed.records.to_pylist()
        self.regions: list[Row] = parsed.regions.to_pylist()
        (self.item,) = parsed.items.to_pylist()
        self.size = size
        self.texts: list[str] = [r["text"] for r in self.records]
        self.reasons: list[str] = [r["reason"] for r in self.regions]
        self.members: list[str] = [r["member"] for r in self.records]


def unaccounted(parsed: Parsed, sizes: list[int]) -> list[int]:
    """For each item, the bytes that the ledger has too many or too few."""
    total = -np.array(sizes, np.int64)
    for table, column in ((parsed.records, "bytes"), (parsed.regions, "bytes"), (parsed.items, "structure_bytes")):
        np.add.at(total, table["item"].to_numpy(), table[column].to_numpy())
    return [int(n) for n in total]


def parse_files(sandbox: Sandbox, contents: list[tuple[str, bytes]], options: ParseOptions) -> Parsed:
    with contextlib.ExitStack() as stack:
        items: list[ItemInput] = []
        for name, data in contents:
            file = stack.enter_context(tempfile.TemporaryFile())
            file.write(data)
            file.flush()
            items.append(ItemInput(file, name, len(data)))
        return sandbox.parse(items, options)


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(Limits(seconds=30)) as it:
        yield it


@pytest.fixture
def read(sandbox: Sandbox) -> Callable[..., Outcome]:
    """read(name, data, text=…, key=…, limits=…): one item through the sandbox, its bytes checked."""

    def run(name: str, data: bytes, limits: Limits | None = None, **options: Any) -> Outcome:
        if limits is None:
            parsed = parse_files(sandbox, [(name, data)], ParseOptions(**options))
        else:
            with Sandbox(limits) as own:
                parsed = parse_files(own, [(name, data)], ParseOptions(**options))
        assert unaccounted(parsed, [len(data)]) == [0]
        return Outcome(parsed, len(data))

    return run


@pytest.fixture(scope="session")
def testdata() -> Path:
    """The folder of other projects' test files; it is no part of this repository."""
    default = Path(__file__).resolve().parents[3] / "shared" / "testdata"
    folder = Path(os.environ.get("SHEAF_TESTDATA", default))
    if not folder.is_dir():
        pytest.skip(f"no test files at {folder}; set SHEAF_TESTDATA")
    return folder
