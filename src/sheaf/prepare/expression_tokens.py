"""The words of an expression (`expression.py`), each with its place, and the error that shows that place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from sheaf.errors import RecipeError

SHOWN = 60  # characters of an expression that an error quotes


class ExpressionError(RecipeError):
    """An expression that says nothing; the error tells the character, what was expected there, and the nearest name."""


@dataclass(frozen=True)
class Token:
    kind: str  # number, text, word, sign, end
    value: str
    start: int
    end: int


_TOKEN = re.compile(
    r"(?P<number>(?:[0-9][0-9_]*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<text>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<sign><=|>=|==|!=|&&|\|\||\*\*|//|[<>()\[\],.+*/=!&|-])"
    r"|(?P<blank>[ \t\r\n]+)"
)
INSTEAD = {
    **{"=": "write == to compare", "&&": "write `and`", "&": "write `and`", "||": "write `or`", "|": "write `or`"},
    **{"!": "write `not`", "**": "there is no power", "//": "there is no integer division"},
}


def refuse(text: str, at: int, why: str, fix: str) -> NoReturn:
    start = max(0, min(at - SHOWN // 2, len(text) - SHOWN))
    shown = f"{'…' if start else ''}{text[start : start + SHOWN]}{'…' if start + SHOWN < len(text) else ''}"
    raise ExpressionError(f"the filter `{shown}` cannot be read", why=f"at character {at + 1}: {why}", fix=fix)


def tokens(text: str) -> list[Token]:
    found: list[Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            quote = text[at] in "'\"“”‘’„"
            why = "a string without its end" if text[at] in "'\"" else f"'{text[at]}' means nothing here"
            refuse(text, at, why, "put strings into straight quotes: 'en'" if quote else "")
        if match.lastgroup != "blank":
            found.append(Token(match.lastgroup, match[0], at, match.end()))
        at = match.end()
    return [*found, Token("end", "", len(text), len(text))]
