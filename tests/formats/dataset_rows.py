"""Rows in the shapes of published data sets; the words are ours. Eight rows each, as a sample would have them."""

from __future__ import annotations

import json
from typing import Any

Row = dict[str, Any]

ASKED = (
    "How do I stop bread from going stale so quickly?",
    "Explain what a mutex is to somebody who has never programmed.",
    "Write a short poem about the harbour in winter.",
    "Which planets can be seen with the naked eye?",
    "Give me three names for a small bakery by the sea.",
    "What is the difference between weather and climate?",
    "Translate this sentence into French, please: the ferry is late.",
    "Why does my bicycle chain squeak after rain?",
)
SAID = (
    "Keep it in a linen bag, away from the fridge; freeze what you will not eat within two days.",
    "Think of a bathroom with one key: whoever holds the key may enter, and everybody else waits until it is back.",
    "Grey ropes, grey water, and a bell that nobody rings; the boats dream of June.",
    "Mercury, Venus, Mars, Jupiter and Saturn can be seen without any instrument.",
    "The Salted Crumb, Harbour Loaf, and Flour & Foam.",
    "Weather is what happens today; climate is what one may expect over thirty years.",
    "Le ferry est en retard.",
    "Rain washes the oil out of the links. Dry the chain, put on a drop for each link, and wipe off the rest.",
)
PASSAGES = tuple(
    f"{a} Many people have wondered about it for years. {b} That, at least, is what the library's oldest book says."
    for a, b in zip(ASKED, SAID, strict=True)
)
UUIDS = tuple(f"{n:08x}-4c1d-4f6e-9a55-{n * 7919:012x}" for n in range(11, 19))
WHEN = tuple(f"2023-04-{n:02d}T09:1{n % 6}:33.912Z" for n in range(1, 9))
N = range(8)

