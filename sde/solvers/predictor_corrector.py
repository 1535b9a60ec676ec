r"""Predictor-corrector sampling: a step of any sampler, then a few steps of MCMC at the new noise level.

Song et al. 2021, https://arxiv.org/abs/2011.13456, algorithms 1 to 5.
"""

from __future__ import annotations

__all__ = ["Corrector", "Langevin", "PredictorCorrector", "SongLangevin"]

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..denoisers import Prediction
from ..dynamics import Dynamics, Semilinear, State
from ..noise import StepNoise, Stream
from .base import FixedStep, Step, drawn
from .euler_maruyama import one_entry


class Corrector(ABC):
    """A chain that leaves the marginal at one time invariant, up to its step size."""

    @abstractmethod
    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        """Computes its step sizes at all `times` at once; the returned step k corrects at `times[k]`."""


@dataclass(frozen=True)
class Langevin(Corrector):
    r"""Langevin dynamics with a step size that depends on the noise level alone.

    .. math::
        x \leftarrow x + \epsilon\, s(x, t) + \sqrt{2 \epsilon}\, z, \qquad
        \epsilon = 2\, (\mathrm{snr} \cdot \sigma_t)^2

    which is the rule of Song et al. with the norms in it replaced by what they are on average, :math:`\sqrt D` for
    :math:`\|z\|` and :math:`\sqrt D/\sigma_t`, the size of the conditional score and the most that of the score can be
    on average, for :math:`\|s\|`: a sample's step does not depend on its batch. (The norms of single samples would
    be wrong: in low dimension :math:`E[1/\|s\|^2]` diverges.)

    Args:
        snr: the signal-to-noise ratio r of a step; 0.16 for VE and VP on CIFAR-10 in the paper.
        steps: the number of Langevin steps at each time.
    """

    snr: float = 0.16
    steps: int = 1

    def __post_init__(self) -> None:
        _check(self.snr, self.steps)

    @staticmethod
    def song(snr: float = 0.16, steps: int = 1) -> SongLangevin:
        """The original's rule, with norms averaged over the batch; for parity with it."""
        return SongLangevin(snr, steps)

    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        epsilon = 2.0 * self.snr**2 * dynamics.process.var(times)
        gain, spread = epsilon.tolist(), (2.0 * epsilon).sqrt().tolist()
        points, at = times.unbind(), times.tolist()

        def step(k: int, state: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
            source = drawn(noise)
            for j in range(self.steps):
                x = state[0].add(dynamics.predict(Prediction.SCORE, state, points[k])[0], alpha=gain[k])
                z = source.normal(Stream.CORRECTOR, k * self.steps + j, at[k], at[k])
                state = (x.add_(z, alpha=spread[k]),)
            return state, None

        return step


@dataclass(frozen=True)
class SongLangevin(Corrector):
    r"""Langevin dynamics with the step size of Song et al. 2021, algorithms 4 and 5.

    .. math:: \epsilon = 2\, \alpha \Big(\mathrm{snr} \frac{\overline{\|z\|}}{\overline{\|s\|}}\Big)^2

    with norms averaged over the batch, so that a sample depends on its batch mates, and with
    :math:`\alpha = \alpha_{t|s}^2` of the grid's step at t (:math:`1 - \beta_i` for the chain, 1 for VE).

    Args:
        snr: the signal-to-noise ratio r of a step.
        steps: the number of Langevin steps at each time.
    """

    snr: float = 0.16
    steps: int = 1

    def __post_init__(self) -> None:
        _check(self.snr, self.steps)

    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        log_alpha = dynamics.process.log_alpha(times)
        change = (log_alpha[:-1] - log_alpha[1:]).mul(2.0).exp()
        alpha = torch.cat(
            [change, change[-1:]]
        ).tolist()  # the last time has no step below it; it takes its neighbour's
        points, at = times.unbind(), times.tolist()

        def step(k: int, state: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
            source = drawn(noise)
            for j in range(self.steps):
                (score,) = dynamics.predict(Prediction.SCORE, state, points[k])
                z = source.normal(Stream.CORRECTOR, k * self.steps + j, at[k], at[k])
                ratio = z.flatten(1).norm(dim=1).mean() / score.flatten(1).norm(dim=1).mean()
                epsilon = 2.0 * alpha[k] * (self.snr * ratio).square()
                state = (state[0] + epsilon * score + (2.0 * epsilon).sqrt() * z,)
            return state, None

        return step


@dataclass(frozen=True)
class PredictorCorrector(FixedStep):
    """A predictor's step from one time to the next, and a corrector at one of them.

    As in algorithm 1 of the paper the predictor goes first and the corrector works at the time it arrived at. The
    predictor may run along the flow (eta=0); the corrector draws noise all the same.

    Args:
        predictor: a fixed-step sampler; its steps and grid are the whole sampler's.
        corrector: what corrects.
        corrector_first: correct at the time before the predictor's step instead.
    """

    predictor: FixedStep
    corrector: Corrector
    corrector_first: bool = False

    needs: ClassVar[type] = Semilinear
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.predictor, FixedStep) or self.predictor.draws:
            raise ValueError(
                f"PredictorCorrector needs a predictor on a fixed grid that corrects nothing itself, "
                f"got {type(self.predictor).__name__}"
            )

    @property
    def eta(self) -> float:
        return self.predictor.eta

    def refusal(self, dynamics: Any) -> str | None:
        fits = isinstance(dynamics, self.predictor.needs)
        if not fits:
            return f"its predictor needs a dynamics with the parts of {self.predictor.needs.__name__}"
        return one_entry(dynamics) or self.predictor.refusal(dynamics)

    def times(self, dynamics: Dynamics, start: float, stop: float) -> Tensor:
        return self.predictor.times(dynamics, start, stop)

    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        predict = self.predictor.method(dynamics, times)
        correct = self.corrector.method(dynamics, times)

        def step(k: int, state: State, memory: Any, noise: StepNoise | None) -> tuple[State, Any]:
            if self.corrector_first:
                state, _ = correct(k, state, None, noise)
            state, memory = predict(k, state, memory, noise)
            if not self.corrector_first:
                state, _ = correct(k + 1, state, None, noise)
            return state, memory

        return step


def _check(snr: float, steps: int) -> None:
    if not (snr > 0.0 and math.isfinite(snr)) or steps < 1:
        raise ValueError(f"a Langevin corrector needs snr > 0 and steps >= 1, got snr={snr}, steps={steps}")
