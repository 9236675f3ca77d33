"""Causal models of other families, by their code in transformers, in the decoder's place: hidden states in, loss out.

The model computes in evaluation mode, in training too: its dropout is off, so that nothing random happens in a step.
Weights are fp32, products run by autocast.

Documents that share a row must not see each other. transformers masks them apart by positions that begin anew, in the
models that build their mask so, sliding windows included; `isolation` tries it on this very model with random weights'
worth of tokens: another first document must leave the second one as it was, and packed must equal alone. Where that
fails, each document gets a row of its own, short ones filled up on the right, which a causal model cannot see; that is
tried the same way, and what fails both is refused. Cost of the second way: padding, and no packing at all.

The head is the model's own, whatever it does to logits (scale, cap, bias): a copy of the outer module, which shares its
parameters, with the body replaced by what hands over given hidden states. It runs over chunks of tokens that are
recomputed backward, so the logits of a batch never exist: 4 products where the decoder has 3.
"""

from __future__ import annotations

import copy
import inspect
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sheaf.errors import UsageError
from sheaf.model.loss import CHUNK_TOKENS, IGNORE
from sheaf.model.other_config import OtherConfig, network, network_from

if TYPE_CHECKING:
    from sheaf.model.adapters import Lora

# Between hidden states in fp32, as root mean squares. Other shapes of the same products differ by some 1e-6; what a
# neighbour leaks was 0.07 to 0.7 in networks of random weights.
TOLERANCE = 1e-4
Isolation = Literal["packed", "rows"]


