"""From sample rows to what the recipe could say of them; and silence where there is nothing to say."""

from __future__ import annotations

import io
import json
import tempfile
from contextlib import ExitStack
from typing import Any

import dataset_rows as data
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf.formats.columns import is_prose, survey
from sheaf.formats.propose import LIKELY, SURE, Proposal, propose, propose_files, yaml_string
from sheaf.formats.row_samples import sample_rows
from sheaf.formats.sandbox import ItemInput, Sandbox
from sheaf.recipe import SourceSpec

Row = dict[str, Any]
CHAT = {"kind": "chat"}


def said(proposal: Proposal) -> dict[str, Any]:
    """What a recipe with the proposal's line says, read as a recipe is."""
    source = yaml.safe_load("{name: x, uri: ./x, " + proposal.recipe + "}")
    spec = SourceSpec.model_validate(source)
    return {k: v for k, v in spec.model_dump(exclude_defaults=True).items() if k in ("map", "text")}


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (data.ALPACA, {"map": "alpaca"}),
        (data.DOLLY, {"map": {**CHAT, "user": "{instruction}\n\n{context}", "assistant": "response",
                              "optional": ("context",)}}),
        (data.SHAREGPT, {"map": "sharegpt"}),
        (data.SHAREGPT_CSV, {"map": "sharegpt"}),
        (data.OASST, {"text": "text"}),
        (data.OPENAI, {"map": "openai"}),
        (data.OPENAI_TOOLS, {"map": "openai"}),
        (data.HH_RLHF, {"map": "preference"}),
        (data.ULTRAFEEDBACK, {"map": "preference"}),
        (data.DPO_PAIRS, {"map": {"kind": "preference", "prompt": "question", "chosen": "chosen",
                                  "rejected": "rejected"}}),
        (data.SQUAD, {"map": {**CHAT, "user": "{context}\n\n{question}", "assistant": "answers.text.0",
                              "optional": ("context",)}}),
        (data.GSM8K, {"map": "question-answer"}),
        (data.WIKIPEDIA, {"text": "text"}),
        (data.CODE, {"text": "content"}),
        (data.TICKETS, {"text": "{Subject}\n\n{Description}"}),
        (data.SUPPORT_CHATS, {"map": {**CHAT, "messages": "data.dialogue", "role": "speaker", "content": "text",
                                      "roles": {"Agent": "assistant", "Customer": "user"}}}),
        (data.REVIEWS_ZH, {"text": "评论"}),
    ],
)  # fmt: skip
def test_the_first_proposal_for_rows_of_a_published_shape_is_theirs(rows: list[Row], wanted: dict[str, Any]) -> None:
    proposals = propose(rows)
    assert said(proposals[0]) == wanted
    assert (proposals[0].fits, proposals[0].rows) == (8, 8)
    assert all(LIKELY <= p.confidence < 1 for p in proposals)
    assert sorted(proposals, key=lambda p: -p.confidence) == proposals


@pytest.mark.parametrize("rows", [data.PRODUCTS, data.SENSORS, data.EVENTS, [], [{}], [{"a": None}]])
def test_numbers_ids_dates_addresses_and_words_that_repeat_are_no_text(rows: list[Row]) -> None:
    assert propose(rows) == []


def test_what_a_proposal_shows_is_what_prepare_makes_of_the_rows() -> None:
    first = propose(data.GSM8K)[0]
    assert first.preview == tuple(f"User: {r['question']}\n\nAssistant: {r['answer']}" for r in data.GSM8K[:2])


def test_confidence_grows_with_the_rows_that_fit_and_with_the_rows_seen() -> None:
    stray = [{"note": f"{i}"} for i in range(8)]
    few, half, all_of_them = propose(data.GSM8K[:2])[0], propose(data.GSM8K + stray)[0], propose(data.GSM8K)[0]
    more = propose([{**row, "question": f"{n} {row['question']}"} for n in range(9) for row in data.GSM8K])[0]
    assert half.fits == 8 and half.rows == 16
    assert half.confidence < few.confidence < all_of_them.confidence < more.confidence
    assert half.confidence == pytest.approx(8 / 17 * 0.92)
    assert few.confidence < SURE <= all_of_them.confidence


def test_a_mapping_that_fits_one_row_in_ten_is_not_told() -> None:
    rows = [{**data.OPENAI[0], "n": 1}, *({"n": i} for i in range(9))]
    assert propose(rows) == []


def test_question_columns_that_hold_no_questions_are_no_conversation() -> None:
    rows = [{"question": f"Q{i}", "answer": i % 5, "respondent": data.UUIDS[i]} for i in data.N]
    explicit = [p for p in propose(rows) if p.keys != {"map": "question-answer"}]
    assert explicit == []


def test_a_column_of_messages_in_some_other_column_is_found() -> None:
    rows = [{"meta": {"id": i}, "turns": row["messages"]} for i, row in enumerate(data.OPENAI)]
    assert said(propose(rows)[0]) == {"map": {**CHAT, "messages": "turns"}}


