"""A row becomes what the recipe's map says, or is refused with what is missing; never something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import dataset_rows as data
import orjson
import pytest
from conftest import Outcome
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sheaf.formats.mapping import NAMED, Mapping, apply, mapping_of
from sheaf.formats.piece import Refused
from sheaf.recipe import MapSpec, SourceSpec

Read = Callable[..., Outcome]
Row = dict[str, Any]


def said(messages: list[Row]) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in messages]


def refusal(row: Row, mapping: Mapping) -> str:
    with pytest.raises(Refused) as caught:
        apply(row, mapping)
    assert caught.value.reason == "bad-row"
    return caught.value.detail


def lines(rows: list[Any]) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("alpaca", data.ALPACA),
        ("sharegpt", data.SHAREGPT),
        ("openai", data.OPENAI),
        ("openai", data.OPENAI_TOOLS),
        ("preference", data.HH_RLHF),
        ("preference", data.ULTRAFEEDBACK),
        ("question-answer", data.GSM8K),
        ("text", data.OASST),
    ],
)
def test_every_row_of_a_published_shape_fits_the_mapping_of_its_name(name: str, rows: list[Row], read: Read) -> None:
    outcome = read("rows.jsonl", lines(rows), map=json.dumps(name))
    assert (len(outcome.records), outcome.reasons) == (len(rows), [])
    assert {r["kind"] for r in outcome.records} == {NAMED[name].kind}
    for row, record in zip(rows, outcome.records, strict=True):
        assert record["text"] == apply(row, NAMED[name]).text
        assert (json.loads(record["messages"]) if record["messages"] else None) == apply(row, NAMED[name]).messages


def test_the_named_mappings_are_those_that_the_recipe_knows() -> None:
    for name in NAMED:
        assert SourceSpec.model_validate({"name": "x", "uri": "./x", "map": name}).map == name
    with pytest.raises(ValueError, match="alpacca"):
        SourceSpec.model_validate({"name": "x", "uri": "./x", "map": "alpacca"})


def test_alpacas_input_stands_under_the_instruction_if_there_is_one() -> None:
    row = {"instruction": "Add them.", "input": "1 and 2", "output": 3}
    assert apply(row, NAMED["alpaca"]).messages == [
        {"role": "user", "content": "Add them.\n\n1 and 2"},
        {"role": "assistant", "content": "3"},
    ]
    for nothing in ({"input": ""}, {"input": None}, {"input": "  "}, {}):
        made = apply({"instruction": "Go.", "output": "Gone."} | nothing, NAMED["alpaca"])
        assert made.text == "User: Go.\n\nAssistant: Gone."


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"instruction": "Go."}, "there is no column 'output'"),
        ({"instruction": "Go.", "output": " "}, "'output' is empty"),
        ({"instruction": "Go.", "output": None}, "'output' is empty"),
        ({"instruction": "Go.", "output": ["a", "b"]}, "'output' holds a list"),
        ({"instruction": "Go.", "output": {"a": 1}}, "'output' holds an object"),
        ({"instruction": "Go.", "output": "Gone.", "input": {"a": 1}}, "'input' holds an object"),
    ],
)
def test_a_row_without_a_column_says_which_one(row: Row, why: str) -> None:
    assert why in refusal(row, NAMED["alpaca"])


def test_speakers_of_all_data_sets_become_four_roles() -> None:
    speakers = ["System", "human", "gpt", "user", "function_call", "observation", "bot"]
    row = {"conversations": [{"from": s, "value": s} for s in speakers]}
    assert [m["role"] for m in apply(row, NAMED["sharegpt"]).messages] == [
        *("system", "user", "assistant", "user", "assistant", "tool", "assistant")
    ]


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "holds no messages"),
        ("no list", "holds no list of messages"),
        (None, "holds no list of messages"),
        ([{"role": "user", "content": "hi"}, "hello"], "message 2 of 'messages' is no object"),
        ([{"role": "user", "content": "hi"}], "nobody answers"),
        ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}], "message 2 of 'messages' is empty"),
        ([{"content": "hi"}], "message 1 of 'messages' has no 'role'"),
        ([{"role": "narrator", "content": "hi"}], "is by 'narrator', which is no known role"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "a part that is no text: image_url"),
        ([{"role": "user", "content": 7}], "the content of message 1 of 'messages' is no text"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"type": "function"}]}], "a tool call without a name"),
    ],
)
def test_a_conversation_with_an_odd_message_is_refused_by_the_messages_number(messages: Any, why: str) -> None:
    assert why in refusal({"messages": messages}, NAMED["openai"])


def test_what_a_recipe_calls_speakers_adds_to_the_known_names() -> None:
    mapping = Mapping("chat", messages="data.dialogue", role="speaker", content="text", roles={"Agent": "assistant"})
    row = data.SUPPORT_CHATS[0]
    assert "is by 'Customer'" in refusal(row, mapping)
    both = Mapping("chat", "data.dialogue", "speaker", "text", {"Agent": "assistant", "Customer": "user"})
    assert [role for role, _ in said(apply(row, both).messages)] == ["user", "assistant"]


def test_calls_of_tools_are_kept_in_one_form_and_can_be_read_in_the_text() -> None:
    old = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": {"b": 1, "a": 2}}}
    made = apply({"messages": [{"role": "user", "content": "Add."}, old]}, NAMED["openai"])
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a":2,"b":1}'}}
    assert made.messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert made.text == 'User: Add.\n\nAssistant: add({"a":2,"b":1})'


def test_what_a_message_says_of_itself_is_kept() -> None:
    message = {"role": "assistant", "content": "hi", "weight": 0, "name": "Ann", "reasoning_content": "…", "at": 1}
    (made,) = apply({"messages": [message]}, NAMED["openai"]).messages
    assert made == {"role": "assistant", "content": "hi", "name": "Ann", "weight": 0, "reasoning_content": "…"}


def test_messages_as_json_in_a_cell_and_as_columns_of_arrow_are_the_same_conversation(read: Read) -> None:
    listed = data.SHAREGPT[0]["conversations"]
    columns = {"from": [m["from"] for m in listed], "value": [m["value"] for m in listed]}
    same = [{"conversations": c} for c in (listed, json.dumps(listed), columns)]
    assert len({json.dumps(apply(row, NAMED["sharegpt"]).messages) for row in same}) == 1
    cell = json.dumps(listed).replace('"', '""')
    outcome = read("rows.csv", f'id,conversations\r\n1,"{cell}"\r\n2,none\r\n'.encode(), map='"sharegpt"')
    assert json.loads(outcome.records[0]["messages"]) == apply(same[0], NAMED["sharegpt"]).messages
    assert outcome.reasons == ["bad-row"]


def test_a_preference_is_the_same_however_its_prompt_is_written() -> None:
    user, good, bad = ({"role": r, "content": c} for r, c in (("user", "Q"), ("assistant", "G"), ("assistant", "B")))
    rows: list[Row] = [
        {"prompt": "Q", "chosen": "G", "rejected": "B"},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"prompt": "Q ", "chosen": [user, good], "rejected": [user, bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
        {"prompt": None, "chosen": json.dumps([user, good]), "rejected": json.dumps([user, bad])},
        {"chosen": "\n\nHuman: Q\n\nAssistant: G", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
        {"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": "G", "rejected": "B"},
    ]
    for row in rows:
        made = apply(row, NAMED["preference"])
        assert {k: said(v) for k, v in made.messages.items()} == {
            "prompt": [("user", row["prompt"].strip() if row.get("prompt") == "Q " else "Q")],
            "chosen": [("assistant", "G")],
            "rejected": [("assistant", "B")],
        }, row


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "Q", "chosen": "G"}, "there is no column 'rejected'"),
        ({"prompt": "Q", "chosen": "G", "rejected": "G"}, "are the same"),
        ({"prompt": "Q", "chosen": "G", "rejected": ""}, "'rejected' is empty"),
        ({"chosen": "G", "rejected": "B"}, "there is no prompt"),
        ({"chosen": [{"role": "assistant", "content": "G"}], "rejected": [{"role": "assistant", "content": "B"}]},
         "there is no prompt"),
        ({"prompt": "Q", "chosen": [{"role": "user", "content": "G"}], "rejected": "B"}, "not by an assistant"),
    ],
)  # fmt: skip
def test_what_is_no_preference_is_refused(row: Row, why: str) -> None:
    assert why in refusal(row, NAMED["preference"])


def test_the_worse_answer_is_no_text_to_learn_but_part_of_what_the_record_is(read: Read) -> None:
    rows = [{"prompt": "Question?", "chosen": "Good.", "rejected": bad} for bad in ("Bad.", "Worse.")]
    outcome = read("pairs.jsonl", lines(rows), map='"preference"')
    assert outcome.texts == ["User: Question?\n\nAssistant: Good."] * 2
    assert outcome.records[0]["id"] != outcome.records[1]["id"]


def test_a_path_leads_into_nested_values_lists_and_json_in_cells_and_a_column_of_that_name_comes_first() -> None:
    mapping = Mapping("text", text="a.b.1")
    for value in ({"b": ["x", "y"]}, '{"b": ["x", "y"]}', {"b": '["x", "y"]'}):
        assert apply({"a": value}, mapping).text == "y"
    assert apply({"a.b.1": "itself", "a": {"b": ["x", "y"]}}, mapping).text == "itself"
    for value in ({"b": ["x"]}, {"b": "x"}, {}, 3, "{broken"):
        assert "there is no column 'a.b.1'" in refusal({"a": value}, mapping)


def test_a_row_that_does_not_fit_costs_only_itself_and_its_bytes_are_known(read: Read) -> None:
    rows: list[Any] = [data.ALPACA[0], {"instruction": "alone"}, [1, 2], "text", data.ALPACA[1]]
    whole = lines(rows)
    outcome = read("rows.jsonl", whole, map='"alpaca"')
    assert len(outcome.records) == 2
    assert [r["detail"] for r in outcome.regions] == [
        "there is no column 'output'", "not an object: an array", "not an object: a string"
    ]  # fmt: skip
    places = [json.loads(r["locator"])["bytes"] for r in outcome.regions]
    assert [json.loads(whole[a:b]) for a, b in places] == rows[1:4]
    document = read("rows.json", orjson.dumps(rows), map='"alpaca"')
    assert (document.texts, document.reasons) == (outcome.texts, outcome.reasons)


def test_a_document_that_is_one_conversation_is_not_taken_for_a_table_of_messages(read: Read) -> None:
    outcome = read("one.json", orjson.dumps(data.OPENAI[0]), map='"openai"')
    assert [r["kind"] for r in outcome.records] == ["chat"]
    assert len(json.loads(outcome.records[0]["messages"])) == 3


def test_columns_that_are_not_used_are_kept_beside_the_record(read: Read) -> None:
    (record,) = read("t.jsonl", lines(data.OPENAI_TOOLS[:1]), map='"openai"').records
    assert json.loads(record["meta"]) == {"tools": data.OPENAI_TOOLS[0]["tools"]}


def test_equal_conversations_have_one_id_however_their_letters_are_composed(read: Read) -> None:
    composed, combined = "Caf\u00e9?", "Cafe\u0301?\r\n"
    rows = [{"messages": [{"role": "user", "content": c}, {"role": "assistant", "content": "Yes."}]}
            for c in (composed, combined)]  # fmt: skip
    first, second = read("t.jsonl", lines(rows), map='"openai"').records
    assert (first["messages"], first["text"], first["id"]) == (second["messages"], second["text"], second["id"])
    assert second["repairs"] == "nfc"


def test_rows_of_a_query_keep_their_key_under_a_mapping(read: Read) -> None:
    row = {"id": 7, "prompt": "Q", "completion": "A"}
    outcome = read("t.jsonl", lines([row, {"id": 8}]), map='"prompt-completion"', key=("id",))
    assert json.loads(outcome.records[0]["locator"]) == {"key": {"id": 7}, "row": 0}
    assert outcome.reasons == ["bad-row"]


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"kind": "chat"}, "either messages, or user and assistant"),
        ({"kind": "chat", "user": "a"}, "either messages, or user and assistant"),
        ({"kind": "chat", "messages": "a", "user": "b"}, "'user' has no meaning here"),
        ({"kind": "chat", "messages": "a", "chosen": "b"}, "'chosen' has no meaning here"),
        ({"kind": "preference", "chosen": "a"}, "needs chosen and rejected"),
        ({"kind": "text", "text": "a", "role": "b"}, "'role' has no meaning here"),
        ({"kind": "chat", "messages": "a", "roles": {"x": "boss"}}, "system"),
        ({"kind": "chat", "mesages": "a"}, "Extra inputs"),
    ],
)
def test_a_map_that_contradicts_itself_is_refused_with_the_recipe(columns: Row, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        MapSpec.model_validate(columns)


def test_a_source_says_text_or_map_and_not_both() -> None:
    with pytest.raises(ValueError, match="either text or map"):
        SourceSpec.model_validate({"name": "x", "uri": "./x", "map": "alpaca", "text": "output"})


def test_what_the_recipe_says_reaches_the_parser_unchanged() -> None:
    from sheaf.corpus.reading import parse_options

    columns = {"kind": "chat", "messages": "m", "role": "who", "content": "what", "roles": {"a": "user"},
               "system": "s", "optional": ["s"]}  # fmt: skip
    spec = SourceSpec.model_validate({"name": "x", "uri": "./x", "map": columns})
    assert mapping_of(parse_options(spec, mojibake=True).map) == Mapping(
        "chat", "m", "who", "what", {"a": "user"}, "s", optional=("s",)
    )
    again = SourceSpec.model_validate(spec.model_dump(mode="json", by_alias=True))  # as a task gets it
    assert parse_options(again, mojibake=True) == parse_options(spec, mojibake=True)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["user", "gpt", "[{}]", "{"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "tool_calls", "function", "name", "type"]),
                      inner, max_size=3),
    max_leaves=12,
)  # fmt: skip
COLUMNS = sorted({c for m in NAMED.values() for c in m.columns})


@settings(max_examples=150, deadline=None)
@example({"instruction": 2**70, "output": -(2**63) - 1}, "alpaca")
@given(st.dictionaries(st.sampled_from(COLUMNS), values, max_size=4), st.sampled_from(sorted(NAMED)))
def test_any_row_is_a_record_with_text_or_a_refusal_and_always_the_same(row: Row, name: str) -> None:
    def once() -> Any:
        try:
            return apply(row, NAMED[name])
        except Refused as refused:
            return (refused.reason, refused.detail)

    made = once()
    assert made == once()
    if isinstance(made, tuple):
        assert made[0] == "bad-row" and made[1]
    else:
        assert made.text.strip()
        orjson.dumps(made.messages)


def test_a_mapping_reads_rows_of_every_format_alike(read: Read) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    listed = [{"messages": row["messages"], "n": i} for i, row in enumerate(data.OPENAI)]
    listed[5] = {"messages": [], "n": 5}
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(listed), sink)
    parquet = read("rows.parquet", sink.getvalue(), map='"openai"')
    jsonl = read("rows.jsonl", lines(listed), map='"openai"')
    assert parquet.texts == jsonl.texts
    assert [r["messages"] for r in parquet.records] == [r["messages"] for r in jsonl.records]
    assert [(r["reason"], r["detail"]) for r in parquet.regions] == [
        ("bad-row", "the column 'messages' holds no messages")
    ]
    assert json.loads(parquet.regions[0]["locator"]) == {"row": [5, 5]}


@pytest.mark.parametrize("deep", [200, 900, 5000])
def test_values_nested_without_end_cost_only_their_row(deep: int, read: Read) -> None:
    nested = "[" * deep + "]" * deep
    call = f'{{"role": "assistant", "content": "", "tool_calls": [{{"name": "f", "arguments": {nested}}}]}}'
    evil = [
        f'{{"messages": {nested}}}',
        f'{{"messages": [{call}]}}',
        f'{{"messages": "{nested}"}}',
        f'{{"messages": [{{"role": "user", "content": {nested}}}]}}',
    ]
    good = orjson.dumps(data.OPENAI[0]).decode()
    outcome = read("rows.jsonl", "\n".join([*evil, good]).encode(), map='"openai"')
    assert outcome.texts[-1].startswith("System: You are a patient librarian.")
    assert len(outcome.records) + len(outcome.regions) == 5
