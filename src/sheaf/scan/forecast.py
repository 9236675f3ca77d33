"""What `prepare` will cost, from a survey: tokens, disk, memory and time. An estimate, with its error beside it.

Tokens follow from letters: a byte-level BPE of 16,384 entries spends about one token on 4.2 ASCII characters of prose
or code, and one on 2 bytes of other scripts. Time is what parsing the sample took, scaled kind by kind, plus what
follows parsing at the rates below. A forecast of training is `sheaf plan`'s, not this one's.
"""

from __future__ import annotations

from collections.abc import Sequence

from sheaf.engine.base import Json
from sheaf.scan.estimate import NOTHING, total
from sheaf.scan.sample import Stratum

ASCII_PER_TOKEN, OTHER_BYTES_PER_TOKEN = 4.2, 2.0
# After parsing, bytes of text a second on one core: normalised, hashed, written, scored, encoded.
REST_BYTES_PER_SECOND = 6e6
ITEM_SECONDS = 40e-6  # listing, keys, ledger
START_SECONDS = 3.0  # workers, sandboxes, tokenizer
# Memory of all processes together, as bench/prepare_scale.py measured it: the main process, what it keeps of a record,
# a worker with its sandbox, and the text that a worker has at hand, several times over, up to a full shard.
MAIN_BYTES, BYTES_PER_RECORD, WORKER_BYTES = 250e6, 120, 330e6
TEXT_COPIES, MOST_HELD = 2.5, 160e6
TIME_ERROR, TOKEN_ERROR, MEMORY_ERROR = 0.5, 0.25, 0.3  # of the value: what machines and texts differ by


def tokens_in(known: Json) -> float:
    """Tokens of what one item of the sample showed."""
    other = known["text_bytes"] - known["characters"]  # bytes above one a character: what is not ASCII, roughly
    return max(known["characters"] - other, 0) / ASCII_PER_TOKEN + 2 * other / OTHER_BYTES_PER_TOKEN


def forecast(strata: Sequence[tuple[Stratum, list[Json]]], *, items: int, workers: int) -> Json:
    """{"tokens", "text_bytes", "disk_bytes", "memory_bytes", "seconds"}, each {"value", "error"}; workers."""
    tokens = text = disk = parsing = records = NOTHING
    for stratum, looks in strata:
        known = [x for x in looks if "failed" not in x]
        seen, sizes = [x["read"] for x in known], [x["size"] for x in known]
        of = (stratum.items, stratum.bytes)
        tokens += total([tokens_in(x) for x in known], seen, sizes, *of)
        text += total([x["text_bytes"] for x in known], seen, sizes, *of)
        disk += total([x["packed_bytes"] + x["payload_bytes"] + 2 * tokens_in(x) for x in known], seen, sizes, *of)
        records += total([x["records"] for x in known], seen, sizes, *of)
        parsing += total([x["seconds"] for x in known], seen, sizes, *of)
    work = parsing.value + text.value / REST_BYTES_PER_SECOND
    needed = START_SECONDS + items * ITEM_SECONDS + work / workers
    held = workers * WORKER_BYTES + min(TEXT_COPIES * text.value, workers * MOST_HELD)
    memory = MAIN_BYTES + BYTES_PER_RECORD * records.value + held
    return {
        "tokens": _widened(tokens.value, tokens.error, TOKEN_ERROR),
        "text_bytes": text.as_json(),
        "disk_bytes": _widened(disk.value, disk.error, TOKEN_ERROR),
        "memory_bytes": _widened(memory, BYTES_PER_RECORD * records.error, MEMORY_ERROR),
        "seconds": _widened(needed, parsing.error / workers, TIME_ERROR),
        "workers": workers,
    }


def _widened(value: float, error: float, share: float) -> dict[str, int]:
    return {"value": round(value), "error": round(error + share * value)}
