"""What the user asked for of the data: sources, how their rows are read, and how they are prepared. See `recipe.py`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """No unknown keys, no coercion of strings to numbers, only finite numbers, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True, allow_inf_nan=False)


class Secret(Strict):
    """A reference to a secret: its value is looked up when used, and never printed, logged or stored."""

    env: Annotated[str | None, Field(description="name of an environment variable")] = None
    file: Annotated[str | None, Field(description="a file that holds nothing else")] = None

    @model_validator(mode="after")
    def _one_place(self) -> Secret:
        if (self.env is None) == (self.file is None):
            raise ValueError("a secret is either {env: NAME} or {file: PATH}")
        return self


class MapSpec(Strict):
    """How a row becomes a conversation, a preference or a text, by columns; a row that does not fit is quarantined.

    A column is a name, or a path into nested values and JSON in cells: `answers.text.0`. `user`, `assistant`,
    `system`, `prompt` and `text` may be templates, such as '{context}\n\n{question}'.
    """

    kind: Literal["chat", "preference", "text"]
    messages: Annotated[str | None, Field(min_length=1, description="chat: the column that holds the messages")] = None
    role: Annotated[str, Field(min_length=1, description="of a message: who speaks")] = "role"
    content: Annotated[str, Field(min_length=1, description="of a message: what is said")] = "content"
    roles: Annotated[
        dict[str, Literal["system", "user", "assistant", "tool"]],
        Field(description="of a message: what else speakers are called, such as {customer: user, agent: assistant}"),
    ] = {}
    system: Annotated[str | None, Field(min_length=1, description="what goes first, in a chat or a preference")] = None
    user: Annotated[str | None, Field(min_length=1, description="chat without messages: what is asked")] = None
    assistant: Annotated[str | None, Field(min_length=1, description="chat without messages: the answer")] = None
    prompt: Annotated[str | None, Field(min_length=1, description="preference: what both answers follow")] = None
    chosen: Annotated[str | None, Field(min_length=1, description="preference: the better answer")] = None
    rejected: Annotated[str | None, Field(min_length=1, description="preference: the worse answer")] = None
    text: Annotated[str | None, Field(min_length=1, description="text: a column or template")] = None
    optional: Annotated[
        tuple[str, ...], Field(strict=False, description="columns that may be missing or empty in a row")
    ] = ()

    @model_validator(mode="after")
    def _columns_of_its_kind(self) -> MapSpec:
        message = {"role", "content", "roles"}
        allowed, needed = {
            "chat": ({"messages", "system", "user", "assistant", *message}, {"user", "assistant"}),
            "preference": ({"system", "prompt", "chosen", "rejected", *message}, {"chosen", "rejected"}),
            "text": ({"text"}, {"text"}),
        }[self.kind]
        # By value: a recipe that is written out in full and read again has every key set.
        given = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        if self.kind == "chat" and "messages" in given:
            allowed, needed = allowed - {"user", "assistant"}, {"messages"}
        odd = sorted(given - allowed - {"kind", "optional"})
        if odd:
            raise ValueError(f"'{odd[0]}' has no meaning here: a {self.kind} takes {', '.join(sorted(allowed))}")
        if needed - given:
            either = "either messages, or user and assistant" if self.kind == "chat" else " and ".join(sorted(needed))
            raise ValueError(f"a {self.kind} needs {either}")
        return self


