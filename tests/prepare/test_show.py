"""`sheaf show`: examples are real and masked, and what it says of other thresholds is what they do."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import InThisProcess
from prose import DECLARATION

from sheaf import cli, recipe_file
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import UsageError
from sheaf.prepare import pipeline, scorers
from sheaf.prepare.examples import EXCERPT, clusters, counts, examples, shown
from sheaf.prepare.rules import rules_of
from sheaf.prepare.whatif import alternatives, what_if
from sheaf.recipe import Recipe
from sheaf.report.build import render
from sheaf.report.facts import corpus_facts

# With stop words, so that it is English prose to Gopher.
COMMON = "the of and to with have harbour kettle ship lantern morning grey over under keep record batch token storm"
WORDS = COMMON.split(" ")
CANARY = "anna.canary@example.org"
# Longer than an excerpt: whatever is cut, no part of it may be seen.
KEY = "-----BEGIN PRIVATE KEY-----\n" + "c2VjcmV0" * 200 + "\n-----END PRIVATE KEY-----"


def prose(rng: random.Random, sentences: int) -> str:
    return " ".join(" ".join(rng.choices(WORDS, k=10)).capitalize() + "." for _ in range(sentences))


def recipe_at(base: Path, *overrides: str) -> Recipe:
    text = """
name: shown
sources: [{name: web, uri: ./web.jsonl}, {name: notes, uri: ./notes}]
prepare:
  filters: [gopher, "score.words > 60", "score.vowels >= 0"]
  dedup: {near: 0.8}
  privacy: {email: keep}
  tokenizer: {train: bpe, vocab_size: 400}
