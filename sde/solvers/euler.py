r"""Euler's method for the probability flow."""

from __future__ import annotations

__all__ = ["Euler"]

from dataclasses import dataclass

from torch import Tensor

from ..dynamics import Dynamics, State
from ..noise import StepNoise
from .base import GridSteps, Step, intervals, linear_combination, scalars


@dataclass(frozen=True)
class Euler(GridSteps):
    r"""Euler's method, of order 1 with one call per step.

    .. math:: x_s = x_t + (s - t)\, \tilde f(x_t, t)

    Args:
        steps: the number of steps.
        grid: the rule for their times.
    """

    def method(self, dynamics: Dynamics, times: Tensor) -> Step:
        t, _, h = intervals(times)
        points, steps = t.unbind(), scalars(h)

        def step(k: int, x: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
            return linear_combination((1.0, x), (steps[k], dynamics.drift(x, points[k]))), None

        return step
