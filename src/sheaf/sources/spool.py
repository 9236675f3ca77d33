"""A temporary file without a name: what a fetched item is read from. It goes when it is closed, or its process ends."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from sheaf.files import disk_errors


@contextlib.contextmanager
def spooled(folder: Path | None) -> Generator[BinaryIO, None, None]:
    """The file to write into; at the end of the block it stands at its beginning, or is closed if the block failed."""
    with disk_errors(folder or Path(tempfile.gettempdir())), contextlib.ExitStack() as stack:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
        yield file
        file.flush()
        file.seek(0)
        stack.pop_all()