"""
    return recipe_file.loads(text, base, overrides=overrides)


def vowels(texts: Any) -> list[float]:
    """A scorer: the least it can be for `score.NAME` to work in a corpus."""
    return [float(sum(t.count(v) for v in "aeiou")) for t in texts.to_pylist()]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, folder = random.Random(3), tmp_path_factory.mktemp("shown")
    texts = [prose(rng, n) for n in [1, 2, 3, 4, 5, 6, 7, 8, 9, 12] * 8]
    texts += [f"{texts[79]} Once more.", f"Write to {CANARY}.", f"{CANARY} " + "Same line of it.\n" * 40]
    texts += ["x" * (EXCERPT - 40) + f"\n{KEY}"]
    (folder / "web.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (folder / "notes").mkdir()
    for language, text in DECLARATION.items():
        (folder / "notes" / f"{language}.txt").write_text(text)
    (folder / "notes" / "stub.txt").write_text(f"Ask {CANARY} about the kettle that is here.")
    return folder


@pytest.fixture(scope="module")
def corpus(base: Path) -> CorpusVersion:
    patch = pytest.MonkeyPatch()
    with patch.context() as p:
        p.setattr(scorers, "_registered", {})
        p.setattr("sheaf.engine.make", lambda *_: InThisProcess())
        scorers.register("vowels", vowels)
        recipe = recipe_at(base)
        pipeline.prepare(recipe)
    return CorpusVersion.open(recipe.workspace)


def decided(corpus: CorpusVersion) -> list[dict[str, Any]]:
    return corpus.decisions().to_pylist()


def test_examples_are_records_that_were_dropped_so(corpus: CorpusVersion) -> None:
    dropped = {row["id"].hex(): row["reason"] for row in decided(corpus) if row["reason"].startswith("gopher:")}
    found = examples(corpus, "gopher", limit=1000)
    assert found["count"] == len(dropped) == len(found["examples"])
    assert {e["record"]: e["reason"] for e in found["examples"]} == dropped
    whole = examples(corpus, "gopher:words", limit=1000)
    assert {e["record"] for e in whole["examples"]} == {i for i, r in dropped.items() if r == "gopher:words"}


def test_examples_come_from_every_source_in_turn(corpus: CorpusVersion) -> None:
    assert {e["source"] for e in examples(corpus, "gopher", limit=2)["examples"]} == {"web", "notes"}
    only = examples(corpus, "gopher", source="notes", limit=5)
    assert {e["source"] for e in only["examples"]} == {"notes"}
    assert only["count"] == 1


def test_an_example_says_which_scores_decided(corpus: CorpusVersion) -> None:
    for example in examples(corpus, "gopher:words", limit=50)["examples"]:
        assert set(example["scores"]) == {"words", "language", "spaceless"}
        assert example["scores"]["words"] < 50
    for example in examples(corpus, "filter", limit=50)["examples"]:
        assert example["reason"] == "filter:score.words > 60"
        assert example["scores"]["words"] <= 60


def test_a_near_duplicate_is_shown_with_the_record_kept_in_its_place(corpus: CorpusVersion) -> None:
    (example,) = examples(corpus, "near-duplicate")["examples"]
    kept = {row["id"].hex() for row in decided(corpus) if row["kept"]}
    assert example["of"]["record"] in kept
    one, other = example["excerpt"], example["of"]["excerpt"]
    assert one[:500] == other[:500]


def test_whatever_is_quoted_is_masked(corpus: CorpusVersion) -> None:
    text = json.dumps([examples(corpus, reason, limit=1000) for reason in ("gopher", "filter", "near-duplicate")])
    assert "[email]" in text
    assert "canary" not in text
    assert "c2VjcmV0" not in text


def test_a_secret_across_the_end_of_an_excerpt_is_masked_whole() -> None:
    for n in range(EXCERPT - 60, EXCERPT + 1, 7):
        assert "c2VjcmV0" not in shown("x" * n + "\n" + KEY)
        assert "canary" not in shown("x" * n + " " + CANARY)


def test_a_reason_that_cannot_be_is_told_with_the_nearest(corpus: CorpusVersion) -> None:
    with pytest.raises(UsageError, match="no record is ever dropped") as caught:
        examples(corpus, "gophr")
    assert "did you mean 'gopher'?" in str(caught.value)
    with pytest.raises(UsageError, match="no source is called 'wiki'"):
        examples(corpus, "gopher", source="wiki")
    assert examples(corpus, "forgotten")["count"] == 0  # it can be, and did not


def test_the_counts_by_reason_are_those_of_the_decisions(corpus: CorpusVersion) -> None:
    rows = decided(corpus)
    for number, name in enumerate(corpus.source_names):
        told = counts(corpus)["sources"][name]
        for reason, n in told.items():
            wanted = "" if reason == "kept" else reason
            assert n == sum(row["source"] == number and row["reason"] == wanted for row in rows)


def kept_records(corpus: CorpusVersion) -> dict[str, int]:
    """Kept by the rules, by source: near duplicates count as kept, since `what_if` does not decide them again."""
    rows = decided(corpus)
    return {
        name: sum(r["source"] == n and (r["kept"] or r["reason"] == "near-duplicate") for r in rows)
        for n, name in enumerate(corpus.source_names)
    }


@pytest.mark.parametrize(
    ("override", "reason", "value"),
    [
        ("prepare.length.min_characters=64", "too-short", 64.0),
        ('prepare.filters=[gopher, "score.words > 30", "score.vowels >= 0"]', "filter:score.words > 60", 30.0),
        ('prepare.filters=[gopher, "score.words > 120", "score.vowels >= 0"]', "filter:score.words > 60", 120.0),
        ('prepare.filters=["score.words > 60", "score.vowels >= 0"]', "gopher:words", None),
    ],
)
def test_what_another_threshold_would_do_is_what_it_does(
    base: Path, corpus: CorpusVersion, monkeypatch: pytest.MonkeyPatch, override: str, reason: str, value: float | None
) -> None:
    """The corpus is really made with the other threshold, without near duplicates, which are not decided again."""
    monkeypatch.setattr(scorers, "_registered", {})
    monkeypatch.setattr("sheaf.engine.make", lambda *_: InThisProcess())
    scorers.register("vowels", vowels)
    recipe = recipe_at(base, override, "prepare.dedup.near=null", f"workspace={base}/other")
    pipeline.prepare(recipe)
    other = kept_records(CorpusVersion.open(recipe.workspace))
    rule = next(r for r in what_if(corpus)["rules"] if r["reason"] == reason)
    change = next(a for a in rule["alternatives"] if a["threshold"] == value)
    now = kept_records(corpus)
    if reason == "gopher:words":  # without the whole set, at least as many as without one rule of it
        assert all(other[name] >= now[name] + change["sources"][name]["records"] for name in now)
    else:
        assert {name: now[name] + change["sources"][name]["records"] for name in now} | {"web": other["web"]} == other
        assert abs(now["web"] + change["sources"]["web"]["records"] - other["web"]) <= 1  # the near duplicate


def test_tokens_gained_are_those_of_the_records(corpus: CorpusVersion) -> None:
    lengths = {bytes(i): int(n) for i, n in zip(corpus.documents.id, corpus.documents.length, strict=True)}
    rule = next(r for r in what_if(corpus)["rules"] if r["reason"] == "filter:score.words > 60")
    lost = next(a for a in rule["alternatives"] if a["threshold"] == 120.0)
    rules = rules_of(corpus)
    expected = 0
    for shard in corpus.shard_names:
        scores = rules.read(corpus.workspace, shard)
        number = corpus.shard_names.index(shard)
        words = scores["words"].to_numpy()
        for row in decided(corpus):
            if row["kept"] and row["shard"] == number and words[row["row"]] <= 120:
                expected -= lengths[row["id"]]
    assert lost["tokens"] == expected < 0


def test_what_holds_a_secret_or_an_exam_question_as_well_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sheaf.engine.make", lambda *_: InThisProcess())
    rng = random.Random(5)
    question = prose(rng, 2)
    texts = [prose(rng, 5), f"{prose(rng, 4)} {CANARY}", f"{prose(rng, 3)} {question}", prose(rng, 9)]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": question}))
    text = """
