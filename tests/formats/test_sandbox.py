"""Whatever a parser does, exactly its item is quarantined and the others are read."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
from conftest import parse_files, unaccounted

from sheaf.errors import EnvironmentProblem
from sheaf.formats import sandbox as module
from sheaf.formats import start, wire
from sheaf.formats.answers import BadAnswer
from sheaf.formats.piece import ParserLimits
from sheaf.formats.reasons import REASONS
from sheaf.formats.sandbox import ItemInput, ParseOptions, Sandbox, sandbox_level
from sheaf.formats.watch import Watch
from sheaf.recipe import Limits

MOCKS = Path(__file__).parent / "mock_formats.py"
TIGHT = Limits(seconds=1.0, memory_mb=256, expanded_mb=1)


def run(words: list[str], limits: Limits = TIGHT) -> dict[str, tuple[str, str]]:
    """What became of MOCK items between good ones: (reason, detail or text) by word."""
    contents = [("first.txt", b"the first text")]
    for word in words:
        contents += [(f"{word}.mock", f"MOCK {word}".encode()), ("after.txt", f"after {word}".encode())]
    with Sandbox(limits, _extra=MOCKS) as sandbox:
        parsed = parse_files(sandbox, contents, ParseOptions())
    assert not any(unaccounted(parsed, [len(data) for _, data in contents]))
    assert parsed.items["item"].to_pylist() == list(range(len(contents)))
    good = [r["text"] for r in parsed.records.to_pylist() if contents[r["item"]][0].endswith(".txt")]
    assert good == [data.decode() for name, data in contents if name.endswith(".txt")]
    found: dict[str, tuple[str, str]] = {}
    for row in parsed.records.to_pylist():
        if contents[row["item"]][0].endswith(".mock"):
            found[contents[row["item"]][0].removesuffix(".mock")] = ("", row["text"])
    for row in parsed.regions.to_pylist():
        found[contents[row["item"]][0].removesuffix(".mock")] = (row["reason"], row["detail"])
        assert row["bytes"] == len(contents[row["item"]][1])
    return found


def test_a_parser_that_dies_hangs_or_lies_costs_its_own_item_only() -> None:
    found = run(["exit", "hang", "segfault", "raise", "lie", "reason", "memory", "oom-killed", "late-crash"])
    assert {word: reason for word, (reason, _) in found.items()} == {
        "exit": "crash",
        "hang": "timeout",
        "segfault": "crash",
        "raise": "parser-bug",
        "lie": "parser-bug",
        "reason": "parser-bug",
        "memory": "memory",
        "oom-killed": "memory",
        "late-crash": "crash",
    }
    assert "SIGSEGV" in found["segfault"][1]
    assert "KeyError" in found["raise"][1]


def test_a_busy_loop_is_ended_too() -> None:
    assert run(["spin"])["spin"][0] == "timeout"


def alone(word: str, seconds: float) -> tuple[str, str]:
    """(reason or "", last text or detail) of one MOCK item in a fresh child."""
    with Sandbox(Limits(seconds=seconds), _extra=MOCKS) as sandbox:
        parsed = parse_files(sandbox, [("a.mock", f"MOCK {word}".encode())], ParseOptions())
    regions = parsed.regions.to_pylist()
    return (regions[0]["reason"], regions[0]["detail"]) if regions else ("", parsed.records["text"][-1].as_py())


def test_one_kill_from_outside_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.mock"
    path.write_bytes(b"MOCK killed-once")
    with path.open("rb") as file, Sandbox(Limits(), _extra=MOCKS) as sandbox:
        parsed = sandbox.parse([ItemInput(file, path.name, 16)], ParseOptions())
    assert parsed.records["text"][-1].as_py() == "survived"
    assert alone("oom-killed", 20) == ("memory", "killed by the system twice, most likely for memory")


def test_a_long_item_is_read_as_long_as_it_gets_on() -> None:
    assert alone("work-long", 0.5) == ("", "worked")


def test_a_parser_that_does_not_get_the_processor_is_waited_for() -> None:
    assert alone("wait", 0.5) == ("", "waited")


@pytest.mark.parametrize(
    ("word", "detail"), [("spin", "without progress"), ("spin-and-say-so", "processor time for"), ("drip", "s for")]
)
def test_a_parser_that_gets_nowhere_is_ended_even_if_it_says_that_it_goes_on(word: str, detail: str) -> None:
    reason, why = alone(word, 0.3)
    assert reason == "timeout" and detail in why


def test_a_frame_that_drips_is_no_progress() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        watch = Watch(os.getpid(), ParserLimits(**Limits(seconds=0.05).model_dump()))
        watch.begin(0)
        theirs.send(b"R")
        thread = threading.Thread(target=drip, args=(theirs,), daemon=True)
        thread.start()
        with pytest.raises(TimeoutError):
            wire.Incoming(ours).receive(1 << 40, lambda sock: watch.wait(sock, lambda: None))
        ours.close()
        thread.join()


def test_what_a_child_does_while_its_parent_is_busy_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    used = [0.0]
    monkeypatch.setattr(time, "clock_gettime", lambda _: used[0])
    watch = Watch(os.getpid(), ParserLimits(**Limits(seconds=2.0).model_dump()))
    watch.begin(0)
    used[0] = 1.9
    watch.progress(0)
    used[0] = 8.0
    watch.excuse()
    watch.progress(0)
    used[0] = 8.2  # 2.1 s of its own
    with pytest.raises(TimeoutError, match="for 0 bytes"):
        watch.progress(0)


def test_progress_of_another_item_is_none_of_this() -> None:
    said = memoryview(wire.PROGRESS.pack(3, 1000))
    assert module._read_of(3, said) == 1000 and module._read_of(4, said) is None
    with pytest.raises(BadAnswer):
        module._read_of(3, said[:8])


def test_descriptors_that_the_kernel_takes_only_a_moment_later_are_sent_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    send, refusals = wire.send, [errno.ETOOMANYREFS] * 3

    def full(sock: socket.socket, kind: bytes, *payload: bytes, fds: list[int] | None = None) -> None:
        if fds and refusals:
            raise OSError(refusals.pop(), "too many references")
        send(sock, kind, *payload, fds=fds)

    monkeypatch.setattr(wire, "send", full)
    (tmp_path / "a.txt").write_text("text")
    with (tmp_path / "a.txt").open("rb") as file, Sandbox(Limits()) as sandbox:
        parsed = sandbox.parse([ItemInput(file, "a.txt", 4)], ParseOptions())
    assert parsed.records["text"].to_pylist() == ["text"] and not refusals


def test_a_child_that_cannot_be_started_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(module, "start", fails)
    sandbox = Sandbox(Limits())
    counts: list[int] = []
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            sandbox.level()
        gc.collect()
        counts.append(len(list(Path("/proc/self/fd").iterdir())))
    assert len(set(counts)) == 1


def drip(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.send(wire.HEADER.pack(b"R", 1 << 30)[1:])
        while True:
            sock.send(b"x")


def test_a_parser_reaches_no_file_but_its_libraries_where_the_kernel_allows_to_take_them() -> None:
    if not sandbox_level()["files"]:
        pytest.skip("this kernel has no Landlock")
    found = dict(word.split(":") for word in alone("outside", 20)[1].split())
    assert found.pop("library") == "open"
    assert set(found.values()) == {"refused"} and found.keys() >= {"file", "parent", "program"}


def test_folders_of_killed_processes_are_swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead, living = tmp_path / f"sheaf-sandbox-{int(ended.stdout)}-abc", tmp_path / f"sheaf-sandbox-{os.getpid()}-abc"
    other = tmp_path / "sheaf-sandbox-notes"
    for folder in (dead, living, other):
        folder.mkdir()
    (dead / "file").write_text("left")
    with Sandbox(TIGHT) as sandbox:
        sandbox.level()
        names = {p.name for p in tmp_path.iterdir()}
    assert dead.name not in names and {living.name, other.name} < names
    assert all(n.startswith(f"sheaf-sandbox-{os.getpid()}-") for n in names - {other.name})


def test_a_flood_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLOOD_BASE", 16 << 20)
    assert run(["flood"], Limits(seconds=20, memory_mb=512, expanded_mb=1))["flood"][0] == "parser-bug"


def test_noise_on_its_output_does_not_stop_a_parser() -> None:
    assert run(["noise"], Limits(seconds=20))["noise"] == ("", "noise made")


def test_a_flood_on_its_error_output_ends_at_the_file_limit() -> None:
    assert run(["loud"], Limits(seconds=20))["loud"] == ("", "errors: File too large")


def test_processes_that_a_parser_forks_end_with_it() -> None:
    before = {p.pid for p in psutil.process_iter()}
    assert run(["brood"], Limits(seconds=20))["brood"][1].startswith("brood:")
    left = [p for p in psutil.process_iter(["pid", "ppid", "cmdline"]) if p.pid not in before and _is_orphan(p)]
    assert psutil.wait_procs(left, timeout=10)[1] == []


def _is_orphan(process: psutil.Process) -> bool:
    """A sandbox's child, or what it forked, whose parent has ended."""
    return process.info["ppid"] == 1 and any("sheaf.formats.child" in word for word in process.info["cmdline"] or [])


