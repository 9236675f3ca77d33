"""Why a place does not give an item: a sentence for every code that a source writes. `formats.reasons` has the others.

A `Refusal` or `ItemRefused` with any other code cannot be made, except http-NNN: a server's answer by its number.
"""

from __future__ import annotations

import re

DEFERRED = "deferred"
REFUSALS: dict[str, str] = {
    "changed": "The bytes changed while they were read; the next run reads them again.",
    "denied": "The place does not let these credentials read it, or keeps it where it cannot be read at once.",
    "forgotten": "It was taken out by `sheaf forget`, and is not opened again.",
    "git-lfs": "Git holds a pointer only; the file itself is on a Git LFS server.",
    "git-link": "A symbolic link in a git repository.",
    "git-submodule": "A submodule: another repository, which would be a source of its own.",
    DEFERRED: "The place did not give it now, after several tries; the next run asks for it again.",
    "http-certificate": "The server's certificate is not good: expired, for another name, or signed by nobody known.",
    "http-elsewhere": "A sitemap names what is not on its own host.",
    "http-endless": "Listings or sitemaps lead ever deeper, or to more than anyone could mean.",
    "http-forbidden-address": "A redirect leads into a private network that the recipe does not name.",
    "http-length": "The server announces one length and sends another, at every try.",
    "http-sitemap": "What should be a sitemap is none, or has a DTD.",
    "http-redirect": "The redirects do not end, or lead to something that is not http.",
    "link-loop": "A link to a folder that it lies in.",
    "link-nested": "A link behind another link; following it could multiply the tree without end.",
    "link-remote": "A link on a file server; where it leads cannot be checked from here.",
    "link-outside": "A link out of the source's folder.",
    "not-a-file": "A FIFO, socket or device.",
    "too-large": "It is larger than one item may be.",
    "unreadable": "The file system or the network failed while it was read.",
}
HTTP = re.compile(r"http-([1-9][0-9]{2})")


def explain_refusal(code: str) -> str:
    """The sentence for a code; "" if no source writes it."""
    status = HTTP.fullmatch(code)
    return f"The server answers {status[1]}." if status else REFUSALS.get(code, "")


def checked(code: str) -> str:
    """The code itself. Raises ValueError if it is in no table: a report could not explain it."""
    if not explain_refusal(code):
        raise ValueError(f"'{code}' is not in sources/reasons.py")
    return code
