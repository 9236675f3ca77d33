"""Sound: WAV, FLAC, Ogg (Vorbis, Opus) and MP3 become records of kind "audio", their bytes as they lie.

Sample rate, channels and seconds are read by tinytag from headers and frames; nothing is decoded. A file whose headers
say nothing of them is refused: it is damaged, or something else. Memory: the file.
"""

from __future__ import annotations

import io
import struct
from typing import Any

from tinytag import TinyTag, TinyTagException

from sheaf.formats.piece import Context, Pieces, Record, Refused
from sheaf.formats.stream import Stream

_ERRORS = (
    TinyTagException, ValueError, TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError, OverflowError,
    EOFError, AssertionError, struct.error,
)  # fmt: skip
_SUFFIX = {"audio/wav": ".wav", "audio/flac": ".flac", "audio/ogg": ".ogg", "audio/mpeg": ".mp3"}


def parse(stream: Stream, context: Context) -> Pieces:
    raw = stream.read_all(context.limits.record_bytes)
    yield Record("", 0, len(raw), "", kind="audio", payload=raw, meta=look(raw, context.kind))


def look(raw: bytes, media: str) -> dict[str, Any]:
    """{"sample_rate" in Hz, "channels", "seconds"}. Raises Refused. media: of `_SUFFIX`."""
    try:
        tag = TinyTag.get("sound" + _SUFFIX[media], file_obj=io.BytesIO(raw), tags=False)
    except _ERRORS as error:
        raise Refused("corrupt", f"{error}"[:200] or type(error).__name__) from None
    if not tag.samplerate or not tag.duration:
        raise Refused("corrupt", "no sample rate or duration in it")
    return {"sample_rate": tag.samplerate, "channels": tag.channels, "seconds": round(tag.duration, 3)}
