"""Licences that a text names: SPDX identifiers, the titles of licence texts, Creative Commons links.

What is found is what the data says of itself, no legal advice: a licence text that lies beside data covers it, one
that is quoted does not, and which of the two it is only a reader can say. Looks at the first 20,000 characters.
"""

from __future__ import annotations

import re

_LOOK_AT = 20_000
_SPDX = re.compile(
    r"SPDX-License-Identifier:\s*\(?([A-Za-z0-9][A-Za-z0-9.+-]{1,40}(?: (?:OR|AND|WITH) [A-Za-z0-9.+-]{2,40}){0,3})"
)
_CC = re.compile(r"creativecommons\.org/(?:licenses/(by(?:-nc)?(?:-sa|-nd)?)/(\d\.\d)|publicdomain/(zero)/1\.0)", re.I)
_NAMED: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("Apache-2.0", re.compile(r"Apache License,?\s+Version 2\.0", re.I)),
    ("MIT", re.compile(r"Permission is hereby granted, free of charge, to any person obtaining\s+a copy", re.I)),
    ("BSD", re.compile(r"Redistribution and use in source and binary forms, with or without", re.I)),
    ("AGPL-3.0", re.compile(r"GNU AFFERO GENERAL PUBLIC LICENSE", re.I)),
    ("LGPL", re.compile(r"GNU (?:LESSER|LIBRARY) GENERAL PUBLIC LICENSE", re.I)),
    ("GPL", re.compile(r"GNU GENERAL PUBLIC LICENSE", re.I)),
    ("MPL-2.0", re.compile(r"Mozilla Public License,?\s+(?:Version|v\.?)\s*2\.0", re.I)),
    ("GFDL", re.compile(r"GNU Free Documentation License", re.I)),
    ("Unlicense", re.compile(r"This is free and unencumbered software released into the public domain", re.I)),
    ("all-rights-reserved", re.compile(r"\bAll rights reserved\b", re.I)),
)


def licences(text: str) -> set[str]:
    """SPDX identifiers or families ("GPL", "BSD") that the beginning of the text names."""
    head = text[:_LOOK_AT]
    found = set(_SPDX.findall(head))
    for kind, version, zero in _CC.findall(head):
        found.add("CC0-1.0" if zero else f"CC-{kind.upper()}-{version}")
    lowered = head.lower()
    if any(word in lowered for word in ("licen", "permission is", "redistribution", "public domain", "all rights")):
        found |= {name for name, pattern in _NAMED if pattern.search(head)}
    if len(found) > 1:
        found.discard("all-rights-reserved")  # the heading of many free licences
    return found
