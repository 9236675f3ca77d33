"""Which detector names the language of labelled texts right most often, and how fast: ours, py3langid, eldc.

The texts are translations that people made and filed under their language: message catalogues (LANG/LC_MESSAGES/*.mo)
and manual pages (man/LANG). Three lengths: one message of 20 to 80 characters, ten messages, 40 messages or a page.
Scored is the mean over languages of the share that is right, so small ones weigh as much as large: over the languages
that all know, and over all that have a code of ISO 639-1. Ours is py3langid's model on SAMPLE bytes of a text: what it
loses against py3langid, sampling costs; what it wins, leaving out languages without a code.

Run:  python bench/language.py [ROOT …]      ROOT has locale/ and man/ (default /usr/share); pip install eldc
      apt-get download evolution-common manpages-de manpages-ja …; dpkg -x … ROOT    gives more languages
"""

from __future__ import annotations

import gettext
import gzip
import importlib
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa

from sheaf.prepare import language, score

CODES = {"nb": "no", "nn": "no", "fil": "tl"}
MARKUP = re.compile(r"%[-\w$.]+|<[^>]*>|[_&\\{}|]|\\?\\f\[?\w*\]?|https?://\S+")
PER_LANGUAGE = 200  # texts of each length
PAGES = 60  # manual pages of a language
LEAST = 40  # texts, for a language to count
Labelled = dict[str, dict[str, list[str]]]  # length → language → texts
Detect = Callable[[list[str]], list[str]]


def main() -> None:
    labelled = texts_of([Path(a) for a in sys.argv[1:]] or [Path("/usr/share")])
    detectors = {"ours": ours, "py3langid": py3langid()} | ({"eldc": eldc()} if find_spec("eldc") else {})
    print(", ".join(f"{name} {version(name)}" for name in detectors if name != "ours"), f"numpy {np.__version__}")
    for length, by_language in labelled.items():
        every = {code: texts for code, texts in by_language.items() if len(code) == 2 and len(texts) >= LEAST}
        if not every:
            print(f"{length}: no texts; see the docstring")
            continue
        common = {code: texts for code, texts in every.items() if code in both()}
        size = sum(len(t.encode()) for texts in every.values() for t in texts)
        print(f"\n{length}: {sum(map(len, every.values()))} texts, {size / 1e6:.1f} MB, {len(every)} languages,")
        print(f"{len(common)} of them known to all: {' '.join(sorted(common))}")
        for name, detect in detectors.items():
            right, seconds = judge(detect, every)
            known = {code: right[code] for code in common}
            worst = ", ".join(f"{code} {share:.2f}" for share, code in sorted((s, c) for c, s in known.items())[:6])
            print(
                f"  {name:10} {mean(known):.3f} of these, {mean(right):.3f} of all; {size / seconds / 1e6:6.1f} MB/s",
                end="",
            )
            print(f"; worst of these: {worst}")


def mean(right: dict[str, float]) -> float:
    return sum(right.values()) / max(len(right), 1)


def both() -> set[str]:
    """The languages that every detector knows."""
    known = set(language.model().codes)
    return known & set(importlib.import_module("eldc").LANGUAGES) if find_spec("eldc") else known


def texts_of(roots: list[Path]) -> Labelled:
    found: Labelled = {"a message": {}, "ten messages": {}, "a page": {}}
    messages: dict[str, list[str]] = defaultdict(list)
    pages: dict[str, list[str]] = defaultdict(list)
    for root in roots:
        for path in sorted(root.glob("locale/*/LC_MESSAGES/*.mo")):
            code = code_of(path.parts[-3])
            if code and not path.name.startswith("iso_"):
                messages[code] += catalogue(path)
        for path in sorted((root / "locale" / "de" / "LC_MESSAGES").glob("*.mo")):
            messages["en"] += catalogue(path, original=True)
        for path in sorted(root.glob("man/*/man*/*.gz")):
            code = code_of(path.parts[-3])
            if code and (text := manual(path)):
                pages[code].append(text)
    for code, texts in messages.items():
        own = spread([*dict.fromkeys(texts)], PER_LANGUAGE * 10)
        found["a message"][code] = spread([t for t in own if len(t) <= 80], PER_LANGUAGE)
        found["ten messages"][code] = ["\n".join(own[n : n + 10]) for n in range(0, len(own) - 9, 10)]
        found["a page"][code] = ["\n".join(own[n : n + 40]) for n in range(0, len(own) - 39, 40)]
    for code, texts in pages.items():
        found["a page"].setdefault(code, []).extend(spread(texts, PAGES))
    return found


def code_of(folder: str) -> str:
    """ISO 639-1 code of a folder of translations; "" for a variety that no detector names, or English respelt."""
    name = folder.split("@")[0].split("_")[0]
    return "" if name == "en" or folder in ("be@latin", "ca@valencia") else CODES.get(name, name)


def catalogue(path: Path, *, original: bool = False) -> list[str]:
    """The translations of a catalogue, or what they translate; those with 20 letters that do differ."""
    with path.open("rb") as f:
        try:
            pairs = gettext.GNUTranslations(f)._catalog.items()
        except (OSError, UnicodeDecodeError, IndexError):  # IndexError: a header without plural forms
            return []
    texts = [(k if original else v, k) for k, v in pairs if isinstance(k, str) and isinstance(v, str)]
    return [
        clean
        for text, key in texts
        if original or text != key
        for clean in [cleaned(text.rpartition("\x04")[2])]
        if clean
    ]


def cleaned(text: str) -> str:
    plain = " ".join(MARKUP.sub(" ", text).split())
    return plain if sum(map(str.isalpha, plain)) >= (20 if plain.isascii() else 12) else ""


def manual(path: Path) -> str:
    """The running text of a manual page, without roff's requests."""
    try:
        source = gzip.decompress(path.read_bytes()).decode()
    except (OSError, UnicodeDecodeError, EOFError):
        return ""
    lines = (MARKUP.sub(" ", line) for line in source.splitlines() if line and line[0] not in ".'")
    text = "\n".join(line for line in lines if line.strip())
    return text if len(text) >= 1000 else ""


def spread(texts: list[str], n: int) -> list[str]:
    """n of them, evenly."""
    return texts if len(texts) <= n else [texts[k * len(texts) // n] for k in range(n)]


def judge(detect: Detect, chosen: dict[str, list[str]]) -> tuple[dict[str, float], float]:
    detect(next(iter(chosen.values()))[:2])  # what loads and compiles does it here
    right: dict[str, float] = {}
    seconds = 0.0
    for code, texts in chosen.items():
        start = time.process_time()
        said = detect(texts)
        seconds += time.process_time() - start
        right[code] = sum(s == code for s in said) / len(texts)
    return right, seconds


def ours(texts: list[str]) -> list[str]:
    codes, _ = language.classify(*score.bytes_of(pa.array(texts, pa.large_string())))
    return codes.to_pylist()


def py3langid() -> Detect:
    module = importlib.import_module("py3langid.langid")
    identifier = module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)
    return lambda texts: [language.VARIETIES.get(code, code) for code in (identifier.classify(t)[0] for t in texts)]


def eldc() -> Detect:
    module = importlib.import_module("eldc")
    module.init()
    return lambda texts: [module.detect(t) for t in texts]


if __name__ == "__main__":
    main()