ALPACA = [
    {
        "instruction": ASKED[i],
        "input": PASSAGES[i] if i % 3 == 0 else "",
        "output": SAID[i],
        "text": f"Below is a task.\n\n### Instruction:\n{ASKED[i]}\n\n### Response:\n{SAID[i]}",
    }
    for i in N
]
DOLLY = [
    {
        "instruction": ASKED[i],
        "context": PASSAGES[i] if i % 2 else "",
        "response": SAID[i],
        "category": ("open_qa", "creative_writing")[i % 2],
    }
    for i in N
]
SHAREGPT = [
    {
        "id": f"QWJhYvA_{i}",
        "conversations": [
            {"from": "human", "value": ASKED[i]},
            {"from": "gpt", "value": SAID[i]},
            {"from": "human", "value": "Thanks! Anything else?"},
            {"from": "gpt", "value": PASSAGES[i]},
        ],
    }
    for i in N
]
SHAREGPT_CSV = [{"id": str(i), "conversations": json.dumps(row["conversations"])} for i, row in enumerate(SHAREGPT)]
OASST = [
    {
        "message_id": UUIDS[i],
        "parent_id": UUIDS[i - 1] if i % 2 else None,
        "user_id": UUIDS[-i],
        "created_date": WHEN[i],
        "text": PASSAGES[i],
        "role": "assistant" if i % 2 else "prompter",
        "lang": "en",
        "review_count": 3,
        "deleted": False,
        "rank": 0,
    }
    for i in N
]
OPENAI = [
    {
        "messages": [
            {"role": "system", "content": "You are a patient librarian."},
            {"role": "user", "content": ASKED[i]},
            {"role": "assistant", "content": SAID[i], "weight": 1},
        ]
    }
    for i in N
]
OPENAI_TOOLS = [
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": ASKED[i]}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": f"call_{i}",
                        "type": "function",
                        "function": {"name": "look_up", "arguments": '{"shelf": 4}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": f"call_{i}", "content": PASSAGES[i]},
            {"role": "assistant", "content": SAID[i]},
        ],
        "tools": [{"type": "function", "function": {"name": "look_up", "parameters": {}}}],
    }
    for i in N
]
HH_RLHF = [
    {
        "chosen": f"\n\nHuman: {ASKED[i]}\n\nAssistant: Happy to help.\n\nHuman: So?\n\nAssistant: {SAID[i]}",
        "rejected": f"\n\nHuman: {ASKED[i]}\n\nAssistant: Happy to help.\n\nHuman: So?\n\nAssistant: I do not know.",
    }
    for i in N
]
ULTRAFEEDBACK = [
    {
        "prompt": ASKED[i],
        "prompt_id": f"{i * 104729:064x}",
        "chosen": [{"role": "user", "content": ASKED[i]}, {"role": "assistant", "content": SAID[i]}],
        "rejected": [{"role": "user", "content": ASKED[i]}, {"role": "assistant", "content": "No idea, sorry."}],
        "messages": [{"role": "user", "content": ASKED[i]}, {"role": "assistant", "content": SAID[i]}],
        "score_chosen": 8.5,
        "score_rejected": 2.0,
    }
    for i in N
]
DPO_PAIRS = [{"system": "", "question": ASKED[i], "chosen": SAID[i], "rejected": "I would rather not say."} for i in N]
SQUAD = [
    {
        "id": f"5733be284776f4190066117{i}",
        "title": "Harbours",
        "context": PASSAGES[i],
        "question": ASKED[i],
        "answers": {"text": [SAID[i], "late"], "answer_start": [515 + i, 3]},
    }
    for i in N
]
GSM8K = [
    {"question": f"{ASKED[i]} There are {i} of them.", "answer": f"{SAID[i]} So {i} * 2 = {i * 2}.\n#### {i * 2}"}
    for i in N
]
WIKIPEDIA = [
    {
        "id": str(1000 + i),
        "url": f"https://en.example.org/wiki/Article_{i}",
        "title": " ".join(ASKED[i].split()[:3]),
        "text": "\n\n".join(PASSAGES[i:] + PASSAGES[:i]),
    }
    for i in N
]
CODE = [
    {
        "repo_name": f"harbour/tide-{i}",
        "path": f"src/tide/module_{i}.py",
        "license": "mit",
        "size": 320 + i,
        "content": f'"""{ASKED[i]}"""\n\n\ndef tide_{i}(level: int) -> int:\n    # {SAID[i]}\n    return {i}\n',
    }
    for i in N
]
TICKETS = [
    {
        "Ticket ID": str(40_000 + i),
        "Created": WHEN[i],
        "Status": ("open", "closed")[i % 2],
        "Requester": f"user{i}@example.org",
        "Subject": " ".join(ASKED[i].split()[:4]),
        "Description": f"Hello,\n\n{ASKED[i]} {SAID[i]}\n\nBest regards",
    }
    for i in N
]
SUPPORT_CHATS = [
    {
        "case": i,
        "data": {
            "dialogue": [
                {"speaker": "Customer", "text": ASKED[i], "at": WHEN[i]},
                {"speaker": "Agent", "text": SAID[i], "at": WHEN[i]},
            ]
        },
    }
    for i in N
]
REVIEWS_ZH = [
    {"编号": str(i), "评论": review, "日期": "2023年4月1日", "评分": str(i % 5 + 1)}
    for i, review in enumerate(
        (
            "房间很干净，服务员态度也非常好，下次还会再来住。",
            "早餐的种类太少了，而且去晚了什么都没有，很失望。",
            "离地铁站只有五分钟的路程，出门逛街特别方便。",
            "隔音效果不好，半夜能听到隔壁房间说话的声音。",
            "前台办理入住的速度很快，还免费给我们升级了房型。",
            "空调声音太大，一晚上都没有睡好，希望能够改进。",
            "窗外就是大海，孩子们在沙滩上玩得非常开心。",
            "价格有点贵，不过考虑到这个地段也算是合理的。",
        )
    )
]
PRODUCTS = [
    {
        "sku": f"HX-{7000 + i}",
        "ean": str(4_006_381_333_931 + i),
        "price": 12.5 + i,
        "stock": i * 3,
        "weight_kg": 0.4,
        "updated": WHEN[i],
        "image": f"https://cdn.example.org/{UUIDS[i]}.jpg",
    }
    for i in N
]
SENSORS = [
    {"time": 1_680_000_000 + i, "sensor": UUIDS[i % 2], "value": 20.25 + i / 10, "unit": "°C", "ok": True} for i in N
]
EVENTS = [
    {
        "timestamp": f"Mon, 03 Apr 2023 09:1{i}:00 +0000",
        "level": "INFO",
        "path": f"/var/log/app/{i}.log",
        "user": f"u{i}",
        "status": "job has been started again",  # reads as words, but says the same in every row
    }
    for i in N
]
