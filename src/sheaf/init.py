"""Look at a folder and write a first recipe for it, with a comment at every choice.

The census goes by suffix and by the first bytes of a file: a file whose first bytes say SQLite or a type that is not
read is that, whatever its name. Every kind found becomes a source with the suffixes seen; a last source takes
everything else, so that nothing is left out without a line that says so. Of files that hold rows the first ones are
read, in the sandbox, and the mapping that fits them is proposed (`init_tables`). Nothing is fetched. Cost: one `stat`
and one read of 64 bytes a file, for at most 200,000 files, and the samples: some seconds at most.
"""

from __future__ import annotations

import glob
import json
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from sheaf.console import printable, size
from sheaf.errors import DataRefused, UsageError
from sheaf.files import write_file
from sheaf.formats.detect import unread
from sheaf.formats.propose import SURE, Proposal, propose_files, yaml_string
from sheaf.init_datasets import MEDIA, labelled, metadata_tables, split
from sheaf.init_tables import TableSource, is_packed, suffix_of, table_sources

MOST_FILES = 200_000
SCHEMA_NAME = ".sheaf-schema.json"  # beside the recipe: an editor finds it on any machine, and it goes into git with it

DOCUMENTS = (
    ".txt .text .md .markdown .rst .html .htm .xhtml .pdf .docx .doc .odt .rtf .pptx .ppt .odp .epub .xml .ipynb"
)
TABLES = ".json .jsonl .ndjson .csv .tsv .parquet .arrow .feather .orc .avro .xlsx .xlsm .xlsb .xls .ods .yaml .yml"
ARCHIVES = ".zip .tar .gz .tgz .bz2 .xz .zst .7z .warc .arc"
CODE = ".py .js .ts .java .c .h .cc .cpp .hpp .cs .go .rs .rb .php .sh .sql .r .lua .pl .swift .kt .scala"
# kind → suffixes. The order is that of the sources in the recipe: a record seen in two sources belongs to the first.
KINDS: dict[str, frozenset[str]] = {
    "documents": frozenset(DOCUMENTS.split()),
    "tables": frozenset(TABLES.split()),
    "mail": frozenset({".eml", ".mbox", ".msg"}),
    "code": frozenset(CODE.split()),
    "archives": frozenset(ARCHIVES.split()),
    "images": frozenset({".png", ".jpg", ".jpeg", ".gif", ".webp", ".tif", ".tiff", ".bmp"}),
    "audio": frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"}),
}
SAMPLED, CELL = 200, 2000  # rows of a database's table, and characters of each cell, that are looked at
HEAD = 64  # bytes of a file that tell what is not read, and databases
SQLITE = b"SQLite format 3\x00"
SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__", "workspace", "sheaf-demo"})


@dataclass
class Census:
    """What lies in a folder. suffixes: per kind, the spellings seen. unread: (suffix, what it is) → files."""

    files: Counter[str] = field(default_factory=Counter[str])
    sizes: Counter[str] = field(default_factory=Counter[str])
    suffixes: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    unread: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    databases: list[Path] = field(default_factory=list[Path])
    tables: list[tuple[Path, int]] = field(default_factory=list[tuple[Path, int]])  # files that hold rows, their sizes
    media: dict[str, list[str]] = field(default_factory=dict[str, list[str]])  # paths of pictures and of sounds
    skipped: set[str] = field(default_factory=set[str])
    complete: bool = True


@dataclass(frozen=True)
class Table:
    """A table of a database and the columns that look like text. mapping: of its rows, if one is sure."""

    name: str
    columns: tuple[str, ...]
    text: tuple[str, ...]
    rows: int
    mapping: Proposal | None = None


