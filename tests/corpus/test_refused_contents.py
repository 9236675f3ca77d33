"""Whatever was quarantined or dropped can be listed by item, reason and source, and shown."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import orjson
import pytest

from sheaf import cli, recipe_file
from sheaf.corpus.refused import refused
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import UsageError
from sheaf.prepare.pipeline import prepare

LINES = b'{"text": "a good line, long enough to be kept by any rule"}\n{"text": "bad \x1b[31m\xff\n{"text": "tiny"}\n'


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refused")
    for name in ("files", "more"):
        (folder / name).mkdir()
    (folder / "files/rows.jsonl").write_bytes(LINES)
    (folder / "files/noise.bin").write_bytes(bytes(range(1, 32)) * 100)
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        info = tarfile.TarInfo("deep/rows.jsonl")
        info.size = len(LINES)
        tar.addfile(info, io.BytesIO(LINES))
    with zipfile.ZipFile(folder / "more/outer.zip", "w") as archive:
        archive.writestr("inner.tgz", inner.getvalue())
        archive.writestr("note.txt", "A note in the same archive, which is kept as it is.")
    (folder / "more/bomb.gz").write_bytes(gzip.compress(bytes(20_000_000)))
    (folder / "sheaf.yaml").write_text(
        """
name: refused
sources: [{name: files, uri: ./files}, {name: more, uri: ./more}]
prepare: {tokenizer: {train: bpe, vocab_size: 300}}
"""
    )
    prepare(recipe_file.load(folder / "sheaf.yaml"), workers=1)
    return folder


@pytest.fixture
def corpus(base: Path) -> CorpusVersion:
    return CorpusVersion.open(base / "workspace")


def test_what_is_listed_is_what_was_asked_for(corpus: CorpusVersion) -> None:
    all_of_it = refused(corpus)
    assert all_of_it["count"] == {"regions": 4, "dropped": 1}
    assert [r["path"] for r in refused(corpus, reason="bomb")["regions"]] == ["bomb.gz"]
    assert {r["path"] for r in refused(corpus, source="files")["regions"]} == {"rows.jsonl", "noise.bin"}
    assert [r["path"] for r in refused(corpus, item="outer")["regions"]] == ["outer.zip"]
    assert refused(corpus, reason="too-short")["dropped"][0]["path"] == "rows.jsonl"
    assert refused(corpus, reason="too-short", item="outer")["count"]["dropped"] == 1  # it lies there too
    assert refused(corpus, reason="too-short", item="noise")["count"]["dropped"] == 0
    assert len(refused(corpus, most=2)["regions"]) == 2
    assert refused(corpus, reason="memory")["count"] == {"regions": 0, "dropped": 0}  # it could have been
    with pytest.raises(UsageError, match="nobody"):
        refused(corpus, source="nobody")
    with pytest.raises(UsageError, match=r"(?s)undecodeable.*bomb, .*did you mean 'undecodable'"):
        refused(corpus, reason="undecodeable")


def test_the_bytes_of_a_refused_line_are_shown_however_deep_it_lies(corpus: CorpusVersion) -> None:
    shown = {r["path"]: r for r in refused(corpus, show=True)["regions"]}
    line = '{"text": "bad \x1b[31m\\xff\n'
    assert shown["rows.jsonl"]["excerpt"] == line
    assert shown["outer.zip"]["member"] == "inner.tgz!/inner.tar!/deep/rows.jsonl"
    assert shown["outer.zip"]["excerpt"] == line
    assert shown["noise.bin"]["excerpt"].startswith("\x01\x02\x03") and len(shown["noise.bin"]["excerpt"]) == 2048


def test_the_text_of_a_dropped_record_is_shown(corpus: CorpusVersion) -> None:
    assert [d["excerpt"] for d in refused(corpus, reason="too-short", show=True)["dropped"]] == ["tiny"]


def test_of_bytes_that_are_no_text_the_command_shows_enough_to_know_them(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ledger", str(base / "sheaf.yaml"), "--item", "noise", "--show"]) == 0
    shown = capsys.readouterr().out
    assert "\\x01\\x02\\x03" in shown and len(shown) < 1500


def test_what_has_changed_since_is_not_shown_as_what_it_was(base: Path, corpus: CorpusVersion) -> None:
    path = base / "files/noise.bin"
    before = path.read_bytes()
    path.write_bytes(b"something else")
    (region,) = refused(corpus, item="noise", show=True)["regions"]
    path.write_bytes(before)
    assert "excerpt" not in region and "not what it was" in region["why"]


def test_the_command_shows_them_without_steering_the_terminal(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(base / "sheaf.yaml")
    assert cli.main(["ledger", recipe, "--reason", "undecodable", "--show"]) == 0
    told = capsys.readouterr().out
    assert "quarantined undecodable: files" in told and "\\x1b[31m" in told and "\x1b" not in told
    assert cli.main(["ledger", recipe, "--source", "more", "--json"]) == 0
    assert {r["source"] for r in orjson.loads(capsys.readouterr().out)["regions"]} == {"more"}
    assert cli.main(["ledger", recipe, "--reason", "too-short"]) == 0
    assert "The record is shorter than" in capsys.readouterr().out
    assert cli.main(["ledger", recipe, "--reason", "timeout"]) == 0
    told = capsys.readouterr().out
    assert "The parser took longer" in told and "nothing was lost" in told
