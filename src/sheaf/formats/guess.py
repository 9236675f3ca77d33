"""Which legacy encoding some bytes are in, and how sure that is: every candidate's text is weighed against the others'.

chardet 7 gives each encoding that fits a score. Alone the best score says little about a few words: of single foreign
words one in six comes out wrong. So (Bayes, with scores for likelihoods):

  - scores count over the words that are not ASCII, once each, and over the whole where English and markup do not thin
    it out;
  - the more bytes tell something, the more a difference between two scores weighs;
  - a text in which writing is odd weighs less: letters of two scripts in one word, capitals after small letters,
    symbols between letters; as does an encoding that hardly anybody uses;
  - encodings that give the same text stand together: whether "José" is ISO-8859-1 or Windows-1250 need not be known.

The confidence is the weight of the best text over that of all. It is an estimate: `bench/encoding.py` prints, for words
and lines cut from labelled texts, how often what confidence is right. Cost: two calls of chardet, on 64 KB at most.
"""

from __future__ import annotations

import codecs
import math
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

SAMPLE = 1 << 16  # bytes; a sample of so many may end inside a character
WORDS_BYTES = 1 << 12  # more words than these hold tell nothing new
# The weights, chosen on words and lines cut from labelled texts (bench/encoding.py): how much a difference of scores
# counts for each byte that tells, what is too small a score to mean anything, and what an oddity costs.
SCORE, FLOOR, ODD, MOST_ODD = 3.0, 0.03, 1.5, 10
MANY, HOPELESS = 10, 0.05  # bytes that tell, and chardet's best score for them: of texts above, of random bytes below
LONE = 0.75  # confidence that a lone symbol in English is of Western Europe, as nearly always
_PRIOR = {"cp1252": 4.0}
_COMMON = frozenset(
    f"cp{n}" for n in (437, 850, 852, 855, 866, 874, 932, 949, *range(1250, 1259))
) | {f"iso8859-{n}" for n in (*range(2, 11), *range(13, 17))} | {
    "big5hkscs", "euc_jp", "euc_kr", "gb18030", "koi8-r", "koi8-u", "mac-cyrillic", "mac-roman"
}  # fmt: skip
_MEANT = {"iso8859-1": "cp1252", "euc_jis_2004": "euc_jp", "shift_jis_2004": "cp932"}  # by such a label, in practice
_RARE = 0.02
# Two bytes a letter: nearly any bytes are some Chinese or Korean text, which by chance scores up to 0.19.
_PAIRS, CHANCE = (
    frozenset({"big5", "big5hkscs", "cp932", "cp949", "euc_jp", "euc_kr", "gb18030", "johab", "shift_jis"}),
    0.2,
)
DOUBT, TOO_ODD = 0.5, 4.0  # what is left of a confidence if the best text has such a score, or is as odd as this
_HIGH = bytes(range(0x80, 0x100))
_PLAIN = bytes(c for c in range(128) if chr(c).isalpha())
_WORDS = re.compile(rb"\S*[\x80-\xff]\S*")
_LETTERS = re.compile(rb"[A-Za-z\x80-\xff]*[\x80-\xff][A-Za-z\x80-\xff]*")
_ICELANDIC = "ðþÐÞ"  # bytes of other letters in all encodings but those of Western Europe
_JOINERS = "‘·\xad–—-"  # may stand between two letters of a word
_QUOTES = "“”‘’«»–—…"  # begin and end words; few encodings have them, so bytes that make sense as these are these
_OPENING = "‚„"  # begin words only; what is é in older encodings is the first of them in cp1252
_SYMBOLS = frozenset("©®™°£€¥¢§¶†‡±²³µ×÷¼½¾•·…–—«»‹›“”‘’„‚ƒ‰\xa0")
# Romanian writes commas below; these two have only cedillas for them, which only Romanian uses, and whose bytes are the
# commas of ISO-8859-16.
_CEDILLAS = frozenset({"cp1250", "iso8859-2"})
_COMMAS = str.maketrans("ŞşŢţ", "ȘșȚț")
_EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "FULLWIDTH", "HALFWIDTH", "BOPOMOFO")


class Guess(str):
    """The name of a codec that was guessed. confidence: 0 to 1, that the text is right."""

    __slots__ = ("confidence",)
    confidence: float

    def __new__(cls, name: str, confidence: float) -> Guess:
        guess = super().__new__(cls, name)
        guess.confidence = min(0.999, round(confidence, 3))  # 1 is for what is known
        return guess


def confidence(encoding: str) -> float:
    """1 for an encoding that somebody said, or that is proved by the bytes themselves."""
    return encoding.confidence if isinstance(encoding, Guess) else 1.0


