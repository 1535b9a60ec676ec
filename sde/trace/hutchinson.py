r"""Trace estimators: quadratic forms of random probes.

Hutchinson's estimator takes independent probes. With :math:`S` the symmetric part of the Jacobian its variance is
:math:`2 \lVert S \rVert_F^2 / P` for standard normal probes; for signs the diagonal of S does not contribute. The
probes of a random orthogonal frame take P different directions: their mean has the variance of a sample drawn without
replacement,

.. math:: \frac{1}{P} \Big(1 - \frac{P - 1}{D - 1}\Big) \frac{2 D}{D + 2}
          \Big( \lVert S \rVert_F^2 - \tfrac{1}{D} (\operatorname{tr} S)^2 \Big),

which is 0 for P = D. The standard error from their spread has the factor :math:`\sqrt{1 - P/D}` of a finite
population.

Hutchinson, A Stochastic Estimator of the Trace of the Influence Matrix, 1989; Grathwohl et al., FFJORD, 2019,
https://arxiv.org/abs/1810.01367; Skilling 1989; Choromanski, Rowland and Weller, The Unreasonable Effectiveness of
Structured Random Orthogonal Embeddings, 2017, https://arxiv.org/abs/1703.00864.
"""

from __future__ import annotations

__all__ = ["Hutchinson", "Orthogonal", "Probes"]

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..noise import Noise, Stream
from ..shapes import check_count, event_dims, working_dtype
from .base import BoundTrace, Trace, vjp


@dataclass(frozen=True)
class FixedProbes(BoundTrace):
    """One estimate for each of some fixed probes.

    Args:
        probes: with shape (P, B, *).
        chunk: how many products run at once.
    """

    probes: Tensor = field(repr=False)
    chunk: int = 8

    @property
    def estimates(self) -> int:
        return len(self.probes)

    def select(self, index: Tensor) -> BoundTrace:
        return replace(self, probes=self.probes[:, index])


@dataclass(frozen=True)
class Probes(FixedProbes):
    """Quadratic forms of fixed probes.

    Args:
        probes: with shape (P, B, *); each has a mean square of 1 in every direction.
        chunk: how many products run at once.
        finite_population: the factor of the variance of their mean, 1 for independent probes and 1 - P / D for those
            of one frame.
    """

    finite_population: float = 1.0

    def standard_error(self, estimates: Tensor) -> Tensor:
        if self.finite_population == 0.0:
            return torch.zeros_like(estimates[:, 0])
        if estimates.shape[1] == 1:
            return torch.full_like(estimates[:, 0], math.nan)
        return estimates.std(1) * math.sqrt(self.finite_population / estimates.shape[1])

    def divergence(self, x: Tensor, value: Tensor, differentiable: bool) -> Tensor:
        product = vjp(value, x, self.probes, self.chunk, keep=False, differentiable=differentiable)
        return (product * self.probes).flatten(2).sum(2).T


@dataclass(frozen=True)
class Hutchinson(Trace):
    """Hutchinson's estimator.

    Args:
        probes: how many probes P for each sample; the estimates are kept apart, and their spread is the standard error.
        gaussian: standard normal probes instead of signs (Rademacher). Signs have the smaller variance: their estimate
            is exact on the diagonal of the Jacobian.
        chunk: how many products run at once. For small networks and on accelerators that is faster than one by one;
            memory grows with it.
    """

    probes: int = 1
    gaussian: bool = False
    chunk: int = 8

    def __post_init__(self) -> None:
        check_count("Hutchinson", "probes", self.probes, 1)
        check_count("Hutchinson", "chunk", self.chunk, 1)

    def bind(self, noise: Noise, index: Tensor, x: Tensor) -> Probes:
        draw = noise.normal if self.gaussian else noise.rademacher
        return Probes(draw_probes(draw, index, self.probes, x), self.chunk)


@dataclass(frozen=True)
class Orthogonal(Trace):
    r"""A random orthogonal frame for each sample, scaled by :math:`\sqrt D`; exact for P = D.

    A single estimate has the variance of a normal probe of fixed length, which is larger than that of signs for a
    Jacobian with a large and uneven diagonal.

    Args:
        probes: how many probes P, at most D; the estimates are kept apart.
        chunk: how many products run at once.
    """

    probes: int = 8
    chunk: int = 8

    def __post_init__(self) -> None:
        check_count("Orthogonal", "probes", self.probes, 1)
        check_count("Orthogonal", "chunk", self.chunk, 1)

    def bind(self, noise: Noise, index: Tensor, x: Tensor) -> Probes:
        d = check_dims(self, self.probes, x)
        # Up to the signs of its columns, which do not change a quadratic form, Q is a Haar frame.
        q = torch.linalg.qr(columns(draw_probes(noise.normal, index, self.probes, x)))[0]
        return Probes(math.sqrt(d) * rows_of(q, x), self.chunk, 1.0 - self.probes / d)


def draw_probes(draw: Callable[..., Tensor], index: Tensor, count: int, x: Tensor) -> Tensor:
    """Probes by a method of :class:`sde.Noise`, in float32 at least, with shape (P, B, *)."""
    probe = torch.arange(count, device=index.device)[:, None]
    return draw(Stream.PROBE, index, probe, x.shape[1:], working_dtype(x.dtype))


def columns(v: Tensor) -> Tensor:
    """Vectors of shape (P, B, *) as the columns of matrices (B, D, P)."""
    return v.flatten(2).permute(1, 2, 0)


def rows_of(matrix: Tensor, x: Tensor) -> Tensor:
    """The columns of matrices (B, D, P) as vectors of shape (P, B, *), where `x` has shape (B, *)."""
    return matrix.permute(2, 0, 1).reshape(-1, *x.shape)


def check_dims(trace: Trace, probes: int, x: Tensor) -> int:
    """D, at most as many as which there may be probes."""
    d = event_dims(x)
    if probes > d:
        raise ValueError(
            f"{type(trace).__name__} takes at most as many probes as the data has dimensions, {d}, "
            f"got probes={probes}; use ExactTrace(), which costs no more"
        )
    return d
