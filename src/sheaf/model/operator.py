"""Operators of our own, which torch.compile keeps whole.

Like those of `torch.library.custom_op`, which import torch's compiler at their first call, compiled or not: two to five
seconds of every process that trains. These are made of the same parts of torch.library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


class Operator(Generic[P, T]):
    """An operator on any device, which changes none of its arguments and returns none of them."""

    def __init__(self, name: str, function: Callable[P, T]) -> None:
        """name: "sheaf::<name>". The schema comes from the function's annotations."""
        self.name = name
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(name, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(name, "default", function)
        space, _, own = name.partition("::")
        self._call = getattr(getattr(torch.ops, space), own).default

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._call(*args, **kwargs)

    def register_fake(self, function: Callable[P, T]) -> Callable[P, T]:
        """The shapes that come out, for torch.compile and for tensors without memory."""
        torch.library.register_fake(self.name, function)
        return function

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        torch.library.register_autograd(self.name, backward, setup_context=setup_context)

    def register_no_second_derivative(self) -> None:
        """This operator is a derivative itself: what is derived once more would lack its part, and none would know."""
        torch.library.register_autograd(self.name, _no_second_derivative)


def _no_second_derivative(*_: Any) -> None:
    raise NotImplementedError(
        "a derivative of a derivative was asked for (create_graph=True), and Sheaf's kernels for a processor have the "
        "first only: compute it on another device"
    )


def operator(name: str) -> Callable[[Callable[P, T]], Operator[P, T]]:
    """Decorator: the function becomes an operator of this name."""
    return lambda function: Operator(name, function)
