"""A parser that was taken over by what it parsed reaches nothing outside, and its lies cost its own item only."""

from __future__ import annotations

import errno
import os
import signal
import struct
import tempfile
from pathlib import Path

import pytest
from conftest import parse_files, unaccounted

from sheaf.formats import syscalls
from sheaf.formats.sandbox import ItemInput, Parsed, ParseOptions, Sandbox, sandbox_level
from sheaf.recipe import Limits

PARSERS = Path(__file__).parent / "hostile_parsers.py"
LIMITS = Limits(seconds=1.0, memory_mb=256, expanded_mb=64)
SYSTEMS = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])


def between(word: str, limits: Limits = LIMITS) -> Parsed:
    """A hostile item as the second of three; the others are read whatever it does."""
    contents = [("first.txt", b"first"), ("a.hostile", f"HOSTILE {word}".encode()), ("last.txt", b"last")]
    with Sandbox(limits, _extra=PARSERS) as sandbox:
        parsed = parse_files(sandbox, contents, ParseOptions())
    assert unaccounted(parsed, [len(data) for _, data in contents]) == [0, 0, 0]
    assert parsed.items["item"].to_pylist() == [0, 1, 2]
    texts = {r["item"]: r["text"] for r in parsed.records.to_pylist()}
    assert (texts[0], texts[2]) == ("first", "last")
    return parsed


def lie(word: str) -> tuple[str, str]:
    """(reason, detail) of a hostile item."""
    parsed = between(word)
    (region,) = parsed.regions.to_pylist()
    assert parsed.records["item"].to_pylist() == [0, 2]
    return region["reason"], region["detail"]


def test_a_parser_that_was_taken_over_reaches_nothing_outside() -> None:
    if not sandbox_level()["syscalls"]:
        pytest.skip("this kernel or processor has no filter of system calls")
    found = dict(word.split(":") for word in between("reach").records["text"][1].as_py().split())
    assert found.keys() >= {"mode", "unix-socket", "fork", "thread", "signal", "trace", "own-limits", "io-uring"}
    assert set(found.values()) == {str(errno.EACCES)}, {k: v for k, v in found.items() if v != str(errno.EACCES)}


def test_a_parser_cannot_forge_the_items_that_come_after_its_own(tmp_path: Path) -> None:
    """Fetched items lie in temporary files, which are open for writing; files of a folder are not. 9: EBADF."""
    path = tmp_path / "last.txt"
    path.write_text("last, as it is")
    with tempfile.TemporaryFile() as first, tempfile.TemporaryFile() as second, path.open("rb") as third:
        first.write(b"HOSTILE write-items")
        second.write(b"second, as it is")
        for file in (first, second):
            file.flush()
        files = {"a.hostile": first, "b.txt": second, "c.txt": third}
        items = [ItemInput(file, name, os.fstat(file.fileno()).st_size) for name, file in files.items()]
        with Sandbox(LIMITS, _extra=PARSERS) as sandbox:
            parsed = sandbox.parse(items, ParseOptions())
    assert parsed.records["text"].to_pylist() == ["9 9 9", "second, as it is", "last, as it is"]


def test_a_forged_answer_that_is_in_order_is_taken() -> None:
    """So that the refusals below are for what is wrong with them, and nothing else."""
    assert between("honest").records["text"].to_pylist() == ["first", "taken over", "last"]


@pytest.mark.parametrize(
    ("word", "detail"),
    [
        ("ids", "another schema"),
        ("kind", "unknown kind"),
        ("meta", "no JSON"),
        ("meta-list", "no object"),
        ("locator", "no JSON|no object"),
        ("messages", "no JSON"),
        ("annotated", "another schema"),
        ("expanding lz4", "compressed"),
        ("expanding zstd", "compressed"),
        ("long-detail", "a remark"),
        ("long-notes", "a remark"),
        ("hoard", "more than it could have held"),
        ("begin-again", "not asked for"),
        ("announce", "not asked for"),
        ("done", "is not"),
        ("huge-frame", "more than its input could hold"),
    ],
)
def test_a_lie_costs_its_own_item_only_and_not_all_our_memory(word: str, detail: str) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: proc_pid_clear_refs(5)
    before = peak()
    reason, why = lie(word)
    assert reason == "parser-bug" and any(part in why for part in detail.split("|"))
    assert peak() - before < LIMITS.memory_mb << 21  # what waited, and the frame that was too much


def peak() -> int:
    """Most bytes that this process has held."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def test_the_message_of_an_exception_is_short() -> None:
    reason, detail = lie("exception")
    assert reason == "parser-bug" and len(detail) == 300


def decide(program: list[syscalls.Instruction], machine: int, number: int, *arguments: int) -> bool:
    """Whether the kernel would let a call pass; the few instructions that our filter is made of."""
    data = struct.pack("<IIQ6Q", number, machine, 0, *(list(arguments) + [0] * 6)[:6])
    at = value = 0
    while True:
        code, true, false, operand = program[at]
        at += 1
        if code == 0x20:
            value = struct.unpack_from("<I", data, operand)[0]
        elif code == 0x06:
            return operand == 0x7FFF0000
        else:
            holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
            at += true if holds else false


@SYSTEMS
def test_the_filter_lets_pass_what_is_listed_and_nothing_else(machine: str) -> None:
    column, audit = (0, 0xC000003E) if machine == "x86_64" else (1, 0xC00000B7)
    program = syscalls.program(machine, 4711)
    listed = {c[column] for c in (syscalls.READING | syscalls.ANSWERING | syscalls.LIVING).values()} - {None}
    special = {c.numbers[column] for c in syscalls.guarded(4711).values()} - {None}
    assert not listed & special and len(listed) > 60
    for number in range(600):
        assert decide(program, audit, number, 99, 99, 3, 99) == (number in listed), number
        assert not decide(program, audit ^ 1, number)
    assert not decide(program, audit, 0x40000000 | min(listed))


@SYSTEMS
def test_the_filter_looks_at_the_arguments_that_matter(machine: str) -> None:
    column, audit = (0, 0xC000003E) if machine == "x86_64" else (1, 0xC00000B7)
    program = syscalls.program(machine, 4711)

    def passes(name: str, *arguments: int) -> bool:
        number = syscalls.guarded(4711)[name].numbers[column]
        assert number is not None
        return decide(program, audit, number, *arguments)

    assert passes("openat", 3, 0, os.O_RDONLY | os.O_CLOEXEC)
    assert not any(passes("openat", 3, 0, flag) for flag in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC))
    assert passes("kill", 4711, signal.SIGKILL) and passes("tgkill", 4711, 4711, signal.SIGABRT)
    assert not passes("kill", 1, 0) and not passes("kill", 0xFFFFFFFF, 9) and not passes("tgkill", 1, 1, 9)
    assert passes("prlimit64", 0, 0) and not passes("prlimit64", 0, 9) and not passes("prlimit64", 1, 0)
    assert passes("fcntl", 3, 1) and not passes("fcntl", 3, 8) and not passes("fcntl", 3, 4)
    assert passes("ioctl", 3, 0x5401) and not passes("ioctl", 3, 0x5412)
    if machine == "x86_64":
        assert passes("open", 0, os.O_RDONLY) and not passes("open", 0, os.O_RDWR)
