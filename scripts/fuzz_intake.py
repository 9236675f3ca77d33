"""Throw files at the intake that nobody tuned it for, and check what must hold for every one of them.

    python scripts/fuzz_intake.py FOLDER …                              every file as it lies
    python scripts/fuzz_intake.py FOLDER … --mutations 5000 --seed 7    mangled copies of them

Must hold: every byte is accounted for, every item has a record or a region, no parser fails or miscounts, the same
bytes give the same answer in other company and order, nothing is left in the temporary folder. Reported as well: what
takes more than 2 s of processor time, or more than 500 MB. Mutation n of a seed is the same on every machine that has
the same files. One finding is one line of JSON on stdout; the exit status is 1 if something that must hold did not.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path

from sheaf.formats.sandbox import ItemInput, Parsed, ParseOptions, Sandbox
from sheaf.recipe import Limits

BATCH = 60
SLOW_SECONDS, LARGE_KB = 2.0, 500_000
OURS = frozenset({"parser-bug", "crash", "timeout", "memory"})
SUFFIXES = (
    *(".txt", ".md", ".html", ".xml", ".json", ".jsonl", ".csv", ".tsv", ".yaml", ".toml", ".srt", ".vtt", ".1", ".py"),
    *(".pdf", ".docx", ".xlsx", ".pptx", ".odt", ".ods", ".rtf", ".doc", ".xls", ".ppt", ".msg", ".eml", ".mbox"),
    *(".epub", ".ipynb", ".zip", ".tar", ".gz", ".bz2", ".xz", ".zst", ".7z", ".warc", ".arc", ".parquet", ".arrow"),
    *(".orc", ".avro", ".png", ".jpg", ".gif", ".tif", ".webp", ".bmp", ".wav", ".flac", ".ogg", ".mp3"),
)
File = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Finding:
    """what: unaccounted, lost, differs, left-behind, slow, large, or a reason that says that we failed."""

    what: str
    name: str
    detail: str = ""

    @property
    def wrong(self) -> bool:
        return self.what not in ("slow", "large")


@dataclass(slots=True)
class Report:
    files: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)


def check(files: Sequence[File], seed: int = 0, outcomes: Callable[[dict[str, object]], None] | None = None) -> Report:
    """Parse all of them twice, the second time shuffled. outcomes: is told what became of each."""
    report = Report()
    with _own_temporary_folder(report) as limits, Sandbox(limits) as sandbox:
        first: dict[int, str] = {}
        for numbers in _batches(range(len(files))):
            batch = [files[n] for n in numbers]
            parsed = _measured(sandbox, limits, batch, report)
            first.update(zip(numbers, _judged(parsed, batch, report, outcomes), strict=True))
        order = list(range(len(files)))
        random.Random(seed).shuffle(order)
        for numbers in _batches(order):
            batch = [files[n] for n in numbers]
            for n, digest in zip(numbers, _digests(_parse(sandbox, batch), len(batch)), strict=True):
                if first[n] != digest:
                    report.findings.append(Finding("differs", files[n][0], "other records in another batch"))
    report.files, report.bytes = len(files), sum(len(data) for _, data in files)
    return report


def mutation(files: Sequence[File], seed: int, number: int) -> File:
    """One mangled file. files: the good ones."""
    rng = random.Random(f"{seed}:{number}")
    name, data = rng.choice(files)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(_MANGLERS)(rng, data, rng.choice(files)[1])
    if rng.random() < 0.15:
        name = f"{name.rpartition('.')[0]}{rng.choice(SUFFIXES)}"
    if rng.random() < 0.2:
        name, data = rng.choice(_WRAPPERS)(name, data)
    return f"{number:06}-{name}", data


def _truncated(rng: random.Random, data: bytes, _: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flipped(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    mangled = bytearray(data)
    for _ in range(rng.choice((1, 3, 10, 100))):
        if mangled:
            mangled[rng.randrange(len(mangled))] ^= 1 << rng.randrange(8)
    return bytes(mangled)


def _spliced(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _repeated(rng: random.Random, data: bytes, _: bytes) -> bytes:
    start, end = _stretch(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 1, 5)) + data[end:]


def _blanked(rng: random.Random, data: bytes, _: bytes) -> bytes:
    start, end = _stretch(rng, data)
    return data[:start] + bytes([rng.choice((0, 0, 0xFF, 0x20))]) * (end - start) + data[end:]


def _shortened(rng: random.Random, data: bytes, _: bytes) -> bytes:
    start, end = _stretch(rng, data)
    return data[:start] + data[end:]


def _appended(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data + rng.choice((rng.randbytes(rng.randrange(5000)), other, bytes(rng.randrange(5000)), b"\n" * 100))


def _masked(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The beginning of another file."""
    n = rng.choice((4, 8, 64, 512, 4096))
    return other[:n] + data[n:]


