"""Write the tables of docs/filters.md from prepare/rule_sets.py, so that they cannot go stale.

Use: python scripts/filters_page.py          (a test fails while the page is not what this writes)
"""

from __future__ import annotations

import re
from pathlib import Path

from sheaf.prepare.rule_sets import RULE_SETS, VARIANTS, Bound, RuleSet, SignalRule

PAGE = Path(__file__).resolve().parents[1] / "docs" / "filters.md"
BLOCK = re.compile(r"(<!-- begin sets [^\n]*-->\n).*?(<!-- end sets -->)", re.S)


def page() -> str:
    """The page with its tables as they should be."""
    tables = "\n\n".join(_table(rule_set) for rule_set in RULE_SETS.values())
    return BLOCK.sub(lambda found: f"{found[1]}\n{tables}\n\n{found[2]}", PAGE.read_text(encoding="utf-8"))


def _table(rule_set: RuleSet) -> str:
    head = ("signal", *VARIANTS, "why")
    rows = [(f"`{r.signal}`", *(_bound(b) for b in r.bounds), _why(r)) for r in rule_set.rules]
    lines = [head, tuple("---" for _ in head), *rows]
    title = f"### `{rule_set.name}`, version {rule_set.version}\n\n{rule_set.paper}\n\n"
    return title + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bound(bound: Bound | None) -> str:
    if bound is None:
        return "–"
    least, most = (None if v is None else f"{v:,.6g}" for v in (bound.least, bound.most))
    if least is not None and most is not None:
        return f"{least} to {most}"
    return f"{'more than' if bound.strict else 'at least'} {least}" if least else _most(most, bound.strict)


def _most(most: str | None, strict: bool) -> str:
    return "none" if most == "0" else f"{'less than' if strict else 'at most'} {most}"


def _why(rule: SignalRule) -> str:
    never = f"not for {', '.join(rule.never)}" if rule.never else ""
    return "; ".join(part for part in (rule.source, rule.note, never) if part)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
