"""What the user asked for: the models of the recipe, strict in every field, frozen once read.

Reading a recipe file (errors with file:line, overrides, secrets) is in `recipe_file.py`; this page is the vocabulary.
An unknown key is an error everywhere: a misspelt option that passes in silence changes a training run.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """No unknown keys, no coercion of strings to numbers, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Secret(Strict):
    """A reference to a secret: its value is looked up when used, and never printed, logged or stored."""

    env: str | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Secret:
        if (self.env is None) == (self.file is None):
            raise ValueError("a secret is either {env: NAME} or {file: PATH}")
        return self


class SourceSpec(Strict):
    """A named place where data lies. The kind of place follows from the URI."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="unique name of the source")]
    uri: Annotated[str, Field(min_length=1, description="a path, an http(s):// URL, or sqlite:///PATH")]
    include: Annotated[tuple[str, ...], Field(strict=False)] = ("**/*",)
    exclude: Annotated[tuple[str, ...], Field(strict=False)] = ()
    urls: Annotated[
        tuple[str, ...], Field(strict=False, description="for http: what to fetch, relative to uri; empty: uri itself")
    ] = ()
    query: Annotated[str | None, Field(description="for SQL: the SELECT whose rows are the records")] = None
    key: Annotated[str | None, Field(description="for SQL: the column that identifies a row (default: the first)")] = (
        None
    )
    text: Annotated[
        str | None,
        Field(description="for rows and objects: a column name, or a template such as '{title}\\n\\n{body}'"),
    ] = None
    license: Annotated[str | None, Field(description="noted in the report and carried with every record")] = None
    password: Secret | None = None
    headers: Annotated[dict[str, Secret | str], Field(description="for http: request headers")] = {}


class Length(Strict):
    """Length rules: a record outside them is dropped, with the reason `too-short` or `too-long`."""

    min_characters: Annotated[int, Field(ge=0)] = 32
    max_characters: Annotated[int | None, Field(ge=1)] = None
    min_words: Annotated[int, Field(ge=0)] = 0


class Dedup(Strict):
    """Exact: one copy of records with equal normalised text is kept, with the origins of all."""

    exact: bool = True


class Limits(Strict):
    """What one item may cost before its parser is stopped and the item quarantined."""

    seconds: Annotated[float, Field(gt=0, strict=False)] = 60.0
    memory_mb: Annotated[int, Field(ge=256)] = 2048
    expanded_mb: Annotated[int, Field(ge=1, description="bytes that one item may expand to")] = 4096
    ratio: Annotated[float, Field(gt=1, strict=False, description="expansion above 1 MB that counts as a bomb")] = 200.0
    depth: Annotated[int, Field(ge=1, description="containers inside containers")] = 8
    members: Annotated[int, Field(ge=1)] = 100_000
    record_mb: Annotated[int, Field(ge=1)] = 64


class TokenizerSpec(Strict):
    """Either train one on the corpus, or take a tokenizer.json as it is."""

    train: Literal["bpe"] | None = None
    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)] = 16384
    sample_mb: Annotated[int, Field(ge=1, description="text that a new tokenizer is trained on")] = 64
    from_: Annotated[str | None, Field(alias="from")] = None

    @model_validator(mode="after")
    def _one_way(self) -> TokenizerSpec:
        if (self.train is None) == (self.from_ is None):
            raise ValueError("a tokenizer is either {train: bpe, vocab_size: N} or {from: PATH}")
        return self


class Prepare(Strict):
    length: Length = Length()
    dedup: Dedup = Dedup()
    limits: Limits = Limits()
    mojibake: Annotated[bool, Field(description="repair text that was decoded with the wrong encoding")] = True
    tokenizer: TokenizerSpec = TokenizerSpec(train="bpe")
    refuse_above: Annotated[
        float, Field(ge=0, le=1, strict=False, description="share of bytes quarantined above which prepare ends with 3")
    ] = 1.0


class MixtureEntry(Strict):
    """weight: share of training tokens, relative to the other sources. max_epochs: how often a record may be used."""

    weight: Annotated[float, Field(ge=0, strict=False)] = 1.0
    max_epochs: Annotated[float | None, Field(gt=0, strict=False)] = None


class ModelSpec(Strict):
    """A preset (tiny, small, base), some of its dimensions changed, or a folder with a published checkpoint."""

    preset: str | None = None
    from_: Annotated[str | None, Field(alias="from")] = None
    family: Literal["llama", "mistral", "qwen2", "qwen3"] = "qwen3"
    hidden_size: Annotated[int | None, Field(ge=8)] = None
    layers: Annotated[int | None, Field(ge=1)] = None
    heads: Annotated[int | None, Field(ge=1)] = None
    kv_heads: Annotated[int | None, Field(ge=1)] = None
    intermediate_size: Annotated[int | None, Field(ge=8)] = None
    tied: bool | None = None

    @model_validator(mode="after")
    def _one_start(self) -> ModelSpec:
        if self.preset is not None and self.from_ is not None:
            raise ValueError("a model starts from a preset or from a folder, not from both")
        return self


class Budget(Strict):
    """How long to train: exactly one of the four."""

    tokens: Annotated[int | str | None, Field(description="a number, or 20M, 1.5B")] = None
    epochs: Annotated[float | None, Field(gt=0, strict=False)] = None
    hours: Annotated[float | None, Field(gt=0, strict=False)] = None
    steps: Annotated[int | None, Field(ge=1)] = None

    @model_validator(mode="after")
    def _one_measure(self) -> Budget:
        if sum(x is not None for x in (self.tokens, self.epochs, self.hours, self.steps)) != 1:
            raise ValueError("a budget is one of tokens, epochs, hours or steps")
        return self


class Schedule(Strict):
    kind: Literal["cosine", "constant-with-decay"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1, strict=False, description="share of the steps")] = 0.02
    decay: Annotated[float, Field(ge=0, le=1, strict=False, description="share, for constant-with-decay")] = 0.2
    final: Annotated[float, Field(ge=0, le=1, strict=False, description="last rate over the highest")] = 0.1


class Layout(Strict):
    """How the model is spread. This version spreads data only; the other degrees must be 1."""

    data: Annotated[int, Field(ge=1)] = 1
    shard: Literal[1] = 1
    tensor: Literal[1] = 1
    pipeline: Literal[1] = 1


class Train(Strict):
    sequence_length: Annotated[int, Field(ge=16, le=1_048_576)] = 512
    batch_tokens: Annotated[int, Field(ge=16, description="tokens of one global batch")] = 16384
    budget: Budget = Budget(epochs=1.0)
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: Annotated[float | None, Field(gt=0, strict=False, description="default: by optimizer and size")] = (
        None
    )
    weight_decay: Annotated[float, Field(ge=0, strict=False)] = 0.1
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.95)
    clip: Annotated[float, Field(gt=0, strict=False, description="largest norm of the global gradient")] = 1.0
    schedule: Schedule = Schedule()
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: Literal["auto", "on", "off"] = "auto"
    micro_batch_tokens: Annotated[
        int | None, Field(ge=16, description="tokens of one forward pass on a rank; the global batch does not change")
    ] = None
    held_out: Annotated[float, Field(ge=0, lt=0.5, strict=False, description="share of records, by id")] = 0.01
    evaluate_every: Annotated[int | None, Field(ge=1, description="steps; default: ten times a run")] = None
    evaluate_tokens: Annotated[int, Field(ge=1)] = 262_144
    checkpoint_every: Annotated[int | None, Field(ge=1, description="steps; default: ten times a run")] = None
    keep: Annotated[int, Field(ge=2, description="checkpoints kept")] = 3
    seed: Annotated[int | None, Field(ge=0, lt=2**63, description="default: the recipe's seed")] = None
    layout: Literal["auto"] | Layout = "auto"


class Recipe(Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    sources: Annotated[tuple[SourceSpec, ...], Field(min_length=1, strict=False)]
    prepare: Prepare = Prepare()
    mixture: dict[str, MixtureEntry] = {}
    model: ModelSpec = ModelSpec(preset="tiny")
    train: Train = Train()
    workspace: str = "./workspace"

    @model_validator(mode="after")
    def _names_agree(self) -> Recipe:
        names = [s.name for s in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are named '{name}'")
        return self
