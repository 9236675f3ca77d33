"""Finding runs, also when one of them is broken."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from sheaf.errors import CorruptStore
from sheaf.runs import KEYS, find_run, read_record, runs_of
from sheaf.train.run import Run


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe"])
def test_a_broken_record_is_named_and_hides_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    for name, started in (("a-001", "2026-01-01T00:00:00Z"), ("a-002", "2026-01-02T00:00:00Z"), ("b-001", "")):
        folder = tmp_path / "workspace" / "runs" / name
        folder.mkdir(parents=True)
        record = orjson.dumps({**dict.fromkeys(KEYS), "started": started})
        (folder / "run.json").write_bytes(record if started else content)
    monkeypatch.chdir(tmp_path)
    assert [path.name for path in runs_of(Path("workspace"))] == ["a-002", "a-001", "b-001"]
    assert find_run().name == "a-002"
    broken = find_run("b-001")
    for read in (Run.open, read_record):
        with pytest.raises(CorruptStore, match="cannot be read") as raised:
            read(broken)
        assert "run.json" in raised.value.where
