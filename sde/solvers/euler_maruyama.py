r"""The Euler-Maruyama method, the simplest discretisation of an SDE.

Maruyama, Continuous Markov Processes and Stochastic Equations, 1955; Kloeden and Platen, Numerical Solution of
Stochastic Differential Equations, 1992, section 9.1; Song et al. 2021, https://arxiv.org/abs/2011.13456.
"""

from __future__ import annotations

__all__ = ["EulerMaruyama"]

from dataclasses import dataclass

from torch import Tensor

from ..dynamics import Semilinear
from .base import GridSteps, SDESolver, Step, affine_step, intervals


@dataclass(frozen=True)
class EulerMaruyama(SDESolver, GridSteps):
    r"""The Euler-Maruyama method for the reverse SDE; along the flow it is Euler's method.

    .. math:: x_s = x_t + \big(f(t) x_t + c(t)\, s(x_t, t)\big) (s - t) + \eta\, g(t) \sqrt{|s - t|}\, z

    Its strong and weak orders are 1, because the noise does not depend on the state.

    Args:
        steps: the number of steps.
        grid: the rule for their times.
    """

    needs = Semilinear

    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        t, _, h = intervals(times)
        a, b = 1.0 + dynamics.linear(t) * h, dynamics.score_coefficient(t) * h
        return affine_step(dynamics, times, a, b, dynamics.diffusion(t) * h.abs().sqrt())
