r"""Hutchinson's estimator with a control variate for a whole path.

The divergence of a path from data to noise is, up to the exact linear part, that of its probe v,

.. math:: v^\top B(x)\, v, \qquad B(x) = \int c(t)\, \frac{\partial D(x_t, t)}{\partial x_t}\, dt,

with the denoised data D and a function c of time alone: probes are fixed along a path, so that the error of the
estimate is that of one quadratic form. For any symmetric matrix K that depends on neither x nor v,

.. math:: v^\top B v - \big( v^\top K v - \operatorname{tr} K \big)

has the same mean, and with random signs the variance :math:`2 \lVert B - K \rVert^2`, over the entries off the
diagonal; the best K is the mean of B over the data. It takes no products: the term in brackets is added to the
log-density once, at the start of the path. :func:`sde.tune_trace` measures K on some data. For Gaussian data B is the
same for every x, and one probe is exact.
"""

from __future__ import annotations

__all__ = ["Controlled"]

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..noise import Noise
from ..shapes import check_count, event_dims
from .base import BoundTrace, Trace
from .hutchinson import Hutchinson


@dataclass(frozen=True, eq=False)
class Controlled(Trace):
    """Random signs with a control variate; see :mod:`sde.trace.controlled`.

    It is made for one model and all of its path, from `t_min` to `t_max`; it is unbiased for any other too.

    Args:
        matrix: K, symmetric, with shape (D, D).
        probes: how many probes P for each sample; the estimates are kept apart.
        chunk: how many products run at once.
        variance_ratio: the variance of an estimate relative to that without control, as measured by leave-one-out.

    Raises:
        ValueError: if the matrix is not finite or not symmetric.
    """

    matrix: Tensor
    probes: int = 1
    chunk: int = 8
    variance_ratio: float | None = None

    def __post_init__(self) -> None:
        check_count("Controlled", "probes", self.probes, 1)
        check_count("Controlled", "chunk", self.chunk, 1)
        k = self.matrix
        if k.ndim != 2 or not bool(k.isfinite().all()) or not torch.equal(k, k.mT):
            raise ValueError(f"Controlled needs a finite symmetric matrix (D, D), got shape {tuple(k.shape)}")

    def bind(self, noise: Noise, index: Tensor, x: Tensor) -> BoundTrace:
        if len(self.matrix) != event_dims(x):
            raise ValueError(
                f"this control variate is for data of {len(self.matrix)} dimensions, got {event_dims(x)}; measure "
                "another one by sde.tune_trace"
            )
        inner = Hutchinson(self.probes, chunk=self.chunk).bind(noise, index, x)
        v = inner.probes.flatten(2).double()
        k = self.matrix.to(v)
        offset = ((v @ k) * v).sum(2).T - k.trace()
        return _Offset(inner, offset.to(inner.probes.dtype))


@dataclass(frozen=True)
class _Offset(BoundTrace):
    """The estimates of some probes, with numbers of mean 0 for the whole path, of shape (B, P)."""

    inner: BoundTrace
    offset: Tensor

    @property
    def estimates(self) -> int:
        return self.inner.estimates

    def start(self, x: Tensor) -> Tensor:
        return self.offset.to(x.dtype)

    def standard_error(self, estimates: Tensor) -> Tensor:
        return self.inner.standard_error(estimates)

    def divergence(self, x: Tensor, value: Tensor, differentiable: bool) -> Tensor:
        return self.inner.divergence(x, value, differentiable)

    def select(self, index: Tensor) -> BoundTrace:
        return replace(self, inner=self.inner.select(index), offset=self.offset[index])
