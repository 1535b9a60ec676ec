r"""Grids that minimise the error of the solver, relative to an accurate solution from the same initial state.

The error is the mean square of the difference of the final states, over samples and dimensions, as a function of the
gaps between the values of :math:`\lambda` on the grid. (Watson et al. 2022, https://arxiv.org/abs/2202.05830, tune
samplers by gradients of a sample quality; here the reference is the exact flow.) The gradient is computed one solver
step at a time, so that the activations of only one step are in memory.
"""

from __future__ import annotations

__all__ = ["Gradient"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..grids import Grid, Karras, LogSNR, Quadratic, Uniform
from ..shapes import float64
from .equal_error import EqualError
from .pilot import OutOfTime, Pilot, Tuning, within


@dataclass(frozen=True)
class Gradient(Tuning):
    """The error of the solver, minimised by L-BFGS from the best standard grids.

    Args:
        iterations: the largest number of iterations; each costs a little more than one pilot run and its gradient.
        starts: the number of standard grids to start from, the best ones first. After a quarter of the iterations only
            the best run continues.
        order: the order for the :class:`EqualError` grid, one of the standard grids.
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
        grids = self._standard_grids(pilot)
        descents = [_Descent(pilot, times, error) for times, error in grids[: self.starts]]
        if pilot.solver.steps == 1:
            return descents[0].best
        first = math.ceil(self.iterations / 4)
        share = first / (len(descents) * first + self.iterations - first)  # of one of the first runs in all iterations
        for k, descent in enumerate(descents):
            descent.run(first)
            pilot.progress((k + 1) * share)
        best = min(descents, key=lambda descent: descent.error)
        best.run(self.iterations - first, lambda done: pilot.progress(len(descents) * share * (1.0 - done) + done))
        return best.best

    def _standard_grids(self, pilot: Pilot) -> list[tuple[Tensor, float]]:
        """The standard grids and their errors, the best first."""
        process, steps = pilot.dynamics.process, pilot.solver.steps
        high, low = max(pilot.start, pilot.stop), min(pilot.start, pilot.stop)
        grids: list[Grid] = [pilot.solver.grid, LogSNR(), Karras(), Quadratic(), Uniform()]
        candidates = [grid.times(process, steps, high, low) for grid in dict.fromkeys(grids)]
        errors = list[float]()
        try:
            with torch.no_grad():
                errors += [pilot.run(candidates[0]).item()]
                candidates.append(EqualError(self.order, max(100, 4 * self.order)).times(pilot))
                for times in candidates[1:]:
                    errors.append(pilot.run(times).item())
        except OutOfTime:
            if not errors:
                return [(candidates[0], math.inf)]
        finite = sorted((error, i) for i, error in enumerate(errors) if math.isfinite(error))
        if not finite:
            raise FloatingPointError("no standard grid gives finite results: check the denoiser or use more steps")
        return [(candidates[i], error) for error, i in finite]


class _Descent:
    """L-BFGS on the gaps in lambda from one grid; `best` is the best grid so far and `error` its error."""

    def __init__(self, pilot: Pilot, times: Tensor, error: float) -> None:
        self.pilot, self.best, self.error = pilot, times, error
        process = pilot.dynamics.process
        self.high, self.low = times[0].item(), times[-1].item()
        self.ends = 0.5 * process.log_snr(times[[0, -1]])
        gaps = (0.5 * process.log_snr(times)).diff()
        # The gaps are e^g with g in (-8, 8), so that no trial of the line search makes two times equal.
        g = (gaps / gaps.mean()).log().clamp(-7.9, 7.9)
        self.parameter = (8.0 * torch.atanh(g / 8.0)).requires_grad_()
        self.optimiser = torch.optim.LBFGS(
            [self.parameter],
            max_iter=4,
            history_size=20,
            line_search_fn="strong_wolfe",
            tolerance_grad=0,
            tolerance_change=0,
        )

    def run(self, iterations: int, report: Callable[[float], object] = lambda done: None) -> None:
        """Runs until the iterations or the time are used up, or the error falls by less than 0.1 % in 12 iterations."""
        stalled, rounds = 0, math.ceil(iterations / 4)
        for k in range(rounds):
            previous = self.error
            try:
                with torch.enable_grad():
                    self.optimiser.step(self._objective)
            except OutOfTime:
                break
            report((k + 1) / rounds)
            stalled = stalled + 1 if self.error > previous * (1.0 - 1e-3) else 0
            if stalled == 3:
                break

    def _objective(self) -> Tensor:
        """The log of the error, whose curvature stays large when the error becomes small; sets the gradient."""
        gaps = (8.0 * (self.parameter / 8.0).tanh()).softmax(0)
        inner = self.ends[0] + (self.ends[1] - self.ends[0]) * gaps.cumsum(0)[:-1]
        process = self.pilot.dynamics.process
        times = within(torch.cat([self.ends[:1], process.time(2.0 * inner), self.ends[1:]]), self.high, self.low)
        error = self.pilot.run(times)
        if not error.requires_grad:
            raise ValueError(
                f"{type(self.pilot.solver).__name__} is not differentiable in its times: use tuning=EqualError()"
            )
        if not bool(error.isfinite()):
            self.parameter.grad = torch.zeros_like(self.parameter)
            # Above any log-error, so the line search takes a shorter step.
            return float64(1e3)
        if error.item() < self.error:
            self.best, self.error = times.detach(), error.item()
        objective = error.log()
        (self.parameter.grad,) = torch.autograd.grad(objective, self.parameter)
        return objective.detach()