def init(folder: Path, recipe: Path, *, force: bool = False) -> dict[str, object]:
    """Write `recipe` for what lies in `folder`, and the schema beside it.

    Returns {"recipe", "schema", "files", "kinds": {kind: files}, "databases", "unread"}.
    Raises UsageError if the recipe exists and `force` is not set, DataRefused if there is nothing to read.
    """
    from sheaf.recipe_file import json_schema

    if recipe.exists() and not force:
        raise UsageError(
            "there is a recipe already", where=str(recipe), fix="--force overwrites it, --to names another"
        )
    if not folder.is_dir():
        raise DataRefused("no such folder", where=str(folder), fix="give the folder where the data lies")
    census = take_census(folder)
    if not census.files and not census.databases:
        raise DataRefused("nothing to read in this folder", where=str(folder), why=_why_nothing(census))
    text = write_recipe(census, folder, recipe.absolute())
    recipe.parent.mkdir(parents=True, exist_ok=True)
    schema = recipe.parent / SCHEMA_NAME
    write_file(schema, json.dumps(json_schema(), indent=1).encode() + b"\n")
    write_file(recipe, text.encode())
    return {
        "recipe": str(recipe),
        "schema": str(schema),
        "files": sum(census.files.values()),
        "kinds": dict(census.files),
        "databases": [str(p) for p in census.databases],
        "unread": {f"{what} ({suffix or 'no suffix'})": n for (suffix, what), n in sorted(census.unread.items())},
    }


def take_census(folder: Path) -> Census:
    """Count what lies under a folder, by kind. Links are not followed; hidden files and folders are passed over."""
    census = Census()
    for n, path in enumerate(_walk(folder, census)):
        if n == MOST_FILES:
            census.complete = False
            break
        try:
            length = path.stat().st_size
            with path.open("rb") as f:
                head = f.read(HEAD)
        except OSError:
            head, length = b"", 0  # it gets its ledger line at `prepare`
        if head.startswith(SQLITE):
            census.databases.append(path)
            continue
        suffix = suffix_of(path.name)
        refused = unread(head)
        if refused is not None:  # a quarantine line for each would be noise
            census.unread[suffix, refused.detail] += 1
            continue
        kind = next((k for k, suffixes in KINDS.items() if suffix.lower() in suffixes), "other")
        kind = "tables" if is_packed(suffix) else kind
        census.files[kind] += 1
        census.sizes[kind] += length
        if kind == "tables":
            census.tables.append((path, length))
        if kind in MEDIA:
            census.media.setdefault(kind, []).append(path.relative_to(folder).as_posix())
        if kind != "other":
            census.suffixes.setdefault(kind, set()).add(suffix)
    return census


def _walk(folder: Path, census: Census) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        for name in sorted(folders):
            if name.startswith(".") or name in SKIPPED_FOLDERS:
                folders.remove(name)
                if not name.startswith("."):
                    census.skipped.add(name)
        folders.sort()
        for name in sorted(names):
            path = Path(place) / name
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                yield path


def _why_nothing(census: Census) -> str:
    if not census.unread:
        return "it holds no files (hidden ones are passed over)"
    return "it holds only what this version does not read: " + ", ".join(sorted({w for _, w in census.unread}))


def tables_of(database: Path) -> list[Table]:
    """The tables of an SQLite file, read-only. Empty if it cannot be opened."""
    try:
        uri = database.absolute().as_uri() + "?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=2)) as connection:
            connection.execute("PRAGMA trusted_schema=OFF")
            names = [
                row[0]
                for row in connection.execute(
                    "SELECT name FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
                )
            ]
            return [_table(connection, name) for name in names]
    except (sqlite3.Error, ValueError):
        return []


def _table(connection: sqlite3.Connection, name: str) -> Table:
    columns = connection.execute(f"PRAGMA table_info({_sql_name(name)})").fetchall()
    text = tuple(c[1] for c in columns if re.search("CHAR|TEXT|CLOB", str(c[2]).upper()) and not c[5])
    keys = [c[1] for c in columns if c[5]]
    rows = connection.execute(f"SELECT count(*) FROM {_sql_name(name)}").fetchone()[0]
    first = keys[0] if keys else "rowid"
    return Table(name, (first, *text), text, rows, _mapping(connection, name, text))


