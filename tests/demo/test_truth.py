"""The verdict finds whatever differs between the planted truth and a ledger, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sheaf.corpus.schema import DECISIONS, LEDGER, QUARANTINE
from sheaf.demo.truth import Planted, Truth, compare, key_of

A, B, SHORT = key_of("a long text"), key_of("another long text"), key_of("short")
TRUTH = Truth(
    ("files", "mail"),
    (
        Planted("files", "a.txt", 100, (A, SHORT), (SHORT,)),
        Planted("files", "bad.jsonl", 50, (B,), reasons={"bad-json": 2}, lost=20),
        Planted("mail", "box.mbox", 300, (A, B, "~page")),
    ),
)
Row = dict[str, Any]


def row(source: str, path: str, size: int, dropped: int, lost: int, *counts: int) -> Row:
    names = ("records", "kept", "duplicate", "dropped", "quarantined")
    accounts = {"kept_bytes": size - dropped - lost, "dropped_bytes": dropped, "quarantined_bytes": lost}
    described = dict.fromkeys(("uri", "version", "digest", "media", "notes"), "")
    return {
        "source": source,
        "path": path,
        "size": size,
        **accounts,
        **described,
        **dict(zip(names, counts, strict=True)),
    }


def region(path: str, reason: str) -> Row:
    return {"source": "files", "path": path, "bytes": 10, "reason": reason} | dict.fromkeys(
        ("uri", "version", "member", "locator", "detail"), ""
    )


class Ledger:
    """A ledger that agrees with TRUTH, before a test changes it."""

    def __init__(self) -> None:
        self.items = [
            row("files", "a.txt", 100, 30, 0, 2, 1, 0, 1, 0),
            row("files", "bad.jsonl", 50, 0, 20, 1, 1, 0, 0, 2),
            row("mail", "box.mbox", 300, 200, 0, 3, 1, 2, 0, 0),
        ]
        self.regions = [region("bad.jsonl", "bad-json"), region("bad.jsonl", "bad-json")]
        self.ids = {A: True, B: True, SHORT: False, key_of("main text of the page"): True}

    def compare(self, folder: Path) -> list[str]:
        pq.write_table(pa.Table.from_pylist(self.items, schema=LEDGER), folder / "ledger.parquet")
        pq.write_table(pa.Table.from_pylist(self.regions, schema=QUARANTINE), folder / "quarantine.parquet")
        decided = [
            {"id": bytes.fromhex(i), "source": 0, "shard": 0, "row": 0, "kept": kept, "reason": "", "occurrences": 1}
            for i, kept in self.ids.items()
        ]
        pq.write_table(pa.Table.from_pylist(decided, schema=DECISIONS), folder / "decisions.parquet")
        return compare(TRUTH, folder)


def test_a_ledger_that_agrees_has_no_mismatch(tmp_path: Path) -> None:
    assert Ledger().compare(tmp_path) == []


def _lose_item(ledger: Ledger) -> None:
    del ledger.items[0]


def _list_twice(ledger: Ledger) -> None:
    ledger.items.append(ledger.items[2])


def _add_item(ledger: Ledger) -> None:
    ledger.items.append(row("mail", "unknown", 1, 0, 0, 0, 0, 0, 0, 0))


def _lose_byte(ledger: Ledger) -> None:
    ledger.items[0]["kept_bytes"] -= 1


def _change_size(ledger: Ledger) -> None:
    ledger.items[0]["size"] += 1
    ledger.items[0]["kept_bytes"] += 1


def _quarantine_less(ledger: Ledger) -> None:
    ledger.items[1]["quarantined_bytes"] -= 1
    ledger.items[1]["kept_bytes"] += 1


def _miss_duplicate(ledger: Ledger) -> None:
    ledger.items[2]["duplicate"], ledger.items[2]["kept"] = 1, 2


def _other_reason(ledger: Ledger) -> None:
    ledger.regions[0]["reason"] = "undecodable"


def _quarantine_more(ledger: Ledger) -> None:
    ledger.regions.append(region("a.txt", "unsupported"))


def _quarantine_unknown(ledger: Ledger) -> None:
    ledger.regions.append(region("elsewhere.txt", "unsupported"))


def _lose_text(ledger: Ledger) -> None:
    del ledger.ids[B]


def _keep_short_text(ledger: Ledger) -> None:
    ledger.ids[SHORT] = True


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_lose_item, "a.txt was planted but is not in the ledger"),
        (_list_twice, "box.mbox is in the ledger 2 times"),
        (_add_item, "unknown is in the ledger but was not planted"),
        (_lose_byte, "100 bytes in, 99 accounted for"),
        (_change_size, "100 bytes planted, 101 in the ledger"),
        (_quarantine_less, "20 bytes are broken, 19 quarantined"),
        (_miss_duplicate, "mail: duplicate should be 2, is 1"),
        (_other_reason, "bad.jsonl: quarantined should be {'bad-json': 2}"),
        (_quarantine_more, "a.txt: quarantined should be nothing"),
        (_quarantine_unknown, "elsewhere.txt is quarantined (unsupported) but was not planted"),
        (_lose_text, "bad.jsonl: a text is not in the corpus as it was planted"),
        (_keep_short_text, "a.txt: a text is not in the corpus as it was planted"),
    ],
)
def test_every_difference_is_named(change: Callable[[Ledger], None], said: str, tmp_path: Path) -> None:
    ledger = Ledger()
    change(ledger)
    assert any(said in sentence for sentence in ledger.compare(tmp_path))
