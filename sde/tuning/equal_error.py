r"""Grids of equal local error (de Boor 1973, Good approximation by splines with variable knots).

Let :math:`\lambda` be half the log-SNR and :math:`\kappa = e^{-\lambda}`. In a step of size h, a method of order p
that interpolates the noise makes an error of about :math:`\kappa\, \lVert \partial_\lambda^p \varepsilon \rVert
h^{p+1}` in x / alpha. Until `t_min` the flow shrinks this error; for Gaussian data of standard deviation s, by the
factor :math:`s / \sqrt{s^2 + \kappa^2}`. The errors of all steps are equal for steps with the density

.. math:: \rho(\lambda) \propto \Big(\frac{\kappa}{\sqrt{s^2 + \kappa^2}}\,
    \lVert \partial_\lambda^p \varepsilon \rVert\Big)^{1/(p+1)}.

The derivative is estimated by finite differences along a run with many steps, and s is the standard deviation of the
pilot samples at `t_min`.
"""

from __future__ import annotations

__all__ = ["EqualError"]

from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers import Prediction
from ..grids import LogSNR
from ..solvers import DEIS
from .pilot import Pilot, Tuning, within


@dataclass(frozen=True)
class EqualError(Tuning):
    """Equal local errors, without gradients, for the calls of one fine run.

    Args:
        order: the order p of the solver.
        points: the number of steps of the fine run.
    """

    order: int = 3
    points: int = 200

    def __post_init__(self) -> None:
        if self.order < 1 or self.points < 4 * self.order:
            raise ValueError(
                f"EqualError needs order >= 1 and points >= 4 * order, got order={self.order}, points={self.points}"
            )

    def times(self, pilot: Pilot) -> Tensor:
        process = pilot.dynamics.process
        high, low = max(pilot.start, pilot.stop), min(pilot.start, pilot.stop)
        fine = LogSNR().times(process, self.points, high, low)
        points = fine if pilot.start > pilot.stop else fine.flip(0)
        step = DEIS(self.points, order=3).method(pilot.dynamics, points)
        state, memory, predictions = pilot.begin, None, []
        with torch.no_grad():
            for k in range(self.points):
                pilot.check_time()
                noise = pilot.dynamics.predict(Prediction.NOISE, state, points[k])[0]
                predictions.append(noise.flatten().double())
                state, memory = step(k, state, memory, None)
        predictions = predictions if pilot.start > pilot.stop else predictions[::-1]
        # A difference of order p belongs to the mean of the p + 1 times that it uses.
        size = torch.stack(predictions).diff(n=self.order, dim=0).square().mean(1).sqrt().cpu()
        if not bool(size.isfinite().all()):
            raise FloatingPointError("the pilot run gave values that are not finite: check the denoiser")
        half_log_snr = 0.5 * process.log_snr(fine)
        middle = half_log_snr[: len(predictions)].unfold(0, self.order + 1, 1).mean(1)
        kappa = (-middle).exp()
        clean = state if pilot.start > pilot.stop else pilot.begin
        data_std = float(clean[0].double().std() / process.alpha(fine[-1]))
        density = (kappa / (data_std**2 + kappa.square()).sqrt() * size) ** (1.0 / (self.order + 1))
        # The minimum prevents very long steps where the pilot samples happen to have small derivatives.
        density = density.clamp(min=0.02 * float(density.max()))
        nodes = torch.cat([half_log_snr[:1], middle, half_log_snr[-1:]])
        density = torch.cat([density[:1], density, density[-1:]])
        return within(process.time(2.0 * equal_mass(nodes, density, pilot.solver.steps)), high, low)


def equal_mass(nodes: Tensor, density: Tensor, steps: int) -> Tensor:
    """The N + 1 places, ends included, between which a density on increasing nodes has equal masses."""
    mass = torch.cat([nodes.new_zeros(1), torch.cumulative_trapezoid(density, nodes)])
    quantiles = torch.linspace(0.0, float(mass[-1]), steps + 1, dtype=torch.float64, device="cpu")
    return interpolate(quantiles, mass, nodes)


def interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """The piecewise linear interpolant of (xs, ys) at x, for increasing xs."""
    right = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
    left = right - 1
    return ys[left] + (x - xs[left]) / (xs[right] - xs[left]) * (ys[right] - ys[left])
