"""From sample rows to what the recipe could say of them: mappings and text columns, best first.

Candidates come from the columns' names and contents (`columns`); each is then tried on every row of the sample with the
code that `prepare` runs, so a proposal's preview is what would be in the corpus. What is asked of a candidate:

    confidence = fits / (rows + 1) × specificity

fits are the rows that it can read, of one more than were seen: ten rows prove less than a hundred. Specificity says how
little else the evidence could mean: 0.98 for a pair of chosen and rejected, 0.97 for lists of messages by known
speakers, 0.9 for a question with its answer, and for a text column 0.45 to 0.95, growing with its share of all
characters. From SURE on a recipe can say it; below LIKELY it is not told. Cost: 10 µs a row and candidate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Mapping as MappingType
from dataclasses import asdict, dataclass, fields
from typing import Any

import orjson

from sheaf.formats.columns import Column, survey
from sheaf.formats.mapping import NAMED, Mapping, apply, mapping_of
from sheaf.formats.messages import CONTENT_NAMES, ROLE_NAMES, ROLES
from sheaf.formats.piece import ParseOptions, Refused
from sheaf.formats.rows import TEXT_COLUMNS, choose

Row = dict[str, Any]
SURE, LIKELY = 0.75, 0.3
MOST_ROWS = 200

_NAMED = {
    "preference": 0.98,
    "sharegpt": 0.97,
    "openai": 0.97,
    "alpaca": 0.96,
    "prompt-completion": 0.95,
    "question-answer": 0.92,
}
# Speakers that are no roles anywhere, but clear in a talk between two.
_GUESSED = {
    **dict.fromkeys(("customer", "client", "caller", "patient", "student", "visitor", "q"), "user"),
    **dict.fromkeys(("agent", "support", "operator", "doctor", "teacher", "tutor", "advisor", "a"), "assistant"),
}
_INSTRUCTIONS = ("instruction", "instructions", "task", "request")
_QUESTIONS = ("question", "questions", "query", "prompt", "problem", "user", "human", "input", "inputs")
_ANSWERS = (
    *("response", "output", "answer", "answers", "completion", "solution", "reply", "targets", "target", "outputs"),
    *("best_answer", "assistant", "model_answer", "generated_solution", "final_answer"),
)
_CONTEXTS = ("context", "passage", "background", "input", "inputs", "document")
_SYSTEMS = ("system", "system_prompt", "system_message")
_CHOSEN = ("chosen", "chosen_response", "response_chosen", "preferred", "accepted", "better")
_REJECTED = ("rejected", "rejected_response", "response_rejected", "dispreferred", "worse")
_TITLES = ("title", "subject", "headline", "summary", "topic")
_WHOLE = frozenset({"text", "content", "markdown", "code", "document"})  # a title is in such a text, or beside it


@dataclass(frozen=True, slots=True)
class Proposal:
    """kind: of the records, as in `schema.KINDS`. keys: what the recipe's source would say, {"map": …} or {"text": …}.
    fits: rows that it can read, of `rows`. why: the evidence, in words. preview: the texts of the first two records."""

    name: str
    kind: str
    keys: dict[str, Any]
    confidence: float
    fits: int
    rows: int
    why: str
    preview: tuple[str, ...]

    @property
    def recipe(self) -> str:
        """The keys as YAML, for the source's mapping in braces: `map: alpaca`."""
        return ", ".join(f"{key}: {_yaml(value)}" for key, value in self.keys.items())


@dataclass(frozen=True, slots=True)
class Group:
    """Files whose rows want the same. proposals: of all their rows together, best first; may be empty."""

    files: tuple[str, ...]
    rows: int
    proposals: list[Proposal]


