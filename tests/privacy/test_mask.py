"""Marks stand where personal data stood; nothing else changes, and places lead from the masked text back and forth."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf.privacy import KINDS, counts, counts_by_row, find, hidden, masked, masked_text

TEXT = "write to bob@x.org, or call 13812345678."
PIECES = st.sampled_from(
    ["bob@x.org", "13812345678", "81.2.69.142", " ", "é", "数", "\n", ", ", "call", "4111111111111111"]
)
TEXTS = st.lists(PIECES, max_size=12).map(" ".join)


def test_masking_replaces_the_finding_and_nothing_else() -> None:
    assert hidden(TEXT) == "write to [email], or call [phone]."
    assert masked_text(TEXT, {"phone"}).text == "write to bob@x.org, or call [phone]."
    assert masked_text(TEXT, set()).text == TEXT
    assert counts(TEXT) == {"email": 1, "phone": 1}


@settings(deadline=None)  # the first compiles
@given(st.lists(TEXTS, max_size=6), st.sets(st.sampled_from(KINDS)))
def test_masking_a_column_masks_each_text(texts: list[str], kinds: set[str]) -> None:
    column = pa.array(["before", *texts], pa.large_string()).slice(1)
    assert masked(column, find(column), kinds).to_pylist() == [masked_text(t, kinds).text for t in texts]


@given(TEXTS)
def test_masking_what_is_masked_changes_nothing(text: str) -> None:
    assert hidden(hidden(text)) == hidden(text)


@given(TEXTS, st.sets(st.sampled_from(KINDS)), st.data())
def test_a_place_in_the_masked_text_leads_to_what_stands_there(text: str, kinds: set[str], data: st.DataObject) -> None:
    found = masked_text(text, kinds)
    raw, shown = text.encode(), found.text.encode()
    start = data.draw(st.integers(0, len(shown)))
    end = data.draw(st.integers(start, len(shown)))
    a, b = found.to_source(start, end)
    assert 0 <= a <= b <= len(raw) or start == end
    inside = [m for m in found.marks if m[2] < end and m[3] > start]
    if start < end and not inside:
        assert raw[a:b] == shown[start:end]
    if inside:
        first, last = min(start, inside[0][2]), max(end, inside[-1][3])
        rebuilt, at = b"", a
        for s, e, _, _ in inside:
            rebuilt += raw[at:s] + b"[" + next(k for x, y, k in spans(text) if (x, y) == (s, e)).encode() + b"]"
            at = e
        assert rebuilt + raw[at:b] == shown[first:last]
        assert found.to_masked(a, b) == (first, last)


def spans(text: str) -> list[tuple[int, int, str]]:
    return [(f["start"], f["end"], f["kind"]) for f in find(pa.array([text], pa.large_string())).to_pylist()]


@given(st.lists(TEXTS, max_size=6))
def test_counts_by_row_are_the_counts_of_each_text(texts: list[str]) -> None:
    table = counts_by_row(find(pa.array(texts, pa.large_string())), len(texts))
    assert table.column_names == list(KINDS)
    assert [{k: n for k, n in row.items() if n} for row in table.to_pylist()] == [counts(t) for t in texts]
