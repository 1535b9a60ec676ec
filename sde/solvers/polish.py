r"""Polish: Metropolis-adjusted Langevin steps whose stationary distribution is the posterior of slightly noisy data.

With a small s the noise of a measurement can be taken apart: where :math:`s |A| < \sigma`,

.. math::
    u = x_0 + s z, \qquad y = A u + e, \qquad \operatorname{cov} e = \sigma^2 I - s^2 A A^T

is a true model of y, for the two noises together have the covariance :math:`\sigma^2 I`. Then

.. math:: \nabla \log p(u | y) = \nabla \log p_s(u) + A^T (\sigma^2 I - s^2 A A^T)^{-1} (y - A u)

is exact where the score of the prior is, without a Jacobian. Steps of Langevin dynamics are preconditioned by
:math:`s^2 (I - s^2 A^T A / \sigma^2)`, and accepted or not by the ratio of the densities; that of the prior is the
integral of its score along the step, by Simpson's rule. Given u, x_0 does not depend on y: the prior's own reverse SDE
leads to the data.

Roberts and Tweedie, Exponential Convergence of Langevin Distributions and Their Discrete Approximations, 1996,
https://doi.org/10.2307/3318418, for the steps; Wu et al., Principled Probabilistic Imaging using Diffusion Models as
Plug-and-Play Priors, 2024, https://arxiv.org/abs/2405.18782, for chains between such pairs.
"""

from __future__ import annotations

__all__ = ["Polish"]

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Prediction
from ..dynamics import Reverse, State
from ..measurement import Diagonalised, Measurement
from ..measurement.operator import rowwise
from ..noise import StepNoise, Stream
from ..shapes import check_count, expand, float64, sum_event
from .base import FixedStep, Progress, Run, SDESolver, require_noise
from .measured import Renumbered, why_not_measured


@dataclass(frozen=True)
class Polish(SDESolver):
    r"""Metropolis-adjusted Langevin steps at the starting time, and a sampler of the prior from there to the data.

    It starts from :math:`x_t = \alpha_t (x_0 + s z)` of draws by any method, at the time t where
    :math:`\sigma_t/\alpha_t = s`, below :meth:`sde.Measurement.coupling`; :func:`sde.polish` does this. A step takes
    two calls, and the first one a third. `sde.Samples.acceptance` is the fraction of the steps that were accepted.

    The denoiser is :class:`sde.measurement.Unguided`; linear operators with a fast singular value decomposition, with
    noise.

    Bias: the steps are as short as the noise. They correct a draw within its mode, and leave the weights of modes that
    the noise separates as they were. Simpson's rule has an error of the fifth order in the step.

    Args:
        predictor: a fixed-step sampler of the prior by the reverse SDE, such as `Ancestral(8, grid=LogSNR())`.
        steps: the number of Langevin steps.
        size: their size :math:`\epsilon`, in (0, 1]; 0.3 of the size that would forget the state.
    """

    predictor: FixedStep
    steps: int = 50
    size: float = 0.3

    needs = Reverse
    imposes = True

    def __post_init__(self) -> None:
        check_count("Polish", "steps", self.steps)
        if not isinstance(self.predictor, FixedStep) or not 0.0 < self.size <= 1.0:
            raise ValueError(
                "Polish needs a predictor on a fixed grid and a size in (0, 1], got "
                f"{type(self.predictor).__name__} and size={self.size}"
            )

    def incompatibility(self, dynamics: Any) -> str | None:
        reason = super().incompatibility(dynamics) or why_not_measured(dynamics, diagonal=True)
        return reason or self.predictor.incompatibility(dynamics)

    def prepare(self, dynamics: Reverse, start: float, stop: float) -> Run:
        t, process, measurement = float64(start), dynamics.process, dynamics.denoiser.measured()
        spread, most = float(process.sigma(t) / process.alpha(t)), float(measurement.coupling().min())
        if not spread < most:
            raise ValueError(
                f"Polish starts where sigma/alpha is below the noise over the norm of the operator, {most:.4g}; at "
                f"start={start} it is {spread:.4g}: sde.polish finds the time"
            )
        descent = self.predictor.bind(dynamics, start, stop)
        return _PolishRun(self, dynamics, measurement, t, spread, float(process.alpha(t)), descent)