def propose(rows: Sequence[Row]) -> list[Proposal]:
    """What the recipe could say of rows like these, most confident first; those below LIKELY are left out.

    rows: of one schema, or of several files that may share one (`propose_files` tells them apart); at most MOST_ROWS
    of them, spread evenly, are looked at. An empty list: they have no text that stands out, and without a proposal
    every row becomes "column: value" lines.
    """
    sample = rows if len(rows) <= MOST_ROWS else [rows[i * len(rows) // MOST_ROWS] for i in range(MOST_ROWS)]
    if not sample:
        return []
    found: list[Proposal] = []
    seen: set[tuple[str, ...]] = set()
    for candidate in _candidates(survey(sample)):
        texts = candidate.read(sample)
        if (candidate.kind, *texts) in seen:
            continue  # another way to say the same
        seen.add((candidate.kind, *texts))
        confidence = len(texts) / (len(sample) + 1) * candidate.specificity
        if confidence >= LIKELY:
            about = (candidate.name, candidate.kind, candidate.keys, confidence)
            found.append(Proposal(*about, len(texts), len(sample), candidate.why, tuple(texts[:2])))
    return sorted(found, key=lambda p: -p.confidence)


def propose_files(files: MappingType[str, Sequence[Row]]) -> list[Group]:
    """Files of sample rows, told apart by what they want. A file joins the first group whose proposal is nearly as good
    for it as its own best one, and gives the same kind of records; order of the groups: that of their first files."""
    members: list[tuple[dict[str, Any] | None, list[str]]] = []
    for name, rows in files.items():
        own = propose(rows)
        good = [p.keys for p in own if p.confidence >= 0.9 * own[0].confidence and p.kind == own[0].kind]
        for keys, names in members:
            if keys in good or (keys is None and not own):
                names.append(name)
                break
        else:
            members.append((good[0] if good else None, [name]))
    groups: list[Group] = []
    for keys, names in members:
        together = [row for name in names for row in files[name]]
        proposals = sorted(propose(together), key=lambda p: p.keys != keys)  # what made the group comes first
        groups.append(Group(tuple(names), len(together), proposals))
    return groups


def yaml_string(text: str) -> str:
    """In double quotes. Not JSON: its escapes of surrogate pairs mean something else in YAML."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


@dataclass(frozen=True, slots=True)
class _Candidate:
    name: str
    specificity: float
    why: str
    mapping: Mapping | None = None
    text: str = ""

    @property
    def kind(self) -> str:
        return "text" if self.mapping is None else self.mapping.kind

    @property
    def keys(self) -> dict[str, Any]:
        if self.mapping is None:
            return {"text": self.text}
        return {"map": next((n for n, m in NAMED.items() if m == self.mapping), None) or _said(self.mapping)}

    def read(self, rows: Sequence[Row]) -> list[str]:
        """The texts of the rows that it can read."""
        options = ParseOptions(text=self.text)
        texts: list[str] = []
        for row in rows:
            try:
                text = choose(row, options)[0] if self.mapping is None else apply(row, self.mapping).text
            except Refused:
                continue
            if text.strip():
                texts.append(text)
        return texts


def _candidates(columns: dict[str, Column]) -> Iterator[_Candidate]:
    for name, specificity in _NAMED.items():
        mapping = NAMED[name]
        if set(mapping.columns) - set(mapping.optional) <= {path.partition(".")[0] for path in columns}:
            shown = ", ".join(c for c in mapping.columns if c in columns)
            yield _Candidate(name, specificity, f"columns {shown}", mapping)
    yield from _message_lists(columns)
    yield from _preferences(columns)
    yield from _pairs(columns)
    yield from _texts(columns)


def _message_lists(columns: dict[str, Column]) -> Iterator[_Candidate]:
    for column in columns.values():
        first = column.objects[0] if column.objects else {}
        role = next((n for n in ROLE_NAMES if isinstance(first.get(n), str)), "")
        content = next((n for n in CONTENT_NAMES if n in first and n != role), "")
        if not role or not content or column.word in (*_CHOSEN, *_REJECTED):
            continue
        speakers = {str(one.get(role)) for one in column.objects}
        odd = {s: _GUESSED[s.strip().lower()] for s in sorted(speakers) if s.strip().lower() in _GUESSED}
        odd = {s: r for s, r in odd.items() if s.strip().lower() not in ROLES}
        system = _named(columns, _SYSTEMS)
        before = "" if system is None else system.path
        mapping = Mapping(
            "chat", column.path, role, content, odd, system=before, optional=(before,) if before else ()
        )  # fmt: skip
        why = f"'{column.path}' holds messages by {', '.join(sorted(speakers)[:4])}"
        yield _Candidate("messages", 0.75 if odd else 0.95, why, mapping)


def _preferences(columns: dict[str, Column]) -> Iterator[_Candidate]:
    chosen, rejected = _named(columns, _CHOSEN), _named(columns, _REJECTED)
    if chosen is None or rejected is None:
        return
    prompt = _named(columns, (*_QUESTIONS[:5], *_INSTRUCTIONS, "input"))
    system = _named(columns, _SYSTEMS)
    before, first = ("" if c is None else c.path for c in (prompt, system))
    optional = (first,) if first else ()
    mapping = Mapping(
        "preference", system=first, prompt=before, chosen=chosen.path, rejected=rejected.path, optional=optional
    )
    yield _Candidate("preference", 0.95, f"'{chosen.path}' against '{rejected.path}'", mapping)


def _pairs(columns: dict[str, Column]) -> Iterator[_Candidate]:
    """A column that asks and one that answers, with context and system beside them."""
    answer = _named(columns, _ANSWERS)
    asked = _named(columns, (*_INSTRUCTIONS, *_QUESTIONS))
    if answer is None or asked is None or answer is asked or not asked.is_asked():
        return
    context = _named(columns, _CONTEXTS, but=(answer, asked))
    system = _named(columns, _SYSTEMS)
    user = asked.path
    if context is not None:
        parts = (asked, context) if asked.word in _INSTRUCTIONS else (context, asked)
        user = "\n\n".join(f"{{{part.path}}}" for part in parts)
    optional = tuple(c.path for c in (system, context) if c is not None)
    before = "" if system is None else system.path
    mapping = Mapping("chat", system=before, user=user, assistant=answer.path, optional=optional)
    vague = asked.word in ("input", "inputs", "user", "human")
    name = "instruction" if asked.word in _INSTRUCTIONS else "question-answer"
    yield _Candidate(name, 0.8 if vague else 0.9, f"'{asked.path}' is answered by '{answer.path}'", mapping)


def _texts(columns: dict[str, Column]) -> Iterator[_Candidate]:
    """The column with most of the text, and a template with what stands over it."""
    total = sum(c.characters for c in columns.values()) or 1
    texts = sorted((c for c in columns.values() if c.is_text()), key=lambda c: -c.characters)
    for body in texts[:2]:
        share = body.characters / total
        usual = body.word in TEXT_COLUMNS
        specificity = 0.6 + 0.35 * share if usual else 0.45 + 0.45 * share
        why = f"'{body.path}' holds {share:.0%} of all characters"
        if body.nested:
            yield _Candidate("text", specificity, why, Mapping("text", text=body.path))
        else:
            yield _Candidate("text", specificity, why, text=body.path)
    if not texts:
        return
    body = texts[0]
    title = _named(columns, _TITLES, but=(body,))
    plain = [c for c in (title, body) if c is not None and not c.nested and not set("{}") & set(c.path)]
    if len(plain) == 2 and title is not None and title.is_asked() and title.variety > 0.5:
        template = f"{{{title.path}}}\n\n{{{body.path}}}"
        specificity = 0.6 if body.word in _WHOLE else 0.92
        yield _Candidate("template", specificity, f"'{title.path}' stands over '{body.path}'", text=template)


def _named(columns: dict[str, Column], words: Iterable[str], but: tuple[Column, ...] = ()) -> Column | None:
    """The first column by one of these words that holds anything; columns at the top before nested ones."""
    for word in words:
        found = [c for c in columns.values() if c.word == word and c.filled and c not in but and "{" not in c.path]
        if found:
            return min(found, key=lambda c: (c.path.count("."), -c.filled))
    return None


def _said(mapping: Mapping) -> dict[str, Any]:
    """A mapping as the recipe says it."""
    plain = asdict(Mapping(mapping.kind))
    said = {f.name: getattr(mapping, f.name) for f in fields(Mapping)}
    keys = {k: list(v) if isinstance(v, tuple) else v for k, v in said.items() if k == "kind" or v != plain[k]}
    assert mapping_of(orjson.dumps(keys).decode()) == mapping
    return keys


def _yaml(value: Any) -> str:
    """A value in YAML's flow style; JSON is YAML, and plain words need no quotes."""
    if isinstance(value, dict):
        inner: dict[str, Any] = value
        return "{" + ", ".join(f"{_yaml(k)}: {_yaml(v)}" for k, v in inner.items()) + "}"
    if isinstance(value, list):
        listed: list[Any] = value
        return "[" + ", ".join(_yaml(v) for v in listed) + "]"
    word = str(value)
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*(?:[.-][A-Za-z0-9_]+)*", word)
    return word if plain and word.lower() not in _NOT_WORDS else yaml_string(word)


_NOT_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
