r"""Euler's method for the probability flow."""

from __future__ import annotations

__all__ = ["Euler"]

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..dynamics import Dynamics, State
from ..noise import StepNoise
from .base import GridSteps, Step, combine, on_grid, scalars


@dataclass(frozen=True)
class Euler(GridSteps):
    r"""Euler's method, of order 1 with one call per step.

    .. math:: x_s = x_t + (s - t)\, \tilde f(x_t, t)

    Args:
        steps: the number of steps.
        grid: the rule for their times.
    """

    eta: ClassVar[float] = 0.0

    def refusal(self, dynamics: Any) -> str | None:
        return no_noise(dynamics)

    def method(self, dynamics: Dynamics, times: Tensor) -> Step:
        t, _, h = on_grid(times)
        points, steps = t.unbind(), scalars(h)

        def step(k: int, x: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
            return combine((1.0, x), (steps[k], dynamics.drift(x, points[k]))), None

        return step


def no_noise(dynamics: Dynamics) -> str | None:
    """The refusal of a method for ordinary differential equations."""
    if dynamics.stochastic:
        return "it solves ordinary differential equations, and this dynamics has noise; use the flow, eta=0"
    return None