def _mapping(connection: sqlite3.Connection, name: str, text: tuple[str, ...]) -> Proposal | None:
    """How the first rows read as conversations or preferences, if that is sure."""
    if len(text) < 2:
        return None
    columns = ", ".join(f"substr({_sql_name(column)}, 1, {CELL})" for column in text)
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")  # what is no UTF-8 costs its own cell
    cells = connection.execute(f"SELECT {columns} FROM {_sql_name(name)} LIMIT {SAMPLED}").fetchall()
    rows = [{column: cell for column, cell in zip(text, row, strict=True) if isinstance(cell, str)} for row in cells]
    groups = propose_files({name: rows}) if rows else []
    best = next((group.proposals[0] for group in groups if group.proposals), None)
    return best if best and "map" in best.keys and best.confidence >= SURE else None


def _sql_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def write_recipe(census: Census, folder: Path, recipe: Path) -> str:
    """The recipe's text. Relative paths in it start from the folder that `recipe` lies in."""
    base = recipe.parent
    uri = os.path.relpath(folder.absolute(), base)
    uri = uri if uri.startswith(".") else f"./{uri}"
    total = sum(census.sizes.values())
    sources = _sources(census, folder)
    away = _left_out(census, own=recipe.name if base == folder.absolute() else None)
    note = "" if census.complete else f" (the first {MOST_FILES:,} files)"
    lines = [
        f"# yaml-language-server: $schema=./{SCHEMA_NAME}",
        f"# Written by `sheaf init`: {sum(census.files.values()):,} files, {size(total)}{note}. Every key",
        "# but `name` and `sources` is optional; a misspelt key is an error. `sheaf prepare` gathers the sources,",
        "# `sheaf train` goes on to a model.",
        "",
        f"name: {_text(_recipe_name(folder))}",
        "seed: 0                      # same data, same recipe, same seed: same corpus and same batches",
        "",
        "sources:                     # a record that two sources hold belongs to the first of them",
        *_folder_sources(census, sources, uri, away),
        *_database_sources(census, base),
        "",
        "prepare:",
        "  length: {min_characters: 32}",
        "  dedup: {exact: true}       # one copy is kept, with the origins of all",
        f"  tokenizer: {{train: bpe, vocab_size: {_vocabulary(total)}}}   # or {{from: ./tokenizer.json}}",
        "",
        "# mixture:                   # shares of the training tokens; without it every source by its size",
        *(f"#   {source.name}: {{weight: 1, max_epochs: 4}}" for source in sources),
        "",
        "model: {preset: tiny}        # tiny (5 M parameters), small (25 M), base (125 M), or {from: FOLDER}",
        "train:",
        "  sequence_length: 512",
        "  batch_tokens: 16384        # of one global batch, on any number of processes",
        "  budget: {epochs: 1}        # or {tokens: 20M}, {hours: 1}, {steps: 1000}",
        "",
        "workspace: ./workspace       # corpus, runs and caches",
    ]
    return "\n".join(lines) + "\n"


def _kinds(census: Census) -> list[str]:
    return [kind for kind in (*KINDS, "other") if census.files[kind]]


def _folder_sources(census: Census, sources: list[TableSource], uri: str, away: list[str]) -> list[str]:
    lines: list[str] = []
    claimed: list[str] = []
    mapped: list[str] = []  # by sources of tables that come first
    for source in sources:
        patterns = list(source.include)
        lines.append(f"  # {source.files:,} files, {size(source.bytes)}")
        lines += [f"  # {comment}" for comment in source.comments]
        keys = f"name: {source.name}, uri: {_text(uri)}"
        if patterns:
            keys += f", include: {_texts(patterns)}"
        others = mapped if source.name == "tables" else [] if patterns else claimed
        keys += f", exclude: {_texts([*others, *source.exclude, *away])}"
        lines.append(f"  - {{{keys}{source.keys}}}")
        claimed += patterns
        mapped += patterns if source.name.startswith("tables") else ()
    for (suffix, what), n in sorted(census.unread.items()):
        name = printable(suffix).replace("\n", "\\n") or "no suffix"  # a line break would end the comment
        lines.append(f"  # left out: {n:,} × {what}, {name} (this version does not read it)")
    return lines