class OtherModel(nn.Module):
    """A network of transformers, whose parts and parameters keep their names. `isolation` wants filled weights."""

    def __init__(self, config: OtherConfig, compute_dtype: torch.dtype = torch.float32, net: Any = None) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.lora: Lora | None = None
        net = (network(config.content) if net is None else net).eval()
        self._modules, self._parameters, self._buffers = net._modules, net._parameters, net._buffers
        self._whole = (net, *_head_alone(net))  # in a tuple: what is in them is a part of this module already
        self._isolation: Isolation | None = None

    # ---- what the decoder can too

    def forward(self, input_ids_bt: Tensor, position_ids_bt: Tensor, document_ids_bt: Tensor | None = None) -> Tensor:
        """Hidden states (b, t, d) after the final norm; see Decoder.forward."""
        if document_ids_bt is None:
            return self._body(input_ids_bt, position_ids_bt)
        if self.isolation == "packed":
            return self._body(input_ids_bt, position_ids_bt)
        return self._in_rows(input_ids_bt, document_ids_bt)

    def next_token_loss(self, hidden_btd: Tensor, labels_bt: Tensor) -> Tensor:
        """fp32 scalar: the sum of the cross-entropy over the labels that are not −100, in nats."""
        hidden_nd, labels_n = hidden_btd.flatten(0, 1), labels_bt.flatten()
        total = torch.zeros((), dtype=torch.float32, device=hidden_nd.device)
        for part in range(0, len(labels_n), CHUNK_TOKENS):
            chunk = slice(part, part + CHUNK_TOKENS)
            total = total + checkpoint(self._chunk_loss, hidden_nd[chunk], labels_n[chunk], "sum", use_reentrant=False)
        return total

    @torch.no_grad()
    def per_token_loss(self, hidden_btd: Tensor, labels_bt: Tensor) -> Tensor:
        """fp32 (b, t): the same of each label, 0 where it is −100. No gradient."""
        hidden_nd, labels_n = hidden_btd.flatten(0, 1), labels_bt.flatten()
        spans = [slice(part, part + CHUNK_TOKENS) for part in range(0, len(labels_n), CHUNK_TOKENS)]
        losses = [self._chunk_loss(hidden_nd[chunk], labels_n[chunk], "none") for chunk in spans]
        return torch.cat(losses).view(labels_bt.shape)

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, vocabulary) by the model's own head."""
        _, head, body = self._whole
        body.hidden = given = hidden.reshape(1, -1, hidden.shape[-1])
        with self._autocast():
            out = head(input_ids=torch.zeros(given.shape[:2], dtype=torch.int64, device=hidden.device))
        body.hidden = None
        return out.logits.view(*hidden.shape[:-1], -1)

    @property
    def head_weight(self) -> nn.Parameter:
        return self.net.get_output_embeddings().weight

    @property
    def embedding_weight(self) -> nn.Parameter:
        return self.net.get_input_embeddings().weight

    def tied_names(self) -> list[tuple[str, str]]:
        """(embedding, head) if they are one parameter: it goes by the first."""
        names = {id(p): name for name, p in self.net.named_parameters()}
        every = [(name, id(p)) for name, p in self.net.named_parameters(remove_duplicate=False)]
        return [(names[i], name) for name, i in every if names[i] != name]

    def blocks(self) -> list[nn.Module]:
        """The layers: the outermost of those modules that are not to be divided, as transformers says."""
        kinds = self.net._no_split_modules or ()
        found: dict[str, nn.Module] = {}
        for name, module in self.named_modules():
            if type(module).__name__ in kinds and not name.startswith(tuple(f"{outer}." for outer in found)):
                found[name] = module
        return list(found.values())

    @property
    def net(self) -> Any:
        """transformers' own model."""
        return self._whole[0]

    # ---- decoding

    def continued(self, ids_bt: Tensor, past: Any, length: int) -> tuple[Tensor, Any]:
        """Hidden states of tokens that follow `length` others, whose keys and values are in `past`; and the next."""
        positions = torch.arange(length, length + ids_bt.shape[1], device=ids_bt.device)[None]
        with self._autocast():
            out = self._inner(input_ids=ids_bt, past_key_values=past, use_cache=True, **self._placed(positions))
        return out.last_hidden_state, out.past_key_values

    # ---- isolation

    @property
    def isolation(self) -> Isolation:
        """How documents are kept apart, tried out once. Raises UsageError if neither way does."""
        if self._isolation is None:
            self._isolation = self._try_isolation()
        return self._isolation

    @property
    def isolation_in_words(self) -> str:
        how = {"packed": "by positions that begin anew", "rows": "by rows of their own, which costs padding"}
        return f"documents that share a row are kept apart {how[self.isolation]}"

    @torch.no_grad()
    def _try_isolation(self) -> Isolation:
        kept, self.compute_dtype = self.compute_dtype, torch.float32
        ways: tuple[Isolation, ...] = ("packed", "rows")
        try:
            for self._isolation in ways:
                if self._keeps_apart():
                    return self._isolation
        finally:
            self.compute_dtype, self._isolation = kept, None
        raise UsageError(
            "this model lets documents of one row see each other",
            where=f"model_type {self.config.model_type}",
            why="neither positions that begin anew nor rows of their own gave what each document gives alone",
            fix="choose a causal attention model",
        )

    def _keeps_apart(self) -> bool:
        """Three documents and padding in a row: each must be what it is alone, whatever the others say."""
        device = self.head_weight.device
        lengths = [7, 12, 9, 4]
        generator = torch.Generator().manual_seed(0)
        texts = [torch.randint(self.config.vocab_size, (n,), generator=generator) for n in lengths]
        others = [(text + 1 + self.config.vocab_size // 3) % self.config.vocab_size for text in texts]
        documents = torch.cat([torch.full((n,), i if i < 3 else -1) for i, n in enumerate(lengths)])[None].to(device)
        positions = torch.cat([torch.arange(n) for n in lengths])[None].to(device)

        def computed(parts: list[Tensor]) -> list[Tensor]:
            return list(self(torch.cat(parts)[None].to(device), positions, documents)[0].split(lengths))

        for number in range(3):
            alone = self(texts[number][None].to(device), torch.arange(lengths[number], device=device)[None])[0]
            for parts in (texts, [text if i == number else others[i] for i, text in enumerate(texts)]):
                if not _same(computed(parts)[number], alone):
                    return False
        return self._is_causal(texts[1].to(device))

    def _is_causal(self, text: Tensor) -> bool:
        changed = text.clone()
        changed[-1] = (changed[-1] + 1) % self.config.vocab_size
        one, other = (self(ids[None], torch.arange(len(ids), device=ids.device)[None]) for ids in (text, changed))
        return _same(one[:, :-1], other[:, :-1])

    # ---- inside

    def _body(self, ids_bt: Tensor, position_ids_bt: Tensor) -> Tensor:
        with self._autocast():
            # Without a cache: with one, transformers does not look for positions that begin anew.
            out = self._inner(input_ids=ids_bt, use_cache=False, **self._placed(position_ids_bt))
        return out.last_hidden_state

    def _in_rows(self, ids_bt: Tensor, document_ids_bt: Tensor) -> Tensor:
        """Every stretch of one document as a row; as many rows at once as fill the positions of the batch."""
        b, t = ids_bt.shape
        flat = ids_bt.flatten()
        numbers = document_ids_bt + torch.arange(b, device=ids_bt.device)[:, None] * (t + 1)
        lengths = torch.unique_consecutive(numbers.flatten(), return_counts=True)[1].tolist()
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        hidden: list[Tensor] = [flat.new_empty(0)] * len(lengths)
        waiting = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        while waiting:
            longest = lengths[waiting[0]]
            now, waiting = waiting[: max(1, b * t // longest)], waiting[max(1, b * t // longest) :]
            rows = flat.new_zeros(len(now), longest)
            for row, i in enumerate(now):
                rows[row, : lengths[i]] = flat[starts[i] : starts[i + 1]]
            out = self._body(rows, torch.arange(longest, device=flat.device).expand(len(now), -1))
            for row, i in enumerate(now):
                hidden[i] = out[row, : lengths[i]]
        return torch.cat(hidden).view(b, t, -1)

    def _chunk_loss(self, hidden_nd: Tensor, labels_n: Tensor, reduction: str) -> Tensor:
        logits = self.logits(hidden_nd).float()
        return functional.cross_entropy(logits, labels_n, ignore_index=IGNORE, reduction=reduction)

    def _placed(self, position_ids_bt: Tensor) -> dict[str, Tensor]:
        return {"position_ids": position_ids_bt} if self._takes_positions else {}

    @cached_property
    def _takes_positions(self) -> bool:
        return "position_ids" in inspect.signature(self._inner.forward).parameters

    @property
    def _inner(self) -> Any:
        return self.net.base_model

    def _autocast(self) -> AbstractContextManager[Any]:
        low = self.compute_dtype != torch.float32
        return torch.autocast(self.head_weight.device.type, dtype=torch.bfloat16, enabled=low)


def _same(one: Tensor, other: Tensor) -> bool:
    """Not so where either is not finite."""
    return bool((one - other).square().mean().sqrt() <= TOLERANCE * other.square().mean().sqrt())


class _Given(nn.Module):
    """In a body's place: hands over hidden states."""

    hidden: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> Any:
        return _Output(self.hidden)


class _Output:
    """What any family's head asks of its body's output: hidden states by name or place; nothing else is there."""

    def __init__(self, hidden: Tensor | None) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, place: int) -> Tensor | None:
        return self.last_hidden_state if place == 0 else None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):  # asked by Python, not by a model
            raise AttributeError(name)


def load_other(folder: Path, config: OtherConfig, vocabulary: int = 0) -> OtherModel:
    """With the weights of a folder, and rows of zeros for tokens up to `vocabulary`. Raises UsageError if they are not
    whole."""
    net = network_from(folder)
    if vocabulary > (known := config.vocab_size):
        net.resize_token_embeddings(vocabulary, mean_resizing=False)
        config = OtherConfig.from_hf(net.config.to_dict())
        with torch.no_grad():
            for part in (net.get_input_embeddings(), net.get_output_embeddings()):
                part.weight[known:] = 0
    return OtherModel(config, net=net)


def _head_alone(net: Any) -> tuple[Any, _Given]:
    """The outer module around given hidden states, sharing its parameters; see the top of the file."""
    prefix, given = net.base_model_prefix, _Given()
    if net.get_output_embeddings() is None or prefix not in net._modules:
        raise UsageError("this model has no language-model head that could be told from its body")
    head = copy.copy(net)
    head._modules = {**net._modules, prefix: given}
    return head, given
