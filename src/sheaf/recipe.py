"""What the user asked for: the models of the recipe, strict in every field, frozen once read.

Reading a recipe file (errors with file:line, overrides, secrets) is in `recipe_file.py`; this page is the vocabulary,
with that of the data in `recipe_data.py`. An unknown key is an error everywhere: a misspelt option that passes in
silence changes a training run.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sheaf.recipe_data import (
    TEMPLATES,
    Admit,
    Dedup,
    Kind,
    Length,
    Limits,
    MapSpec,
    Prepare,
    Secret,
    SourceSpec,
    Strict,
    TokenizerSpec,
)

__all__ = [
    "TEMPLATES",
    "Admit",
    "Beta",
    "Budget",
    "Change",
    "Dedup",
    "Kind",
    "Layout",
    "Length",
    "Limits",
    "LoraSpec",
    "MapSpec",
    "MixtureEntry",
    "ModelSpec",
    "Packing",
    "Prepare",
    "Recipe",
    "Restarts",
    "Schedule",
    "Secret",
    "SourceSpec",
    "Strict",
    "TokenizerSpec",
    "Train",
]


class MixtureEntry(Strict):
    """weight: share of training tokens, relative to the other sources. max_epochs: how often a record may be used."""

    weight: Annotated[float, Field(ge=0, strict=False, description="share of training tokens, relative to others")] = (
        1.0
    )
    max_epochs: Annotated[
        float | None, Field(gt=0, strict=False, description="then the source is spent, and the others go on")
    ] = None


class LoraSpec(Strict):
    """Low-rank adapters beside the frozen weights of `model.from`, in peft's format. Without dropout: no step draws."""

    rank: Annotated[int | None, Field(ge=1, le=4096, description="default: 16")] = None
    alpha: Annotated[
        float | None,
        Field(gt=0, strict=False, description="the product counts alpha / rank times; default: twice the rank"),
    ] = None
    targets: Annotated[
        tuple[str, ...],
        Field(strict=False, description="matrices that get one, such as q_proj; default: all in the layers"),
    ] = ()
    full: Annotated[
        tuple[str, ...],
        Field(strict=False, description="names of modules that are trained whole beside them, such as embed_tokens"),
    ] = ()
    from_: Annotated[str | None, Field(alias="from", description="go on with the adapters in this folder")] = None

    @model_validator(mode="after")
    def _one_shape(self) -> LoraSpec:
        if self.from_ is not None and (self.rank or self.alpha or self.targets or self.full):
            raise ValueError("lora.from brings its own rank, alpha, targets and full: leave them out")
        return self


class Change(Strict):
    """Other weights from a step on; a source that is not named keeps its weight. Epochs and max_epochs go on."""

    at: Annotated[
        Annotated[int, Field(ge=0, le=10**12)] | Annotated[str, Field(pattern=r"^(\d{1,2}(\.\d+)?|100)%$")],
        Field(description="a step, counted from 0, or a share of the run such as 80%"),
    ]
    weights: Annotated[
        dict[str, Annotated[float, Field(ge=0, strict=False)]],
        Field(min_length=1, description="source: its new weight"),
    ]


class ModelSpec(Strict):
    """A preset (tiny, small, base), some of its dimensions changed, or a folder with a published checkpoint."""

    preset: Annotated[
        Literal["tiny", "small", "base"] | None, Field(description="tiny (5 M parameters), small (25 M), base (125 M)")
    ] = None
    from_: Annotated[str | None, Field(alias="from", description="a folder with config.json and safetensors")] = None
    family: Annotated[Literal["llama", "mistral", "qwen2", "qwen3"], Field(description="architecture of a preset")] = (
        "qwen3"
    )
    hidden_size: Annotated[int | None, Field(ge=8)] = None
    layers: Annotated[int | None, Field(ge=1)] = None
    heads: Annotated[int | None, Field(ge=1)] = None
    kv_heads: Annotated[int | None, Field(ge=1)] = None
    intermediate_size: Annotated[int | None, Field(ge=8)] = None
    tied: Annotated[bool | None, Field(description="the head is the embedding")] = None
    lora: LoraSpec | None = None

    @model_validator(mode="after")
    def _one_start(self) -> ModelSpec:
        if self.lora is not None and self.from_ is None:
            raise ValueError("lora adapts a model that is there: name its folder in model.from")
        if self.preset is not None and self.from_ is not None:
            raise ValueError("a model starts from a preset or from a folder, not from both")
        return self


class Budget(Strict):
    """How long to train: exactly one of the four."""

    tokens: Annotated[int | str | None, Field(description="a number, or 20M, 1.5B")] = None
    epochs: Annotated[float | None, Field(gt=0, le=1e9, strict=False)] = None
    hours: Annotated[float | None, Field(gt=0, le=1e6, strict=False)] = None
    steps: Annotated[int | None, Field(ge=1, le=10**12)] = None

    @model_validator(mode="after")
    def _one_measure(self) -> Budget:
        if sum(x is not None for x in (self.tokens, self.epochs, self.hours, self.steps)) != 1:
            raise ValueError("a budget is one of tokens, epochs, hours or steps")
        return self


