r"""The posterior given y of data that is normal around a prediction, :math:`x_0 \sim \mathcal N(d, C)`.

With :math:`S = A C A^T + \sigma^2 I` and the residual :math:`r = y - A d`, its mean is :math:`d + C A^T S^{-1} r`, its
covariance :math:`C - C A^T S^{-1} A C`, and the density of y is :math:`\mathcal N(r; 0, S)`. Where C is one variance
for all directions, the operator finds these by its decomposition or by conjugate gradients. Where it is a matrix, they
are factors of matrices (D, D) in the information form: with :math:`C = L L^T` and :math:`W = I + L^T A^T A L /
\sigma^2`,

.. math::
    \operatorname{cov} = L W^{-1} L^T, \qquad
    C A^T S^{-1} r = \operatorname{cov} A^T r / \sigma^2, \qquad
    \det S = \sigma^{2M} \det W.
"""

from __future__ import annotations

__all__ = ["FullUpdate", "IsotropicUpdate", "Update"]

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..shapes import expand, sum_event
from .measurement import Measurement


class Update(ABC):
    """The update of normal data at one time by the measurement of a batch."""

    @abstractmethod
    def pulled(self, residual: Tensor) -> Tensor:
        r""":math:`A^T S^{-1} r`, with shape (B, \*)."""

    @abstractmethod
    def change(self, residual: Tensor) -> Tensor:
        r""":math:`C A^T S^{-1} r`, with shape (B, \*)."""

    @abstractmethod
    def log_likelihood(self, x0: Tensor) -> Tensor:
        """The logarithm of the density of y where d is `x0`, in nats, with shape (B,)."""

    @abstractmethod
    def kernel(self, z: Tensor, shift: Tensor, b: float, c: float) -> tuple[Tensor, Tensor]:
        """As :class:`sde.denoisers.Steering` says of its `kernel`."""


class IsotropicUpdate(Update):
    """One variance v for all directions.

    Args:
        measurement: the measurement.
        variance: v, of shape () or (B,).
        measured: whether v was measured. If so, kernels have it, for an operator with a decomposition: noise of the
            data's own size would miss a measurement whose directions are not known, and a guess of v would blur draws.
    """

    def __init__(self, measurement: Measurement, variance: Tensor, *, measured: bool) -> None:
        self.measurement, self.variance = measurement, variance
        self.known = variance if measured and measurement.operator.diagonal else torch.zeros_like(variance)

    def pulled(self, residual: Tensor) -> Tensor:
        operator = self.measurement.operator
        return operator.adjoint(operator.solve(residual, self.variance, self.measurement.noise.to(residual)))

    def change(self, residual: Tensor) -> Tensor:
        pulled = self.pulled(residual)
        return expand(self.variance, pulled) * pulled

    def log_likelihood(self, x0: Tensor) -> Tensor:
        return self.measurement.log_likelihood(x0, self.variance)

    def kernel(self, z: Tensor, shift: Tensor, b: float, c: float) -> tuple[Tensor, Tensor]:
        e, half_log_det = self.measurement.operator.spread(z, self.known, self.measurement.noise.to(z), b, c)
        squares = sum_event((e + shift).square().double()) / (b + c**2 * self.known.double())
        return e, 0.5 * (sum_event(z.square().double()) - squares) + half_log_det


class FullUpdate(Update):
    """A covariance (D, D), for a linear operator. Rows with the same operator and noise share their factors.

    Args:
        measurement: the measurement.
        covariance: C, float64 of shape (1, D, D) or (B, D, D).
        x: states, with shape (B, \\*), for their shape.
    """

    def __init__(self, measurement: Measurement, covariance: Tensor, x: Tensor) -> None:
        self.measurement, self.shape = measurement, x.shape
        gram, noise, rows = measurement.gram(x)
        if len(covariance) > 1:  # a time for each sample
            gram, noise, rows = gram[rows], noise[rows], torch.arange(len(x), device=rows.device)
        self.rows, self.C = rows, covariance.to(gram)
        # Without noise the solution is that of a noise that rounding allows.
        var = torch.maximum(noise.square(), 1e-12 * self.C.diagonal(dim1=1, dim2=2).mean(1))[:, None, None]
        L = torch.linalg.cholesky(self.C)
        W = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device) + L.mT @ gram @ L / var
        R = torch.linalg.cholesky(W)
        self.var, self.half_log_det = var[:, 0, 0], R.diagonal(dim1=1, dim2=2).log().sum(1)
        self.root = torch.linalg.solve_triangular(R, L.mT.expand_as(R), upper=False)  # root^T root is the covariance
        self.inverse = torch.cholesky_inverse(L)

    def pulled(self, residual: Tensor) -> Tensor:
        change = self._times(self.root.mT @ self.root, self._information(residual))
        return self._shaped(self._times(self.inverse, change), residual)

    def change(self, residual: Tensor) -> Tensor:
        return self._shaped(self._times(self.root.mT @ self.root, self._information(residual)), residual)

    def log_likelihood(self, x0: Tensor) -> Tensor:
        residual, count = self.measurement.residual(x0), self.measurement.count.to(x0.device, torch.float64)
        explained = self._times(self.root, self._information(residual)).square().sum(1)
        square = sum_event(residual.double().square()) / self.var[self.rows] - explained
        log_det = count * (2.0 * math.pi * self.var[self.rows]).log() + 2.0 * self.half_log_det[self.rows]
        return -0.5 * (square + log_det)

    def kernel(self, z: Tensor, shift: Tensor, b: float, c: float) -> tuple[Tensor, Tensor]:
        eye = b * torch.eye(z[0].numel(), dtype=self.C.dtype, device=self.C.device)
        free = torch.linalg.cholesky(eye + c**2 * self.C)
        factor = torch.linalg.cholesky(eye + c**2 * (self.root.mT @ self.root))
        flat = z.flatten(1).double()
        e = self._times(factor, flat)
        white = torch.linalg.inv(free)
        squares = self._times(white.expand(len(factor), -1, -1), e + shift.flatten(1).double()).square().sum(1)
        log_det = (factor.diagonal(dim1=1, dim2=2) / free.diagonal(dim1=1, dim2=2)).log().sum(1)
        return self._shaped(e, z), 0.5 * (flat.square().sum(1) - squares) + log_det[self.rows]

    def _information(self, residual: Tensor) -> Tensor:
        """h = A^T r / sigma^2, float64 of shape (B, D)."""
        return self.measurement.operator.adjoint(residual).flatten(1).double() / self.var[self.rows][:, None]

    def _times(self, matrices: Tensor, x: Tensor) -> Tensor:
        """The product of each row's matrix with its vector (B, D)."""
        if len(matrices) == 1:
            return x @ matrices[0].mT
        each = len(x) // len(matrices)
        blocks = torch.arange(len(matrices), device=x.device).repeat_interleave(each)
        if torch.equal(blocks, self.rows):  # as particles are
            return torch.bmm(x.reshape(len(matrices), each, -1), matrices.mT).flatten(0, 1)
        return torch.bmm(matrices[self.rows], x[..., None])[..., 0]

    def _shaped(self, x: Tensor, reference: Tensor) -> Tensor:
        return x.reshape(-1, *self.shape[1:]).to(reference.dtype)
