r"""DDIM: sampling with a part eta of the noise of ancestral sampling.

Song, Meng and Ermon, Denoising Diffusion Implicit Models, 2021, https://arxiv.org/abs/2010.02502.
"""

from __future__ import annotations

__all__ = ["DDIM"]

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Prediction
from ..dynamics import Semilinear, State
from ..noise import StepNoise
from .base import GridSteps, Step, intervals, linear_combination, scalars, step_normals
from .coordinates import exponential


@dataclass(frozen=True)
class DDIM(GridSteps):
    r"""DDIM (equation 12 of the paper) for any process.

    .. math::
        x_s = \alpha_s E[x_0|x_t] + \sqrt{\sigma_s^2 - \eta^2 \tilde\sigma^2}\; E[z|x_t] + \eta \tilde\sigma z,
        \qquad \tilde\sigma^2 = \frac{\sigma_s^2 \sigma_{t|s}^2}{\sigma_t^2}

    With :math:`\eta = 0` it is the exponential method of order 1 for the probability flow, and serves likelihoods and
    encoding; with :math:`\eta = 1` it is :class:`Ancestral`; in between it follows the reverse SDE of that eta.

    Args:
        steps: the number of steps.
        grid: the rule for their times.
        eta: the stochasticity, 0 to 1, of the dynamics that `sample` gives it.
    """

    eta: float = 0.0

    needs = Semilinear
    serves_noise = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"DDIM needs eta in [0, 1] (0 the flow, 1 ancestral sampling), got eta={self.eta}")

    def incompatibility(self, dynamics: Any) -> str | None:
        reason = super().incompatibility(dynamics)
        if reason is None and dynamics.eta > 1.0:
            return f"its noise is at most that of ancestral sampling, eta=1, got eta={dynamics.eta}"
        return reason

    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        (t, s, _), process = intervals(times), dynamics.process
        a = process.log_alpha(s) - process.log_alpha(t)
        sigma, sigma_s = process.sigma(t), process.sigma(s)
        # sigma_{t|s}^2 / sigma_t^2 = -expm1(lambda_t - lambda_s)
        std = dynamics.eta * sigma_s * (-torch.expm1(process.log_snr(t) - process.log_snr(s))).clamp(min=0.0).sqrt()
        weights = scalars((sigma_s.square() - std.square()).sqrt() - a.exp() * sigma)
        ratios, shrink = scalars(-a), scalars(a)
        points, noise_std, normals = t.unbind(), std.tolist(), step_normals(times)

        def step(k: int, state: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
            # u = x / alpha has no linear part and is moved by the noise: see sde.solvers.coordinates.
            rate = dynamics.rate(dynamics.predict(Prediction.NOISE, state, points[k]), exponential(ratios[k]))
            moved = linear_combination((1.0, dynamics.propagate(state, shrink[k])), (weights[k], rate))
            if noise_std[k]:
                moved = (moved[0].add(normals(noise, k), alpha=noise_std[k]),)
            return moved, None

        return step