def _miscounted(rng: random.Random, data: bytes, _: bytes) -> bytes:
    """A number somewhere becomes an extreme one."""
    width = rng.choice((1, 2, 4, 8))
    at = rng.randrange(max(1, min(len(data), rng.choice((100, 1000, len(data) or 1)))))
    value = rng.choice((0, 1, -1, (1 << (8 * width - 1)) - 1, -(1 << (8 * width - 1)), 0x7F))
    return data[:at] + value.to_bytes(width, rng.choice(("little", "big")), signed=True) + data[at + width :]


def _peppered(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    """Bytes that parsers of text trip over, at some places."""
    for _ in range(rng.choice((1, 5, 20))):
        at = rng.randrange(len(data) + 1)
        odd = rng.choice((b"\0", b"\xff", b"\r", b'"', b"<", b"{", b"\xed\xa0\x80", b"\x1b$B", b"\xef\xbb\xbf", b"\\u"))
        data = data[:at] + odd + data[at:]
    return data


_MANGLERS = (
    _truncated, _truncated, _flipped, _flipped, _spliced, _repeated, _blanked, _shortened, _appended, _masked,
    _miscounted, _miscounted, _peppered,
)  # fmt: skip


def _zipped(name: str, data: bytes) -> File:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name), data)
        archive.writestr(zipfile.ZipInfo("beside.txt"), "a text beside it\n")
    return f"{name}.zip", out.getvalue()


def _tarred(name: str, data: bytes) -> File:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return f"{name}.tar", out.getvalue()


def _gzipped(name: str, data: bytes) -> File:
    return f"{name}.gz", gzip.compress(data, mtime=0)


def _mailed(name: str, data: bytes) -> File:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@example.org", "b@example.org", "a file"
    message.set_content("It is attached.\n")
    message.add_attachment(data, "application", "octet-stream", filename=name)
    message.set_boundary("a-boundary-that-stays")
    return f"{name}.eml", message.as_bytes()


_WRAPPERS = (_zipped, _tarred, _gzipped, _mailed)


def _stretch(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 16, 512, 4096)))


