r"""DDIM: sampling with any share of the ancestral noise.

Song, Meng and Ermon, Denoising Diffusion Implicit Models, 2021, https://arxiv.org/abs/2010.02502.
"""

from __future__ import annotations

__all__ = ["DDIM"]

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..denoisers import Prediction
from ..dynamics import Semilinear, State
from ..noise import StepNoise, Stream
from .base import GridSteps, Step, combine, drawn, on_grid, scalars
from .coordinates import exponential
from .euler_maruyama import one_entry


@dataclass(frozen=True)
class DDIM(GridSteps):
    r"""DDIM (equation 12 of the paper) for any process.

    .. math::
        x_s = \alpha_s E[x_0|x_t] + \sqrt{\sigma_s^2 - \eta^2 \tilde\sigma^2}\; E[z|x_t] + \eta \tilde\sigma z,
        \qquad \tilde\sigma^2 = \frac{\sigma_s^2 \sigma_{t|s}^2}{\sigma_t^2}

    With :math:`\eta = 0` it is the exponential method of order 1 for the probability flow, and serves likelihoods and
    encoding; with :math:`\eta = 1` it is :class:`Ancestral`, and between the two it follows the reverse SDE of that
    share of noise.

    Args:
        steps: the number of steps.
        grid: the rule for their times.
        eta: the share of noise, 0 to 1, of the dynamics that `sample` makes for it.
    """

    eta: float = 0.0

    needs: ClassVar[type] = Semilinear

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"DDIM needs eta in [0, 1] (0 the flow, 1 ancestral sampling), got eta={self.eta}")

    def refusal(self, dynamics: Any) -> str | None:
        if dynamics.eta > 1.0:
            return f"its noise is at most that of ancestral sampling, eta=1, got eta={dynamics.eta}"
        return one_entry(dynamics) if dynamics.stochastic else None

    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        (t, s, _), process = on_grid(times), dynamics.process
        a = process.log_alpha(s) - process.log_alpha(t)
        sigma, earlier = process.sigma(t), process.sigma(s)
        # sigma_{t|s}^2 / sigma_t^2 = -expm1(lambda_t - lambda_s)
        spread = dynamics.eta * earlier * (-torch.expm1(process.log_snr(t) - process.log_snr(s))).clamp(min=0.0).sqrt()
        weights = scalars((earlier.square() - spread.square()).sqrt() - a.exp() * sigma)
        ratios, shrink = scalars(-a), scalars(a)
        points, before, after, noisy = t.unbind(), t.tolist(), s.tolist(), spread.tolist()

        def step(k: int, state: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
            # In u = x / alpha the flow is moved by the noise: see sde.solvers.coordinates.
            rate = dynamics.rate(dynamics.predict(Prediction.NOISE, state, points[k]), exponential(ratios[k]))
            moved = combine((1.0, dynamics.propagate(state, shrink[k])), (weights[k], rate))
            if noisy[k]:
                z = drawn(noise).normal(Stream.STEP, k, before[k], after[k])
                moved = (moved[0].add(z, alpha=noisy[k]),)
            return moved, None

        return step
