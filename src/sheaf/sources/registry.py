"""Which kind of place a URI means. A new kind is one file and one line in the table.

A kind's module is imported when a recipe first names it, so that a folder needs neither an HTTP client nor SQLite.
"""

from __future__ import annotations

import difflib
import importlib
import re
from pathlib import Path
from typing import Any

from sheaf.errors import RecipeError
from sheaf.recipe import MapSpec, SourceSpec
from sheaf.sources.base import Source

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+._-]*)://")  # _ for drivers of SQLAlchemy: oracle+cx_oracle
KINDS = {
    "": "sheaf.sources.folder:FolderSource",
    "file": "sheaf.sources.folder:FolderSource",
    "http": "sheaf.sources.http:HttpSource",
    "https": "sheaf.sources.http:HttpSource",
    "s3": "sheaf.sources.objects:ObjectSource",
    "gs": "sheaf.sources.objects:ObjectSource",
    "az": "sheaf.sources.objects:ObjectSource",
    "abfs": "sheaf.sources.objects:ObjectSource",
    "abfss": "sheaf.sources.objects:ObjectSource",
    "sqlite": "sheaf.sources.sql:SqlSource",
    "postgresql": "sheaf.sources.postgresql:PostgresqlSource",
    "postgres": "sheaf.sources.postgresql:PostgresqlSource",
    "mysql": "sheaf.sources.other_databases:OtherDatabaseSource",
    "mariadb": "sheaf.sources.other_databases:OtherDatabaseSource",
    "mssql": "sheaf.sources.other_databases:OtherDatabaseSource",
    "oracle": "sheaf.sources.other_databases:OtherDatabaseSource",
    "sqlalchemy": "sheaf.sources.other_databases:OtherDatabaseSource",
    "sftp": "sheaf.sources.fileserver:FileServerSource",
    "ftp": "sheaf.sources.fileserver:FileServerSource",
    "ftps": "sheaf.sources.fileserver:FileServerSource",
    "smb": "sheaf.sources.fileserver:FileServerSource",
    "webhdfs": "sheaf.sources.fileserver:FileServerSource",
    "git+file": "sheaf.sources.git:GitSource",
}


def open_source(spec: SourceSpec, spool: Path | None = None) -> Source:
    """The place that a recipe's source names. Touches nothing yet.

    spool: folder for the unlinked temporary files that hold fetched items (default: the system's).
    Raises RecipeError for a scheme that is not in the table, or a key that the kind of place needs and lacks.
    """
    scheme = _scheme(spec.uri)
    if scheme not in KINDS:
        known = ", ".join(f"{s}://" for s in KINDS if s)
        raise RecipeError(
            f"no kind of source reads {scheme}:// URIs",
            where=f"source '{spec.name}', uri: {spec.uri}",
            why=f"known: a path, {known}",
            fix=_instead(scheme),
        )
    module, _, kind = KINDS[scheme].partition(":")
    return getattr(importlib.import_module(module), kind)(spec, spool)


def source_options(spec: SourceSpec) -> dict[str, Any]:
    """What of a source's keys changes what an item contains or how it is parsed, as JSON; for digests and parsers.

    text: a column or field name, or a template, or None. query: the SELECT, or None.
    key: the column whose value is in the row's locator, {"key": {column: value}, "row": n}; None: the first column.
    map: a mapping's name, its columns as an object, or None.
    """
    asked = spec.map.model_dump(mode="json", exclude_defaults=True) if isinstance(spec.map, MapSpec) else spec.map
    return {"text": spec.text, "query": spec.query, "key": spec.key, "map": asked}


def _instead(scheme: str) -> str:
    if scheme in ("git", "ssh", "git+https", "git+http", "git+ssh"):
        return "clone the repository and write git+file:///absolute/path; a folder of files may be sftp://"
    near = difflib.get_close_matches(scheme, [s for s in KINDS if s], 1)
    return f"did you mean {near[0]}://?" if near else "copy the data to a folder, or serve it over http"


def _scheme(uri: str) -> str:
    match = SCHEME.match(uri)
    scheme = match[1].lower() if match else ""
    # mysql+pymysql, sqlalchemy+DIALECT+DRIVER: what follows is SQLAlchemy's to understand.
    family = scheme.partition("+")[0]
    return family if KINDS.get(family) == KINDS["sqlalchemy"] else scheme