def guesses(sample: bytes) -> list[Guess]:
    """Codecs that give the most probable text of the words in the sample, the likeliest first."""
    words = b" ".join(dict.fromkeys(_WORDS.findall(sample)))[:WORDS_BYTES]
    close, whole = _scores(words), _scores(sample)
    letters = set(_LETTERS.findall(words))  # a name in every row of a table tells no more than once
    if not any(len(word) > 1 for word in letters):
        return _lone(words, sample)
    tells = sum(len(word) - len(word.translate(None, _HIGH)) for word in letters)
    if tells >= MANY and max([*close.values(), *whole.values()], default=0.0) < HOPELESS:
        return []
    clear = max(whole.values(), default=0.0) > max(close.values(), default=0.0)
    errors = "ignore" if len(words) == WORDS_BYTES or len(sample) >= SAMPLE else "strict"
    found = _weighed(words, tells, close, whole if clear else {}, errors)
    if not found:
        return []
    best = max(found, key=lambda text: max(found[text]))
    top = max(found[best])[0]
    sure = 1 / sum(math.exp(max(group)[0] - top) for group in found.values())
    names = [name for _, name in sorted(found[best], reverse=True)]
    if (names[0] in _PAIRS and close[names[0]] < CHANCE) or oddity(best) >= max(TOO_ODD, tells / 2):
        sure *= DOUBT
    return [Guess(name, sure) for name in names]


def _weighed(
    words: bytes, tells: int, close: dict[str, float], whole: dict[str, float], errors: str
) -> dict[str, list[tuple[float, str]]]:
    """By text, the codecs that give it, each with the logarithm of its weight."""
    floor = FLOOR / max(1, tells) ** 0.5
    found: dict[str, list[tuple[float, str]]] = {}
    for name, score in close.items():
        try:
            text = words.decode(name, errors)
        except UnicodeDecodeError:
            continue
        evidence = math.log(score + floor)
        if whole:
            evidence = (evidence + math.log(whole.get(name, score) + floor)) / 2
        weight = math.log(_PRIOR.get(name, 1.0 if name in _COMMON else _RARE))
        weight += SCORE * tells * evidence - ODD * oddity(text)
        if name in _CEDILLAS and (commas := text.translate(_COMMAS)) != text:
            weight, text = weight - math.log(2), commas
        found.setdefault(text, []).append((weight, name))
    return found


def oddity(text: str) -> float:
    """How much of the first words is not as anybody writes; below 0 where quotes and dashes stand at words' edges."""
    odd = 0.0
    for before, letter, after in _neighbours(text[:2000]):
        odd += _odd(before, letter, after)
        if odd >= MOST_ODD:
            return MOST_ODD
    return odd


@lru_cache(1 << 14)
def script(letter: str) -> str:
    """LATIN, CYRILLIC, …, of a letter, and CJK for the kana and Hangul too; else ""."""
    if unicodedata.category(letter)[0] != "L":
        return ""
    name = unicodedata.name(letter, "?").split()[0].split("-")[0]
    return "CJK" if name in _EAST_ASIAN else name


def _neighbours(text: str) -> Iterator[tuple[str, str, str]]:
    padded = f" {text} "
    return ((padded[n], c, padded[n + 2]) for n, c in enumerate(text) if c >= "\x80")


def _odd(before: str, letter: str, after: str) -> float:
    category = unicodedata.category(letter)
    if category[0] == "L":
        mixed = sum(_strangers(letter, other) for other in (before, after))
        cases = (before.islower() and letter.isupper()) + (letter.islower() and after.isupper())
        return 2.0 * (mixed + cases) + (letter in _ICELANDIC)
    if category[0] == "M":
        return float(not before.isalpha() and unicodedata.category(before)[0] != "M")
    if category[0] == "C":
        return 0.0 if letter == "\xad" else 3.0
    if letter >= "\u3000":
        return 0.0  # where there are no blanks, signs stand between letters
    if before.isalpha() and after.isalpha():
        return -0.5 if letter == "’" else 0.0 if letter in _JOINERS else 2.0
    if letter in "¶§":
        return float(before.isalpha() or after.isalpha())
    if letter in _OPENING and before.isalpha():
        return 2.0
    return -0.5 if letter in _QUOTES else float(category in ("So", "Sk", "Sm", "Sc", "No", "Zs"))


def _strangers(one: str, other: str) -> bool:
    first, second = script(one), script(other)
    return bool(first and second) and first != second and "CJK" not in (first, second)


def _lone(words: bytes, sample: bytes) -> list[Guess]:
    """Of signs that stand alone, each could be a letter of any script; but in text of plain letters it is a ©, a °."""
    text = words.decode("cp1252", "replace")
    plain = len(sample) - len(sample.translate(None, _PLAIN))
    signs = {c for c in text if c >= "\x80"}
    usual = 2 * len(signs & _SYMBOLS) >= len(signs) and plain >= 5 * len(signs)
    return [Guess("cp1252", LONE)] if usual else []


def _scores(sample: bytes) -> dict[str, float]:
    """By codec, best first."""
    import chardet  # 30 ms that UTF-8 never needs

    # EBCDIC is left out: nothing but a mainframe writes it, and random bytes look like it.
    era = chardet.EncodingEra.ALL & ~chardet.EncodingEra.MAINFRAME
    found: dict[str, float] = {}
    for answer in chardet.detect_all(sample, encoding_era=era, ignore_threshold=True):
        name = _codec(answer["encoding"] or "")
        if name:
            found.setdefault(name, answer["confidence"])
    return found


def _codec(label: str) -> str:
    try:
        name = codecs.lookup(label).name
    except LookupError:
        return ""
    return _MEANT.get(name, name)
