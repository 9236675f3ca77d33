"""What reading a recipe promises: every mistake named with its line, paths absolute, secrets never inside."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf import recipe_yaml
from sheaf.errors import EnvironmentProblem, RecipeError
from sheaf.recipe import Recipe, Secret
from sheaf.recipe_file import SCHEMA_FILE, dump, json_schema, load, loads, parse_tokens, resolve_secret, schema_text

GOOD = """\
name: support
seed: 7
sources:
  - {name: wiki, uri: ./docs, include: ["**/*.md"], license: CC-BY-SA-4.0}
  - name: tickets
    uri: sqlite:///help.db
    query: SELECT id, body FROM ticket
  - name: site.v2
    uri: https://example.org/docs
    headers: {Accept: text/html, Authorization: {env: SITE_TOKEN}}
    password: {file: ./secret.txt}
prepare:
  tokenizer: {train: bpe, vocab_size: 4096}
mixture:
  wiki: {weight: 2, max_epochs: 4}
model: {preset: tiny}
train:
  batch_tokens: 16_384
  budget: {tokens: 20M}
  learning_rate: 1e-3
  compile: off
"""
BASE = Path("/data/recipes")


def refused(text: str, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as raised:
        loads(text, BASE, "sheaf.yaml", overrides)
    return raised.value


def test_a_good_recipe_is_read_as_written() -> None:
    recipe = loads(GOOD, BASE)
    assert (recipe.name, recipe.seed, recipe.train.batch_tokens) == ("support", 7, 16384)
    assert recipe.train.compile == "off"  # YAML 1.1 would have said false
    assert recipe.train.learning_rate == 1e-3  # PyYAML would have said "1e-3"
    assert recipe.mixture["wiki"].weight == 2.0
    assert recipe.sources[2].headers["Authorization"] == Secret(env="SITE_TOKEN")


def test_files_that_options_name_start_at_the_recipes_folder_too() -> None:
    options = "{key_file: ./id, passphrase: {file: p.txt}, region: ./x}"
    found = loads(GOOD.replace("license: C", f"options: {options}, license: C"), BASE).sources[0].options
    assert found == {"key_file": "/data/recipes/id", "passphrase": Secret(file="/data/recipes/p.txt"), "region": "./x"}


def test_a_uri_with_the_name_of_a_driver_is_no_path() -> None:
    text = GOOD.replace("uri: ./docs", "uri: oracle+cx_oracle://reader@db.local/help")
    assert loads(text, BASE).sources[0].uri == "oracle+cx_oracle://reader@db.local/help"


def test_relative_paths_start_at_the_recipes_folder() -> None:
    recipe = loads(GOOD, BASE, overrides=["prepare.tokenizer.from=../t/tokenizer.json", "model.from=./ckpt"])
    assert recipe.workspace == "/data/recipes/workspace"
    assert recipe.sources[0].uri == "/data/recipes/docs"
    assert recipe.sources[1].uri == "sqlite:////data/recipes/help.db"
    assert recipe.sources[2].uri == "https://example.org/docs"
    assert recipe.sources[2].password == Secret(file="/data/recipes/secret.txt")
    assert recipe.prepare.tokenizer.from_ == "/data/t/tokenizer.json"
    assert recipe.model.from_ == "/data/recipes/ckpt"


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("batch_tokens:", "batch_token:", 18, ["train.batch_token", "did you mean 'batch_tokens'?", "sequence_length"]),
        ("{train: bpe,", "{form: x,", 13, ["prepare.tokenizer.form", "did you mean 'from'?"]),
        ("compile: off", "lr: 0.1", 21, ["unknown key 'train.lr'", "write 'learning_rate'"]),
        ("compile: off", "zzzzzz: 1", 21, ["unknown key 'train.zzzzzz'", "delete the line"]),
        ("license: C", "licence: C", 4, ["sources.0.licence", "did you mean 'license'?"]),
        ("wiki: {weight", "wikki: {weight", 15, ["wikki", "did you mean 'wiki'?", "tickets"]),
        ("compile: off", "compile: sometimes", 21, ["train.compile", "'auto', 'on' or 'off'", "'sometimes'"]),
        ("batch_tokens: 16_384", "batch_tokens: many", 18, ["train.batch_tokens", "integer", "'many'"]),
        ("{tokens: 20M}", "{tokens: 20X}", 19, ["'20X' is not a number of tokens", "1.5B"]),
        ("{tokens: 20M}", "{tokens: 20M, steps: 3}", 19, ["train.budget", "one of tokens, epochs, hours or steps"]),
        ("compile: off", "layout: {dta: 1}", 21, ["train.layout.dta", "did you mean 'data'?"]),
        ("compile: off", "layout: atuo", 21, ["train.layout", "'auto'"]),
        ("    uri: sqlite:///help.db\n", "", 5, ["'uri' is missing in 'sources.1'"]),
        ("name: tickets", "name: wiki", 5, ["two sources are named 'wiki'"]),
        ("seed: 7", "seed: 7\nseed: 8", 3, ["'seed' is given twice"]),
        ("seed: 7", "seed: -7", 2, ["seed", "greater than or equal to 0"]),
        ("{env: SITE_TOKEN}", "{evn: SITE_TOKEN}", 10, ["evn", "did you mean 'env'?"]),
        ("name: support", "nmae: support", 1, ["nmae", "did you mean 'name'?"]),
        ("license: C", "map: openia, license: C", 4, ["'sources.0.map' is wrong", "did you mean 'openai'?"]),
        ("license: C", "map: {kind: chat, user: q}, license: C", 4, ["why:   a chat needs either messages, or user"]),
        ("license: C", "options: {anonymous: true}, license: C", 4, ["a valid string", "write it in quotes"]),
    ],
)
def test_a_mistake_names_its_line_its_key_and_the_way_out(old: str, new: str, line: int, said: list[str]) -> None:
    assert GOOD.count(old) == 1
    error = refused(GOOD.replace(old, new))
    assert f"sheaf.yaml:{line}" in str(error)
    assert error.where.startswith("sheaf.yaml:")
    for words in said:
        assert words in str(error)


PREPARE = "  tokenizer: {train: bpe, vocab_size: 4096}"


@pytest.mark.parametrize(
    "line, said",
    [
        ("filters: gopher", ["'prepare.filters' is a list", "write [gopher]"]),
        ("decontaminate: {evals: a}", ["'prepare.decontaminate' is a list", "a mapping", "a line `- a` for each"]),
        ("privacy: {e-mail: mask}", ["unknown key 'prepare.privacy.e-mail'", "did you mean 'email'?"]),
        ("privacy: {zzz: drop}", ["unknown key 'prepare.privacy.zzz'", "use one of: email, phone"]),
        ("length: {min_characters: 100, max_characters: 10}", ["max_characters (10) is below min_characters (100)"]),
    ],
)
def test_what_prepare_cannot_mean_says_what_it_takes(line: str, said: list[str]) -> None:
    error = refused(GOOD.replace(PREPARE, f"{PREPARE}\n  {line}"))
    assert error.where == "sheaf.yaml:14"
    for words in said:
        assert words in str(error)


def test_all_mistakes_of_a_file_are_told_at_once_in_its_order() -> None:
    text = GOOD.replace("seed: 7", "sed: 7").replace("batch_tokens", "batch_token").replace("wiki: {w", "wik: {w")
    message = str(refused(text))
    places = [message.index(f"sheaf.yaml:{line}:") for line in (2, 15, 18)]
    assert places == sorted(places)
    assert message.startswith("3 problems in sheaf.yaml")


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("name: x\nsources: [a, b\nseed: 1\n", 3, "YAML"),
        ("name: !!python/object/apply:os.system [x]\n", 1, "tags"),
        ("name: &a x\nworkspace: *a\n", 1, "anchors"),
        ("a: b\n---\nc: d\n", 2, "YAML"),
        ("- a\n- b\n", 1, "mapping"),
        ("", 1, "mapping"),
        ("just words", 1, "mapping"),
        ("name: a\n? [x, y]\n: b\n", 2, "key"),
        ("name: x\nseed: " + "[" * 5000, 2, "deep"),
        ("name: a\x00b\n", 1, "YAML"),
        ("<<: {name: x}\n", 1, "'<<'"),
    ],
)
def test_text_that_is_no_recipe_is_refused_with_its_line(text: str, line: int, word: str) -> None:
    error = refused(text)
    assert f"sheaf.yaml:{line}" in str(error)
    assert word in str(error)


CANARY = "hunter2-canary"


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("{file: ./secret.txt}", CANARY),
        GOOD.replace("{file: ./secret.txt}", f"{{value: {CANARY}}}"),
        GOOD.replace("{file: ./secret.txt}", f"[{CANARY}]"),
        GOOD.replace("{env: SITE_TOKEN}", f"Bearer {CANARY}"),
        GOOD.replace("{env: SITE_TOKEN}", f"[{CANARY}]"),
        GOOD.replace("https://example.org", f"https://me:{CANARY}@example.org"),
        GOOD.replace("example.org/docs", f"example.org/docs?access_token={CANARY}"),
        GOOD.replace("{file: ./secret.txt}", f"'{CANARY}"),
        GOOD.replace("password: {file: ./secret.txt}", f"urls: ['https://u:{CANARY}@example.org/']"),
    ],
)
def test_a_secret_in_the_recipe_is_refused_and_not_repeated(text: str) -> None:
    assert CANARY in text
    try:
        loads(text, BASE, "sheaf.yaml")
    except RecipeError as error:
        assert CANARY not in str(error)
        assert CANARY not in "".join(traceback.format_exception(error))
    else:
        pytest.fail("a literal secret passed")


def test_a_literal_password_is_told_what_to_write_instead() -> None:
    error = refused(GOOD.replace("{file: ./secret.txt}", CANARY))
    assert (error.where, "{env: NAME}" in error.fix) == ("sheaf.yaml:11", True)
    overridden = refused(GOOD, f"sources.site.v2.password={CANARY}")
    assert CANARY not in str(overridden)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.seed=8", lambda r: r.train.seed == 8),
        ("sources.0.uri=./x", lambda r: r.sources[0].uri == "/data/recipes/x"),
        ("sources.wiki.uri=./x", lambda r: r.sources[0].uri == "/data/recipes/x"),
        ("sources.site.v2.uri=http://h/", lambda r: r.sources[2].uri == "http://h/"),
        ("sources.wiki.include=['*.txt', '*.md']", lambda r: r.sources[0].include == ("*.txt", "*.md")),
        ("sources.wiki.include.0=*.txt", lambda r: False),
        ("mixture.site.v2.weight=0.5", lambda r: r.mixture["site.v2"].weight == 0.5),
        ("train.budget.steps=5", lambda r: (r.train.budget.steps, r.train.budget.tokens) == (5, None)),
        ("train.schedule.kind=constant-with-decay", lambda r: r.train.schedule.kind == "constant-with-decay"),
        ("train.layout.data=2", lambda r: r.train.layout.data == 2),
        ("model.from=./m", lambda r: (r.model.from_, r.model.preset) == ("/data/recipes/m", None)),
        ("name=other", lambda r: r.name == "other"),
    ],
)
def test_any_key_can_be_overridden(override: str, read: Any) -> None:
    if "*.txt" in override and "[" not in override:
        assert "alias" in str(refused(GOOD, override))  # a bare * is YAML for an alias: quote it
        assert loads(GOOD, BASE, overrides=["sources.wiki.include.0='*.txt'"]).sources[0].include == ("*.txt",)
    else:
        assert read(loads(GOOD, BASE, overrides=[override]))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.sed=8", "did you mean 'seed'?"),
        ("trian.seed=8", "did you mean 'train'?"),
        ("sources.wki.uri=./x", "did you mean 'wiki'?"),
        ("sources.9.uri=./x", "no source '9'"),
        ("sources.wiki.include.4=x", "no entry '4'"),
        ("mixture.wki.weight=1", "did you mean 'wiki'?"),
        ("train.seed", "KEY=VALUE"),
        ("train.seed=[", "YAML"),
        ("train.seed.deeper=1", "train.seed"),
        ("train.batch_tokens=lots", "integer"),
        ("train.betas=[0.9, 1.0]", "less than 1"),
        ("train.betas=[-0.1, 0.9]", "greater than or equal to 0"),
        ("train.learning_rate=inf", "finite"),
        ("train.budget.epochs=1e300", "1000000000"),
        ("train.budget.hours=1e400", "hours"),
        ("train.budget.steps=99999999999999999999", "1000000000000"),
    ],
)
def test_a_wrong_override_is_named_with_the_nearest_right_one(override: str, said: str) -> None:
    error = refused(GOOD, override)
    assert said in str(error)
    assert "override of " + override.partition("=")[0] in str(error)


def test_a_batch_smaller_than_a_sample_is_refused() -> None:
    error = refused(GOOD, "train.batch_tokens=64")
    assert "batch_tokens (64) must be at least sequence_length" in str(error)


CURRICULUM = """curriculum:
  - {at: 2000, weights: {wiki: 0.5}}
  - {at: 80%, weights: {wiki: 0, tickets: 3}}
