r"""Heun's method for the probability flow.

Heun, Neue Methoden zur approximativen Integration der Differentialgleichungen einer unabhängigen Veränderlichen,
1900; Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 1 without its churn.
"""

from __future__ import annotations

__all__ = ["Heun"]

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..dynamics import Dynamics, State
from ..noise import StepNoise
from .base import GridSteps, Step, combine, on_grid
from .euler import no_noise


@dataclass(frozen=True)
class Heun(GridSteps):
    r"""Heun's method, of order 2 with two calls per step.

    .. math::
        \hat x_s = x_t + (s - t)\, \tilde f(x_t, t), \qquad
        x_s = x_t + \tfrac12 (s - t) \big(\tilde f(x_t, t) + \tilde f(\hat x_s, s)\big)

    Args:
        steps: the number of steps.
        grid: the rule for their times.
    """

    eta: ClassVar[float] = 0.0

    def refusal(self, dynamics: Any) -> str | None:
        return no_noise(dynamics)

    def method(self, dynamics: Dynamics, times: Tensor) -> Step:
        points, steps = times.unbind(), on_grid(times)[2].tolist()

        def step(k: int, x: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
            h = steps[k]
            first = dynamics.drift(x, points[k])
            second = dynamics.drift(combine((1.0, x), (h, first)), points[k + 1])
            return combine((1.0, x), (0.5 * h, first), (0.5 * h, second)), None

        return step