def _sources(census: Census, folder: Path) -> list[TableSource]:
    found: list[TableSource] = []
    tables = [path.relative_to(folder).as_posix() for path, _ in census.tables]
    metadata = metadata_tables(folder, tables, census.media)
    labels = {table for of in metadata.values() for table in of}
    for kind in _kinds(census):
        patterns = tuple(f"**/*{suffix}" for suffix in sorted(census.suffixes.get(kind, ())))
        if kind == "tables":
            rows = [(path, n) for path, n in census.tables if path.relative_to(folder).as_posix() not in labels]
            sources = [replace(s, exclude=tuple(map(glob.escape, sorted(labels)))) for s in table_sources(folder, rows)]
            found += [split(source, source.paths) for source in sources]
        else:
            packed = sorted(filter(is_packed, census.suffixes.get("tables", ()))) if kind == "archives" else []
            away = tuple(f"**/*{suffix}" for suffix in packed)  # `**/*.gz` would take them as well
            source = TableSource(kind, patterns, census.files[kind], census.sizes[kind], exclude=away)
            if kind in MEDIA:
                source = labelled(split(source, census.media[kind]), census.media[kind], metadata[kind])
            found.append(source)
    return found


def _left_out(census: Census, own: str | None) -> list[str]:
    """Patterns that no source takes: what init passed over itself, and our own files where they lie among the data."""
    patterns = ["**/.*", "**/.*/**"] + ([own, "workspace/**"] if own else [])
    patterns += [f"**/{name}/**" for name in sorted(census.skipped)]
    known = frozenset[str]().union(*KINDS.values())
    patterns += [
        f"**/*{s}" for s in sorted({s for s, _ in census.unread}) if re.fullmatch(r"\.\w+", s) and s not in known
    ]
    return patterns + [f"**/{glob.escape(name)}" for name in sorted({p.name for p in census.databases})]


def _database_sources(census: Census, base: Path) -> list[str]:
    """A proposal for every table with text; commented out, as which columns matter is a guess, unless it is all."""
    alone = not census.files
    lines: list[str] = []
    for database in census.databases:
        path = os.path.relpath(database.absolute(), base)
        tables = tables_of(database)
        lines.append(f"  # SQLite file {_text(path)}: {len(tables)} tables")
        for table in (t for t in tables if t.text):
            columns = ", ".join(_sql_name(c) for c in table.columns)
            keys = {
                "name": _source_name(f"{database.stem}-{table.name}"),
                "uri": f"sqlite:///{path}",
                "query": f"SELECT {columns} FROM {_sql_name(table.name)}",
            }
            flow = ", ".join(f"{key}: {_text(value)}" for key, value in keys.items())
            template = "\n\n".join(f"{{{c}}}" for c in table.text)
            flow += f", {table.mapping.recipe}" if table.mapping else f", text: {_text(template)}"
            lines.append(f"  # {table.rows:,} rows" + ("" if alone else "; remove the # to use it"))
            if table.mapping:
                fit = f"{table.mapping.fits} of {table.mapping.rows} sampled rows fit"
                lines.append(printable(f"  # {fit}; {table.mapping.why}").replace("\n", "\\n"))
            lines.append(f"  {'' if alone else '# '}- {{{flow}}}")
    if alone and not any(line.startswith("  - ") for line in lines):
        raise DataRefused("nothing to read in this folder", why="its databases have no table with a text column")
    return lines


def _vocabulary(total_bytes: int) -> int:
    """A merge should be seen often enough to be learned: about one entry a kilobyte, within the usual sizes."""
    return min(16384, max(1024, 1 << max(0, (total_bytes // 1000).bit_length() - 1)))


def _recipe_name(folder: Path) -> str:
    return _source_name(folder.absolute().resolve().name or "data")


def _source_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-._") or "data"


def _text(value: str) -> str:
    """A YAML string: a plain path as it is, all else in double quotes (`no` is a boolean)."""
    return value if re.fullmatch(r"\.[A-Za-z0-9_./-]*", value) else yaml_string(value)


def _texts(values: list[str]) -> str:
    return "[" + ", ".join(yaml_string(v) for v in values) + "]"