"""


def test_a_curriculum_is_a_list_of_steps_or_shares_and_the_weights_from_there_on() -> None:
    recipe = loads(GOOD + CURRICULUM, BASE)
    assert [(c.at, c.weights) for c in recipe.curriculum] == [(2000, {"wiki": 0.5}), ("80%", {"wiki": 0, "tickets": 3})]
    assert loads(dump(recipe), BASE) == recipe
    assert {name: entry.weight for name, entry in recipe.heaviest.items()} == {"wiki": 2, "tickets": 3}
    assert loads(GOOD + CURRICULUM, BASE, "", ["curriculum.0.weights.wiki=9"]).curriculum[0].weights == {"wiki": 9}


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("{wiki: 0.5}", "{wikki: 0.5}", 2, ["'wikki', which is no source", "did you mean 'wiki'?"]),
        ("{wiki: 0.5}", "{wiki: -1}", 2, ["greater than or equal to 0"]),
        ("{wiki: 0.5}", "{}", 2, ["at least 1"]),
        ("at: 80%", "at: 180%", 3, ["curriculum.1.at"]),
        ("at: 80%", "at: soon", 3, ["curriculum.1.at"]),
        ("at: 2000", "at: -1", 2, ["curriculum.0.at"]),
    ],
)
def test_a_mistake_in_a_curriculum_names_its_line(old: str, new: str, line: int, said: list[str]) -> None:
    error = refused(GOOD + CURRICULUM.replace(old, new))
    assert error.where == f"sheaf.yaml:{len(GOOD.splitlines()) + line}", error
    assert all(words in str(error) for words in said), error


def test_shares_of_a_run_whose_steps_nobody_knows_yet_are_refused() -> None:
    assert "needs a budget in tokens, epochs or steps" in str(refused(GOOD + CURRICULUM, "train.budget.hours=1"))


def test_a_dumped_recipe_reads_back_equal() -> None:
    recipe = loads(GOOD, BASE)
    text = dump(recipe)
    assert loads(text, Path("/elsewhere")) == recipe
    assert "SITE_TOKEN" in text and "min_characters: 32" in text


@settings(max_examples=60, deadline=None)
@given(
    st.text(max_size=40),
    st.floats(min_value=1e-12, max_value=1e12),
    st.sampled_from(
        ["1e5", "null", "~", "", "0x1", "on", "1_0", "2026-01-01", "- a", "a: b", "'", "#x", "\u0085", "=", "!"]
    ),
)
def test_yaml_of_any_text_and_number_reads_back_equal(text: str, number: float, odd: str) -> None:
    value = {
        "text": text,
        "number": number,
        "odd": odd,
        "list": [text, odd, None, True, 3],
        odd or "k": {text or "x": 1},
    }
    assert recipe_yaml.read(recipe_yaml.write(value), "x").value == value


def test_an_absent_recipe_is_answered_with_those_nearby(tmp_path: Path) -> None:
    (tmp_path / "sheaf.yaml").write_text(GOOD)
    (tmp_path / "other.yml").write_text(GOOD)
    for path in (tmp_path / "shaef.yaml", tmp_path):
        with pytest.raises(RecipeError) as raised:
            load(path)
        assert "sheaf.yaml" in raised.value.fix and "other.yml" in raised.value.fix
    with pytest.raises(RecipeError, match="no such recipe"):
        load(tmp_path / "sheaf.yaml" / "x.yaml")


def test_a_recipe_file_is_read_relative_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sheaf.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    monkeypatch.chdir(tmp_path.parent)
    recipe = load(Path(tmp_path.name) / "sheaf.yaml", ["seed=3"])
    assert (recipe.seed, recipe.sources[0].uri) == (3, str(tmp_path / "docs"))


def test_a_recipe_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sheaf.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(RecipeError, match="cannot be read"):
        load(tmp_path / "sheaf.yaml")


def test_the_schema_in_the_package_is_up_to_date() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), "run: python -m sheaf.recipe_file"


def test_the_schema_forbids_unknown_keys_everywhere() -> None:
    schema = json_schema()
    objects = [schema, *schema["$defs"].values()]
    assert all(o["additionalProperties"] is False for o in objects if "properties" in o)
    assert "from" in schema["$defs"]["TokenizerSpec"]["properties"]
    assert json.loads(SCHEMA_FILE.read_text()) == schema


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("20M", 20_000_000),
        ("1.5B", 1_500_000_000),
        ("1.2T", 1_200_000_000_000),
        ("2G", 2 * 10**9),
        ("500k", 500_000),
        ("1.2T", 12 * 10**11),
        (7, 7),
    ],
)
def test_token_counts_are_read_exactly(text: str | int, count: int) -> None:
    assert parse_tokens(text) == count


@pytest.mark.parametrize("text", ["", "M", "20m", "-5", "0", "1.5", "1e6", "20 MB", "20P", "٣"])
def test_other_token_counts_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="number of tokens"):
        parse_tokens(text)


def test_a_secret_is_looked_up_when_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHEAF_TEST_SECRET", CANARY)
    (tmp_path / "s").write_text(f"{CANARY}\n")
    assert resolve_secret(Secret(env="SHEAF_TEST_SECRET")) == CANARY
    assert resolve_secret(Secret(file=str(tmp_path / "s"))) == CANARY


def test_a_secret_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHEAF_TEST_SECRET", raising=False)
    with pytest.raises(EnvironmentProblem) as raised:
        resolve_secret(Secret(env="SHEAF_TEST_SECRET"))
    assert "SHEAF_TEST_SECRET" in raised.value.where
    with pytest.raises(EnvironmentProblem) as raised:
        resolve_secret(Secret(file=str(tmp_path / "none")))
    assert "none" in raised.value.where


def test_a_recipe_of_ten_lines_is_enough() -> None:
    recipe = loads("name: mine\nsources:\n  - {name: docs, uri: ./docs}\n", BASE)
    assert isinstance(recipe, Recipe) and recipe.train.budget.epochs == 1.0
