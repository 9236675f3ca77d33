"""The two objects of Sheaf in Python: a version of the data, and a run. As in `api.py`, rooms do the work, and are
imported when they are called."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import ValidationError

from sheaf.corpus.version import CorpusVersion
from sheaf.corpus.vocabulary import Vocabulary
from sheaf.corpus.workspace import Workspace
from sheaf.errors import UsageError
from sheaf.recipe import Change, MixtureEntry, Packing
from sheaf.runs import read_record

if TYPE_CHECKING:
    from sheaf.order.loader import Loader

Json = dict[str, Any]


class Corpus(CorpusVersion):
    """An immutable version of the prepared data. Documents, texts, ledger, origins: see CorpusVersion."""

    @staticmethod
    def open(workspace: Path | str | Workspace, digest: str | None = None) -> Corpus:
        version = CorpusVersion.open(workspace, digest)
        return Corpus(version.workspace, version.root, version.manifest)

    def report(self, path: Path | str) -> Path:
        """Write what became of the data as one HTML file; a run's report has the training too."""
        from sheaf.report.build import write_corpus_report

        return write_corpus_report(self, Path(path))

    def dropped(self) -> Json:
        """How many distinct records of each source were kept, and dropped for each reason."""
        from sheaf.prepare.examples import counts

        return counts(self)

    def examples(self, reason: str, *, source: str | None = None, limit: int = 5) -> Json:
        """Real records that were dropped for a reason, personal data masked: `sheaf show --dropped`."""
        from sheaf.prepare.examples import examples

        return examples(self, reason, source=source, limit=limit)

    def what_if(self) -> Json:
        """What each source would gain or lose at other thresholds: `sheaf show --what-if`."""
        from sheaf.prepare.whatif import what_if

        return what_if(self)

    def loader(
        self,
        sequence_length: int = 2048,
        batch: int = 8,
        rank: int | None = None,
        world: int | None = None,
        seed: int = 0,
        mixture: Mapping[str, MixtureEntry | Mapping[str, float] | float] | None = None,
        held_out: float = 0.0,
        start: int = 0,
        stop: int | None = None,
        packing: Packing = "best-fit",
        curriculum: Sequence[Change | Mapping[str, Any]] = (),
        speeds: Sequence[float] | None = None,
        strict: bool = False,
    ) -> Loader:
        """Batches for any training loop: rank `rank` of `world` gets its part of every global step in [start, stop).

        sequence_length: tokens of a sample. batch: samples of a *global* step, whatever the world. mixture: weight of
        each source (or {"weight": w, "max_epochs": e}); without one, sources count by their size, again and again.
        held_out: share of the records, by id, that is never drawn. rank, world: by default as torch.distributed says,
        if it has been set up when iteration begins. stop: by default as far as max_epochs lets it go. packing:
        "best-fit", "concatenate" or "padded" (one document a row). curriculum: changes of weights, such as {"at": 2000,
        "weights": {"wiki": 0.5}}. speeds: of all ranks, relative: who is twice as fast gets twice the work. strict: a
        block of the corpus that is damaged, and cannot be fetched again, is an error (CorruptStore); without it the
        next samples of the same source stand in, each batch says for which (`Batch.replaced`), and a warning names the
        block. Yields `order.loader.Batch` (numpy); `.torch()` gives dicts of tensors; `order.huggingface` is for the
        Trainer of transformers. The same arguments give the same global steps on any number of ranks of any speeds.
        Raises UsageError for arguments that make no sense.
        """
        from sheaf.order.loader import Loader
        from sheaf.order.order import Order

        if start < 0 or (stop is not None and stop < start):
            raise UsageError(f"a loader cannot go from step {start} to {stop}", fix="0 <= start <= stop")
        if packing not in get_args(Packing):
            raise UsageError(f"there is no packing '{packing}'", fix=f"one of: {', '.join(get_args(Packing))}")
        entries = {name: _entry(name, entry) for name, entry in (mixture or {}).items()}
        order = Order.build(
            self.documents,
            self.source_names,
            self.fingerprint,
            sequence_length=sequence_length,
            batch=batch,
            seed=seed,
            mixture=entries,
            held_out=held_out,
            cache=self.workspace.packs,
            losses=self.loss_files(),
            packing=packing,
            curriculum=tuple(map(_change, curriculum)),
        )
        files = self.token_files()
        return Loader(order, files, start=start, stop=stop, strict=strict, rank=rank, world=world, speeds=speeds)


