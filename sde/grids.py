r"""Time grids: the times at which a fixed-step solver evaluates, independent of the times used in training.

A grid maps a process, a number of steps and two end points to times :math:`t_0 > t_1 > \dots > t_N` in float64, with
exactly these end points. Encoding uses the same times in reverse order.
"""

from __future__ import annotations

__all__ = ["Grid", "Uniform", "Quadratic", "LogSNR", "Karras", "Explicit"]

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .processes import SDE
from .shapes import float64


class Grid(ABC):
    """A rule for the times of a fixed-step solver."""

    @abstractmethod
    def decreasing(self, process: SDE, steps: int, high: float, low: float) -> Tensor:
        """The `steps + 1` times from `high` down to `low`, float64; :meth:`times` sets the end points exactly."""

    def times(self, process: SDE, steps: int, start: float, stop: float) -> Tensor:
        """The `steps + 1` times from `start` to `stop`, increasing or decreasing, float64, with exact end points."""
        if steps < 1:
            raise ValueError(f"a grid needs steps >= 1, got steps={steps}")
        high, low = max(start, stop), min(start, stop)
        times = self.decreasing(process, steps, high, low).clone()
        times[0], times[-1] = high, low
        if not bool((times.diff() < 0).all()):
            raise ValueError(f"{self} does not give decreasing times from {high} to {low} in {steps} steps")
        return times if start > stop else times.flip(0)

    def doubled(self) -> Grid:
        """The rule for twice as many steps."""
        return self


@dataclass(frozen=True)
class Uniform(Grid):
    """Times that are evenly spaced."""

    def decreasing(self, process: SDE, steps: int, high: float, low: float) -> Tensor:
        return torch.linspace(high, low, steps + 1, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Quadratic(Grid):
    r"""Times whose square roots are evenly spaced (Song et al. 2021, DDIM, section D.2)."""

    def decreasing(self, process: SDE, steps: int, high: float, low: float) -> Tensor:
        return torch.linspace(math.sqrt(high), math.sqrt(low), steps + 1, dtype=torch.float64, device="cpu").square()


@dataclass(frozen=True)
class LogSNR(Grid):
    r"""Times evenly spaced in the log signal-to-noise ratio :math:`\lambda_t` (Lu et al. 2022, DPM-Solver)."""

    def decreasing(self, process: SDE, steps: int, high: float, low: float) -> Tensor:
        ends = process.log_snr(_end_points(process, high, low))
        return process.time(torch.linspace(ends[0], ends[1], steps + 1, dtype=torch.float64, device="cpu"))


@dataclass(frozen=True)
class Karras(Grid):
    r"""Times evenly spaced in a root of :math:`\tilde\sigma = \sigma_t/\alpha_t` (Karras et al. 2022, equation 5).

    .. math::
        \tilde\sigma_i = \Big(\tilde\sigma_0^{1/\rho}
            + \tfrac{i}{N} (\tilde\sigma_N^{1/\rho} - \tilde\sigma_0^{1/\rho})\Big)^\rho

    Args:
        rho: the order of the root. The paper uses 7; larger values place more steps near `t_min`.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        if not self.rho > 0.0:
            raise ValueError(f"Karras needs rho > 0, got rho={self.rho}")

    def decreasing(self, process: SDE, steps: int, high: float, low: float) -> Tensor:
        roots = (process.log_snr(_end_points(process, high, low)) / (-2.0 * self.rho)).exp()
        roots = torch.linspace(roots[0], roots[1], steps + 1, dtype=torch.float64, device="cpu")
        return process.time(-2.0 * self.rho * roots.log())


@dataclass(frozen=True)
class Explicit(Grid):
    """Times that the user chooses.

    Args:
        points: decreasing times; the first one and the last one must be the end points of the solver.
    """

    points: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", tuple(float(p) for p in self.points))
        if len(self.points) < 2 or any(not a > b for a, b in zip(self.points, self.points[1:])):
            raise ValueError(f"Explicit: expected at least two strictly decreasing times, got points={self.points}")

    def decreasing(self, process: SDE, steps: int, high: float, low: float) -> Tensor:
        if steps != len(self.points) - 1:
            raise ValueError(f"this explicit grid has {len(self.points) - 1} steps, but the solver has steps={steps}")
        if not (math.isclose(self.points[0], high, rel_tol=1e-6) and math.isclose(self.points[-1], low, rel_tol=1e-6)):
            raise ValueError(
                f"this explicit grid runs between {self.points[0]} and {self.points[-1]}, "
                f"but the solver runs between {high} and {low}"
            )
        return float64(self.points)

    def doubled(self) -> Explicit:
        middles = [0.5 * (a + b) for a, b in zip(self.points, self.points[1:])]
        return Explicit([p for pair in zip(self.points, middles) for p in pair] + [self.points[-1]])


def _end_points(process: SDE, high: float, low: float) -> Tensor:
    ends = float64([high, low])
    if not bool(process.var(ends)[1] > 0.0):
        raise ValueError(f"a grid in log-SNR cannot reach t={low}, where var(t) is 0; use a larger t_min")
    return ends
