r"""Ancestral sampling: the reverse chain of DDPM between any two times of any process.

Ho et al. 2020, https://arxiv.org/abs/2006.11239, algorithm 2; Song et al. 2021, https://arxiv.org/abs/2011.13456,
appendix F for VE; Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672, equation 15 for the variance.
"""

from __future__ import annotations

__all__ = ["Ancestral"]

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..dynamics import Reverse, State
from ..noise import StepNoise
from .base import GridSteps, SDESolver, Step, affine_step, intervals, step_normals


@dataclass(frozen=True)
class Ancestral(SDESolver, GridSteps):
    r"""Ancestral sampling: :math:`x_s` is drawn from :math:`q(x_s \mid x_t, x_0)` at :math:`x_0 = E[x_0 | x_t]`.

    .. math::
        x_s = \frac{x_t + \sigma_{t|s}^2\, s(x_t, t)}{\alpha_{t|s}} + \tilde\sigma z, \qquad
        \tilde\sigma^2 = \Big(\frac{\sigma_s^2 \sigma_{t|s}^2}{\sigma_t^2}\Big)^{1 - v} \big(\sigma_{t|s}^2\big)^v

    with the transition kernel :math:`q(x_t|x_s) = \mathcal N(\alpha_{t|s} x_s, \sigma_{t|s}^2 I)` of the process. On
    the grid i/N of a :class:`sde.ChainSDE` this is DDPM; for VE it is the sampler of Song et al., appendix F. The last
    step of DDPM, from `t_min` = 1/N to the clean end of the chain, has the mean :math:`E[x_0|x]` and no noise:
    `denoise=True` adds it.

    Args:
        steps: the number of steps.
        grid: the rule for their times.
        v: the variance: 0 is that of the posterior, exact for data that is a point; 1 that of the transition, exact
            under VP for standard normal data. These are the two extremes of Ho et al., with their geometric mean in
            between. None is the learned variance (:meth:`sde.Denoiser.score_and_variance`), or 0 for a denoiser
            without one.
    """

    v: float | None = None

    needs = Reverse

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.v is not None and not 0.0 <= self.v <= 1.0:
            raise ValueError(
                f"Ancestral needs v in [0, 1] (0 the posterior's variance, 1 the transition's), or None for the "
                f"learned one, got v={self.v}"
            )

    def incompatibility(self, dynamics: Any) -> str | None:
        reason = super().incompatibility(dynamics)
        if reason is None and dynamics.eta != 1.0:
            return (
                f"ancestral sampling draws from the posterior, which is the reverse SDE (eta=1), got eta={dynamics.eta}"
            )
        return reason

    def method(self, dynamics: Reverse, times: Tensor) -> Step:
        t, s, _ = intervals(times)
        log_alpha, var = dynamics.process.transition(s, t)
        small = var * dynamics.process.var(s) / dynamics.process.var(t)
        a = (-log_alpha).exp()
        b = a * var
        if self.v is None:
            return _learned_step(dynamics, times, a, b, small, var)
        variance = small if self.v == 0.0 else small ** (1.0 - self.v) * var**self.v
        return affine_step(dynamics, times, a, b, variance.sqrt())


def _learned_step(dynamics: Reverse, times: Tensor, a: Tensor, b: Tensor, small: Tensor, large: Tensor) -> Step:
    """The step with the learned variance; no noise is drawn in a step to a time without noise."""
    points, normals, scale, score_weight = times.unbind(), step_normals(times), a.tolist(), b.tolist()
    std, half_log_ratio = small.sqrt().tolist(), (0.5 * (large / small).log()).tolist()

    def step(k: int, state: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
        x = scale[k] * state[0]
        score, v = dynamics.denoiser.score_and_variance(state[0], points[k])
        x = x.add_(score, alpha=score_weight[k])
        if std[k]:
            z = normals(noise, k)
            x = x.add_(z if v is None else z * (v * half_log_ratio[k]).exp(), alpha=std[k])
        return (x,), None

    return step
