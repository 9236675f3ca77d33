"""What `sheaf init` proposes for files that hold rows: one source for all files whose rows want the same mapping.

Up to 200 files are sampled; of more, a few of each folder and suffix, whose other files are taken to be alike.
`propose` finds what the rows of a file want; files that want the same make a source, whose patterns take whole folders
where nothing else lies there. What is sure stands in the recipe, what is likely in a comment, with a preview of both.
"""

from __future__ import annotations

import contextlib
import glob
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from sheaf.console import printable
from sheaf.formats.propose import SURE, Proposal, Row, propose_files
from sheaf.formats.row_samples import sample_rows
from sheaf.formats.sandbox import ItemInput, Sandbox
from sheaf.recipe import Limits

MOST_SAMPLED, FROM_EACH, OPEN_AT_ONCE = 200, 4, 50
LARGEST_WHOLE = 16 << 20  # of formats that are read whole
STREAMED = frozenset({".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".orc", ".avro"})
PACKED = frozenset({".gz", ".bz2", ".xz", ".zst"})  # around lines of these, which are then sampled all the same:
LINES = frozenset({".jsonl", ".ndjson", ".csv", ".tsv"})
PREVIEW = 150


@dataclass(frozen=True)
class TableSource:
    """A source of the recipe. include: its patterns; proposals: for its rows, best first; paths: its files, where they
    are known; holds_files: the column of its rows that holds pictures or sounds; more: keys besides; notes: why."""

    name: str
    include: tuple[str, ...]
    files: int
    bytes: int
    proposals: tuple[Proposal, ...] = ()
    paths: tuple[str, ...] = ()
    holds_files: str = ""
    more: str = ""
    exclude: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def keys(self) -> str:
        """What goes into the source's braces: the best proposal, if it is sure, and what else is."""
        return self.mapping + self.more

    @property
    def mapping(self) -> str:
        """A proposal that takes a row's text would leave its picture out: where there are pictures, none is sure."""
        sure = self.proposals and self.proposals[0].confidence >= SURE and not self.holds_files
        return f", {self.proposals[0].recipe}" if sure else ""

    @property
    def comments(self) -> list[str]:
        lines = list(self.notes)
        if self.holds_files:
            lines.append(f"the column '{self.holds_files}' holds files: each picture or sound is a record of its own")
        for number, proposal in enumerate(self.proposals[:3]):
            sure = number == 0 and bool(self.mapping)
            word = "proposed" if sure else "or" if number else "perhaps"
            fit = f"{proposal.fits} of {proposal.rows} sampled rows fit"
            lines.append(f"{word}: {proposal.recipe}   confidence {proposal.confidence:.2f}: {fit}; {proposal.why}")
            if number == 0:
                lines += [f"  record {n}: {_short(text)}" for n, text in enumerate(proposal.preview, 1)]
                if sure:
                    lines.append("  a row that does not fit is quarantined, and `sheaf ledger` says why")
        # A column's name may hold a line break, after which the rest would be part of the recipe.
        return [printable(line).replace("\n", "\\n") for line in lines]


def suffix_of(file: str) -> str:
    """ ".jsonl", and ".jsonl.gz" where rows are compressed."""
    path = PurePosixPath(file)
    inner = PurePosixPath(path.stem).suffix
    return inner + path.suffix if path.suffix.lower() in PACKED and inner.lower() in LINES else path.suffix


def is_streamed(file: str) -> bool:
    """Whether the first rows of such a file cost the same, however large it is."""
    suffix = suffix_of(file).lower()
    return suffix in STREAMED or is_packed(suffix)


def is_packed(suffix: str) -> bool:
    return suffix.count(".") == 2


def table_sources(folder: Path, tables: Sequence[tuple[Path, int]]) -> list[TableSource]:
    """Sources for the files that hold rows, given with their sizes. The last, "tables", takes those without a sure
    mapping, and those that were not sampled among files that differ."""
    sizes = {path.relative_to(folder).as_posix(): size for path, size in tables}
    rows = sampled_rows(folder, _to_sample(sizes))
    groups = propose_files(rows)
    sure = [g for g in groups if g.proposals and g.proposals[0].confidence >= SURE]
    place = {file: number for number, group in enumerate(groups) for file in group.files}
    chosen = _spread(sizes, {file: n if groups[n] in sure else -1 for file, n in place.items()})
    names: set[str] = set()
    sources: list[TableSource] = []
    for number, group in enumerate(groups):
        files = [file for file, n in chosen.items() if n == number]
        if group in sure and files:
            name = "tables" if len(files) == len(sizes) else f"tables-{group.proposals[0].name}"
            source = _source(_unique(name, names), files, chosen, number, sizes, group.proposals)
            sources.append(replace(source, paths=tuple(files), holds_files=_column_of_files(rows, files)))
    rest = [file for file, n in chosen.items() if n == -1]
    if rest:
        patterns = tuple(f"**/*{suffix}" for suffix in sorted({suffix_of(file) for file in rest}))
        likely = [p for g in groups if g not in sure for p in g.proposals[:1]]
        likely.sort(key=lambda p: -p.rows)
        total = sum(sizes[file] for file in rest)
        about = ("tables", patterns, len(rest), total, tuple(likely), tuple(rest))
        sources.append(TableSource(*about, holds_files=_column_of_files(rows, rest)))
    return sources


def _source(
    name: str, files: list[str], chosen: dict[str, int], number: int, sizes: dict[str, int], proposals: list[Proposal]
) -> TableSource:
    patterns: list[str] = []
    for suffix in sorted({suffix_of(file) for file in files}):
        like = [(file.split("/"), n == number) for file, n in chosen.items() if suffix_of(file) == suffix]
        patterns += _patterns(like, "", suffix)
    return TableSource(name, tuple(patterns), len(files), sum(sizes[file] for file in files), tuple(proposals))


def _patterns(files: list[tuple[list[str], bool]], above: str, suffix: str) -> list[str]:
    """Globs for the wanted files of one suffix under a folder, and for no other file there."""
    if all(wanted for _, wanted in files):
        return [f"{above}**/*{suffix}"]
    if not any(wanted for _, wanted in files):
        return []
    here = [(parts[0], wanted) for parts, wanted in files if len(parts) == 1]
    if here and all(wanted for _, wanted in here):
        found = [f"{above}*{suffix}"]
    else:
        found = [f"{above}{glob.escape(name)}" for name, wanted in here if wanted]
    below: defaultdict[str, list[tuple[list[str], bool]]] = defaultdict(list)
    for parts, wanted in files:
        if len(parts) > 1:
            below[parts[0]].append((parts[1:], wanted))
    for name, inside in below.items():
        found += _patterns(inside, f"{above}{glob.escape(name)}/", suffix)
    return found


def _to_sample(sizes: dict[str, int]) -> list[str]:
    """Files that are worth a look: not too large for their format, and of names that a pattern can say."""
    able = [
        file
        for file, size in sizes.items()
        if size > 0 and (size <= LARGEST_WHOLE or is_streamed(file)) and _sayable(file)
    ]
    if len(able) <= MOST_SAMPLED:
        return able
    taken: Counter[tuple[str, str]] = Counter()
    sample: list[str] = []
    for file in able:
        taken[_bucket(file)] += 1
        if taken[_bucket(file)] <= FROM_EACH:
            sample.append(file)
    return sample[:MOST_SAMPLED]


def _spread(sizes: dict[str, int], place: dict[str, int]) -> dict[str, int]:
    """The group of every file: files that were not sampled go with those beside them, if these agree; else -1."""
    beside: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for file, number in place.items():
        beside[_bucket(file)].add(number)
    agreed = {bucket: next(iter(numbers)) for bucket, numbers in beside.items() if len(numbers) == 1}
    return {file: place.get(file, agreed.get(_bucket(file), -1) if _sayable(file) else -1) for file in sizes}


def sampled_rows(folder: Path, files: Sequence[str], header_with: str | None = None) -> dict[str, list[Row]]:
    """The first rows of each file that has any. header_with: as in `sample_rows`."""
    found: dict[str, list[Row]] = {}
    if not files:
        return found
    with Sandbox(Limits(seconds=10, record_mb=8)) as sandbox:
        for start in range(0, len(files), OPEN_AT_ONCE):
            with ExitStack() as stack:
                opened: list[tuple[str, ItemInput]] = []
                for file in files[start : start + OPEN_AT_ONCE]:
                    with contextlib.suppress(OSError):  # it gets its ledger line at `prepare`
                        data = stack.enter_context((folder / file).open("rb"))
                        opened.append((file, ItemInput(data, file, (folder / file).stat().st_size)))
                rows = sample_rows([item for _, item in opened], sandbox, header_with=header_with)
            found.update({file: some for (file, _), some in zip(opened, rows, strict=True) if some})
    return found


def _column_of_files(rows: dict[str, list[Row]], files: Sequence[str]) -> str:
    """The first column of these files' rows, as they are, that holds a picture's or a sound's bytes and path."""
    cells = (cell for file in files for row in rows.get(file, ()) for cell in row.items())
    return next((name for name, value in cells if isinstance(value, dict) and set(value) == {"bytes", "path"}), "")


def _bucket(file: str) -> tuple[str, str]:
    path = Path(file)
    return path.parent.as_posix(), suffix_of(file)


def _sayable(file: str) -> bool:
    """A folder source spells some names otherwise, with escapes; no pattern is written for those."""
    return file.isprintable() and "%" not in file


def _unique(name: str, taken: set[str]) -> str:
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    taken.add(found)
    return found


def _short(text: str) -> str:
    line = " ⏎ ".join(part.strip() for part in text.splitlines() if part.strip())
    return line if len(line) <= PREVIEW else f"{line[:PREVIEW]}…"
