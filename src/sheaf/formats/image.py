"""Pictures: PNG, JPEG, WebP, GIF, TIFF and BMP become records of kind "image", their bytes as they lie.

Every picture is decoded once, by Pillow and only as the type that its first bytes name, to know that it can be: a
damaged one must not be met in the middle of a training. Its size is looked at before a pixel is made, so that a file
that claims a thousand million of them costs nothing. Memory: the file and its first frame, 4 bytes a pixel.
"""

from __future__ import annotations

import io
import struct
import warnings
from typing import Any

from PIL import Image, UnidentifiedImageError

from sheaf.formats.piece import Context, ParserLimits, Pieces, Record, Refused
from sheaf.formats.stream import Stream

BYTES_PER_PIXEL = 8  # 4 channels, and once more while a plugin converts
NAMES = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/tiff": "TIFF",
    "image/bmp": "BMP",
}
# What Pillow's plugins raise on damaged files, of which OSError ("truncated", "broken data stream") is the usual one.
_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError, OverflowError,
    EOFError, AssertionError, RuntimeError, struct.error,
)  # fmt: skip


def parse(stream: Stream, context: Context) -> Pieces:
    raw = stream.read_all(context.limits.record_bytes)
    meta = look(raw, context.kind, most_pixels(context.limits))
    yield Record("", 0, len(raw), "", kind="image", payload=raw, meta=meta)


def most_pixels(limits: ParserLimits) -> int:
    """Of one frame, so that a quarter of the memory holds it."""
    return (limits.memory_mb << 20) // (4 * BYTES_PER_PIXEL)


def look(raw: bytes, media: str, most_pixels: int) -> dict[str, Any]:
    """{"width", "height", "mode", "frames"} of a picture that can be decoded. Raises Refused.

    media: of `NAMES`. most_pixels: of one frame.
    """
    Image.MAX_IMAGE_PIXELS = None  # its own guard is a warning first; ours is below
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(raw), formats=[NAMES[media]]) as image:
                width, height = image.size
                if width * height > most_pixels:
                    raise Refused("bomb", f"a picture of {width} × {height} pixels")
                image.load()
                frames = getattr(image, "n_frames", 1)
                return {"width": width, "height": height, "mode": image.mode, "frames": frames}
        except UnidentifiedImageError:  # its message is an object's address
            raise Refused("corrupt", f"no {NAMES[media]} reader makes sense of its header") from None
        except _ERRORS as error:
            cut = "truncated" in str(error) or isinstance(error, EOFError)
            raise Refused("truncated" if cut else "corrupt", f"{error}"[:200] or type(error).__name__) from None
