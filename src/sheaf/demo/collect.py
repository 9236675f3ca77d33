"""Real text of the machine that the demo runs on: nothing is downloaded, nothing is made up.

Looked at: Python's own sources and their documentation strings, installed packages' descriptions and licences,
`/usr/share/doc`, `/usr/share/man` with its translations, and message catalogues. Paths are visited in an order that
a keyed hash of their names gives, so that a small demo is a fair sample of the machine, the same at every run. What a
bare machine lacks is made up for with more source code; if that ends too, the demo goes on with what there is.
Cost: each chosen file is read once, and parsed if docstrings are wanted of it; 30 MB take about ten seconds.
"""

from __future__ import annotations

import ast
import email
import gettext
import gzip
import hashlib
import os
import re
import sysconfig
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ftfy import fix_encoding

LONGEST = 200_000  # characters of one text: no single file may dominate a small demo
SHORTEST = 8
SHARES = {"code": 0.42, "docstring": 0.15, "prose": 0.28, "manual": 0.10, "foreign": 0.05}
_HEADER = re.compile(r"^(From|To|Subject|Date|Content-Type|Reply-To|Sender|References):", re.MULTILINE | re.IGNORECASE)
# Languages whose texts are looked for, in turn, and the share of characters beyond ASCII that shows a real translation.
LANGUAGES = {"ja": 0.15, "zh_CN": 0.15, "de": 0.01, "fr": 0.02, "ru": 0.2, "es": 0.02, "ko": 0.15, "pt_BR": 0.02}


@dataclass(frozen=True, slots=True)
class Text:
    """kind: a key of SHARES. name: where it was found, without the machine's prefix. text: in the normal form."""

    kind: str
    name: str
    text: str


@dataclass(frozen=True)
class Roots:
    """Where to look; the defaults are this machine's own places."""

    library: Path = field(default_factory=lambda: Path(sysconfig.get_path("stdlib")))
    packages: Path = field(default_factory=lambda: Path(sysconfig.get_path("purelib")))
    documents: Path = Path("/usr/share/doc")
    manuals: Path = Path("/usr/share/man")
    catalogues: Path = Path("/usr/share/locale")


def collect(
    megabytes: float, seed: int = 0, roots: Roots | None = None, seen: Callable[[int], None] | None = None
) -> dict[str, list[Text]]:
    """Texts worth about that many megabytes, by kind, each list sorted by name. `seen` is told the bytes found."""
    roots, seen = roots or Roots(), seen or (lambda _: None)
    budget = {kind: int(share * megabytes * 1e6) for kind, share in SHARES.items()}
    pool = _Pool(seen)
    pool.take("foreign", _foreign(roots, seed), budget["foreign"])
    pool.take("manual", _manuals(roots, seed), budget["manual"])
    pool.take("prose", _prose(roots, seed), budget["prose"])
    pool.take("docstring", _docstrings(roots.library, seed), budget["docstring"])
    total = int(megabytes * 1e6)
    pool.take("code", _code(roots.library, "python", seed), total - pool.bytes)
    pool.take("code", _code(roots.packages, "package", seed), total - pool.bytes)
    return {kind: sorted(texts, key=lambda t: t.name) for kind, texts in pool.texts.items()}