class Schedule(Strict):
    kind: Annotated[
        Literal["auto", "cosine", "constant-with-decay", "constant"],
        Field(description="auto: cosine, or constant for schedule-free"),
    ] = "auto"
    warmup: Annotated[float, Field(ge=0, lt=1, strict=False, description="share of the steps")] = 0.02
    decay: Annotated[float, Field(ge=0, le=1, strict=False, description="share, for constant-with-decay")] = 0.2
    final: Annotated[float, Field(ge=0, le=1, strict=False, description="last rate over the highest")] = 0.1


class Layout(Strict):
    """How the model is spread over ranks: their number is the product of the degrees."""

    data: Annotated[
        int, Field(ge=1, description="ranks with the same weights and other samples; not given: all that are left")
    ] = 1
    shard: Annotated[int, Field(ge=1, description="ranks with other samples and a part of the weights each")] = 1
    context: Annotated[int, Field(ge=1, description="ranks with other positions of the same samples")] = 1
    tensor: Annotated[int, Field(ge=1, description="ranks with other heads and columns of the same layers")] = 1
    pipeline: Annotated[int, Field(ge=1, description="ranks with other layers")] = 1
    schedule: Annotated[
        Literal["1f1b", "interleaved", "zero-bubble"], Field(description="order of passes in a pipeline")
    ] = "1f1b"


class Communication(Strict):
    """How the gradients of ranks that hold the same weights are summed. What a lossy way leaves out of a step is kept,
    and goes into the next one (error feedback)."""

    gradients: Annotated[
        Literal["fp32", "bf16", "int8", "two-bit", "powersgd", "topk"],
        Field(
            description="fp32: exact; bf16: rounded twice, 2 bytes a weight; lossy: int8, 1 byte a weight; two-bit, 1/4"
            " byte; powersgd, products of two thin matrices; topk, the largest alone"
        ),
    ] = "fp32"
    rank: Annotated[int, Field(ge=1, le=1024, description="powersgd: columns of the thin matrices")] = 8
    share: Annotated[float, Field(gt=0, le=0.5, strict=False, description="topk: share that is sent")] = 0.02

    bucket_mb: Annotated[
        int | None, Field(ge=1, le=4096, description="MiB of gradients that travel together; default: measured")
    ] = None

    @model_validator(mode="after")
    def _options_of_its_way(self) -> Communication:
        fields = type(self).model_fields
        for name, way in (("rank", "powersgd"), ("share", "topk")):
            if self.gradients != way and getattr(self, name) != fields[name].default:
                raise ValueError(f"'{name}' has no meaning for {self.gradients} gradients: it is of {way}")
        return self

    @property
    def is_lossy(self) -> bool:
        """Whether a step's gradient is another one than that of its global batch, beyond rounding."""
        return self.gradients not in ("fp32", "bf16")


class Restarts(Strict):
    """What follows when a rank is killed, hangs or fails: all start again from the newest checkpoint."""

    most: Annotated[int, Field(ge=0, description="in a row from one checkpoint; 0: the run ends instead")] = 5
    ranks: Annotated[
        Literal["same", "fewer"], Field(description="start as many again, or go on with those that are left")
    ] = "same"
    stuck_after: Annotated[
        float, Field(gt=0, strict=False, description="seconds without progress, if also ten times a usual step")
    ] = 60.0


Packing = Literal["best-fit", "concatenate", "padded"]  # order/pack.py says what they are
Beta = Annotated[float, Field(ge=0, lt=1)]  # how much of a running mean stays at each step