class SourceSpec(Strict):
    """A named place where data lies. The kind of place follows from the URI."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="unique name of the source")]
    uri: Annotated[
        str,
        Field(
            min_length=1, description="a path, or SCHEME://…: http, s3, gs, az, postgresql, sqlite, git+file, sftp, …"
        ),
    ]
    include: Annotated[
        tuple[str, ...], Field(strict=False, description="globs of the paths wanted; ** is any number of folders")
    ] = ("**/*",)
    exclude: Annotated[tuple[str, ...], Field(strict=False, description="globs of what to leave out after all")] = ()
    urls: Annotated[
        tuple[str, ...], Field(strict=False, description="for http: what to fetch, relative to uri; empty: uri itself")
    ] = ()
    follow: Annotated[
        Literal["index", "sitemap"] | None,
        Field(
            description="for http: what uri and urls name are folder listings, or sitemaps, whose links are the items"
        ),
    ] = None
    ref: Annotated[str | None, Field(description="for git: a branch, tag or commit (default: HEAD)")] = None
    options: Annotated[
        dict[str, Secret | str],
        Field(description="for object stores and file servers: endpoint, region, keys … by their usual names"),
    ] = {}
    split: Annotated[
        Literal["train", "validation", "test"] | None,
        Field(description="only the items whose path names this split, as in data/train-00000.parquet"),
    ] = None
    label: Annotated[
        Literal["folder", "metadata"] | None,
        Field(
            description="for images and audio: the label is the folder's name, or a row of its metadata.csv or .jsonl"
        ),
    ] = None
    query: Annotated[str | None, Field(description="for SQL: the SELECT whose rows are the records")] = None
    key: Annotated[str | None, Field(description="for SQL: the column that identifies a row (default: the first)")] = (
        None
    )
    increment: Annotated[
        str | None,
        Field(description="for SQL: a column that only grows (id, updated_at): rows are read in blocks by it"),
    ] = None
    timeout: Annotated[float, Field(gt=0, strict=False, description="for SQL: seconds that one statement may take")] = (
        300.0
    )
    text: Annotated[
        str | None,
        Field(description="for rows and objects: a column name, or a template such as '{title}\\n\\n{body}'"),
    ] = None
    map: Annotated[
        Literal["alpaca", "sharegpt", "openai", "prompt-completion", "preference", "question-answer", "text"]
        | MapSpec
        | None,
        Field(description="for rows and objects: how they become conversations or preferences, by name or by columns"),
    ] = None
    license: Annotated[
        str | None, Field(description="shown in the report and with every origin that `trace` names")
    ] = None
    password: Annotated[Secret | None, Field(description="of the user that the uri names")] = None
    headers: Annotated[dict[str, Secret | str], Field(description="for http: request headers")] = {}

    @model_validator(mode="after")
    def _one_way_to_a_record(self) -> SourceSpec:
        if self.text is not None and self.map is not None:
            raise ValueError("a source says either text or map")
        return self


class Length(Strict):
    """Length rules: a record outside them is dropped, with the reason `too-short` or `too-long`."""

    min_characters: Annotated[int, Field(ge=0, description="shorter records are dropped")] = 32
    max_characters: Annotated[int | None, Field(ge=1, description="longer records are dropped")] = None
    min_words: Annotated[int, Field(ge=0, description="records of fewer words are dropped")] = 0

    @model_validator(mode="after")
    def _something_fits(self) -> Length:
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise ValueError(
                f"max_characters ({self.max_characters}) is below min_characters ({self.min_characters}): "
                "every record would be dropped"
            )
        return self


class Dedup(Strict):
    """Exact: one copy of records with equal normalised text is kept, with the origins of all. Near: a record is dropped
    if it is similar to one that is kept."""

    exact: Annotated[bool, Field(description="false: every occurrence trains")] = True
    near: Annotated[
        float | None,
        Field(
            ge=0.5, le=1, strict=False, description="similarity (Jaccard, of 5-word pieces) from which one is dropped"
        ),
    ] = None
    max_loss: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            strict=False,
            description="share of a source's records that `near` may drop (or 99 records); above, prepare ends with 3",
        ),
    ] = 0.5


class Limits(Strict):
    """What one item may cost before its parser is stopped and the item quarantined."""

    seconds: Annotated[
        float, Field(gt=0, strict=False, description="of processor time on one item without progress")
    ] = 60.0
    memory_mb: Annotated[int, Field(ge=256, description="of the parser's process")] = 2048
    expanded_mb: Annotated[int, Field(ge=1, description="bytes that one item may expand to")] = 16384
    ratio: Annotated[float, Field(gt=1, strict=False, description="expansion above 1 MB that counts as a bomb")] = 200.0
    depth: Annotated[int, Field(ge=1, description="containers inside containers")] = 8
    members: Annotated[int, Field(ge=1, description="files in one archive")] = 100_000
    record_mb: Annotated[int, Field(ge=1, description="of one record")] = 64
    records: Annotated[int, Field(ge=1, description="records in one item")] = 50_000_000
    pages: Annotated[int, Field(ge=1, description="pages, slides, sheets or chapters of one document")] = 20_000


class Admit(Strict):
    """What would be dropped or quarantined is taken after all: by how it is read, or although a rule drops it.

    encoding, format and limits change how the items that match are read; reason lets records pass that a rule drops.
    """

    source: Annotated[str | None, Field(description="only of this source")] = None
    path: Annotated[str, Field(description="glob of the items' paths")] = "**/*"
    encoding: Annotated[str | None, Field(description="they are text in this encoding, whatever detection says")] = None
    format: Annotated[str | None, Field(description="read them as this media type, such as text/plain")] = None
    limits: Annotated[Limits | None, Field(description="other limits for them")] = None
    reason: Annotated[
        str | None, Field(description="keep their records although this rule drops them: too-short, …")
    ] = None

    @model_validator(mode="after")
    def _says_how(self) -> Admit:
        if self.encoding is None and self.format is None and self.limits is None and self.reason is None:
            raise ValueError("admit says how: encoding, format, limits or reason")
        return self


class TokenizerSpec(Strict):
    """Either train one on the corpus, or take a tokenizer.json as it is."""

    train: Annotated[Literal["bpe"] | None, Field(description="byte-level byte-pair encoding")] = None
    vocab_size: Annotated[int, Field(ge=300, le=1_000_000, description="of a tokenizer that is trained")] = 16384
    sample_mb: Annotated[int, Field(ge=1, description="text that a new tokenizer is trained on")] = 64
    from_: Annotated[str | None, Field(alias="from", description="a tokenizer.json, or a folder with one")] = None
    add: Annotated[
        tuple[str, ...],
        Field(strict=False, description="control tokens that a given one gets in addition, such as '<|im_start|>'"),
    ] = ()

    @model_validator(mode="after")
    def _one_way(self) -> TokenizerSpec:
        if self.add and self.from_ is None:
            raise ValueError("tokens are added to a tokenizer that is given: `from` names it")
        if (self.train is None) == (self.from_ is None):
            raise ValueError("a tokenizer is either {train: bpe, vocab_size: N} or {from: PATH}")
        return self


TEMPLATES = ("auto", "chatml")  # names of `prepare.template`; anything else is a file
Kind = Literal["email", "phone", "ip", "card", "iban", "national-id", "secret"]  # of privacy.KINDS


class Prepare(Strict):
    length: Length = Length()
    languages: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], ...],
        Field(strict=False, description="ISO 639-1 codes of the languages that are kept (default: all)"),
    ] = ()
    filters: Annotated[
        tuple[str, ...],
        Field(strict=False, description="rule sets (gopher, c4, fineweb) and expressions such as 'score.words > 50'"),
    ] = ()
    dedup: Dedup = Dedup()
    privacy: Annotated[
        dict[Kind, Literal["mask", "drop", "keep"]],
        Field(description="what becomes of personal data and secrets, by kind; a kind that is not named is kept"),
    ] = {}
    decontaminate: Annotated[
        tuple[str, ...],
        Field(strict=False, description="globs of evaluation files: records that hold parts of them go"),
    ] = ()
    template: Annotated[
        str,
        Field(
            min_length=1,
            description="how a chat is written out for the tokenizer: chatml, a Jinja file, or auto: as the folder of"
            " the given tokenizer says, else chatml",
        ),
    ] = "auto"
    limits: Limits = Limits()
    admit: Annotated[tuple[Admit, ...], Field(strict=False, description="exceptions, item by item")] = ()
    mojibake: Annotated[bool, Field(description="repair text that was decoded with the wrong encoding")] = True
    tokenizer: TokenizerSpec = TokenizerSpec(train="bpe")
    refuse_above: Annotated[
        float, Field(ge=0, le=1, strict=False, description="share of bytes quarantined above which prepare ends with 3")
    ] = 1.0

    @model_validator(mode="after")
    def _other_limits_are_the_recipe_s_where_they_say_nothing(self) -> Prepare:
        usual = self.limits.model_dump()
        rules = tuple(
            rule.model_copy(update={"limits": Limits(**usual | rule.limits.model_dump(exclude_unset=True))})
            if rule.limits is not None
            else rule
            for rule in self.admit
        )
        if rules != self.admit:
            object.__setattr__(self, "admit", rules)  # frozen, but not yet anybody's
        return self
