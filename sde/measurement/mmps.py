r"""MMPS: moment matching, with the covariance of the data given the state that Tweedie's formula gives.

Rozet et al., Learning Diffusion Priors from Observations by Expectation Maximization, 2024,
https://arxiv.org/abs/2405.13712; Boys et al., Tweedie Moment Projected Diffusions for Inverse Problems, 2023,
https://arxiv.org/abs/2310.06721.
"""

from __future__ import annotations

__all__ = ["MMPS"]

from collections.abc import Callable

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..shapes import check_count, sum_event
from .measurement import Measurement
from .operator import rowwise
from .posterior import PosteriorDenoiser, Pull
from .variance import Variance


class MMPS(PosteriorDenoiser):
    r"""Guidance by :math:`p(y \mid x_t) \approx \mathcal N(y; A\, E[x_0|x_t], A V A^T + \sigma^2 I)` with the
    covariance :math:`V = (\sigma_t^2/\alpha_t) J^T` of :math:`x_0` given :math:`x_t`.

    .. math:: E[x_0|x_t,y] \approx d + V A^T (A V A^T + \sigma^2 I)^{-1} (y - A d), \qquad d = E[x_0|x_t]

    solved by conjugate gradients, one vector-Jacobian product for each iteration and one more. V is taken to be
    constant in the gradient, which is exact for normal data; with `covariance_gradient` it is not: the gradient of the
    whole logarithm, determinant included, by M products, a Cholesky decomposition and twice as many products again.

    Bias: the weights of modes are wrong where the noise is small, whatever the number of iterations, while the draws
    fit y; the gradient through the covariance halves this.

    Args:
        inner, measurement, variance: as in :class:`PosteriorDenoiser`; the variance serves particles alone.
        iterations: the iterations of conjugate gradients; as many as y has entries solve it exactly, fewer are usual.
        covariance_gradient: take the gradient through the covariance, for measurements of a few dozen entries.
    """

    def __init__(
        self,
        inner: Denoiser,
        measurement: Measurement,
        variance: Variance | None = None,
        *,
        iterations: int = 3,
        covariance_gradient: bool = False,
    ) -> None:
        check_count("MMPS", "iterations", iterations)
        self._products = 3 * measurement.y[0].numel() + 1 if covariance_gradient else iterations + 1
        super().__init__(inner, measurement, variance)
        self.iterations, self.covariance_gradient = iterations, covariance_gradient

    def products(self) -> int:
        return self._products

    def change(self, x0: Tensor, pull: Pull, t: Tensor) -> Tensor:
        measurement, scale = self.measurement, self._covariance_scale(x0, t)
        operator, residual = measurement.operator, measurement.residual(x0)
        var = rowwise(measurement.noise, residual).square()
        w, search, rest = torch.zeros_like(residual), residual, residual
        square, tiny = sum_event(rest.square()), torch.finfo(x0.dtype).tiny
        for _ in range(self.iterations):
            product = operator(scale * pull(operator.adjoint(search))) + var * search
            curvature = sum_event(search * product)
            # V of a network need not be positive: an iteration that would go downhill stands still.
            step = torch.where(curvature > tiny, square / curvature.clamp(min=tiny), 0.0)
            w, rest = w + rowwise(step, w) * search, rest - rowwise(step, w) * product
            new = sum_event(rest.square())
            search = rest + rowwise(torch.where(square > tiny, new / square.clamp(min=tiny), 0.0), w) * search
            square = new
        return scale * pull(operator.adjoint(w))

    def _evaluate(
        self, network: Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]], x_t: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        if not self.covariance_gradient:
            return super()._evaluate(network, x_t, t)
        measurement, scale = self.measurement, self._covariance_scale(x_t, t)
        measurement.check(x_t)
        operator, y = measurement.operator, measurement.y
        rows = operator.measured(y)
        seen = torch.ones_like(y, dtype=torch.bool) if rows is None else rows.expand_as(y)
        seen = seen.to(x_t.device).expand(len(x_t), *y.shape[1:]).flatten(1)
        units = torch.eye(seen.shape[1], dtype=x_t.dtype, device=x_t.device).reshape(-1, 1, *y.shape[1:])

        def log_likelihood(x: Tensor) -> tuple[Tensor, tuple[Tensor, tuple[Tensor, ...]]]:
            x0, pull, others = torch.func.vjp(network, x, has_aux=True)  # type: ignore[misc]
            rows = [operator(scale * pull(operator.adjoint(e.expand(len(x), *y.shape[1:])))[0]) for e in units]
            covariance = torch.stack([row.flatten(1) for row in rows], 1)
            # Entries that are not measured have variance 1 and no residual.
            diagonal = torch.where(seen, rowwise(measurement.noise, seen.to(x0)).square(), 1.0)
            covariance = 0.5 * (covariance + covariance.mT) + torch.diag_embed(diagonal)
            root = torch.linalg.cholesky(covariance)
            residual = measurement.residual(x0).flatten(1)[..., None]
            white = torch.linalg.solve_triangular(root, residual, upper=False)
            log_det = root.diagonal(dim1=1, dim2=2).log().sum()
            return -0.5 * white.square().sum() - log_det, (x0, others)

        gradient, (x0, others) = torch.func.grad(log_likelihood, has_aux=True)(x_t)
        return scale * gradient, x0, others
