r"""Particles: sequential Monte Carlo for a weighed denoiser, whose draws are from the weighed distribution itself.

A population of K states moves down in time together. At every time the denoiser gives a weight :math:`\psi_t(x_t)`, its
potential, and a proposal that is guided by it. A particle's weight after a step from t to s is

.. math:: w \leftarrow w\, \frac{\psi_s(x_s)}{\psi_t(x_t)}\, \frac{p(x_s | x_t)}{q(x_s | x_t)},

with the kernels of the reverse process without and with guidance,

.. math::
    p(x_s | x_t) = \mathcal N(m x_t + c\, d,\; (b + c^2 v_t) I), \qquad
    q(x_s | x_t) = \mathcal N(m x_t + c\, d_y,\; b I + c^2 V_t), \\
    m = \alpha_{t|s} \frac{\sigma_s^2}{\sigma_t^2}, \quad
    c = \alpha_s \frac{\sigma_{t|s}^2}{\sigma_t^2}, \quad
    b = \frac{\sigma_s^2 \sigma_{t|s}^2}{\sigma_t^2}.

d is :math:`E[x_0|x_t]`, :math:`d_y` the guided one, :math:`v_t` the variance of :math:`x_0` given :math:`x_t` and
:math:`V_t` its covariance given y too; where the pilot run measured a covariance, it takes the place of :math:`v_t I`.
With it the kernel is of second order in the step; DDPM's has v = 0. Whatever the guidance and the potentials, the
weights make up for them: with more particles the draws approach the distribution of the chain of kernels p, weighed by
the last potential. The mean of the products of the weights is an unbiased estimate of its normalisation, for a
likelihood the evidence :math:`p(y)`.

Wu et al., Practical and Asymptotically Exact Conditional Sampling in Diffusion Models, 2023,
https://arxiv.org/abs/2306.17775; Bao et al., Analytic-DPM, 2022, https://arxiv.org/abs/2201.06503, for the variance;
Chopin and Papaspiliopoulos, An Introduction to Sequential Monte Carlo, 2020, https://doi.org/10.1007/978-3-030-47845-2.
"""

from __future__ import annotations

__all__ = ["Particles"]

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..dynamics import Reverse, State
from ..grids import Grid, Karras
from ..measurement import Variance, VarianceGrid
from ..noise import StepNoise, Stream
from ..shapes import check_count, sum_event
from .base import Progress, Run, SDESolver, intervals, require_noise


@dataclass(frozen=True)
class Particles(SDESolver):
    r"""Sequential Monte Carlo with a denoiser that is weighed by a measurement, a classifier or a reward.

    Each sample of the batch is a system of its own: `particles` states, of which one is drawn in the end. Its noise is
    keyed by (seed, sample, particle), and nothing depends on batch mates. One evaluation of the denoiser for every
    particle and time, `steps` + 1 times, gives both the prediction and the weight.

    A system's draw errs by O(1 / `particles`), and by the discretisation, whose error is of second order where the
    variance is known (:func:`sde.tune_particles`). A mode that all particles left while the weights spoke against it is
    lost; the effective sample size does not show it, but :func:`sde.metrics.evidence_shift` of draws of several systems
    for one measurement.

    Args:
        steps: the number of steps.
        particles: the number K of particles of a system.
        grid: the rule for the times; by default :class:`sde.measurement.VarianceGrid` of the variance, or
            :class:`sde.grids.Karras` without one.
        threshold: resample, systematically, when the effective sample size is below this fraction of K.
        draws: the number of draws from each population; with more than one the samples have shape (B, draws, \*). Draws
            of one population depend on each other: ranks and coverage need one of each. For many draws of one
            measurement one large population is better than as many small ones at the same cost.
        variance: :math:`v_t` as :func:`sde.tune_particles` measures it, for the grid, and for the kernels of a weight
            that does not give one, such as a classifier's, where it is 0 by default. Without it, here and in the
            denoiser, errors at equal cost are about twice as large.

    Raises:
        ValueError: for settings that are none, or, when it is bound, for a denoiser without a weight.
    """

    steps: int
    particles: int = 16
    grid: Grid | None = None
    threshold: float = 0.5
    draws: int = 1  # type: ignore[assignment]  # as a truth value it says that noise is drawn, as in Solver
    variance: Variance | None = None

    needs = Reverse
    imposes = True

    def __post_init__(self) -> None:
        check_count("Particles", "steps", self.steps)
        check_count("Particles", "particles", self.particles)
        check_count("Particles", "draws", self.draws)
        if self.draws > self.particles or not 0.0 <= self.threshold <= 1.0:
            raise ValueError(
                f"Particles needs draws <= particles and a threshold in [0, 1], got draws={self.draws}, "
                f"particles={self.particles}, threshold={self.threshold}"
            )

    @property
    def population(self) -> int:
        return self.particles

    def incompatibility(self, dynamics: Any) -> str | None:
        reason = super().incompatibility(dynamics)
        if reason is None and dynamics.eta != 1.0:
            return f"its kernels are those of the reverse SDE, eta=1, got eta={dynamics.eta}"
        if reason is None and not dynamics.denoiser.weighed:
            return (
                "particles are weighed by the denoiser's log_potential, and this one has none; use a denoiser with a "
                "measurement, such as sde.measurement.DiffPIR, a classifier or a reward"
            )
        return reason

    def prepare(self, dynamics: Reverse, start: float, stop: float) -> Run:
        grid = self.grid or (Karras() if self.variance is None else VarianceGrid(self.variance))
        return _ParticleRun(self, dynamics, grid.times(dynamics.process, self.steps, start, stop))


