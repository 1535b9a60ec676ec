r"""Grids of equal local error (de Boor 1973, Good approximation by splines with variable knots).

With :math:`\lambda` half the log-SNR and :math:`\kappa = e^{-\lambda}`, a method of order p that interpolates the
noise makes in a step of size h an error of about :math:`\kappa\, \lVert \partial_\lambda^p \varepsilon \rVert
h^{p+1}` in x / alpha. On its way to the data the flow shrinks it: that of Gaussian data of standard deviation s by
:math:`s / \sqrt{s^2 + \kappa^2}`. So the steps should have the density

.. math:: \rho(\lambda) \propto \Big(\frac{\kappa}{\sqrt{s^2 + \kappa^2}}\,
    \lVert \partial_\lambda^p \varepsilon \rVert\Big)^{1/(p+1)}.

The derivative is taken by differences along a fine run, and s is the spread of the pilot at the data end.
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
    """Equal local errors. It needs no gradients and the calls of one fine run.

    Args:
        order: p, the order of the solver.
        points: the steps of the fine run.
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
        state, memory, readings = pilot.begin, None, []
        with torch.no_grad():
            for k in range(self.points):
                readings.append(pilot.dynamics.predict(Prediction.NOISE, state, points[k])[0].flatten().double())
                state, memory = step(k, state, memory, None)
        readings = readings if pilot.start > pilot.stop else readings[::-1]
        # Once differenced p times, the readings stand at the middles of p + 1 neighbours.
        size = torch.stack(readings).diff(n=self.order, dim=0).square().mean(1).sqrt()
        if not bool(size.isfinite().all()):
            raise FloatingPointError("the pilot run meets values that are not finite: check the denoiser")
        half_log_snr = 0.5 * process.log_snr(fine)
        middle = half_log_snr[: len(readings)].unfold(0, self.order + 1, 1).mean(1)
        kappa = (-middle).exp()
        clean = state if pilot.start > pilot.stop else pilot.begin
        spread = float(clean[0].double().std() / process.alpha(fine[-1]))
        density = (kappa / (spread**2 + kappa.square()).sqrt() * size) ** (1.0 / (self.order + 1))
        # A floor keeps stretches in which nothing happens to this pilot from being skipped.
        density = density.clamp(min=0.02 * float(density.max()))
        at = torch.cat([half_log_snr[:1], middle, half_log_snr[-1:]])
        height = torch.cat([density[:1], density, density[-1:]])
        mass = torch.cat([at.new_zeros(1), (0.5 * (height[1:] + height[:-1]) * at.diff()).cumsum(0)])
        wanted = torch.linspace(0.0, float(mass[-1]), pilot.solver.steps + 1, dtype=torch.float64)
        return within(process.time(2.0 * _interpolate(wanted, mass, at)), high, low)


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """The piecewise linear function through (xs, ys), with xs increasing, at x."""
    right = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
    left = right - 1
    return ys[left] + (x - xs[left]) / (xs[right] - xs[left]) * (ys[right] - ys[left])
