r"""Grids that minimise the error of the solver itself, against a fine solve from the same start.

The error is the mean square over samples and dimensions of the difference at the end, as a function of the gaps between
the :math:`\lambda` of the grid. (Watson et al. 2022, https://arxiv.org/abs/2202.05830, tune samplers by gradients of a
sample quality; here the target is the exact flow.) The gradient goes through the solver and the network one step at a
time, so that no more than one step's activations are held.
"""

from __future__ import annotations

__all__ = ["Gradient"]

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..grids import Grid, Karras, LogSNR, Quadratic, Uniform
from .equal_error import EqualError
from .pilot import Pilot, Tuning, within


@dataclass(frozen=True)
class Gradient(Tuning):
    """The error against a fine solve, minimised by L-BFGS from the best of the usual grids.

    Args:
        iterations: how many iterations at most; each costs a little more than one run of the pilot and its gradient.
        starts: from how many of the usual grids, the best first; after a quarter of the iterations the best goes on.
        order: the order for the :class:`EqualError` grid, which is among the usual ones.
    """

    iterations: int = 80
    starts: int = 3
    order: int = 3

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.starts < 1:
            raise ValueError(
                "Gradient needs iterations >= 1 and starts >= 1, "
                f"got iterations={self.iterations}, starts={self.starts}"
            )

    def times(self, pilot: Pilot) -> Tensor:
        descents = [_Descent(pilot, times, error) for times, error in self._usual(pilot)[: self.starts]]
        if pilot.solver.steps == 1:
            return descents[0].best
        for descent in descents:
            descent.run(math.ceil(self.iterations / 4))
        last = min(descents, key=lambda descent: descent.least)
        last.run(self.iterations - math.ceil(self.iterations / 4))
        return last.best

    def _usual(self, pilot: Pilot) -> list[tuple[Tensor, float]]:
        """The usual grids and their errors, the best first."""
        process, steps = pilot.dynamics.process, pilot.solver.steps
        high, low = max(pilot.start, pilot.stop), min(pilot.start, pilot.stop)
        grids: list[Grid] = [pilot.solver.grid, LogSNR(), Karras(), Quadratic(), Uniform()]
        candidates = [grid.times(process, steps, high, low) for grid in dict.fromkeys(grids)]
        candidates.append(EqualError(self.order, max(100, 4 * self.order)).times(pilot))
        with torch.no_grad():
            errors = [pilot.run(times).item() for times in candidates]
        finite = sorted((error, i) for i, error in enumerate(errors) if math.isfinite(error))
        if not finite:
            raise FloatingPointError("no usual grid gives finite results: check the denoiser, or take more steps")
        return [(candidates[i], error) for error, i in finite]


class _Descent:
    """L-BFGS on the gaps in lambda from one grid; `best` is the best grid so far and `least` its error."""

    def __init__(self, pilot: Pilot, times: Tensor, error: float) -> None:
        self.pilot, self.best, self.least = pilot, times, error
        process = pilot.dynamics.process
        self.high, self.low = times[0].item(), times[-1].item()
        self.ends = 0.5 * process.log_snr(times[[0, -1]])
        gaps = (0.5 * process.log_snr(times)).diff()
        # The gaps are e^g with g between -8 and 8, so that no trial of the line search makes two times one.
        first = (gaps / gaps.mean()).log().clamp(-7.9, 7.9)
        self.free = (8.0 * torch.atanh(first / 8.0)).requires_grad_()
        self.optimiser = torch.optim.LBFGS(
            [self.free],
            max_iter=4,
            history_size=20,
            line_search_fn="strong_wolfe",
            tolerance_grad=0,
            tolerance_change=0,
        )

    def run(self, iterations: int) -> None:
        """Goes on until the iterations or the time are used up, or three times four of them gained next to nothing."""
        stalled = 0
        for _ in range(math.ceil(iterations / 4)):
            before = self.least
            with torch.enable_grad():
                self.optimiser.step(self._objective)
            stalled = stalled + 1 if self.least > before * (1.0 - 1e-3) else 0
            if time.monotonic() > self.pilot.deadline or stalled == 3:
                break

    def _objective(self) -> Tensor:
        """The log of the error, whose curvature does not vanish as the error falls by orders, with its gradient."""
        gaps = (8.0 * (self.free / 8.0).tanh()).softmax(0)
        inner = self.ends[0] + (self.ends[1] - self.ends[0]) * gaps.cumsum(0)[:-1]
        process = self.pilot.dynamics.process
        times = within(torch.cat([self.ends[:1], process.time(2.0 * inner), self.ends[1:]]), self.high, self.low)
        error = self.pilot.run(times)
        if not error.requires_grad:
            raise ValueError(
                f"the steps of {type(self.pilot.solver).__name__} carry no gradient to their times: use EqualError()"
            )
        if not bool(error.isfinite()):
            self.free.grad = torch.zeros_like(self.free)
            return torch.tensor(1e3, dtype=torch.float64)  # far above any error: the line search turns back
        if error.item() < self.least:
            self.best, self.least = times.detach(), error.item()
        objective = error.log()
        (self.free.grad,) = torch.autograd.grad(objective, self.free)
        return objective.detach()
