"""The tokenizer of a workspace: trained once on a sample of the records (`sample.py`), or taken as it is.

A trained tokenizer stays: adding files later does not change the ids of what is there (models trained on them would be
lost, and all text would be encoded again). `prepare --new-tokenizer` trains anew on what is there then, which gives
what a fresh workspace would. One trained while items were deferred, or while there was no text at all, is provisional
and does not stay: after an outage the corpus is what it would have been without.

Where the corpus has conversations, the control tokens of their template ("<|im_start|>") are tokens of their own, part
of the stated vocabulary. If they come later, they are added behind it, so that no id changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from sheaf.corpus.decided import Decided
from sheaf.corpus.workspace import Workspace
from sheaf.errors import RecipeError
from sheaf.files import checked, digest_json, digest_of, read_done, refreshed, task_folder, write_json
from sheaf.prepare import sample
from sheaf.prepare.encoder import END_OF_TEXT, PATTERN
from sheaf.prepare.rendering import control_literals
from sheaf.recipe import MixtureEntry, TokenizerSpec

VERSION = 2


@dataclass(frozen=True)
class Chosen:
    """digest: its folder is `workspace.tokenizer(digest)`. sample: bytes of text it was trained on, by source; empty if
    it was given."""

    digest: str
    sample: Mapping[str, int]


@dataclass(frozen=True)
class Wanted:
    """What a tokenizer depends on, beside the records. names: the sources. masked: kinds of personal data that are
    masked. template: of the corpus' conversations, "" if it has none."""

    spec: TokenizerSpec
    names: Sequence[str]
    mixture: Mapping[str, MixtureEntry]
    masked: Sequence[str] = ()
    template: str = ""

    @property
    def key(self) -> str:
        """A trained tokenizer stays as long as this does."""
        weights = [self.mixture.get(name, MixtureEntry()).weight for name in self.names] if self.mixture else []
        spec = self.spec.model_dump(by_alias=True)
        return digest_json([VERSION, spec, list(self.names) if weights else [], weights, list(self.masked)])

    @property
    def controls(self) -> list[str]:
        return control_literals(self.template)


def ensure(
    workspace: Workspace,
    want: Wanted,
    live_shards: list[str],
    decided: Decided,
    content: str,
    *,
    new: bool = False,
    provisional: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Chosen:
    """The tokenizer to use. content: digest of the records."""
    spec = want.spec
    if spec.from_ is not None:
        return Chosen(_with_controls(workspace, _adopt(workspace, Path(spec.from_)), spec.add), {})
    kept = trained(workspace, want)
    if kept is not None and _stays(workspace, kept) and not new:
        if kept["records"] != content:
            note("the tokenizer stays the one trained on earlier records; --new-tokenizer trains it on these")
        return Chosen(_with_controls(workspace, kept["tokenizer"], want.controls), kept["sample"])
    plan = sample.plan(decided, want.names, want.mixture, spec.sample_mb << 20, want.masked)
    by_source = dict(zip(want.names, plan.bytes, strict=True))
    note(_told(by_source, spec.vocab_size))
    digest = _train(workspace, want, plan.texts(workspace, live_shards, decided))
    empty = not any(plan.bytes)
    said = {"tokenizer": digest, "records": content, "provisional": provisional or empty, "sample": by_source}
    write_json(_pointer(workspace, want), said)
    return Chosen(digest, by_source)


def trained(workspace: Workspace, want: Wanted) -> dict[str, Any] | None:
    """{"tokenizer": digest, "records": `content` it was trained on, "provisional", "sample"} of the one that stays."""
    pointer = refreshed(_pointer(workspace, want))
    return orjson.loads(pointer.read_bytes()) if pointer.exists() else None


def _stays(workspace: Workspace, kept: Mapping[str, Any]) -> bool:
    return not kept["provisional"] and read_done(workspace.tokenizer(kept["tokenizer"])) is not None


def _pointer(workspace: Workspace, want: Wanted) -> Path:
    return workspace.root / "tokenizers" / f"{want.key}.json"


def _told(by_source: Mapping[str, int], vocab_size: int) -> str:
    parts = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in by_source.items() if size)
    return (
        f"training a tokenizer of {vocab_size:,} tokens on {sum(by_source.values()) / 1e6:.1f} MB ({parts or 'none'})"
    )


def _train(workspace: Workspace, want: Wanted, texts: Iterable[list[str]]) -> str:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=want.spec.vocab_size,
        special_tokens=list(dict.fromkeys([END_OF_TEXT, *want.controls])),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _store(workspace, tokenizer)


def _with_controls(workspace: Workspace, digest: str, controls: Sequence[str]) -> str:
    """The tokenizer with these control tokens, behind its others if it lacks them."""
    tokenizer = Tokenizer.from_file(str(checked(workspace.tokenizer(digest) / "tokenizer.json")))
    lacking = [literal for literal in controls if tokenizer.token_to_id(literal) is None]
    if not lacking:
        return digest
    tokenizer.add_special_tokens(lacking)
    return _store(workspace, tokenizer)


def _adopt(workspace: Workspace, path: Path) -> str:
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise RecipeError(
            "there is no tokenizer",
            where=str(path),
            fix="prepare.tokenizer.from names a tokenizer.json or a folder that holds one",
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every fault of the file
        raise RecipeError("the tokenizer cannot be read", where=str(path), why=str(error)) from error
    return _store(workspace, tokenizer)


def _store(workspace: Workspace, tokenizer: Tokenizer) -> str:
    """Write tokenizer.json in a folder named by its digest."""
    data = tokenizer.to_str(pretty=True).encode()
    digest = digest_of(data)
    if read_done(workspace.tokenizer(digest)) is None:
        with task_folder(workspace.tokenizer(digest), stage="tokenizer") as out:
            (out / "tokenizer.json").write_bytes(data)
    return digest
