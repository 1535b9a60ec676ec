r"""Traces: the divergence of a vector field, exact or estimated.

.. math:: \nabla \cdot h(x) = \operatorname{tr} \frac{\partial h}{\partial x}
          = E_v\Big[ v^\top \frac{\partial h}{\partial x} v \Big], \qquad E[v v^\top] = I

Each evaluation is one forward of the network and one vector-Jacobian product per probe. Probes are keyed by (seed,
sample, probe) and stay fixed along a trajectory, so that the solver sees a smooth integrand and two models can be
compared under the same probes.

Hutchinson, A Stochastic Estimator of the Trace of the Influence Matrix, 1989; Grathwohl et al., FFJORD, 2019,
https://arxiv.org/abs/1810.01367; Skilling 1989.
"""

from __future__ import annotations

__all__ = ["Trace", "BoundTrace", "Exact", "Hutchinson"]

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .noise import Noise, Stream
from .shapes import event_dims

Field = Callable[[Tensor], Tensor]


class BoundTrace(ABC):
    """A trace estimator with its probes drawn for one batch."""

    @property
    @abstractmethod
    def estimates(self) -> int:
        """P, the number of independent estimates of each divergence."""

    @property
    @abstractmethod
    def error_of_one(self) -> float:
        """The standard error of a single estimate as far as it is known: 0 for an exact one, NaN for a random one."""

    @abstractmethod
    def __call__(self, h: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        """The field and its divergence.

        Gradients flow through both where the caller's grad mode is on.

        Args:
            h: the vector field, from (B, *) to (B, *); no sample may depend on another.
            x: where, with shape (B, *).

        Returns:
            The field, with shape (B, *), and P independent estimates of its divergence, with shape (B, P).
        """

    @abstractmethod
    def select(self, index: Tensor) -> BoundTrace:
        """The same probes for some samples of the batch."""


class Trace(ABC):
    """A way to compute a divergence."""

    @abstractmethod
    def bind(self, noise: Noise, index: Tensor, x: Tensor) -> BoundTrace:
        """Draws what it needs for the samples `index` (int64, (B,)), whose states look like `x` (B, *)."""


@dataclass(frozen=True)
class Exact(Trace, BoundTrace):
    """The exact divergence by D vector-Jacobian products, for small D.

    Args:
        chunk: how many of them run at once; memory grows with it.
    """

    chunk: int = 64

    @property
    def estimates(self) -> int:
        return 1

    @property
    def error_of_one(self) -> float:
        return 0.0

    def bind(self, noise: Noise, index: Tensor, x: Tensor) -> Exact:
        return self

    def select(self, index: Tensor) -> Exact:
        return self

    def __call__(self, h: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            x, value = _evaluate(h, x, differentiable)
            d = event_dims(x)
            divergence = torch.zeros(len(x), dtype=x.dtype, device=x.device)
            for first in range(0, d, self.chunk):
                rows = torch.arange(first, min(first + self.chunk, d), device=x.device)
                unit = torch.nn.functional.one_hot(rows, d).to(x).reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
                (jacobian,) = torch.autograd.grad(
                    value, x, unit, retain_graph=True, create_graph=differentiable, is_grads_batched=True
                )
                divergence = divergence + (jacobian * unit).flatten(2).sum((0, 2))
        return (value, divergence[:, None]) if differentiable else (value.detach(), divergence.detach()[:, None])


@dataclass(frozen=True)
class Hutchinson(Trace):
    """Hutchinson's estimator.

    Args:
        probes: how many probes P for each sample; the estimates are kept apart, and their spread is the standard error.
        gaussian: standard normal probes instead of signs (Rademacher). Signs have the smaller variance: their estimate
            is exact on the diagonal of the Jacobian.
    """

    probes: int = 1
    gaussian: bool = False

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"Hutchinson needs probes >= 1, got probes={self.probes}")

    def bind(self, noise: Noise, index: Tensor, x: Tensor) -> BoundTrace:
        draw = noise.normal if self.gaussian else noise.rademacher
        probe = torch.arange(self.probes, device=index.device)[:, None]
        return _Probes(draw(Stream.PROBE, index, probe, x.shape[1:], x.dtype))


@dataclass(frozen=True)
class _Probes(BoundTrace):
    """Estimates with given probes of shape (P, B, *)."""

    probes: Tensor = field(repr=False)

    @property
    def estimates(self) -> int:
        return len(self.probes)

    @property
    def error_of_one(self) -> float:
        return math.nan

    def __call__(self, h: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            x, value = _evaluate(h, x, differentiable)
            last = len(self.probes) - 1
            estimates = []
            for i, v in enumerate(self.probes):
                (product,) = torch.autograd.grad(
                    value, x, v, retain_graph=differentiable or i < last, create_graph=differentiable
                )
                estimates.append((product * v).flatten(1).sum(1))
            divergence = torch.stack(estimates, 1)
        return (value, divergence) if differentiable else (value.detach(), divergence.detach())

    def select(self, index: Tensor) -> _Probes:
        return _Probes(self.probes[:, index])


def _evaluate(h: Field, x: Tensor, differentiable: bool) -> tuple[Tensor, Tensor]:
    """The point as a tensor that requires gradients, and the field there."""
    if not (differentiable and x.requires_grad):
        x = x.detach().requires_grad_()
    value = h(x)
    if not value.requires_grad:
        raise ValueError(
            "the divergence needs a field that is differentiable in x, but it returned a tensor without a gradient: "
            "does the denoiser run under no_grad or inference mode, or detach its result?"
        )
    return x, value
