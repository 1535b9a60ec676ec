r"""Ancestral sampling: DDPM's reverse chain between any two times of any process.

Ho et al. 2020, https://arxiv.org/abs/2006.11239, algorithm 2; Song et al. 2021, https://arxiv.org/abs/2011.13456,
appendix F for VE; Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672, equation 15 for the variance.
"""

from __future__ import annotations

__all__ = ["Ancestral"]

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..dynamics import Reverse, State
from ..noise import StepNoise, Stream
from .base import GridSteps, Step, drawn, on_grid
from .euler_maruyama import affine_step, one_entry


@dataclass(frozen=True)
class Ancestral(GridSteps):
    r"""Draws :math:`x_s` from :math:`q(x_s \mid x_t, x_0)` at :math:`x_0 = E[x_0 | x_t]`.

    .. math::
        x_s = \frac{x_t + \sigma_{t|s}^2\, s(x_t, t)}{\alpha_{t|s}} + \tilde\sigma z, \qquad
        \tilde\sigma^2 = \Big(\frac{\sigma_s^2 \sigma_{t|s}^2}{\sigma_t^2}\Big)^{1 - v} \big(\sigma_{t|s}^2\big)^v

    with the transition kernel :math:`q(x_t|x_s) = \mathcal N(\alpha_{t|s} x_s, \sigma_{t|s}^2 I)` of the process. On
    the grid i/N of a
    :class:`sde.ChainSDE` this is DDPM; for VE it is the sampler of Song et al., appendix F. Its last step, from
    `t_min` = 1/N to the clean end of the chain, has the mean :math:`E[x_0|x]` and no noise: it is the step that
    `denoise=True` adds.

    Args:
        steps: the number of steps.
        grid: the rule for their times.
        v: which variance: 0 is the posterior's, right for data that is a point; 1 the transition's, right under VP for
            data that is standard normal. The two extremes of Ho et al.; between them their geometric mean. None is
            what the denoiser has learned (:meth:`sde.Denoiser.score_and_variance`), and 0 where it has learned none.
    """

    v: float | None = None

    needs: ClassVar[type] = Reverse
    eta: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.v is not None and not 0.0 <= self.v <= 1.0:
            raise ValueError(
                f"Ancestral needs v in [0, 1] (0 the posterior's variance, 1 the transition's), or None for what the "
                f"denoiser has learned, got v={self.v}"
            )

    def refusal(self, dynamics: Any) -> str | None:
        if dynamics.eta != 1.0:
            return (
                f"ancestral sampling draws from the posterior, which is the reverse SDE (eta=1), got eta={dynamics.eta}"
            )
        return one_entry(dynamics)

    def method(self, dynamics: Reverse, times: Tensor) -> Step:
        t, s, _ = on_grid(times)
        log_alpha, var = dynamics.process.transition(s, t)
        small = var * dynamics.process.var(s) / dynamics.process.var(t)
        a = (-log_alpha).exp()
        b = a * var
        if self.v is None:
            return _learned_step(dynamics, t, s, a.tolist(), b.tolist(), small, var)
        variance = small if self.v == 0.0 else small ** (1.0 - self.v) * var**self.v
        return affine_step(dynamics, t, s, a.tolist(), b.tolist(), variance.sqrt().tolist())


def _learned_step(
    dynamics: Reverse, t: Tensor, s: Tensor, a: list[float], b: list[float], small: Tensor, large: Tensor
) -> Step:
    """The step with the fraction v that comes with the score; to a clean end no noise is drawn."""
    befores, before, after = t.unbind(), t.tolist(), s.tolist()
    std, half_log_ratio = small.sqrt().tolist(), (0.5 * (large / small).log()).tolist()

    def step(k: int, state: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
        x = a[k] * state[0]
        score, v = dynamics.denoiser.score_and_variance(state[0], befores[k])
        x = x.add_(score, alpha=b[k])
        if std[k]:
            z = drawn(noise).normal(Stream.STEP, k, before[k], after[k])
            x = x.add_(z if v is None else z * (v * half_log_ratio[k]).exp(), alpha=std[k])
        return (x,), None

    return step