class Train(Strict):
    sequence_length: Annotated[int, Field(ge=16, le=1_048_576)] = 512
    packing: Annotated[
        Packing,
        Field(
            description="best-fit: whole documents side by side; concatenate: one after another, cut where a sample is"
            " full; padded: one document a row, rows of about the same length together"
        ),
    ] = "best-fit"
    batch_tokens: Annotated[int, Field(ge=16, description="tokens of one global batch")] = 16384
    budget: Budget = Budget(epochs=1.0)
    optimizer: Annotated[
        Literal["auto", "muon", "adamw", "schedule-free"],
        Field(description="auto: muon for a model from scratch, adamw for one from a folder"),
    ] = "auto"
    learning_rate: Annotated[float | None, Field(gt=0, strict=False, description="default: by optimizer and size")] = (
        None
    )
    freeze: Annotated[
        tuple[str, ...],
        Field(strict=False, description="globs of parameters that stay as they are, such as 'model.embed_tokens*'"),
    ] = ()
    rates: Annotated[
        dict[str, Annotated[float, Field(gt=0, strict=False)]],
        Field(description="factor on the learning rate by glob of parameter names; the first that matches counts"),
    ] = {}  # noqa: RUF012  (pydantic copies it)
    weight_decay: Annotated[float, Field(ge=0, strict=False)] = 0.1
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.95)
    clip: Annotated[float, Field(gt=0, strict=False, description="largest norm of the global gradient")] = 1.0
    spikes: Annotated[
        Literal["off", "skip", "rollback"],
        Field(description="a step whose loss or gradient jumps: make no update, or go back before it first"),
    ] = "off"
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
    keep: Annotated[int, Field(ge=2, description="checkpoints kept: the newest")] = 3
    keep_best: Annotated[
        bool, Field(description="and the one with the lowest held-out loss, of those evaluated when they were saved")
    ] = True
    seed: Annotated[int | None, Field(ge=0, lt=2**63, description="default: the recipe's seed")] = None
    activation_checkpointing: Annotated[
        Literal["none", "selective", "full"], Field(description="what the backward pass computes again, to save memory")
    ] = "none"
    activation_memory: Annotated[
        str | None,
        Field(
            pattern=r"^\d{1,6}(\.\d+)? ?(MB|GB)$",
            description="such as 2GB: what the blocks of a rank may hold; as few as need be compute again",
        ),
    ] = None
    offload_optimizer: Annotated[
        bool, Field(description="keep the optimiser's state, and update, in host memory; without a GPU it is there")
    ] = False
    out_of_memory: Annotated[
        Literal["shrink", "stop"],
        Field(description="go on with fewer samples in a forward pass and the same global batch, or end the run"),
    ] = "shrink"
    layout: Literal["auto"] | Layout = "auto"
    communication: Communication = Communication()
    balance: Annotated[
        Literal["measured", "even"],
        Field(description="measured: a rank that is found to be slower gets less of a step; even: equal parts"),
    ] = "measured"
    restarts: Restarts = Restarts()

    @model_validator(mode="after")
    def _one_word_on_activations(self) -> Train:
        if self.activation_memory is not None and self.activation_checkpointing != "none":
            raise ValueError(
                "activation_memory chooses what is computed again: leave activation_checkpointing out, or it"
            )
        return self

    @model_validator(mode="after")
    def _a_sample_fits(self) -> Train:
        if self.batch_tokens < self.sequence_length:
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) must be at least sequence_length ({self.sequence_length}): "
                "a global batch holds whole samples"
            )
        return self

    @model_validator(mode="after")
    def _a_schedule_that_the_optimizer_takes(self) -> Train:
        free, kind = self.optimizer == "schedule-free", self.schedule.kind
        if free and kind in ("cosine", "constant-with-decay"):
            raise ValueError(f"schedule-free takes no {kind} schedule, averaging does its work: set kind: auto")
        if free and self.betas[0] == 0:
            raise ValueError("schedule-free needs betas[0] above 0: its average is told from where gradients are taken")
        if kind == "auto":
            resolved = self.schedule.model_copy(update={"kind": "constant" if free else "cosine"})
            object.__setattr__(self, "schedule", resolved)  # frozen, but not yet anybody's
        return self


class Prices(Strict):
    """What an hour costs, in any currency, for what `sheaf plan` tells. No corpus or run depends on it."""

    rank_hour: Annotated[
        float | None, Field(gt=0, strict=False, description="of a training process or GPU; --price goes before it")
    ] = None
    worker_hour: Annotated[float | None, Field(gt=0, strict=False, description="of a process that prepares")] = None


class Recipe(Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    sources: Annotated[tuple[SourceSpec, ...], Field(min_length=1, strict=False)]
    prepare: Prepare = Prepare()
    mixture: dict[str, MixtureEntry] = {}  # noqa: RUF012  (likewise)
    curriculum: Annotated[
        tuple[Change, ...], Field(strict=False, description="weights of the mixture that change on the way")
    ] = ()
    model: ModelSpec = ModelSpec(preset="tiny")
    train: Train = Train()
    workspace: Annotated[
        str, Field(description="where corpus and runs lie: a folder, or s3://, gs:// or az:// BUCKET/PREFIX")
    ] = "./workspace"
    prices: Prices = Prices()

    @property
    def heaviest(self) -> dict[str, MixtureEntry]:
        """The mixture with the largest weight that each source ever has."""
        most = {name: entry.weight for name, entry in self.mixture.items()}
        for change in self.curriculum:
            for name, weight in change.weights.items():
                most[name] = max(weight, most.get(name, 1.0 if self.mixture else 0.0))
        return {name: MixtureEntry(weight=weight) for name, weight in most.items()}

    @model_validator(mode="after")
    def _names_agree(self) -> Recipe:
        names = [s.name for s in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are named '{name}'")
        return self

    @model_validator(mode="after")
    def _an_optimizer_that_adapters_take(self) -> Recipe:
        if self.model.lora is not None and self.train.optimizer == "muon":
            raise ValueError(
                "muon is for whole matrices, and adapters are thin factors of one: set train.optimizer: auto"
            )
        return self

    @model_validator(mode="after")
    def _shares_of_the_run_are_known(self) -> Recipe:
        if self.train.budget.hours is not None and any(isinstance(change.at, str) for change in self.curriculum):
            raise ValueError(
                "a change of weights at a share of the run needs a budget in tokens, epochs or steps: how many steps "
                "fit into hours is measured when the run has begun"
            )
        return self