def test_nothing_of_the_parent_s_environment_reaches_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    text = run(["surroundings"])["surroundings"][1]
    assert "AWS" not in text
    assert "folder: sheaf-sandbox-" in text
    assert "leader: True" in text


def test_a_parser_cannot_write_files_of_any_size() -> None:
    refused = "Permission denied" if sandbox_level()["files"] else "File too large"
    assert run(["write"])["write"][1] == f"write: {refused}"


def test_a_parser_has_no_network_where_the_kernel_allows_to_take_it() -> None:
    if not sandbox_level()["network"]:
        pytest.skip("this kernel lets no user make a network namespace")
    with socket.create_server(("127.0.0.1", 0)):
        # By the empty namespace, or by Landlock, which comes first.
        assert run(["connect"])["connect"][1] in ("network: Network is unreachable", "network: Permission denied")


def test_a_parser_starts_no_processes() -> None:
    if not sandbox_level()["processes"]:
        pytest.skip("this kernel has no filter of system calls, and does not limit root's processes")
    # By the filter of system calls, which comes first, or by the limit.
    assert run(["fork"])["fork"][1] in ("fork: Permission denied", "fork: Resource temporarily unavailable")


def test_the_extra_parsers_are_not_there_unless_a_test_asks() -> None:
    with Sandbox(TIGHT) as sandbox:
        parsed = parse_files(sandbox, [("a.mock", b"MOCK exit")], ParseOptions())
    assert parsed.records["text"].to_pylist() == ["MOCK exit"]