@dataclass(frozen=True)
class _Point:
    """The density of u at some states: the scores of the prior and of y, and the logarithm of that of y, (B,)."""

    prior: Tensor
    likelihood: Tensor
    log_likelihood: Tensor


@dataclass(frozen=True)
class _Memory:
    point: _Point | None
    accepted: Tensor
    descent: Progress | None = None


@dataclass(frozen=True)
class _PolishRun(Run):
    """A run over states (B, \\*): `solver.steps` steps at the time t, then those of `descent`."""

    solver: Polish
    dynamics: Reverse
    measurement: Measurement
    t: Tensor
    spread: float
    alpha: float
    descent: Run

    @property
    def steps(self) -> int:
        return self.solver.steps + (self.descent.steps or 0)

    def finished(self, progress: Progress) -> bool:
        return progress.k == self.steps

    def outcome(self, progress: Progress) -> dict[str, Tensor]:
        return {"acceptance": progress.memory.accepted / self.solver.steps}

    def init(self, x: State, noise: StepNoise | None) -> Progress:
        none = torch.zeros(len(x[0]), dtype=torch.float64, device=x[0].device)
        return Progress(self.t.expand(len(x[0])), x, 0, _Memory(None, none), noise)

    def step(self, progress: Progress) -> Progress:
        k, memory, source = progress.k, progress.memory, require_noise(progress.noise)
        if k < self.solver.steps:
            x, memory = self._move(k, progress.x[0], memory, source)
            return Progress(progress.t, (x,), k + 1, memory, source)
        inner = memory.descent or self.descent.init(progress.x, Renumbered(source, 0))
        inner = self.descent.step(inner)
        return Progress(inner.t, inner.x, k + 1, _Memory(None, memory.accepted, inner), source)

    def _move(self, k: int, x: Tensor, memory: _Memory, noise: StepNoise) -> tuple[Tensor, _Memory]:
        """One step of Langevin dynamics, accepted for each sample alone."""
        size, u, at = self.solver.size, x / self.alpha, self.t.item()
        here = memory.point or self._point(u)
        z = Renumbered(noise, k).own(0, at)
        drift = size * self._shaped(here.prior + here.likelihood, 1.0)
        new = u + drift + math.sqrt(2.0 * size) * self._shaped(z, 0.5)
        there = self._point(new)
        middle = self._prior_score(0.5 * (u + new))
        integral = sum_event(((here.prior + 4.0 * middle + there.prior) / 6.0 * (new - u)).double())
        back = self._shaped(u - new, -0.5) - size * self._shaped(there.prior + there.likelihood, 0.5)
        proposals = 0.5 * sum_event(z.double().square()) - sum_event(back.double().square()) / (4.0 * size)
        log_ratio = integral + there.log_likelihood - here.log_likelihood + proposals
        uniform = torch.special.ndtr(noise.normal(Stream.RESAMPLE, k, at, at).flatten(1)[:, 0].double())
        accepted = uniform.log() < log_ratio  # never for a state that diverged

        def chosen(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(expand(accepted.to(a.dtype), a) > 0, a, b) if a.ndim > 1 else torch.where(accepted, a, b)

        fields = ("prior", "likelihood", "log_likelihood")
        point = _Point(*(chosen(getattr(there, name), getattr(here, name)) for name in fields))
        return chosen(self.alpha * new, x), _Memory(point, memory.accepted + accepted)

    def _point(self, u: Tensor) -> _Point:
        measurement = self.measurement
        residual = measurement.residual(u)
        solved = measurement.operator.solve(residual, -(self.spread**2), measurement.noise.to(u))
        log_likelihood = -0.5 * sum_event((residual * solved).double())
        return _Point(self._prior_score(u), measurement.operator.adjoint(solved), log_likelihood)

    def _prior_score(self, u: Tensor) -> Tensor:
        (score,) = self.dynamics.predict(Prediction.SCORE, (self.alpha * u,), self.t)
        return self.alpha * score

    def _shaped(self, u: Tensor, power: float) -> Tensor:
        """The preconditioner, the covariance of u given y alone, to a power, times u."""
        operator, var = self.measurement.operator, self.measurement.noise.square()
        assert isinstance(operator, Diagonalised)  # as bind has seen

        def factor(squares: Tensor) -> Tensor:
            noise = rowwise(var, squares)
            return (self.spread**2 * (1.0 - self.spread**2 * squares / noise)) ** power

        return operator.on_data(factor, u)
