r"""XTrace: a trace estimator that is exact on a few directions with a large part of the trace.

Let A be the transpose of the Jacobian, which has the same trace. Half of the products sketch its range from normal
probes, :math:`Y = A \Omega`; the other half goes to an orthonormal basis of that range. Each probe :math:`\omega_i`,
left out of the sketch, estimates the trace on the rest of the space. With :math:`\Pi_i` the projector on the range of
Y without its column i, :math:`r_i = (I - \Pi_i)\, \omega_i` and m probes,

.. math:: \hat\tau_i = \operatorname{tr}(\Pi_i A)
          + (D - m + 1) \frac{r_i^\top A\, r_i}{\lVert r_i \rVert^2}, \qquad i = 1, \dots, m.

Given :math:`\Pi_i` the direction of :math:`r_i` is uniform, so that each estimate is unbiased; a multiple of the
identity costs no variance. The estimates are not independent: their spread over :math:`\sqrt m` is the error estimate
of the paper.

**Along a trajectory** the probes are fixed, but the basis turns with x. The estimates depend on it only through the
projectors :math:`Y (Y^\top Y)^{-1} Y^\top`, which are smooth wherever the columns of Y are independent. They are not
where the rank of the Jacobian is below m. For this case the sketch contains the probes themselves with a small factor,
the square root of the rounding unit, which leaves the estimates unbiased, since no probe enters its own projector. The
integrand of an adaptive solver is therefore smooth, though less so than with probes alone.

Epperly, Tropp and Webber, XTrace: Making the Most of Every Sample in Stochastic Trace Estimation, 2024,
https://arxiv.org/abs/2301.07825; Meyer et al., Hutch++: Optimal Stochastic Trace Estimation, 2021,
https://arxiv.org/abs/2010.09649.
"""

from __future__ import annotations

__all__ = ["XTrace"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..noise import Noise
from ..shapes import check_count
from .base import BoundTrace, Trace, vjp
from .hutchinson import FixedProbes, check_dims, columns, draw_probes, rows_of


@dataclass(frozen=True)
class XTrace(Trace):
    """Leave-one-out estimates of a trace most of which lies in few directions.

    It costs two vector-Jacobian products per probe, and is worth it where the Jacobian's singular values decay fast.

    Args:
        probes: how many probes m, from 2 to D; there are as many estimates.
        chunk: how many products run at once.
    """

    probes: int = 8
    chunk: int = 8

    def __post_init__(self) -> None:
        check_count("XTrace", "probes", self.probes, 2)
        check_count("XTrace", "chunk", self.chunk, 1)

    def bind(self, noise: Noise, index: Tensor, x: Tensor) -> BoundTrace:
        check_dims(self, self.probes, x)
        return _Sketch(draw_probes(noise.normal, index, self.probes, x), self.chunk)


@dataclass(frozen=True)
class _Sketch(FixedProbes):
    """The estimates with given normal probes of shape (m, B, *)."""

    def vjps(self, dims: int) -> int:
        return 2 * self.estimates

    def standard_error(self, estimates: Tensor) -> Tensor:
        return estimates.std(1) / math.sqrt(estimates.shape[1])

    def divergence(self, x: Tensor, value: Tensor, differentiable: bool) -> Tensor:
        omega = columns(self.probes)  # (B, D, m)
        _, d, m = omega.shape
        sketch = columns(vjp(value, x, self.probes, self.chunk, keep=True, differentiable=differentiable))
        basis, r = torch.linalg.qr(_full_rank(sketch, omega))
        image = columns(vjp(value, x, rows_of(basis, x), self.chunk, keep=False, differentiable=differentiable))
        # Q s_i spans the part of the range that only column i contributes: R' s_i is a multiple of e_i.
        eye = torch.eye(m, dtype=r.dtype, device=r.device).expand_as(r)
        s = torch.linalg.solve_triangular(r.mT, eye, upper=False)
        s = s / s.norm(dim=1, keepdim=True)
        inner, w = basis.mT @ image, basis.mT @ omega  # Q' A Q and Q' Omega, (B, m, m)
        known = inner.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) - (s * (inner @ s)).sum(1)
        w = w - s * (s * w).sum(1, keepdim=True)
        rest, image_of_rest = omega - basis @ w, sketch - image @ w
        return known + (d - m + 1) * (rest * image_of_rest).sum(1) / rest.square().sum(1)


def _full_rank(sketch: Tensor, omega: Tensor) -> Tensor:
    """The sketch on the scale of 1 with a small part of the probes; no gradients flow through the scale."""
    tiny = torch.finfo(sketch.dtype)
    size = sketch.detach().flatten(1).norm(dim=1).clamp(min=tiny.tiny)[:, None, None]
    probes = omega.flatten(1).norm(dim=1)[:, None, None]
    return sketch / size + math.sqrt(tiny.eps) * omega / probes