def test_a_child_killed_between_two_requests_is_replaced() -> None:
    with Sandbox(TIGHT) as sandbox:
        before = set(psutil.Process().children())
        sandbox.level()
        (child,) = set(psutil.Process().children()) - before
        child.kill()
        child.wait()
        assert parse_files(sandbox, [("a.txt", b"text")], ParseOptions()).records["text"].to_pylist() == ["text"]


def test_a_child_that_cannot_start_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_MAIN", "raise SystemExit('no room here')")
    with Sandbox(TIGHT) as sandbox, pytest.raises(EnvironmentProblem, match="no room here"):
        parse_files(sandbox, [("a.txt", b"text")], ParseOptions())


def test_a_child_that_does_not_get_the_processor_may_start_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_SECONDS", 3.0)
    monkeypatch.setattr(start, "_MAIN", f"import time; time.sleep(4)\n{start._MAIN}")
    with Sandbox(TIGHT) as sandbox:
        assert parse_files(sandbox, [("a.txt", b"text")], ParseOptions()).records["text"].to_pylist() == ["text"]


def test_a_child_that_never_starts_is_ended_and_told_with_its_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_SECONDS", 0.05)
    monkeypatch.setattr(start, "_MAIN", "import time; time.sleep(600)")
    with Sandbox(TIGHT) as sandbox, pytest.raises(EnvironmentProblem, match="without progress"):
        parse_files(sandbox, [("a.txt", b"text")], ParseOptions())


def test_no_process_descriptor_or_folder_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    children = set(psutil.Process().children())
    with Sandbox(TIGHT, _extra=MOCKS) as sandbox:
        parse_files(sandbox, [("a.mock", b"MOCK exit"), ("a.txt", b"text")], ParseOptions())
        assert len(set(psutil.Process().children()) - children) == 1
    assert set(psutil.Process().children()) <= children
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert list(tmp_path.iterdir()) == []


def test_grouping_and_neighbours_change_nothing() -> None:
    contents = [(f"{i}.txt", f"text {i}".encode() * (i % 7)) for i in range(250)]
    contents[100] = ("a.jsonl", b'{"text":"one"}\n{bad\n{"text":"two"}\n')
    with Sandbox(TIGHT) as sandbox:
        together = parse_files(sandbox, contents, ParseOptions())
        alone = [parse_files(sandbox, [one], ParseOptions()) for one in contents[95:105]]
    assert not any(unaccounted(together, [len(data) for _, data in contents]))
    rows = [r for r in together.records.to_pylist() if 95 <= r["item"] < 105]
    assert [{**r, "item": 0} for r in rows] == [r for p in alone for r in p.records.to_pylist()]


def test_a_file_that_is_not_as_long_as_its_source_said_is_refused() -> None:
    with tempfile.TemporaryFile() as file, Sandbox(TIGHT) as sandbox:
        file.write(b"shorter now")
        file.flush()
        parsed = sandbox.parse([ItemInput(file, "a.txt", 100)], ParseOptions())
    assert parsed.regions.to_pylist()[0]["reason"] == "changed"
    assert unaccounted(parsed, [100]) == [0]


def test_the_callers_file_offset_is_left_where_it_was() -> None:
    with tempfile.TemporaryFile() as file, Sandbox(TIGHT) as sandbox:
        file.write(b"some text")
        file.seek(3)
        sandbox.parse([ItemInput(file, "a.txt", 9)], ParseOptions())
        assert file.read() == b"e text"


def test_a_long_item_comes_in_parts_and_whole() -> None:
    line = b'{"text":"%s"}\n' % (b"word " * 2000)
    data = line * 3000  # 30 MB: several messages, one item
    with Sandbox(Limits()) as sandbox:
        began = time.monotonic()
        parsed = parse_files(sandbox, [("a.jsonl", data), ("b.txt", b"after")], ParseOptions())
    assert len(parsed.records) == 3001
    assert not any(unaccounted(parsed, [len(data), 5]))
    assert time.monotonic() - began < 60


def test_two_sandboxes_work_side_by_side() -> None:
    results: list[list[str]] = []

    def work() -> None:
        with Sandbox(TIGHT) as sandbox:
            results.append(parse_files(sandbox, [("a.txt", b"text")] * 50, ParseOptions()).records["text"].to_pylist())

    threads = [threading.Thread(target=work) for _ in range(2)]
    with contextlib.ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
    assert results == [["text"] * 50] * 2


def test_every_reason_has_a_sentence() -> None:
    assert all(sentence.endswith(".") and code == code.lower() for code, sentence in REASONS.items())
