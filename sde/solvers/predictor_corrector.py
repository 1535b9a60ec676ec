r"""Predictor-corrector sampling: a step of any sampler, then a few steps of MCMC at the new time.

Song et al. 2021, https://arxiv.org/abs/2011.13456, algorithms 1 to 5.
"""

from __future__ import annotations

__all__ = ["Corrector", "Langevin", "PredictorCorrector", "SongLangevin"]

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Prediction
from ..dynamics import Dynamics, Semilinear, State
from ..noise import StepNoise, Stream
from ..processes import SDE
from ..shapes import check_count
from .base import FixedStep, Step, require_noise


class Corrector(ABC):
    """A chain that leaves the marginal at one time invariant, up to its step size."""

    @abstractmethod
    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        """Computes the step sizes at all `times` at once; step k of the result corrects at `times[k]`."""


@dataclass(frozen=True)
class _LangevinSteps(Corrector):
    """Some steps of Langevin dynamics, by a rule for their size."""

    snr: float = 0.16
    steps: int = 1

    def __post_init__(self) -> None:
        if not (self.snr > 0.0 and math.isfinite(self.snr)):
            raise ValueError(f"a Langevin corrector needs a finite snr > 0, got snr={self.snr}")
        check_count("a Langevin corrector", "steps", self.steps, 1)

    @abstractmethod
    def _update(self, process: SDE, times: Tensor) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
        """The function (k, x, score, z) -> the state after one Langevin step at `times[k]`."""

    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        update, points, at = self._update(dynamics.process, times), times.unbind(), times.tolist()

        def step(k: int, state: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
            source = require_noise(noise)
            for j in range(self.steps):
                (score,) = dynamics.predict(Prediction.SCORE, state, points[k])
                z = source.normal(Stream.CORRECTOR, k * self.steps + j, at[k], at[k])
                state = (update(k, state[0], score, z),)
            return state, None

        return step


@dataclass(frozen=True)
class Langevin(_LangevinSteps):
    r"""Langevin dynamics with a step size that depends on the noise level alone.

    .. math::
        x \leftarrow x + \epsilon\, s(x, t) + \sqrt{2 \epsilon}\, z, \qquad
        \epsilon = 2\, (\mathrm{snr} \cdot \sigma_t)^2

    the rule of Song et al. with its norms replaced by their means: :math:`\|z\|` by :math:`\sqrt D`, and
    :math:`\|s\|` by :math:`\sqrt D/\sigma_t`, which is the mean size of the conditional score and the largest that of
    the score can be. A sample's step then does not depend on its batch. (The norms of single samples would be wrong:
    in low dimension :math:`E[1/\|s\|^2]` diverges.)

    Args:
        snr: the signal-to-noise ratio r of a step; 0.16 for VE and VP on CIFAR-10 in the paper.
        steps: the number of Langevin steps at each time.
    """

    @staticmethod
    def song(snr: float = 0.16, steps: int = 1) -> SongLangevin:
        """The rule of Song et al. with norms averaged over the batch, for parity with their code."""
        return SongLangevin(snr, steps)

    def _update(self, process: SDE, times: Tensor) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
        epsilon = 2.0 * self.snr**2 * process.var(times)
        scale, std = epsilon.tolist(), (2.0 * epsilon).sqrt().tolist()
        return lambda k, x, score, z: x.add(score, alpha=scale[k]).add_(z, alpha=std[k])


@dataclass(frozen=True)
class SongLangevin(_LangevinSteps):
    r"""Langevin dynamics with the step size of Song et al. 2021, algorithms 4 and 5.

    .. math:: \epsilon = 2\, \alpha \Big(\mathrm{snr} \frac{\overline{\|z\|}}{\overline{\|s\|}}\Big)^2

    with norms averaged over the batch, so that a sample depends on its batch mates, and with
    :math:`\alpha = \alpha_{t|s}^2` of the grid's step at t (:math:`1 - \beta_i` for the chain, 1 for VE).

    Args:
        snr: the signal-to-noise ratio r of a step.
        steps: the number of Langevin steps at each time.
    """

    def _update(self, process: SDE, times: Tensor) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
        log_alpha = process.log_alpha(times)
        change = (log_alpha[:-1] - log_alpha[1:]).mul(2.0).exp()
        # The last time has no step below it and takes that of its neighbour.
        alpha = torch.cat([change, change[-1:]]).tolist()

        def update(k: int, x: Tensor, score: Tensor, z: Tensor) -> Tensor:
            ratio = z.flatten(1).norm(dim=1).mean() / score.flatten(1).norm(dim=1).mean()
            epsilon = 2.0 * alpha[k] * (self.snr * ratio).square()
            return x + epsilon * score + (2.0 * epsilon).sqrt() * z

        return update


@dataclass(frozen=True)
class PredictorCorrector(FixedStep):
    """A predictor's step from one time to the next, and a corrector at one of the two.

    As in algorithm 1 of the paper the predictor goes first, and the corrector works at the new time. The predictor may
    run along the flow (eta=0); the corrector draws noise all the same.

    Args:
        predictor: a fixed-step sampler, whose steps and grid are those of the whole.
        corrector: the corrector.
        corrector_first: correct at the time before the predictor's step instead.
    """

    predictor: FixedStep
    corrector: Corrector
    corrector_first: bool = False

    needs = Semilinear
    serves_noise = True
    draws = True

    def __post_init__(self) -> None:
        if not isinstance(self.predictor, FixedStep) or self.predictor.draws:
            raise ValueError(
                f"PredictorCorrector needs a predictor on a fixed grid that draws no noise of its own, "
                f"got {type(self.predictor).__name__}"
            )

    @property
    def eta(self) -> float:
        return self.predictor.eta

    def incompatibility(self, dynamics: Any) -> str | None:
        return super().incompatibility(dynamics) or self.predictor.incompatibility(dynamics)

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
