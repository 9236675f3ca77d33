"""Why bytes were quarantined: every code that a parser or the sandbox writes, with a sentence for reports and docs.

What the places refuse before a parser sees it has its codes in `sources.reasons`; `explain` knows all. No other code is
ever written: `answers` and `sources.base` refuse those that are in no table.
"""

from __future__ import annotations

from sheaf.sources.reasons import explain_refusal

REASONS: dict[str, str] = {
    "bad-csv": "A row of a table is broken: a quote is opened and never closed.",
    "bad-json": "The text is not JSON as RFC 8259 defines it; the detail says where and why.",
    "bad-row": "A row or object does not fit the recipe's `map`; the detail says what is missing or odd.",
    "bad-subtitles": "A cue of a subtitle file has no time that can be read.",
    "bad-toml": "The text is not TOML; the detail says where and why.",
    "bad-yaml": "The text is not YAML; the detail says where and why.",
    "bomb": "It expands beyond the recipe's limits: bytes, ratio, depth, members, or overlapping entries.",
    "changed": "The bytes changed while they were read; the next run reads them again.",
    "corrupt": "A container or a compressed stream contradicts itself: a bad checksum, header or block.",
    "crash": "The parser's process died on it.",
    "empty": "There is no text in it.",
    "encrypted": "It cannot be read without a password.",
    "memory": "The parser needed more memory than the recipe allows.",
    "no-text": "A row lacks the column that the recipe's text names, or nothing in it, or on a page, could be text.",
    "parser-bug": "Sheaf's parser failed on it or miscounted its bytes; please report this.",
    "record-too-large": "One record is larger than the recipe allows.",
    "sampled": "Only the beginning was read, for a survey; no corpus has it.",
    "timeout": "The parser took longer than the recipe allows.",
    "truncated": "The file ends before its content does; what could be read was kept.",
    "undecodable": "The bytes are not text in any encoding that fits with confidence.",
    "unreadable": "The file system or the network failed while it was read.",
    "unsupported": "A type of file that is not read; the detail names it.",
}


def explain(code: str) -> str:
    """The sentence for a code of the quarantine, whoever wrote it; "" if nobody writes it."""
    return REASONS.get(code) or explain_refusal(code)
