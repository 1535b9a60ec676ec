r"""Euler-Maruyama, the simplest discretisation of an SDE.

Maruyama, Continuous Markov Processes and Stochastic Equations, 1955; Kloeden and Platen, Numerical Solution of
Stochastic Differential Equations, 1992, section 9.1; Song et al. 2021, https://arxiv.org/abs/2011.13456.
"""

from __future__ import annotations

__all__ = ["EulerMaruyama"]

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..denoisers import Prediction
from ..dynamics import Dynamics, Semilinear, State
from ..noise import StepNoise, Stream
from .base import GridSteps, Step, drawn, on_grid


@dataclass(frozen=True)
class EulerMaruyama(GridSteps):
    r"""Euler-Maruyama for the reverse SDE; along the flow it is Euler's method.

    .. math:: x_s = x_t + \big(f(t) x_t + c(t)\, s(x_t, t)\big) (s - t) + \eta\, g(t) \sqrt{|s - t|}\, z

    Of strong and weak order 1, because the noise does not depend on the state.

    Args:
        steps: the number of steps.
        grid: the rule for their times.
    """

    needs: ClassVar[type] = Semilinear
    eta: ClassVar[float] = 1.0

    def refusal(self, dynamics: Any) -> str | None:
        return one_entry(dynamics)

    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        t, s, h = on_grid(times)
        a = (1.0 + dynamics.linear(t) * h).tolist()
        b = (dynamics.score_coefficient(t) * h).tolist()
        c = (dynamics.diffusion(t) * h.abs().sqrt()).tolist()
        return affine_step(dynamics, t, s, a, b, c)


def affine_step(dynamics: Semilinear, t: Tensor, s: Tensor, a: list[float], b: list[float], c: list[float]) -> Step:
    """The step :math:`x_s = a x_t + b\\, s(x_t, t) + c z`, the form of every one-step sampler for an SDE."""
    befores, before, after = t.unbind(), t.tolist(), s.tolist()

    def step(k: int, state: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
        x = a[k] * state[0]
        x = x.add_(dynamics.predict(Prediction.SCORE, state, befores[k])[0], alpha=b[k])
        if c[k]:
            x = x.add_(drawn(noise).normal(Stream.STEP, k, before[k], after[k]), alpha=c[k])
        return (x,), None

    return step


def one_entry(dynamics: Dynamics) -> str | None:
    """The refusal of a sampler that moves x alone."""
    if len(dynamics.tolerances) == 1:
        return None
    return "it moves x alone, and this state carries the log-density too; use an ODE solver for likelihoods"
