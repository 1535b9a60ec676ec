"""The interface of all traces, and their vector-Jacobian products."""

from __future__ import annotations

__all__ = ["BoundTrace", "Field", "Trace", "vjp"]

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ..noise import Noise

Field = Callable[[Tensor], Tensor]


class BoundTrace(ABC):
    """A trace estimator with the probes of one batch."""

    @property
    @abstractmethod
    def estimates(self) -> int:
        """P, the number of estimates of each divergence."""

    def vjps(self, dims: int) -> int:
        """The vector-Jacobian products of one evaluation on data of `dims` dimensions; by default one an estimate."""
        return self.estimates

    @abstractmethod
    def standard_error(self, estimates: Tensor) -> Tensor:
        """The standard error of the mean of the estimates.

        Args:
            estimates: a linear function of the P estimates, with shape (B, P): the divergences at one point, or their
                integrals along a path.

        Returns:
            The standard errors, with shape (B,): 0 where the trace is exact, NaN for a single random estimate.
        """

    @abstractmethod
    def divergence(self, x: Tensor, value: Tensor, differentiable: bool) -> Tensor:
        """The estimates of the divergence from the graph of the field, with shape (B, P).

        Args:
            x: the point, with shape (B, *).
            value: the field there, with the graph that leads to `x`.
            differentiable: whether gradients of the estimates are wanted.
        """

    def start(self, x: Tensor) -> Tensor:
        """The log-density with which the path of states `x` starts, for each estimate, with shape (B, P): numbers of
        mean 0; by default 0."""
        return torch.zeros(len(x), self.estimates, dtype=x.dtype, device=x.device)

    @abstractmethod
    def select(self, index: Tensor) -> BoundTrace:
        """The same probes for some samples of the batch."""

    def __call__(self, h: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        """The field and its divergence.

        Gradients flow through both where the caller's grad mode is on.

        Args:
            h: the vector field, from (B, *) to (B, *); no sample may depend on another.
            x: the point, with shape (B, *).

        Returns:
            The field, with shape (B, *), and P unbiased estimates of its divergence, in float32 at least, with shape
            (B, P).
        """
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
            divergence = self.divergence(x, value, differentiable)
        return (value, divergence) if differentiable else (value.detach(), divergence.detach())


class Trace(ABC):
    """A way to compute a divergence."""

    @abstractmethod
    def bind(self, noise: Noise, index: Tensor, x: Tensor) -> BoundTrace:
        """Draws what it needs for the samples `index` (int64, (B,)), whose states look like `x` (B, *)."""


def vjp(value: Tensor, x: Tensor, v: Tensor, chunk: int, *, keep: bool, differentiable: bool) -> Tensor:
    """Vector-Jacobian products of a field, `chunk` at a time.

    Args:
        value: the field, with shape (B, *).
        x: the point, with shape (B, *).
        v: the vectors, with shape (P, B, *).
        chunk: how many at once.
        keep: whether more products follow.
        differentiable: whether gradients of the products are wanted.

    Returns:
        J' v, with shape (P, B, *), in the dtype of the vectors.
    """
    chunks, results = v.to(value.dtype).split(chunk), []
    for i, some in enumerate(chunks):
        retain = keep or differentiable or i < len(chunks) - 1
        settings = {"retain_graph": retain, "create_graph": differentiable, "is_grads_batched": len(some) > 1}
        (products,) = torch.autograd.grad(value, x, some if len(some) > 1 else some[0], **settings)
        results.append(products.reshape(some.shape))
    return torch.cat(results).to(v.dtype)