def test_a_chosen_and_a_rejected_answer_are_never_proposed_as_something_to_learn_alone() -> None:
    for proposal in propose(data.ULTRAFEEDBACK):
        asked = said(proposal).get("map")
        assert not isinstance(asked, dict) or asked.get("messages") != "rejected"


def test_files_that_want_the_same_are_one_group_and_others_are_apart() -> None:
    files = {
        "a.jsonl": data.ALPACA[:4],
        "b.jsonl": data.SHAREGPT,
        "c.jsonl": data.ALPACA[4:],
        "d.csv": data.PRODUCTS,
        "e.jsonl": data.ULTRAFEEDBACK,
        "f.jsonl": data.OPENAI,
        "g.csv": data.SENSORS,
    }
    groups = propose_files(files)
    assert [g.files for g in groups] == [
        *(("a.jsonl", "c.jsonl"), ("b.jsonl",), ("d.csv", "g.csv"), ("e.jsonl",), ("f.jsonl",))
    ]
    assert groups[0].proposals[0].rows == 8
    assert groups[2].proposals == []


@pytest.mark.parametrize(
    "text",
    ["https://example.org/a b", "2023-04-01 10:00:00 UTC", "Mon, 03 Apr 2023 09:11:00 +0000", "1 2 3 4", "a@b.org", "",
     "3f2a-11", "/usr/share/doc", "one two", "12.04.2023", "北京"],
)  # fmt: skip
def test_what_reads_as_no_words_is_no_prose(text: str) -> None:
    assert not is_prose(text)


@pytest.mark.parametrize(
    "text", ["The ferry is late.", "房间很干净，服务员态度也非常好", "a b c", "日本語の文章です。"]
)
def test_what_reads_as_words_is_prose(text: str) -> None:
    assert is_prose(text)


def test_the_columns_of_a_survey_are_paths_that_a_mapping_can_say() -> None:
    row = {"a": {"b": {"c": "x"}}, "list": ["y", "z"], "cell": '{"d": 1}', "dotted.name": 3, "none": None}
    assert list(survey([row])) == ["a.b.c", "list.0", "cell.d", "dotted.name", "none"]


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_name_survives_the_way_through_yaml(text: str) -> None:
    encodable = text.encode("utf-8", "replace").decode()
    assert yaml.safe_load("{k: " + yaml_string(encodable) + "}") == {"k": encodable}


names = st.sampled_from(
    ["question", "answer", "messages", "chosen", "rejected", "text", "title", "a.b", "{x}", "", "role"]
)
cells = st.recursive(
    st.none() | st.integers() | st.text(max_size=30) | st.sampled_from(["[]", "[{}]", '{"a": [1]}', "some words here"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(names, cells, max_size=4), max_size=6))
@settings(max_examples=100, deadline=None)
def test_any_rows_get_proposals_that_a_recipe_can_say(rows: list[Row]) -> None:
    for proposal in propose(rows):
        assert said(proposal)
        assert 0 < proposal.fits <= len(rows)
        assert proposal.preview[0].strip()


@pytest.fixture
def sampled(sandbox: Sandbox) -> Any:
    def run(files: dict[str, bytes], **options: Any) -> list[list[Row]]:
        with ExitStack() as stack:
            items: list[ItemInput] = []
            for name, content in files.items():
                file = stack.enter_context(tempfile.TemporaryFile())
                file.write(content)
                file.flush()
                items.append(ItemInput(file, name, len(content)))
            return sample_rows(items, sandbox, **options)

    return run


def test_rows_come_out_of_the_sandbox_as_they_are(sampled: Any) -> None:
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"question": "q\u0301\u200b", "n": i, "inner": {"list": [1, None]}} for i in range(3)]
    jsonl = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    found = sampled(
        {
            "a.jsonl": jsonl,
            "b.json": json.dumps(rows).encode(),
            "c.json": json.dumps({"data": rows}).encode(),
            "d.jsonl.gz": gzip.compress(jsonl),
            "e.parquet": sink.getvalue(),
            "f.csv": b"question,n\nWho?,1\nWhat?,2\n",
            "g.txt": b"no rows at all, only some words",
            "h.json": json.dumps(data.OPENAI[0]).encode(),
            "broken.jsonl": b"{\n",
        }
    )
    assert found[:5] == [rows] * 5
    assert found[5:] == [[{"question": "Who?", "n": "1"}, {"question": "What?", "n": "2"}], [], [data.OPENAI[0]], []]


def test_of_a_long_file_only_the_first_rows_are_taken(sampled: Any) -> None:
    rows = b"".join(json.dumps({"text": f"{i} " + "word " * 50}).encode() + b"\n" for i in range(20_000))
    (found,) = sampled({"long.jsonl": rows}, row_bytes=10_000)
    assert 20 < len(found) < 100
    assert found[0]["text"].startswith("0 word")
