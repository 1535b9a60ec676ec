r"""Heun's method for the probability flow, and EDM's stochastic sampler, which adds noise before each step.

Heun, Neue Methoden zur approximativen Integration der Differentialgleichungen einer unabhängigen Veränderlichen,
1900; Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithms 1 and 2.
"""

from __future__ import annotations

__all__ = ["Heun"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..dynamics import Dynamics, State
from ..noise import StepNoise, Stream
from ..processes import SDE
from .base import GridSteps, Step, intervals, linear_combination, require_noise, scalars


@dataclass(frozen=True)
class Heun(GridSteps):
    r"""Heun's method, of order 2 with two calls per step.

    .. math::
        \hat x_s = x_t + (s - t)\, \tilde f(x_t, t), \qquad
        x_s = x_t + \tfrac12 (s - t) \big(\tilde f(x_t, t) + \tilde f(\hat x_s, s)\big)

    With churn, a step from t first adds noise by the transition kernel of the process. It moves back to the time
    u > t whose noise level :math:`\tilde\sigma = \sigma/\alpha` is :math:`(1 + \gamma)\, \tilde\sigma_t`,

    .. math::
        x_u = \alpha_{u|t}\, x_t + S_{\mathrm{noise}}\, \sigma_{u|t}\, z, \qquad
        \gamma = \min\big(S_{\mathrm{churn}}/N, \sqrt2 - 1\big) \;\text{where}\;
        S_{\min} \le \tilde\sigma_t \le S_{\max},

    algorithm 2 of Karras et al. for any process. u is at most `t_max`, beyond which no network has been trained, so
    that there is no churn at `t_max` itself. Churn draws from the stream of the correctors, which does not belong to a
    Brownian path, and needs the flow (eta=0).

    Args:
        steps: the number of steps.
        grid: the rule for their times.
        churn: :math:`S_{\mathrm{churn}}`; 0 is the deterministic method.
        churn_min: :math:`S_{\min}`, in units of :math:`\sigma/\alpha`.
        churn_max: :math:`S_{\max}`, in units of :math:`\sigma/\alpha`.
        churn_noise: :math:`S_{\mathrm{noise}}`; 1 keeps the marginals; the paper's slightly larger values compensate
            for denoisers that remove too much.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.churn < math.inf:
            raise ValueError(f"Heun needs churn >= 0, got churn={self.churn}")
        if not 0.0 <= self.churn_min <= self.churn_max:
            raise ValueError(
                f"Heun needs 0 <= churn_min <= churn_max, got churn_min={self.churn_min}, churn_max={self.churn_max}"
            )
        if not 0.0 <= self.churn_noise < math.inf:
            raise ValueError(f"Heun needs churn_noise >= 0, got churn_noise={self.churn_noise}")

    @property
    def draws(self) -> bool:
        return self.churn > 0.0

    def method(self, dynamics: Dynamics, times: Tensor) -> Step:
        t, s, _ = intervals(times)
        higher, scale, std = self._churned(dynamics.process, t)
        points, ends, steps = higher.unbind(), s.unbind(), scalars(s - higher)
        before, after = t.tolist(), higher.tolist()

        def step(k: int, x: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
            if after[k] > before[k]:
                z = require_noise(noise).normal(Stream.CORRECTOR, k, before[k], after[k])
                x = (scale[k] * x[0] + std[k] * z,)
            h = steps[k]
            first = dynamics.drift(x, points[k])
            second = dynamics.drift(linear_combination((1.0, x), (h, first)), ends[k])
            return linear_combination((1.0, x), (0.5 * h, first), (0.5 * h, second)), None

        return step

    def _churned(self, process: SDE, t: Tensor) -> tuple[Tensor, list[float], list[float]]:
        """The times after churn, and the scale and the standard deviation of the kernels that lead there."""
        if not self.draws:
            return t, [], []
        log_snr = process.log_snr(t)
        level = (-0.5 * log_snr).exp()
        gamma = min(self.churn / len(t), math.sqrt(2.0) - 1.0)
        higher = process.time(log_snr - 2.0 * math.log1p(gamma)).clamp(max=process.t_max)
        higher = torch.where((level >= self.churn_min) & (level <= self.churn_max), torch.maximum(higher, t), t)
        log_alpha, var = process.transition(t, higher)
        return higher, log_alpha.exp().tolist(), (self.churn_noise * var.clamp(min=0.0).sqrt()).tolist()
