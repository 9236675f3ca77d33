"""Opening the flat files of a version: those on this machine as they lie here, those of a store through the cache.

Opening reads each folder's DONE and tables of digests, some 130 bytes a MB of tokens, and maps the files; from a store
those are two small requests a shard, several shards at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sheaf.corpus.blocks import Table, table_path
from sheaf.corpus.tokens import LocalFile, TokenFile, TokenFiles
from sheaf.errors import CorruptStore
from sheaf.files import origin_of, read_done

AT_ONCE = 16
TOKENS, LOSS = "tokens.bin", "loss.bin"


def open_files(where: str, name: str, folders: Sequence[Path], token_dtype: str) -> TokenFiles:
    """where, name: the workspace and the version, for other processes. folders: of the tokens, by number of shard."""
    if any(origin_of(folder / TOKENS) for folder in folders):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            tables = list(pool.map(_tables, folders))
    else:
        tables = list(map(_tables, folders))
    total = sum(table.size for pair in tables for table in pair if table is not None)
    tokens = [_open(f / TOKENS, table, token_dtype, total) for f, (table, _) in zip(folders, tables, strict=True)]
    losses = [
        None if table is None else _open(f / LOSS, table, "uint8", total)
        for f, (_, table) in zip(folders, tables, strict=True)
    ]
    return TokenFiles(where, name, tokens, losses)


def _tables(folder: Path) -> tuple[Table, Table | None]:
    files = (read_done(folder) or {"files": {}})["files"]
    if TOKENS in files and table_path(folder / TOKENS).name not in files:
        raise CorruptStore(
            "the tokens were made by a version of Sheaf that kept no digests of blocks",
            where=str(folder),
            fix="run `sheaf prepare`: it makes them again, alike",
        )
    return Table.of(folder / TOKENS), Table.of(folder / LOSS) if LOSS in files else None


def _open(path: Path, table: Table, dtype: str, total: int) -> TokenFile:
    """total: bytes of all files of the version."""
    origin = origin_of(path)
    if origin is None or (path.exists() and path.stat().st_size == table.size):
        return TokenFile(path, table, dtype, LocalFile(path, table, origin))
    from sheaf.corpus.block_cache import CachedFile, block_cache  # here: most corpora lie on this machine

    cache = block_cache()
    return TokenFile(path, table, dtype, CachedFile(cache, table, origin, whole=total <= cache.bytes))