def normal(text: str) -> str:
    """The simple normal form that the demo's truth is counted in: composed characters, one kind of line end, no rim."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


class _Pool:
    """What was found, without texts that differ only in white space: whether those are equal is a matter of taste.

    Texts that are equal exactly stay: the machine's natural duplicates are part of the truth.
    """

    def __init__(self, seen: Callable[[int], None]) -> None:
        self.texts: dict[str, list[Text]] = {kind: [] for kind in SHARES}
        self.bytes = 0
        self._seen = seen
        self._squeezed: dict[bytes, bytes] = {}
        self._names: set[tuple[str, str]] = set()

    def take(self, kind: str, found: Iterator[tuple[str, str]], budget: int) -> None:
        longest = min(LONGEST, max(6_000, budget // 8))
        for name, raw in found:
            if budget <= 0:
                return
            text = normal(raw)
            if (kind, name) in self._names or not SHORTEST <= len(text) <= longest:
                continue
            if not _plain(text) or _looks_like_data(text) or _mojibake(text) or self._nearly_there(text):
                continue
            self._names.add((kind, name))
            size = len(text.encode())
            self.texts[kind].append(Text(kind, name, text))
            self.bytes += size
            self._seen(size)
            budget -= size

    def _nearly_there(self, text: str) -> bool:
        squeezed, exact = _digest("".join(unicodedata.normalize("NFKC", text).split())), _digest(text)
        return self._squeezed.setdefault(squeezed, exact) != exact


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _plain(text: str) -> bool:
    """No control characters (a form feed makes a text look binary), nothing that Unicode does not assign."""
    if text.isascii():
        return not any((ord(c) < 32 and c not in "\n\t") or c == "\x7f" for c in set(text))
    odd = ("Cc", "Cn", "Co", "Cs", "Zl", "Zp")
    return not any((unicodedata.category(c) in odd and c not in "\n\t") or c in "\ufeff\ufffd" for c in set(text))


def _shuffled(root: Path, seed: int, suffixes: tuple[str, ...] = (), skip: frozenset[str] = frozenset()) -> list[Path]:
    """Files under root in keyed-hash order of their relative names."""
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in skip]
        found += [Path(folder, f) for f in files if not suffixes or f.endswith(suffixes)]
    return _by_hash(root, found, seed)


def _looks_like_data(text: str) -> bool:
    """Whether a reader may well take this text for a page, data or a message: then what it holds is not its text."""
    head = text.partition("\n\n")[0]
    return text.startswith(("<", "{", "[", "%!", "From ")) or _HEADER.search(head) is not None


def _mojibake(text: str) -> bool:
    """Whether it was decoded wrongly before it came here: a reader may repair it, so what it says is not known."""
    return any(not line.isascii() and fix_encoding(line) != line for line in text.splitlines())


def _by_hash(root: Path, paths: Iterable[Path], seed: int) -> list[Path]:
    """In the order of a keyed hash of their relative names: as good as random, the same at every run."""
    names = {p: str(p.relative_to(root)).encode(errors="surrogateescape") for p in paths}
    key = str(seed).encode()
    return sorted(names, key=lambda p: (hashlib.blake2b(names[p], key=key, digest_size=8).digest(), names[p]))


# Neither tests nor tables: `encodings` and `pydoc_data` are megabytes of code points and help texts in one literal.
_NOT_CODE = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
)


def _code(root: Path, label: str, seed: int) -> Iterator[tuple[str, str]]:
    for path in _shuffled(root, seed, (".py",), _NOT_CODE):
        text = _read(path)
        if text is not None:
            yield f"{label}/{path.relative_to(root)}", text


def _docstrings(library: Path, seed: int) -> Iterator[tuple[str, str]]:
    for name, source in _code(library, "python", seed + 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old sources use escapes that newer Pythons warn of
            try:
                tree = ast.parse(source)
            except (SyntaxError, ValueError, RecursionError):
                continue
        module = name.removeprefix("python/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        yield from _docstrings_of(tree, module)


def _docstrings_of(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        text = ast.get_docstring(node)
        if text:
            yield name, text
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _docstrings_of(child, f"{name}.{child.name}")


def _prose(roots: Roots, seed: int) -> Iterator[tuple[str, str]]:
    """Packages' descriptions and licences, then the system's documents."""
    for folder in _by_hash(roots.packages, roots.packages.glob("*.dist-info"), seed):
        package = folder.name.removesuffix(".dist-info")
        description = _description(folder / "METADATA")
        if description:
            yield f"package/{package}/README.md", description
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name.upper().startswith(("LICEN", "COPYING", "NOTICE", "AUTHORS")):
                text = _read(path)
                if text is not None:
                    yield f"package/{package}/{path.name}", text
    for path in _shuffled(roots.documents, seed, ("copyright", ".txt", ".md", ".rst", ".gz", "README", "NEWS", "TODO")):
        text = _read(path)
        if text is not None:
            yield f"doc/{path.relative_to(roots.documents)}".removesuffix(".gz"), text


def _description(metadata: Path) -> str | None:
    text = _read(metadata)
    if text is None:
        return None
    body = email.message_from_string(text).get_payload()
    return body if isinstance(body, str) else None


def _manuals(roots: Roots, seed: int) -> Iterator[tuple[str, str]]:
    for path in _shuffled(roots.manuals, seed, (".gz",)):
        text = _read(path)
        if path.relative_to(roots.manuals).parts[0].startswith("man") and text and not text.startswith(".so "):
            yield f"man/{path.relative_to(roots.manuals)}".removesuffix(".gz"), text


def _foreign(roots: Roots, seed: int) -> Iterator[tuple[str, str]]:
    """Translated manuals and messages, language by language in turn, so that none crowds out the others."""
    queues = {language: _translations(roots, language, seed) for language in LANGUAGES}
    while queues:
        for language in list(queues):
            found = next(queues[language], None)
            if found is None:
                del queues[language]
            else:
                yield found


def _translations(roots: Roots, language: str, seed: int) -> Iterator[tuple[str, str]]:
    """Named "LANGUAGE/…"."""
    for path in _shuffled(roots.manuals / language, seed, (".gz",)):
        yield from _translation(language, path.stem, _read(path))
    for path in _shuffled(roots.catalogues / language, seed, (".mo",)):
        yield from _translation(language, path.stem, _catalogue(path))


def _translation(language: str, name: str, text: str | None) -> Iterator[tuple[str, str]]:
    if text is not None and sum(not c.isascii() for c in text) > LANGUAGES[language] * len(text):
        yield f"{language}/{name}.txt", text


def _catalogue(path: Path) -> str | None:
    """The translated messages of a compiled catalogue, one a paragraph."""
    try:
        with path.open("rb") as f:
            catalogue = gettext.GNUTranslations(f)
    except (OSError, UnicodeDecodeError, ValueError):
        return None
    messages: dict[object, str] = vars(catalogue).get("_catalog", {})
    chosen = [m for key, m in messages.items() if key != "" and not m.isascii()]
    text = "\n\n".join(chosen)
    return text if len(text) <= LONGEST else None


def _read(path: Path) -> str | None:
    """A file's text, unpacked if it is gzip; None if it is not UTF-8, too long, or not for our eyes."""
    try:
        if not path.is_file():
            return None
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as f:
            data = f.read(4 * LONGEST + 1)
        return data.decode() if len(data) <= 4 * LONGEST else None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return None