def _entry(name: str, entry: MixtureEntry | Mapping[str, float] | float) -> MixtureEntry:
    if isinstance(entry, MixtureEntry):
        return entry
    try:
        return MixtureEntry.model_validate(dict(entry) if isinstance(entry, Mapping) else {"weight": entry})
    except ValidationError as error:
        raise UsageError(
            f"the mixture's entry for '{name}' cannot be used",
            why=_complaints(error),
            fix='give a weight, or {"weight": 1.0, "max_epochs": 2.0}',
        ) from None


def _change(change: Change | Mapping[str, Any]) -> Change:
    if isinstance(change, Change):
        return change
    try:
        return Change.model_validate(dict(change))
    except ValidationError as error:
        raise UsageError(
            "a change of the curriculum cannot be used",
            why=_complaints(error),
            fix='give {"at": STEP, "weights": {"wiki": 0.5}}',
        ) from None


def _complaints(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())


def _as_user(vocabulary: Vocabulary, words: str) -> tuple[list[int], list[int]]:
    """Ids of what a user says up to where the assistant answers, and the tokens that end the answer."""
    from sheaf.prepare.encoder import Encoder
    from sheaf.prepare.limits import limited
    from sheaf.prepare.rendering import Chats, Rendering
    from sheaf.prepare.template import Refused

    rendering = Rendering.from_json(vocabulary.rendering)
    if not rendering.template:
        raise UsageError(
            "the run has learned no conversations",
            where=f"corpus {vocabulary.corpus[:12]}",
            fix="leave --chat out: the prompt is then continued as a text",
        )
    chats = Chats(rendering, Encoder(vocabulary.tokenizer_path))
    try:
        with limited():
            return chats.prompt([{"role": "user", "content": words}]).tolist(), chats.ends_of_turn()
    except Refused as error:
        raise UsageError(
            "the template of the run's conversations does not take what a user says alone",
            why=str(error),
            fix="leave --chat out, and write the prompt as the template would",
        ) from error


