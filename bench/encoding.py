"""Which detector decodes labelled texts right most often: ours, chardet, charset-normalizer.

Scored by the decoded text, not by the label, on the node-chardet and charset-normalizer test folders. Then ours on
lines and words cut from the texts in legacy encodings (wrong, not right, is what counts there), and how often what
confidence is right. Run:
    python bench/encoding.py FOLDER          (or with SHEAF_TESTDATA set)
"""

from __future__ import annotations

import codecs
import importlib
import json
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from sheaf.formats.encoding import decode
from sheaf.formats.guess import confidence
from sheaf.formats.stream import Refused

PYTHON_NAMES = {"windows-874": "cp874", "macintosh": "mac_roman", "x-mac-cyrillic": "mac_cyrillic"}
SAMPLES = {
    "arabic-1": "cp1256",
    "french-1": "cp1252",
    "korean": "cp949",
    "turkish": "cp1254",
    "bulgarian": "utf-8",
    "russian-3": "utf-8",
}


def cases(folder: Path) -> list[tuple[bytes, str, str]]:
    """(bytes, text, codec) of each."""
    found: list[tuple[bytes, str, str]] = []
    corpus = folder / "node-chardet" / "corpus" / "generated"
    for entry in json.loads((corpus / "index.json").read_text()):
        path = corpus / entry["path"]
        try:
            raw = path.read_bytes()
            label: str = entry["encoding"]
            codec = codecs.lookup(PYTHON_NAMES.get(label, label)).name
            found.append((raw, raw.decode(codec), codec))
        except (FileNotFoundError, LookupError, UnicodeDecodeError):
            continue
    for name, encoding in SAMPLES.items():
        raw = (folder / "charset-normalizer" / "data" / f"sample-{name}.txt").read_bytes()
        found.append((raw, raw.decode(encoding), encoding))
    return found


def ours(raw: bytes) -> str | None:
    try:
        return decode(raw).text
    except Refused:
        return None


def labelled(guess: Callable[[bytes], str | None]) -> Callable[[bytes], str | None]:
    def run(raw: bytes) -> str | None:
        try:
            return raw.decode(guess(raw) or "ascii")
        except (LookupError, UnicodeDecodeError):
            return None

    return run


def cuts(texts: list[tuple[bytes, str, str]]) -> dict[str, list[tuple[bytes, str]]]:
    """Pieces that are neither ASCII nor UTF-8, from texts given with their codecs."""
    rng = random.Random(1)
    found: dict[str, set[tuple[bytes, str]]] = defaultdict(set)
    for _, text, codec in texts:
        lines = [line for line in text.splitlines() if line.strip()]
        words = [word for word in text.split() if not word.isascii()]
        for _ in range(6):
            at, word = rng.randrange(len(lines)), rng.choice(words or [""])
            pieces = {"three lines": "\n".join(lines[at : at + 3]), "a line": lines[at], "a word": word}
            pieces["a word in English"] = f"In this letter of the year 2004 he wrote the word {word} twice."
            for kind, piece in pieces.items():
                raw = piece.encode(codec)
                if not is_utf8(raw):
                    found[kind].add((raw, raw.decode(codec)))
    return {kind: sorted(pieces) for kind, pieces in found.items()}


def is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def short(texts: list[tuple[bytes, str, str]]) -> None:
    """Print what becomes of the cuts, and of all that were taken how many are right, by stated confidence."""
    right_by: dict[float, list[bool]] = defaultdict(list)
    for kind, pieces in cuts([case for case in texts if not case[2].startswith(("utf", "iso2022"))]).items():
        right = wrong = 0
        for raw, text in pieces:
            try:
                decoded = decode(raw)
            except Refused:
                continue
            right_by[int(confidence(decoded.encoding) * 10) / 10].append(decoded.text == text)
            right, wrong = right + (decoded.text == text), wrong + (decoded.text != text)
        n = len(pieces)
        print(
            f"{kind:<26} {right / n:>6.1%} right, {wrong / n:.1%} wrong, {1 - (right + wrong) / n:.1%} refused, of {n}"
        )
    for sure, found in sorted(right_by.items()):
        print(f"confidence from {sure:.1f}        {sum(found) / len(found):>6.1%} right of {len(found)}")


def main() -> None:
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SHEAF_TESTDATA")
    if given is None:
        print("no labelled texts: give a folder, or set SHEAF_TESTDATA")
        return
    folder = Path(given)
    texts = cases(folder)
    detectors: dict[str, Callable[[bytes], str | None]] = {"sheaf": ours}
    chardet = importlib.import_module("chardet")
    detectors[f"chardet {version('chardet')}"] = labelled(lambda raw: chardet.detect(raw)["encoding"])
    try:
        peer = importlib.import_module("charset_normalizer")
    except ImportError:
        print("charset-normalizer is not installed")
    else:
        best = lambda raw: getattr(peer.from_bytes(raw).best(), "encoding", None)  # noqa: E731
        detectors[f"charset-normalizer {version('charset-normalizer')}"] = labelled(best)
    long = sum(len(text) >= 200 for _, text, _ in texts)
    for name, run in detectors.items():
        start = time.perf_counter()
        same = [(run(raw) or "").lstrip("\ufeff") == text.lstrip("\ufeff") for raw, text, _ in texts]
        milliseconds = (time.perf_counter() - start) * 1000 / len(texts)
        right = sum(ok for ok, (_, text, _) in zip(same, texts, strict=True) if len(text) >= 200)
        print(f"{name:<26} {sum(same):>4} of {len(texts)} right, {right:>3} of {long} from 200 characters, "
              f"{milliseconds:.2f} ms each")  # fmt: skip
    short(texts)


if __name__ == "__main__":
    main()
