"""The command line as a user meets it: real processes, what they print where, and the codes they end with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sheaf.cli import app
from sheaf.console import printable
from sheaf.shell import as_json

VERBS = [
    "init",
    "prepare",
    "train",
    "tune",
    "resume",
    "evaluate",
    "generate",
    "trace",
    "report",
    "export",
    "ledger",
    "doctor",
    "demo",
    "schema",
]
SENTENCE = "the sheaf gathers scattered data from many places and trains a model on it while every origin is known"
WORDS = SENTENCE.split()
RECIPE = """\
name: micro
sources:
  - {name: notes, uri: ./data, include: ["*.txt"]}
  - {name: pages, uri: ./data, include: ["*.html"]}
  - {name: rows, uri: ./data, include: ["*.jsonl"]}
prepare: {tokenizer: {train: bpe, vocab_size: 512}}
model: {hidden_size: 64, layers: 2, heads: 2, kv_heads: 1, intermediate_size: 128}
train: {sequence_length: 64, batch_tokens: 512, budget: {steps: 20}, precision: fp32, compile: "off", held_out: 0.1}
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "PYTHONDONTWRITEBYTECODE": "1"}


def sheaf(*words: str | Path, folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the real command line in a folder."""
    command = [sys.executable, "-m", "sheaf", *map(str, words)]
    return subprocess.run(
        command, cwd=folder, env={**ENVIRONMENT, **changes}, capture_output=True, text=True, timeout=300, check=False
    )


def answer(*words: str | Path, folder: Path, code: int = 0) -> dict[str, Any]:
    """The one JSON object on stdout of a verb that ends with `code`."""
    done = sheaf(*words, "--json", folder=folder)
    assert done.returncode == code, done.stderr
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def text(start: int, words: int) -> str:
    return " ".join(WORDS[(start + 7 * k * k) % len(WORDS)] for k in range(words)) + "."


def scatter(data: Path) -> None:
    """Some forty files in three formats, one of them broken, one twice."""
    data.mkdir()
    for i in range(15):
        (data / f"note{i}.txt").write_text(f"Note {i}. {text(i, 200)}")
        (data / f"page{i}.html").write_text(
            f"<html><body><main><p>Page {i}: {text(i + 3, 200)}</p></main></body></html>"
        )
    for i in range(10):
        rows = [json.dumps({"text": f"Row {i}.{k}: {text(i * k, 40)}"}) for k in range(8)]
        (data / f"rows{i}.jsonl").write_text("\n".join(rows) + "\n")
    (data / "again.txt").write_text((data / "note0.txt").read_text())
    (data / "broken.jsonl").write_text('{"text": "this line is good, and long enough to be kept"}\n{"text": "cut off\n')


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with scattered files, a recipe, and a run made by one command; with what that command printed."""
    folder = tmp_path_factory.mktemp("a user's folder")
    scatter(folder / "data")
    (folder / "sheaf.yaml").write_text(RECIPE)
    return folder, answer("train", folder=folder)


def test_help_of_the_program_names_every_verb(tmp_path: Path) -> None:
    done = sheaf("--help", folder=tmp_path)
    assert done.returncode == 0
    assert [v for v in VERBS if f"│ {v} " not in done.stdout] == []
    assert done.stderr == ""


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_describes_every_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    app([verb, "--help"], result_action="return_value")
    shown = capsys.readouterr().out
    assert f"Usage: sheaf {verb}" in shown
    for option in ("--json", "--debug", "--quiet"):
        assert option in shown
    options = [line for line in shown.splitlines() if line.startswith("│ --")]
    assert [line for line in options if len(line.strip("│ ").split("  ")) < 2] == []


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['sheaf', '--help']; from sheaf.cli import main; main(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert loaded.isdisjoint({"torch", "pyarrow", "numpy", "pydantic", "yaml", "rich.markdown"})


def test_an_unknown_verb_or_option_ends_with_2_and_the_nearest_one(tmp_path: Path) -> None:
    for words, near in ((["trian"], 'mean "train"'), (["train", "--nporc", "2"], "mean --nproc")):
        done = sheaf(*words, folder=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert near in done.stderr
        assert "Traceback" not in done.stderr


def test_an_unknown_key_is_told_with_file_line_and_the_nearest_key(tmp_path: Path) -> None:
    (tmp_path / "sheaf.yaml").write_text(RECIPE.replace("held_out", "held_uot"))
    (tmp_path / "data").mkdir()
    done = sheaf("prepare", folder=tmp_path)
    assert done.returncode == 2
    assert "sheaf.yaml:8" in done.stderr
    assert "held_uot" in done.stderr and "'held_out'" in done.stderr
    assert not (tmp_path / "workspace").exists()


def test_a_missing_recipe_and_a_missing_folder_are_told_apart(tmp_path: Path) -> None:
    missing = answer("prepare", folder=tmp_path, code=2)
    assert missing["error"]["where"] == "sheaf.yaml"
    assert "sheaf init" in missing["error"]["fix"]
    (tmp_path / "sheaf.yaml").write_text(RECIPE)
    nothing = answer("prepare", folder=tmp_path, code=3)
    assert str(tmp_path / "data") in nothing["error"]["where"]
    assert nothing["exit_code"] == 3


def test_a_source_that_holds_nothing_ends_with_3(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "sheaf.yaml").write_text(RECIPE)
    assert "holds nothing" in answer("prepare", folder=tmp_path, code=3)["error"]["what"]


def test_a_traceback_comes_only_with_debug(tmp_path: Path) -> None:
    assert "Traceback" not in sheaf("prepare", folder=tmp_path).stderr
    assert "Traceback" in sheaf("prepare", "--debug", folder=tmp_path).stderr


def test_verbs_about_runs_say_so_when_there_is_none(tmp_path: Path) -> None:
    for words in (["resume"], ["trace", "--step", "0"]):
        assert answer(*words, folder=tmp_path, code=2)["error"]["what"] == "there is no run yet"


def test_the_schema_describes_the_recipe(tmp_path: Path) -> None:
    assert "sources" in answer("schema", folder=tmp_path)["properties"]


def test_init_writes_a_recipe_and_names_the_next_verb(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("some text")
    done = sheaf("init", "in", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "next: sheaf prepare\n")
    again = answer("init", "in", folder=tmp_path, code=2)
    assert "--force" in again["error"]["fix"]


def test_train_goes_from_files_to_a_checkpoint_and_keeps_the_contract_of_its_json(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    folder, data = trained
    assert data["steps"] == 20
    assert data["loss"] < 6.0
    assert data["validation_loss"] > 0
    assert data["tokens_per_second"] > 0
    assert data["peak_memory_bytes"] > 10**7
    assert Path(data["checkpoint"]).is_dir()
    assert Path(data["run"]).parent == folder / "workspace" / "runs"
    prepared = data["prepare"]
    assert prepared["items"] == {"seen": 42, "read": 42, "unchanged": 0, "quarantined": 0, "deferred": 0}
    account = prepared["bytes"]
    assert account["in"] == account["kept"] + account["dropped"] + account["quarantined"]
    assert account["in"] == sum(p.stat().st_size for p in (folder / "data").iterdir())
    records = {k: prepared["records"][k] for k in ("read", "kept", "duplicate", "quarantined")}
    assert records == {"read": 113, "kept": 111, "duplicate": 1, "quarantined": 1}


def test_a_second_prepare_reads_nothing_and_strict_ends_with_5(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, data = trained
    again = answer("prepare", "--strict", folder=folder, code=5)
    assert again["items"]["read"] == 0
    assert again["corpus"] == data["prepare"]["corpus"]
    shown = sheaf("prepare", folder=folder, NO_COLOR="1")
    assert shown.returncode == 0
    assert "next: sheaf train" in shown.stderr
    assert "\x1b" not in shown.stdout + shown.stderr
    assert "bad-json" in shown.stdout


def test_quiet_leaves_stderr_empty(trained: tuple[Path, dict[str, Any]]) -> None:
    assert sheaf("prepare", "--quiet", folder=trained[0]).stderr == ""


def test_an_override_counts_with_and_without_the_recipe(trained: tuple[Path, dict[str, Any]]) -> None:
    for words in (["sheaf.yaml", "train.sede=3"], ["train.sede=3"]):
        error = answer("train", *words, folder=trained[0], code=2)["error"]
        assert "train.sede" in error["what"] and "seed" in error["fix"]


def test_resuming_a_finished_run_is_refused_with_a_reason(trained: tuple[Path, dict[str, Any]]) -> None:
    error = answer("resume", folder=trained[0], code=2)["error"]
    assert "finished" in error["what"] and "20 steps" in error["why"]


def test_a_misspelt_run_is_told_with_the_nearest(trained: tuple[Path, dict[str, Any]]) -> None:
    assert "micro-001" in answer("report", "mikro-001", folder=trained[0], code=2)["error"]["fix"]


def test_generate_repeats_itself_with_the_same_seed(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, data = trained
    words = ("generate", "--prompt", "the sheaf", "--max-tokens", "12", "--seed", "3")
    first = answer(*words, folder=folder)
    assert (first["run"], first["prompt"]) == (data["run"], "the sheaf")
    assert first["text"]
    assert sheaf(*words, folder=folder).stdout == printable("the sheaf" + first["text"]) + "\n"


def test_trace_leads_a_step_to_bytes_that_hold_the_text(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    traced = answer("trace", "micro-001", "--step", "7", "--verify", folder=folder)
    assert traced["step"] == 7
    assert len(traced["samples"]) == 8
    documents = [d for s in traced["samples"] for d in s["documents"]]
    for document in documents:
        for origin in document["origins"]:
            assert origin["verified"]
    (note, origin) = next(
        (d, o) for d in documents for o in d["origins"] if o["source"] == "notes" and "again" not in o["uri"]
    )
    start, end = origin["locator"]["bytes"]
    assert note["text"].encode() in Path(origin["uri"].removeprefix("file://")).read_bytes()[start:end]


def test_trace_leads_an_item_to_the_steps_that_saw_it(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    forward = answer("trace", "--item", "/page", folder=folder)
    (use, *_) = forward["uses"]
    back = answer("trace", "--step", str(use["step"]), "--sample", str(use["sample"]), folder=folder)
    assert use["record"] in [d["record"] for s in back["samples"] for d in s["documents"]]


def test_trace_wants_a_step_or_an_item_and_a_step_that_was_made(trained: tuple[Path, dict[str, Any]]) -> None:
    assert "--step 0" in answer("trace", folder=trained[0], code=2)["error"]["fix"]
    assert "0 to 19" in answer("trace", "--step", "20", folder=trained[0], code=2)["error"]["why"]


def test_ledger_adds_up_by_source_and_shows_an_item_with_its_quarantined_region(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    folder, data = trained
    ledger = answer("ledger", folder=folder)
    assert ledger["corpus"] == data["prepare"]["corpus"]
    assert ledger["reasons"]["rows"] == {"quarantined": {"bad-json": {"count": 1, "bytes": 18}}}
    for name in ("in", "kept", "dropped", "quarantined"):
        assert sum(s[name] for s in ledger["sources"].values()) == ledger["bytes"][name]
    (item,) = answer("ledger", "--item", "broken.jsonl", folder=folder)["items"]
    (region,) = item["regions"]
    assert item["size"] == item["kept_bytes"] + item["dropped_bytes"] + region["bytes"]
    assert region["reason"] == "bad-json" and region["locator"]["bytes"][1] == item["size"]
    shown = sheaf("ledger", "--item", "broken.jsonl", folder=folder).stdout
    assert f"(bytes {region['locator']['bytes'][0]} to" in shown
    assert answer("ledger", "--item", "[", folder=folder, code=2)["error"]["fix"]


def test_an_older_corpus_is_named_by_the_beginning_of_its_digest(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, data = trained
    digest = data["prepare"]["corpus"]
    assert answer("ledger", "--corpus", digest[:12], folder=folder)["corpus"] == digest
    assert digest in answer("ledger", "--corpus", "no-such", folder=folder, code=4)["error"]["why"]


def test_report_is_one_file_and_export_loads_in_transformers(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    report = Path(answer("report", folder=folder)["report"])
    assert report.read_text().startswith("<!")
    exported = answer("export", "--to", "out", folder=folder)
    assert "model.safetensors" in exported["files"]
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "out")
    assert model.config.vocab_size >= len(tokenizer)
    assert tokenizer.decode(tokenizer("the sheaf gathers")["input_ids"]) == "the sheaf gathers"
    assert "not empty" in answer("export", "--to", "out", folder=folder, code=2)["error"]["what"]


def test_a_reader_that_goes_away_ends_the_verb_in_silence(trained: tuple[Path, dict[str, Any]]) -> None:
    command = [sys.executable, "-m", "sheaf", "ledger", "--item", "data", "--quiet"]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=trained[0], env=ENVIRONMENT, **pipe) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_an_interrupted_training_says_how_to_go_on_and_does(tmp_path: Path) -> None:
    scatter(tmp_path / "data")
    (tmp_path / "sheaf.yaml").write_text(RECIPE.replace("steps: 20", "steps: 120"))
    command = [sys.executable, "-m", "sheaf", "train", "train.checkpoint_every=1000", "train.evaluate_every=1000"]
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("step "):
                process.send_signal(signal.SIGINT)
                break
        told = process.stderr.read()
        assert process.wait() == 130
    assert "sheaf resume" in told
    assert "Traceback" not in told
    assert answer("resume", folder=tmp_path)["steps"] == 120


def test_an_interrupted_preparation_ends_with_its_code_and_the_next_one_is_whole(tmp_path: Path) -> None:
    scatter(tmp_path / "data")
    (tmp_path / "sheaf.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "sheaf", "prepare"]
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("read"):
                process.send_signal(signal.SIGTERM)
                break
        told = process.stderr.read()
        assert process.wait() == 143
    assert "interrupted" in told
    assert "Traceback" not in told
    assert answer("prepare", folder=tmp_path)["records"]["kept"] == 111


def test_json_has_no_number_that_json_lacks_and_no_character_beyond_ascii() -> None:
    made = as_json({"loss": float("nan"), "a": [float("inf"), 1.5], "path": Path("/x"), "name": "é\udcff\x9b"})
    assert made.isascii()
    assert json.loads(made) == {"loss": None, "a": [None, 1.5], "path": "/x", "name": "é\udcff\x9b"}
