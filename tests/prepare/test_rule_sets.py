"""The named sets keep prose in twelve languages, drop spam for the right reason, and hold their bounds exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from prose import DECLARATION

from sheaf.corpus.schema import DROPS, SCORES
from sheaf.corpus.signals import SIGNAL
from sheaf.prepare import score
from sheaf.prepare.rule_sets import RULE_SETS, SPACELESS, RuleSet, SignalRule
from sheaf.prepare.rules import Rules
from sheaf.recipe import Length, Prepare

SPAM: dict[str, str] = {
    "keywords": "cheap watches replica handbags discount pills casino bonus online slots free download mp3 ringtones "
    "loans mortgage insurance quotes hotels flights travel deals shoes jackets sunglasses perfume jewelry rings gold "
    "silver diamonds phones tablets laptops cameras printers ink toner batteries chargers cables adapters screens "
    "keyboards mice speakers headphones games consoles toys",
    "menu": "\n".join(["Home", "About us", "Products", "Contact", "Login", "Register", "Basket", "Help", "Terms"] * 1)
    + "\n"
    + "\n".join(f"Chapter {n} of the book and that which follows" for n in range(12)),
    "echo": "\n".join(["Click here to see the best of all offers and have a look."] * 12),
    "hashtags": "we went to the shore and it was a day that we have loved. "
    + " ".join(f"#sunset{n}" for n in range(40)),
    "teasers": "\n".join(f"The story of number {n} and of those that have been to {n * n} places..." for n in range(9)),
    "bullets": "\n".join(f"- the thing of kind {n * 7919 % 97} that be with number {n * 31}" for n in range(12)),
    "numbers": "the of and " + " ".join(str(n * 7919 % 9973) for n in range(90)),
    "base64": " ".join("QWxhZGRpbjpvcGVuIHNlc2FtZQ" + str(n) * 3 for n in range(60)) + " the of and",
    "filler": DECLARATION["en"] + "\nLorem ipsum dolor sit amet, consectetur adipiscing elit.",
    "code": DECLARATION["en"] + "\nfunction f() { return 1; }",
    "stub": "This page has been moved to the new address.",
    "zh-echo": "点击这里查看今日最优惠的商品价格，全场包邮！" * 30,
    "zh-lines": "\n".join(["点击这里查看今日最优惠的商品价格"] * 12),
    "zh-menu": "首页\n新闻\n体育\n财经\n娱乐\n科技\n汽车\n房产\n教育\n旅游\n健康\n游戏\n视频\n图片\n论坛\n博客\n" * 2,
    "ja-stub": "このページは移動しました。",
    "th-echo": "คลิกที่นี่เพื่อดูราคาที่ดีที่สุดวันนี้ " * 40,
    "ru-echo": "Нажмите здесь, чтобы увидеть лучшие цены сегодня и получить скидку. " * 12,
    "ko-stub": "이 페이지는 이동되었습니다.",
}
EXPECTED: dict[tuple[str, str], str] = {
    ("keywords", "gopher"): "gopher:stop_words",
    ("keywords", "c4"): "c4:c4_sentences",
    ("keywords", "fineweb"): "fineweb:terminal_lines",
    ("menu", "c4"): "c4:c4_sentences",
    ("menu", "fineweb"): "fineweb:terminal_lines",
    ("echo", "gopher"): "gopher:duplicate_lines",
    ("echo", "fineweb"): "fineweb:duplicate_line_characters",
    ("hashtags", "gopher"): "gopher:hash_word_ratio",
    ("teasers", "gopher"): "gopher:ellipsis_lines",
    ("bullets", "gopher"): "gopher:bullet_lines",
    ("numbers", "gopher"): "gopher:alpha_words",
    ("base64", "gopher"): "gopher:mean_word_length",
    ("filler", "c4"): "c4:lorem_ipsum",
    ("code", "c4"): "c4:curly_brackets",
    ("stub", "gopher"): "gopher:words",
    ("stub", "c4"): "c4:c4_sentences",
    ("zh-echo", "gopher"): "gopher:duplicate_10gram",
    ("zh-lines", "gopher"): "gopher:duplicate_lines",
    ("zh-lines", "fineweb"): "fineweb:terminal_lines",
    ("zh-menu", "gopher"): "gopher:words",
    ("zh-menu", "c4"): "c4:c4_sentences",
    ("zh-menu", "fineweb"): "fineweb:terminal_lines",
    ("ja-stub", "gopher"): "gopher:words",
    ("th-echo", "gopher"): "gopher:duplicate_10gram",
    ("ru-echo", "gopher"): "gopher:top_2gram",
    ("ko-stub", "gopher"): "gopher:words",
}


def scored(texts: list[str], kind: str = "text") -> pa.Table:
    return pa.table({"kind": [kind] * len(texts), **score.signals(pa.array(texts, pa.large_string()))})


def reasons(name: str, scores: pa.Table) -> list[str]:
    rules = Rules(Prepare(filters=(name,), length=Length(min_characters=0)), {})
    return [rules.reasons[code] for code in rules.apply(scores)]


@pytest.mark.parametrize("name", RULE_SETS)
def test_each_set_keeps_prose_in_twelve_languages(name: str) -> None:
    found = reasons(name, scored(list(DECLARATION.values())))
    assert dict(zip(DECLARATION, found, strict=True)) == dict.fromkeys(DECLARATION, "")


@pytest.mark.parametrize(("text", "name"), EXPECTED)
def test_each_set_drops_spam_for_the_right_reason(text: str, name: str) -> None:
    assert reasons(name, scored([SPAM[text]])) == [EXPECTED[text, name]]


@pytest.mark.parametrize("name", RULE_SETS)
def test_sets_judge_texts_and_no_chats_or_pictures(name: str) -> None:
    for kind in ("chat", "preference", "image", "audio"):
        assert reasons(name, scored(list(SPAM.values()), kind)) == [""] * len(SPAM)


def test_words_that_are_english_are_asked_of_english_alone() -> None:
    """Without the variants, every text that is not English would go: the reason for having them."""
    russian, chinese = scored([DECLARATION["ru"]]), scored([DECLARATION["zh"]])
    assert russian["stop_words"].to_pylist() == [0]
    assert chinese["mean_word_length"].to_pylist() == [1.0]
    for table in (russian, chinese):
        table = table.set_column(table.schema.get_field_index("language"), "language", pa.array(["en"]))
        table = table.set_column(table.schema.get_field_index("spaceless"), "spaceless", pa.array([0.0]))
        assert reasons("gopher", table) in (["gopher:stop_words"], ["gopher:mean_word_length"])


def row(rule: SignalRule, variant: int, value: float, language: str | None = None) -> pa.Table:
    """One record, all of whose other signals are as good as they can be."""
    good: dict[str, Any] = {"words": 1000, "mean_word_length": 5.0, "alpha_words": 1.0, "stop_words": 8}
    good |= {"terminal_lines": 1.0, "c4_sentences": 99, "kind": "text"}
    good |= {"language": language or ("en", "ru", "zh")[variant], "spaceless": float(variant == SPACELESS)}
    values = {f.name: good.get(f.name, 0) for f in SCORES if f.name != "id"} | {rule.signal: value}
    return pa.table({name: pa.array([v], pa.float64() if isinstance(v, float) else None) for name, v in values.items()})


BOUNDS = [
    (rule_set, rule, variant, side)
    for rule_set in RULE_SETS.values()
    for rule in rule_set.rules
    for variant, bound in enumerate(rule.bounds)
    for side in ("least", "most")
    if bound is not None and getattr(bound, side) is not None
]


@pytest.mark.parametrize(
    ("rule_set", "rule", "variant", "side"), BOUNDS, ids=[f"{s.name}-{r.signal}-{v}-{e}" for s, r, v, e in BOUNDS]
)
def test_every_bound_is_exact(rule_set: RuleSet, rule: SignalRule, variant: int, side: str) -> None:
    bound = rule.bounds[variant]
    assert bound is not None
    value: float = getattr(bound, side)
    outside = float(np.nextafter(value, -np.inf if side == "least" else np.inf))
    inside = float(np.nextafter(value, np.inf if side == "least" else -np.inf))
    dropped = [f"{rule_set.name}:{rule.signal}"]
    assert reasons(rule_set.name, row(rule, variant, outside)) == dropped
    assert reasons(rule_set.name, row(rule, variant, float(value))) == (dropped if bound.strict else [""])
    assert reasons(rule_set.name, row(rule, variant, inside)) == [""]


def test_a_rule_that_does_not_hold_for_a_variant_drops_nothing_there() -> None:
    for rule_set in RULE_SETS.values():
        for rule in rule_set.rules:
            for variant, bound in enumerate(rule.bounds):
                if bound is None:
                    assert reasons(rule_set.name, row(rule, variant, 1e9)) == [""]
                    assert reasons(rule_set.name, row(rule, variant, -1e9)) == [""]


def test_languages_without_full_stops_are_not_asked_for_them() -> None:
    for rule_set in RULE_SETS.values():
        for rule in rule_set.rules:
            for language in rule.never:
                assert reasons(rule_set.name, row(rule, SPACELESS, 0, language)) == [""]
                assert reasons(rule_set.name, row(rule, SPACELESS, 0)) == [f"{rule_set.name}:{rule.signal}"]


def test_every_rule_is_of_a_signal_and_of_a_reason_that_there_are() -> None:
    for rule_set in RULE_SETS.values():
        assert rule_set.name in DROPS
        signals = [rule.signal for rule in rule_set.rules]
        assert len(set(signals)) == len(signals)
        assert set(signals) <= set(SIGNAL)


@pytest.mark.parametrize("name", RULE_SETS)
def test_the_english_bounds_are_those_of_the_table_of_signals(name: str) -> None:
    """signals.py quotes each paper's figure; a rule of that paper uses it."""
    for rule in RULE_SETS[name].rules:
        bound, quoted = rule.bounds[0], SIGNAL[rule.signal].bound
        if bound is None or not SIGNAL[rule.signal].paper.lower().startswith(name):
            continue
        figures = [float(x.replace(",", "").rstrip(".")) for x in quoted.split(";")[0].split() if x[0].isdigit()]
        expected = figures or [0.0]  # "none"
        assert [v for v in (bound.least, bound.most) if v is not None] == expected, rule.signal