def _batches(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for at in range(0, len(numbers), BATCH):
        yield numbers[at : at + BATCH]


def _parse(sandbox: Sandbox, batch: Sequence[File]) -> Parsed:
    with contextlib.ExitStack() as stack:
        items: list[ItemInput] = []
        for name, data in batch:
            file = stack.enter_context(tempfile.TemporaryFile())
            file.write(data)
            file.flush()
            items.append(ItemInput(file, name, len(data)))
        return sandbox.parse(items, ParseOptions())


def _measured(sandbox: Sandbox, limits: Limits, batch: Sequence[File], report: Report) -> Parsed:
    """Parse, and if it was slow or took much memory say which file it was."""
    seconds = _child_usage()[0]
    parsed = _parse(sandbox, batch)
    after, memory_kb = _child_usage()
    if after - seconds > SLOW_SECONDS or memory_kb > LARGE_KB:
        for file in batch:
            with Sandbox(limits) as own:
                own.level()  # starts it
                seconds = _child_usage()[0]
                _parse(own, [file])
                after, own_kb = _child_usage()
                if after - seconds > SLOW_SECONDS:
                    report.findings.append(Finding("slow", file[0], f"{after - seconds:.1f} s, {len(file[1])} bytes"))
                if own_kb > LARGE_KB:
                    report.findings.append(Finding("large", file[0], f"{own_kb >> 10} MB, {len(file[1])} bytes"))
        sandbox.close()  # the next child's peak is its own
    return parsed


def _child_usage() -> tuple[float, int]:
    """(seconds of processor time, KB at the most) of the youngest child process."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    if not children:
        return 0.0, 0
    try:
        stat = Path(f"/proc/{children[-1]}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{children[-1]}/status").read_text()
    except OSError:
        return 0.0, 0
    peak = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"), peak


def _judged(
    parsed: Parsed, batch: Sequence[File], report: Report, outcomes: Callable[[dict[str, object]], None] | None
) -> list[str]:
    left = [len(data) for _, data in batch]
    found: list[list[dict[str, object]]] = [[] for _ in batch]
    for table, column in ((parsed.records, "bytes"), (parsed.regions, "bytes"), (parsed.items, "structure_bytes")):
        for item, size in zip(table["item"].to_pylist(), table[column].to_pylist(), strict=True):
            left[item] -= size
    counts = Counter(parsed.records["item"].to_pylist())
    for row in parsed.regions.to_pylist():
        found[row["item"]].append(row)
        report.reasons[row["reason"]] += 1
        if row["reason"] in OURS:
            report.findings.append(Finding(row["reason"], batch[row["item"]][0], f"{row['member']} {row['detail']}"))
    for n, (name, _) in enumerate(batch):
        if left[n]:
            report.findings.append(Finding("unaccounted", name, f"{left[n]} bytes"))
        if not counts[n] and not found[n]:
            report.findings.append(Finding("lost", name, "neither a record nor a region"))
    if outcomes is not None:
        encodings: list[set[str]] = [set() for _ in batch]
        for item, encoding in zip(
            parsed.records["item"].to_pylist(), parsed.records["encoding"].to_pylist(), strict=True
        ):
            encodings[item].add(encoding)
        for row in parsed.items.to_pylist():
            n = row["item"]
            regions = Counter(f"{r['reason']}: {r['detail']}" for r in found[n])
            outcomes(
                {"name": batch[n][0], "media": row["media"], "notes": row["notes"], "records": counts[n],
                 "encodings": sorted(encodings[n]), "regions": dict(regions.most_common(5))}
            )  # fmt: skip
    return _digests(parsed, len(batch))


def _digests(parsed: Parsed, items: int) -> list[str]:
    """Of everything that came back for each item."""
    digests = [hashlib.blake2b(digest_size=16) for _ in range(items)]
    for table in (parsed.records, parsed.regions, parsed.items):
        for row in table.to_pylist():
            digests[row.pop("item")].update(repr(row).encode("utf-8", "replace"))
    return [digest.hexdigest() for digest in digests]


@contextlib.contextmanager
def _own_temporary_folder(report: Report) -> Generator[Limits, None, None]:
    """Everything temporary goes to a folder of its own; what is still there at the end was left behind."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield Limits(seconds=20)
        finally:
            tempfile.tempdir = before
        report.findings += [Finding("left-behind", str(p.relative_to(folder))) for p in sorted(Path(folder).rglob("*"))]


def gathered(folders: Sequence[Path], largest: int) -> Iterator[Path]:
    """Every file under the folders, none twice."""
    seen: set[tuple[int, int]] = set()
    for folder in folders:
        for path in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
            with contextlib.suppress(OSError):
                at = path.stat()
                if path.is_symlink() or not path.is_file() or at.st_size > largest or (at.st_dev, at.st_ino) in seen:
                    continue
                seen.add((at.st_dev, at.st_ino))
                yield path


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--mutations", type=int, default=0, help="mangled files to make; 0: the files as they lie")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation or file")
    parser.add_argument("--count", type=int, default=1 << 60, help="files at most")
    parser.add_argument("--largest", type=int, default=20_000_000, help="bytes; larger files are left out")
    parser.add_argument("--keep", type=Path, help="folder to write the files of findings to")
    parser.add_argument("--outcomes", type=Path, help="file to append what became of each file to, as JSON lines")
    asked = parser.parse_args()
    paths = list(gathered(asked.folders, asked.largest))
    total = Report()
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(asked.outcomes.open("a")) if asked.outcomes else None
        tell = (lambda row: print(json.dumps(row), file=out, flush=True)) if out else None
        for files in _mangled(asked, paths) if asked.mutations else _as_they_lie(asked, paths):
            report = check(files, asked.seed, tell)
            for finding in report.findings:
                print(json.dumps({"what": finding.what, "name": finding.name, "detail": finding.detail}), flush=True)
                _keep(asked.keep, finding, files)
            total.files, total.bytes = total.files + report.files, total.bytes + report.bytes
            total.findings += report.findings
            total.reasons += report.reasons
            print(f"{total.files} files, {len(total.findings)} findings", file=sys.stderr, flush=True)
    print(json.dumps({"files": total.files, "bytes": total.bytes, "reasons": dict(total.reasons.most_common())}))
    return int(any(finding.wrong for finding in total.findings))


def _mangled(asked: argparse.Namespace, paths: Sequence[Path]) -> Iterator[list[File]]:
    good = [(path.name, path.read_bytes()) for path in paths]
    for at in range(asked.first, asked.first + asked.mutations, 300):
        last = min(at + 300, asked.first + asked.mutations)
        yield [mutation(good, asked.seed, n) for n in range(at, last)]


def _as_they_lie(asked: argparse.Namespace, paths: Sequence[Path]) -> Iterator[list[File]]:
    chosen = paths[asked.first : asked.first + asked.count]
    for at in range(0, len(chosen), 300):
        files: list[File] = []
        for path in chosen[at : at + 300]:
            with contextlib.suppress(OSError):
                files.append((str(path), path.read_bytes()))
        yield files


def _keep(folder: Path | None, finding: Finding, files: Sequence[File]) -> None:
    for name, data in files:
        if folder is not None and name == finding.name:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name.replace("/", "_")[-200:]).write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