@dataclass(frozen=True)
class Run:
    """One training run. result: what `train` or `resume` answered in this process, else empty."""

    path: Path
    result: Json | None = None

    def corpus(self) -> Corpus:
        """The version of the corpus that the run was started on."""
        return Corpus.open(self.path.resolve().parent.parent, read_record(self.path)["corpus"])

    def vocabulary(self) -> Vocabulary:
        """How the run's tokens are read and written, also when its version was purged."""
        workspace = Workspace.at(self.path.resolve().parent.parent)
        return Vocabulary.open(workspace, read_record(self.path)["corpus"])

    def journal(self) -> list[Json]:
        """One entry a step, also while the run goes on."""
        from sheaf.train.journal import read

        return read(self.path)

    def trace(
        self,
        *,
        step: int,
        rank: int | None = None,
        sample: int | None = None,
        token: int | None = None,
        verify: bool = False,
    ) -> Json:
        """Step → samples → documents → origins. verify: read every origin again and compare.

        rank: only its samples; sample: only this one, by slot, or with `rank` by row of the rank's batch; token: only
        the token at this position of the sample. Raises UsageError if the run has not made the step, or has no such
        rank, sample or token.
        """
        from sheaf.train.trace import trace_run

        return trace_run(self.path, step, sample, rank=rank, token=token, verify=verify)

    def trace_item(self, pattern: str) -> Json:
        """A record by its id, or items whose URI contains (or matches, as a regular expression) the pattern → the steps
        that saw them."""
        from sheaf.corpus.ledger import bad_pattern
        from sheaf.train.trace import trace_item

        try:
            return trace_item(self.path, pattern)
        except re.error as error:
            raise bad_pattern(pattern, error) from error

    def evaluate(self, *, step: int | None = None) -> Json:
        """Loss and bits per byte on all held-out records, with the newest (or the given) checkpoint."""
        from sheaf.train.evaluate import evaluate_run

        return evaluate_run(self.path, step=step)

    def generate(
        self,
        prompt: str = "",
        *,
        chat: bool = False,
        max_tokens: int = 128,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = 0,
        step: int | None = None,
    ) -> Iterator[str]:
        """Continue the prompt: pieces of text as they are drawn, until the end of text or max_tokens.

        chat: the prompt is what a user says, written out by the template of the run's conversations; the assistant's
        turn is what comes. Raises UsageError for numbers out of range, for a prompt that is no Unicode text, and for
        `chat` where the run has learned no conversations.
        """
        from tokenizers import Tokenizer
        from tokenizers.decoders import DecodeStream

        from sheaf.model.generate import generate
        from sheaf.train.checkpoint import load_model

        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise UsageError(
                "the prompt is not Unicode text",
                why="it holds a lone surrogate, which stands for a byte that could not be decoded",
                fix="give it as UTF-8",
            )
        model, _ = load_model(self.path, step)
        vocabulary = self.vocabulary()
        tokenizer = Tokenizer.from_file(str(vocabulary.tokenizer_path))
        # A document begins after the end of the one before: that is what the model knows about an empty page.
        ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False).ids or [vocabulary.end_of_text]
        stop = [vocabulary.end_of_text]
        if chat:
            ids, ends = _as_user(vocabulary, prompt)
            stop += ends
        stream = DecodeStream(skip_special_tokens=True)
        for token in generate(
            model,
            ids,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop_ids=stop,
        ):
            piece = stream.step(tokenizer, token)
            if piece:
                yield piece

    def export(
        self,
        to: Path | None = None,
        *,
        step: int | None = None,
        dtype: Literal["bf16", "fp32"] = "fp32",
        merge: bool = False,
    ) -> Path:
        """Write the model, its config, its tokenizer and its chat template as a folder that transformers loads; returns
        the folder.

        Of a run with adapters these alone are written, for peft; merge: the whole model, with them added to its
        weights. Raises UsageError if there are none to merge.
        """
        import torch

        from sheaf.model.adapters import merge as merge_adapters
        from sheaf.model.config import ModelConfig
        from sheaf.model.decoder import Decoder
        from sheaf.model.pretrained import ChatFormat, export_folder
        from sheaf.train.checkpoint import checkpoint_of, load_model

        checkpoint, _ = checkpoint_of(self.path, step)
        values = None
        if isinstance(checkpoint.config, ModelConfig) and checkpoint.lora is None:
            with torch.device("meta"):  # parameters come one after the other
                model, values = Decoder(checkpoint.config), checkpoint.values()
        else:
            model, _ = load_model(self.path, step)
        if merge and model.lora is None:
            raise UsageError("the run trained no adapters", where=str(self.path), fix="export it without merging")
        if merge:
            merge_adapters(model)
        vocabulary = self.vocabulary()
        kind = torch.float32 if dtype == "fp32" else torch.bfloat16
        folder = to or self.path / "export"
        chat = ChatFormat.of(vocabulary.rendering, vocabulary.tokenizer_path)
        export_folder(model, folder, vocabulary.tokenizer_path, vocabulary.end_of_text, kind, chat, values)
        return folder

    def report(self) -> Path:
        """Write the run's report, one HTML file that needs nothing else, and say where."""
        from sheaf.report.build import write_report

        return write_report(self.path)