name: held
sources: [{name: web, uri: ./web.jsonl}]
prepare:
  filters: ["score.words > 60"]
  privacy: {email: drop}
  decontaminate: [./exam.jsonl]
  tokenizer: {train: bpe, vocab_size: 300}
"""
    pipeline.prepare(recipe_file.loads(text, tmp_path))
    corpus = CorpusVersion.open(tmp_path / "workspace")
    (rule,) = (r for r in what_if(corpus)["rules"] if r["reason"] == "filter:score.words > 60")
    assert rule["drops"] == 3
    assert next(a for a in rule["alternatives"] if a["threshold"] == 30.0)["records"] == 1


def test_histograms_count_every_judged_record_once(corpus: CorpusVersion) -> None:
    n = len(corpus.decisions())
    found = [r for r in what_if(corpus)["rules"] if r["histogram"]]
    assert {"words", "top_2gram", "vowels", "characters"} <= {r["signal"] for r in found}
    for rule in found:
        assert sum(rule["histogram"]["records"]) == n
        assert sum(rule["histogram"]["drops"]) == rule["drops"]
        assert len(rule["histogram"]["edges"]) == len(rule["histogram"]["records"]) + 1
        assert np.all(np.diff(rule["histogram"]["edges"]) > 0)


def test_alternatives_are_sensible_values(corpus: CorpusVersion) -> None:
    for rule in rules_of(corpus).rules:
        for threshold in rule.thresholds:
            values = alternatives(threshold)
            assert values, rule.reason
            assert threshold.value not in values
            assert all(v <= 1 for v in values) or not threshold.share


def test_a_corpus_is_shown_where_its_scorers_are_not_registered(corpus: CorpusVersion) -> None:
    assert "vowels" not in scorers.registered()
    assert any(r["signal"] == "vowels" for r in what_if(corpus)["rules"])


def test_the_verb_shows_counts_examples_and_thresholds(
    base: Path, corpus: CorpusVersion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "sheaf.yaml"
    recipe.write_text(f"name: t\nsources: [{{name: web, uri: {base}/web.jsonl}}]\nworkspace: {base}/workspace\n")
    assert cli.main(["show", str(recipe)]) == 0
    told = capsys.readouterr()
    assert "gopher:words" in told.out
    assert re.search(r"web +email +[1-9]", told.out)
    assert "--dropped" in told.err
    assert cli.main(["show", str(recipe), "--dropped", "gopher", "--limit", "3"]) == 0
    told = capsys.readouterr().out
    assert "Rae et al. 2021" in told
    assert "canary" not in told
    assert cli.main(["show", str(recipe), "--dropped", "gopher", "--json", "--quiet"]) == 0
    assert len(json.loads(capsys.readouterr().out)["examples"]) == 5
    assert cli.main(["show", str(recipe), "--what-if"]) == 0
    assert "> 60" in capsys.readouterr().out
    assert cli.main(["show", str(recipe), "--report", str(tmp_path / "page.html"), "--quiet"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    assert "<h2>Overlap of sources</h2>" in (tmp_path / "page.html").read_text()
    assert cli.main(["show", str(recipe), "--source", "web"]) == 2
    assert cli.main(["show", str(recipe), "--dropped", "gophr"]) == 2
    assert "did you mean 'gopher'?" in capsys.readouterr().err


def test_the_report_shows_what_show_shows_and_masks_it(corpus: CorpusVersion) -> None:
    page = render(corpus_facts(corpus), None)
    assert "canary" not in page
    assert "c2VjcmV0" not in page
    assert "[email]" in page
    for part in ("Before and after", "Other thresholds", "Largest groups of near duplicates", "Overlap of sources"):
        assert f"<h2>{part}</h2>" in page
    assert "gopher:words" in page
    assert 'class="threshold"' in page


def test_the_largest_groups_of_near_duplicates_are_found(corpus: CorpusVersion) -> None:
    (found,) = clusters(corpus, 5)
    rows = decided(corpus)
    (near,) = (row for row in rows if row["reason"] == "near-duplicate")
    assert found["size"] == 2
    assert found["kept"]["record"] == near["of"].hex()
    assert [place["record"] for place in found["dropped"]] == [near["id"].hex()]
    assert clusters(corpus, 0) == []


def test_what_an_exception_lets_pass_is_neither_gained_nor_lost(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sheaf.engine.make", lambda *_: InThisProcess())
    admit = "prepare.admit=[{source: notes, reason: too-short}]"
    rules = ("prepare.filters=[]", "prepare.dedup.near=null", "prepare.length.min_characters=10000")
    recipe = recipe_at(base, *rules, admit, f"workspace={base}/admitted")
    pipeline.prepare(recipe)
    made = CorpusVersion.open(recipe.workspace)
    assert set(made.tokens_by_source().values()) != {0}
    (rule,) = what_if(made)["rules"]
    for other in rule["alternatives"]:
        assert other["sources"]["notes"] == {"records": 0, "tokens": 0}
    assert rule["drops"] == len(made.decisions())
