"""Pictures and sounds: taken as they lie when they can be used, refused when they are damaged or too large."""

from __future__ import annotations

import io
import struct
import wave
import zlib
from typing import Any

import orjson
import pytest
from PIL import Image


def picture(kind: str, size: tuple[int, int] = (40, 30)) -> bytes:
    out = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(out, kind)
    return out.getvalue()


def sound(seconds: float = 0.5, rate: int = 8000) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(rate)
        w.writeframes(b"\0\1" * int(seconds * rate))
    return out.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_picture_is_a_record_with_its_bytes_and_its_size(kind: str, read: Any) -> None:
    data = picture(kind)
    outcome = read("holiday.dat", data)
    (record,) = outcome.records
    assert record["kind"] == "image" and record["payload"] == data and record["text"] == ""
    meta = orjson.loads(record["meta"])
    assert (meta["width"], meta["height"]) == (40, 30)
    assert outcome.item["media"] == f"image/{kind.lower()}" and record["bytes"] == len(data)


def test_a_sound_is_a_record_with_its_rate_and_length(read: Any) -> None:
    data = sound()
    (record,) = read("a.bin", data).records
    assert record["kind"] == "audio" and record["payload"] == data
    assert orjson.loads(record["meta"]) == {"sample_rate": 8000, "channels": 1, "seconds": 0.5}


def test_equal_pictures_have_one_id_and_different_ones_two(read: Any) -> None:
    one, other = picture("PNG"), picture("BMP")
    ids = [read(name, data).records[0]["id"] for name, data in (("a.png", one), ("b.png", one), ("c.bmp", other))]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_a_picture_that_is_cut_off_is_refused(kind: str, read: Any) -> None:
    data = picture(kind, (200, 200))
    outcome = read("cut", data[: len(data) * 2 // 3])
    assert outcome.records == [] and outcome.reasons[0] in ("truncated", "corrupt")


def test_a_picture_that_claims_too_many_pixels_costs_nothing(read: Any) -> None:
    outcome = read("bomb.png", png_that_claims(60_000, 60_000))
    assert outcome.reasons == ["bomb"]


def test_text_that_begins_like_a_picture_or_a_sound_stays_text(read: Any) -> None:
    for text in (
        "BM is a maker of cars, and has been one for long.\n",
        "ID3 tags hold the titles of songs, they say.\n",
    ):
        assert read("notes.txt", text.encode()).texts == [text.rstrip()]


def test_what_the_place_says_joins_the_meta(sandbox: Any) -> None:
    import tempfile

    from sheaf.formats.sandbox import ItemInput, ParseOptions

    data = picture("PNG")
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        parsed = sandbox.parse([ItemInput(file, "cat/1.png", len(data), "", '{"label":"cat"}')], ParseOptions())
    assert orjson.loads(parsed.records["meta"][0].as_py())["label"] == "cat"
