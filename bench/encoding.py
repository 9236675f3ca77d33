"""Which detector decodes labelled texts right most often: ours, chardet, charset-normalizer.

Scored by the decoded text, not by the label, on the node-chardet and charset-normalizer test folders. Run:
    python bench/encoding.py FOLDER          (or with SHEAF_TESTDATA set)
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from sheaf.formats.encoding import decode
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


def cases(folder: Path) -> list[tuple[bytes, str]]:
    found: list[tuple[bytes, str]] = []
    corpus = folder / "node-chardet" / "corpus" / "generated"
    for entry in json.loads((corpus / "index.json").read_text()):
        path = corpus / entry["path"]
        try:
            raw = path.read_bytes()
            found.append((raw, raw.decode(PYTHON_NAMES.get(entry["encoding"], entry["encoding"]))))
        except (FileNotFoundError, LookupError, UnicodeDecodeError):
            continue
    for name, encoding in SAMPLES.items():
        raw = (folder / "charset-normalizer" / "data" / f"sample-{name}.txt").read_bytes()
        found.append((raw, raw.decode(encoding)))
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
    long = sum(len(text) >= 200 for _, text in texts)
    for name, run in detectors.items():
        start = time.perf_counter()
        same = [(run(raw) or "").lstrip("\ufeff") == text.lstrip("\ufeff") for raw, text in texts]
        milliseconds = (time.perf_counter() - start) * 1000 / len(texts)
        right = sum(ok for ok, (_, text) in zip(same, texts, strict=True) if len(text) >= 200)
        print(f"{name:<26} {sum(same):>4} of {len(texts)} right, {right:>3} of {long} from 200 characters, "
              f"{milliseconds:.2f} ms each")  # fmt: skip


if __name__ == "__main__":
    main()
