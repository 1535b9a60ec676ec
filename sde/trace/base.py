"""The interface of all traces, and the vector-Jacobian products that they are made of."""

from __future__ import annotations

__all__ = ["BoundTrace", "Field", "Trace", "at_point", "check_count", "products"]

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ..noise import Noise

Field = Callable[[Tensor], Tensor]


class BoundTrace(ABC):
    """A trace estimator with its probes drawn for one batch."""

    @property
    @abstractmethod
    def estimates(self) -> int:
        """P, the number of estimates of each divergence."""

    def vjps(self, dims: int) -> int:
        """The vector-Jacobian products of one evaluation on data of `dims` dimensions; by default one an estimate."""
        return self.estimates

    @abstractmethod
    def standard_error(self, estimates: Tensor) -> Tensor:
        """The standard error of the mean of the estimates, as far as they tell it.

        Args:
            estimates: what was made of the P estimates, in a linear way, with shape (B, P): the divergences at one
                point, or their integrals along a path.

        Returns:
            The standard errors, with shape (B,): 0 where the trace is exact, NaN where a single random estimate
            cannot tell.
        """

    @abstractmethod
    def __call__(self, h: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        """The field and its divergence.

        Gradients flow through both where the caller's grad mode is on.

        Args:
            h: the vector field, from (B, *) to (B, *); no sample may depend on another.
            x: where, with shape (B, *).

        Returns:
            The field, with shape (B, *), and P unbiased estimates of its divergence, with shape (B, P).
        """

    @abstractmethod
    def select(self, index: Tensor) -> BoundTrace:
        """The same probes for some samples of the batch."""


class Trace(ABC):
    """A way to compute a divergence."""

    @abstractmethod
    def bind(self, noise: Noise, index: Tensor, x: Tensor) -> BoundTrace:
        """Draws what it needs for the samples `index` (int64, (B,)), whose states look like `x` (B, *)."""


def at_point(h: Field, x: Tensor, divergence: Callable[[Tensor, Tensor, bool], Tensor]) -> tuple[Tensor, Tensor]:
    """The field at a point, with what `divergence` makes of (point, field, whether to keep the graph)."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        if not (differentiable and x.requires_grad):
            x = x.detach().requires_grad_()
        value = h(x)
        if not value.requires_grad:
            raise ValueError(
                "the divergence needs a field that is differentiable in x, but it returned a tensor without a "
                "gradient: does the denoiser run under no_grad or inference mode, or detach its result?"
            )
        result = divergence(x, value, differentiable)
    return (value, result) if differentiable else (value.detach(), result.detach())


def products(value: Tensor, x: Tensor, v: Tensor, chunk: int, *, keep: bool, differentiable: bool) -> Tensor:
    """The vector-Jacobian products of the field, `chunk` at a time.

    Args:
        value: the field, with shape (B, *).
        x: the point, with shape (B, *).
        v: the vectors, with shape (P, B, *).
        chunk: how many at once.
        keep: whether more products follow.
        differentiable: whether gradients of the products are wanted.

    Returns:
        J' v, with shape (P, B, *).
    """
    chunks = v.split(chunk)
    results = []
    for i, some in enumerate(chunks):
        last = i == len(chunks) - 1 and not keep and not differentiable
        settings = {"retain_graph": not last, "create_graph": differentiable}
        if len(some) == 1:
            (product,) = torch.autograd.grad(value, x, some[0], **settings)
            results.append(product[None])
        else:
            results.append(torch.autograd.grad(value, x, some, is_grads_batched=True, **settings)[0])
    return torch.cat(results)


def check_count(name: str, argument: str, value: int, least: int) -> None:
    """Refuses what is no count."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} needs a whole number {argument} >= {least}, got {argument}={value!r}")
