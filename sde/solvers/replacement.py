r"""Replacement: what is measured is put into the state after every step of a sampler of the prior.

Song et al. 2021, https://arxiv.org/abs/2011.13456, appendix I.2; Lugmayr et al., RePaint: Inpainting Using Denoising
Diffusion Probabilistic Models, 2022, https://arxiv.org/abs/2201.09865, algorithm 1, for the repeats; Kawar et al.,
Denoising Diffusion Restoration Models, 2022, https://arxiv.org/abs/2201.11793, for noisy measurements in the basis of
singular vectors.
"""

from __future__ import annotations

__all__ = ["Replacement"]

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..dynamics import Dynamics, Reverse, State
from ..noise import StepNoise
from ..shapes import check_count
from .base import FixedStep, SDESolver, Step, intervals, require_noise
from .measured import Renumbered, why_not_measured


@dataclass(frozen=True)
class Replacement(SDESolver, FixedStep):
    r"""A sampler of the prior whose states are given y after every step, several times at each time (RePaint).

    In :math:`u = x_s / \alpha_s = x_0 + c_s z`, with :math:`c_s = \sigma_s/\alpha_s`, y is a measurement of u along
    the singular vectors for whose singular value a the noise :math:`\sigma/a` is above :math:`c_s`, and u is drawn
    given it, from the Gaussian kernel of the step. Along the others u is y with noise, as in RePaint, where y has none.
    The state then goes back to t by the forward kernel and down again, `repeats` times in all, by which the unmeasured
    part learns of the measured one.

    The denoiser is :class:`sde.measurement.Unguided`; linear operators with a fast singular value decomposition.

    Bias: y acts on what is not measured through the repeats alone. The weights of modes are wrong where the noise is
    small, more than those of guided methods at equal cost, while the draws fit y.

    Args:
        predictor: a fixed-step sampler of the reverse SDE, such as :class:`Ancestral`, whose steps and grid are those
            of the whole.
        repeats: how often each step is taken.
    """

    predictor: FixedStep
    repeats: int = 10

    needs = Reverse
    imposes = True

    def __post_init__(self) -> None:
        check_count("Replacement", "repeats", self.repeats)
        if not isinstance(self.predictor, FixedStep) or self.predictor.draws:
            raise ValueError(
                f"Replacement needs a predictor on a fixed grid that draws no noise of its own, "
                f"got {type(self.predictor).__name__}"
            )

    def incompatibility(self, dynamics: Any) -> str | None:
        reason = super().incompatibility(dynamics) or why_not_measured(dynamics, diagonal=True)
        return reason or self.predictor.incompatibility(dynamics)

    def times(self, dynamics: Dynamics, start: float, stop: float) -> Tensor:
        return self.predictor.times(dynamics, start, stop)

    def method(self, dynamics: Reverse, times: Tensor) -> Step:
        predict, measurement = self.predictor.method(dynamics, times), dynamics.denoiser.measured()
        (t, s, _), process = intervals(times), dynamics.process
        log_alpha, var = process.transition(s, t)
        alpha, at = process.alpha(s), times.tolist()
        variance = process.var(s) * var / (process.var(t) * alpha.square())  # of the kernel, in units of u
        columns = alpha, process.sigma(s) / alpha, variance, log_alpha.exp(), var.sqrt()
        numbers = list(zip(*(column.tolist() for column in columns)))

        def step(k: int, state: State, memory: Any, noise: StepNoise | None) -> tuple[State, Any]:
            source, (scale, spread, v, back, std) = require_noise(noise), numbers[k]
            for j in range(self.repeats):
                inner = Renumbered(source, k * (self.repeats - 1) + j)  # whose draw k is the one of this repeat
                (x,), after = predict(k, state, memory, inner)
                draws = Renumbered(source, k * self.repeats + j)
                x = scale * measurement.coupled(x / scale, spread, v, draws.own(0, at[k + 1]))
                if j + 1 < self.repeats:
                    state = (back * x + std * draws.own(1, at[k]),)
            return (x,), after

        return step