@dataclass(frozen=True)
class _Population:
    """The memory of a run beside the states: the denoiser for all particles, the logarithms of their weights (B, K)
    and of the potentials in them, the logarithm of the evidence so far and the smallest effective sample size (B,)."""

    denoiser: Denoiser
    log_weights: Tensor
    log_potential: Tensor | float
    log_evidence: Tensor
    ess: Tensor


@dataclass(frozen=True)
class _ParticleRun(Run):
    """A run over states of shape (B, K, \\*), and (B, \\*) or (B, draws, \\*) at the end."""

    solver: Particles
    dynamics: Reverse
    times: Tensor

    @property
    def steps(self) -> int:
        return self.solver.steps

    def finished(self, progress: Progress) -> bool:
        return progress.k == self.steps

    def outcome(self, progress: Progress) -> dict[str, Tensor]:
        return {"log_evidence": progress.memory.log_evidence, "ess": progress.memory.ess}

    def init(self, x: State, noise: StepNoise | None) -> Progress:
        (states,) = x
        batch, size = states.shape[0], self.solver.particles
        if states.ndim < 3 or states.shape[1] != size:
            raise ValueError(
                f"Particles starts from {size} states for each sample, of shape (B, {size}, *), got "
                f"{tuple(states.shape)}"
            )
        rows = torch.arange(batch, device=states.device).repeat_interleave(size)
        zeros = torch.zeros(batch, size, dtype=torch.float64, device=states.device)
        memory = _Population(self.dynamics.denoiser.select(rows), zeros, 0.0, zeros[:, 0], zeros[:, 0] + size)
        return Progress(self.times[0].expand(batch), x, 0, memory, noise)

    def step(self, progress: Progress) -> Progress:
        k, noise = progress.k, require_noise(progress.noise)
        x, memory = self._advance(k, progress.x[0], progress.memory, noise)
        if k + 1 == self.steps:
            x, memory = self._draw(x, memory, noise)
        return Progress(self.times[k + 1].expand(len(x)), (x,), k + 1, memory, noise)

    def _advance(self, k: int, states: Tensor, memory: _Population, noise: StepNoise) -> tuple[Tensor, _Population]:
        """Weighs the particles at time k, resamples the systems that need it, and proposes at time k + 1."""
        size, t = self.solver.particles, self.times[k]
        x = states.flatten(0, 1)
        steering = memory.denoiser.steer(x, t)
        memory, weights, ess = _weighed(memory, steering.log_potential, self.solver.particles)
        low = ess < self.solver.threshold * size
        slots = torch.arange(size, device=x.device)
        points = (_uniform(noise, k) + slots) / size
        chosen = torch.where(low[:, None], _quantiles(weights, points), slots)
        memory = _resampled(memory, low)
        flat = (chosen + size * torch.arange(len(states), device=x.device)[:, None]).flatten()
        x, d, guided = x[flat], steering.x0[flat], steering.guided[flat]

        m, c, b = self._kernels()[k]
        start, stop = self.times[k].item(), self.times[k + 1].item()
        z = noise.normal(Stream.STEP, (k * size + slots)[None], start, stop).flatten(0, 1)
        e, log_ratio = (steering.kernel or self._isotropic(t))(z, c * (guided - d), b, c)
        potential = steering.log_potential.double()[flat].reshape(len(states), size)
        log_weights = memory.log_weights + log_ratio.reshape(len(states), size)
        memory = replace(memory, log_weights=log_weights, log_potential=potential)
        return (m * x + c * guided + e).reshape(states.shape), memory

    def _draw(self, states: Tensor, memory: _Population, noise: StepNoise) -> tuple[Tensor, _Population]:
        """Weighs the particles at the last time and draws from each population."""
        batch, size, draws = len(states), self.solver.particles, self.solver.draws
        potential = memory.denoiser.steer(states.flatten(0, 1), self.times[-1]).log_potential
        memory, weights, _ = _weighed(memory, potential, size)
        memory = _resampled(memory, torch.ones_like(memory.ess, dtype=torch.bool))
        # Systematic draws are in the order of the particles: a random rotation makes every place one of them all.
        places = torch.arange(draws, device=states.device)
        turn = (_uniform(noise, self.steps + 1) * draws).long()
        points = (_uniform(noise, self.steps) + (places + turn) % draws) / draws
        chosen = _quantiles(weights, points)
        x = states[torch.arange(batch, device=states.device)[:, None], chosen]
        return (x[:, 0] if draws == 1 else x), memory

    def _isotropic(self, t: Tensor) -> Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor]]:
        """The kernel of :class:`sde.denoisers.Steering` with one variance for both."""
        variance = self.solver.variance
        v = 0.0 if variance is None else variance(self.dynamics.process, t).item()

        def kernel(z: Tensor, change: Tensor, b: float, c: float) -> tuple[Tensor, Tensor]:
            e = math.sqrt(b + c**2 * v) * z
            squares = sum_event(z.square().double()) - sum_event((e + change).square().double()) / (b + c**2 * v)
            return e, 0.5 * squares

        return kernel

    def _kernels(self) -> list[tuple[float, float, float]]:
        """m, c and b of every step."""
        t, s, _ = intervals(self.times)
        process = self.dynamics.process
        log_alpha, var = process.transition(s, t)
        share = process.var(s) / process.var(t)
        columns = log_alpha.exp() * share, process.alpha(s) * var / process.var(t), share * var
        return list(zip(*(column.tolist() for column in columns)))


