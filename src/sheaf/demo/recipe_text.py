"""The recipe that the demo writes, with the comments that a newcomer needs."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from sheaf.demo.scatter import MIN_CHARACTERS

MINUTES = 4.0  # of training: the whole demo then ends within 8 on two slow cores


def recipe_text(url: str, pages: Sequence[str], minutes: float) -> str:
    """The recipe of the demo's five sources; relative paths are relative to the file."""
    urls = yaml.safe_dump(list(pages), default_flow_style=True, width=100).strip().replace("\n", "\n    ")
    budget = f"{{hours: {minutes / 60:.4g}}}"
    return f"""# The recipe of `sheaf demo`. Your own begins with: sheaf init FOLDER
name: demo
seed: 7

# Where the data lies. The type and encoding of each file is found by looking into it.
sources:
  - {{name: files, uri: ./data/files}}                 # a folder tree; include: and exclude: take patterns
  - {{name: backup, uri: ./data/backup}}               # a zip inside a tar.gz: opened, nothing to say
  - name: docstrings                                 # a table: each row is a record
    uri: sqlite:///./data/docstrings.sqlite
    query: SELECT id, name, doc FROM docstring ORDER BY id
    key: id
    text: doc                                        # or a template: "{{name}}\\n\\n{{doc}}"
  - {{name: mail, uri: ./data/mail/project.mbox}}
  - name: web                                        # served only while the demo runs
    uri: {url}
    urls: {urls}

# What becomes of it. Nothing vanishes: what is not kept is in the ledger, with the reason.
prepare:
  length: {{min_characters: {MIN_CHARACTERS}}}
  dedup: {{exact: true}}
  tokenizer: {{train: bpe, vocab_size: 8192}}

# Shares of the training tokens, relative to each other.
mixture:
  files: {{weight: 4}}
  backup: {{weight: 1}}
  docstrings: {{weight: 1}}
  mail: {{weight: 1}}
  web: {{weight: 0.5, max_epochs: 4}}

model: {{preset: tiny}}

train:
  sequence_length: 512
  batch_tokens: 8192                               # a small batch: in minutes, many steps count more
  budget: {budget}                               # or {{tokens: 20M}}, {{epochs: 1}}, {{steps: 100}}
  held_out: 0.01                                   # share of the records, never trained on
  evaluate_tokens: 32768                           # of them, at each of ten looks on the way

workspace: ./workspace                               # corpus, runs and caches
"""
