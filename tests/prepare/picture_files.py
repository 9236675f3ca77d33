"""Small pictures and other files for a test's folder."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image


def png(colour: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 2, 3)).save(out, "PNG")
    return out.getvalue()


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
