"""Tokens that a published model does not know: what their rows of embedding and head start from.

An ordinary token starts as the mean of the rows of the pieces into which the model's own tokenizer cuts its text (Gee
et al. 2022, "Fast Vocabulary Transfer", EMNLP industry track), so that the model goes on reading what it
read before. A control token stands for no text: it starts as the mean of all known rows, which bounds how far the new
logit moves any prediction (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models"). Many models
have more rows than tokens; rows without a token count for neither mean, and are filled when a token comes to them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from sheaf.errors import RecipeError
from sheaf.model.pieces import Piece, Values


@dataclass(frozen=True)
class NewTokens:
    """known: ids that the model was trained with. pieces: of each new id, the known ids to start from; none: all."""

    known: Sequence[int]
    pieces: Mapping[int, Sequence[int]]


def has_tokenizer(folder: Path) -> bool:
    """Whether there is one to compare with."""
    return (folder / "tokenizer.json").is_file()


def new_tokens(folder: Path, tokenizer_json: Path) -> NewTokens:
    """What a tokenizer has more than the one in the model's folder. Raises RecipeError unless all tokens that both have
    are the same."""
    theirs, ours = Tokenizer.from_file(str(folder / "tokenizer.json")), Tokenizer.from_file(str(tokenizer_json))
    known = {number: token for token, number in theirs.get_vocab(with_added_tokens=True).items()}
    wanted = {number: token for token, number in ours.get_vocab(with_added_tokens=True).items()}
    for number in sorted(known.keys() & wanted.keys()):
        if known[number] != wanted[number]:
            raise RecipeError(
                "the corpus' tokenizer is not the model's",
                where="prepare.tokenizer",
                why=f"token {number} is {known[number]!r} for the model and {wanted[number]!r} in the corpus",
                fix=f"prepare.tokenizer: {{from: {folder}}}, and prepare again",
            )
    controls = {number for number, token in ours.get_added_tokens_decoder().items() if token.special}
    new = sorted(wanted.keys() - known.keys())
    return NewTokens(sorted(known), {n: () if n in controls else _pieces(n, ours, theirs) for n in new})


def with_new_tokens(base: Values, matrices: Collection[str], tokens: NewTokens) -> Values:
    """The values of a model in which the rows of new tokens are filled. matrices: names of embedding and head."""

    def value(name: str, piece: Piece) -> Tensor:
        if name not in matrices:
            return base(name, piece)
        rows = base(name, Piece.whole(piece.shape)).clone()
        mean = rows[torch.tensor(tokens.known)].mean(0)
        for number, pieces in tokens.pieces.items():
            rows[number] = rows[torch.tensor(pieces)].mean(0) if pieces else mean
        return rows[piece.slices]

    return value


def _pieces(number: int, ours: Tokenizer, theirs: Tokenizer) -> Sequence[int]:
    text = ours.decode([number], skip_special_tokens=False)
    if not text or "�" in text:  # part of a character: no text of its own
        return ()
    return theirs.encode(text, add_special_tokens=False).ids
