r"""A stochastic Runge-Kutta method of strong order 1.5 and weak order 2 for noise that does not depend on the state.

Rößler, Runge-Kutta Methods for the Strong Approximation of Solutions of Stochastic Differential Equations, 2010,
https://doi.org/10.1137/09076636X, the scheme SRA1 of section 6.
"""

from __future__ import annotations

__all__ = ["StochasticRungeKutta"]

import math
from dataclasses import dataclass

from torch import Tensor

from ..dynamics import Dynamics, State
from ..noise import StepNoise, Stream
from .base import GridSteps, SDESolver, Step, intervals, linear_combination, step_normals


@dataclass(frozen=True)
class StochasticRungeKutta(SDESolver, GridSteps):
    r"""Rößler's SRA1, with two calls per step.

    With the step h = s - t, the increment :math:`\Delta W = \int dW` of the step and
    :math:`\Delta Z = \frac{1}{|h|} \int (W_u - W_t)\, du`, the mean of the path over it,

    .. math::
        \hat x &= x_t + \tfrac34 h\, \tilde f(x_t, t) + \tfrac32\, g(s)\, \Delta Z, \\
        x_s &= x_t + h \Big(\tfrac13 \tilde f(x_t, t) + \tfrac23 \tilde f(\hat x, t + \tfrac34 h)\Big)
            + g(s) (\Delta W - \Delta Z) + g(t) \Delta Z,

    g being the dynamics' diffusion. It draws two normals for each step, the increment and the space-time Levy area
    H of :mod:`sde.brownian`, with :math:`\Delta Z = \frac12 \Delta W + H`. Along the flow it is Ralston's method.

    Args:
        steps: the number of steps.
        grid: the rule for their times.
    """

    def method(self, dynamics: Dynamics, times: Tensor) -> Step:
        t, s, h = intervals(times)
        points, between = t.unbind(), (t + 0.75 * h).unbind()
        steps, root, normals = h.tolist(), h.abs().sqrt(), step_normals(times)
        g_t, g_s = (dynamics.diffusion(t) * root).tolist(), (dynamics.diffusion(s) * root).tolist()

        def step(k: int, x: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
            h = steps[k]
            first = dynamics.drift(x, points[k])
            middle = linear_combination((1.0, x), (0.75 * h, first))
            end = linear_combination((1.0, x), (h / 3.0, first))
            if dynamics.stochastic:
                increment = normals(noise, k)
                mean = 0.5 * increment + normals(noise, k, Stream.AREA) / math.sqrt(12.0)
                middle = (middle[0] + 1.5 * g_s[k] * mean,)
                end = (end[0] + g_s[k] * (increment - mean) + g_t[k] * mean,)
            second = dynamics.drift(middle, between[k])
            return linear_combination((1.0, end), (2.0 * h / 3.0, second)), None

        return step