def _weighed(memory: _Population, log_potential: Tensor, size: int) -> tuple[_Population, Tensor, Tensor]:
    """The population with new potentials in its weights, the weights (B, K), and their effective sample size (B,)."""
    potential = log_potential.double().reshape(memory.log_weights.shape)
    log_weights = memory.log_weights + potential - memory.log_potential
    log_weights = torch.where(log_weights.isnan(), -math.inf, log_weights)  # a particle that diverged
    weights = log_weights.softmax(1)
    ess = 1.0 / weights.square().sum(1)
    return replace(memory, log_weights=log_weights, ess=torch.minimum(memory.ess, ess)), weights, ess


def _resampled(memory: _Population, where: Tensor) -> _Population:
    """The population after resampling some of the systems (B,): their weights are equal, and in the evidence."""
    mean = memory.log_weights.logsumexp(1) - math.log(memory.log_weights.shape[1])
    return replace(
        memory,
        log_evidence=memory.log_evidence + torch.where(where, mean, 0.0),
        log_weights=torch.where(where[:, None], 0.0, memory.log_weights),
    )


def _uniform(noise: StepNoise, k: int) -> Tensor:
    """A uniform number for each system, float64 with shape (B, 1)."""
    z = noise.normal(Stream.RESAMPLE, k, 0.0, 0.0)
    return torch.special.ndtr(z.flatten(1)[:, :1].double()).clamp(max=1.0 - 2.0**-53)


def _quantiles(weights: Tensor, points: Tensor) -> Tensor:
    """The particles at some points (B, n) of the cumulative weights (B, K)."""
    cumulative = weights.cumsum(1)
    return torch.searchsorted(cumulative, points * cumulative[:, -1:]).clamp(max=weights.shape[1] - 1)
