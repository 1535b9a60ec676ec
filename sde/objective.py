r"""Objectives: denoising score matching in all its weightings.

With :math:`x_t = \alpha_t x_0 + \sigma_t z` every loss here is an expectation over times and noise of

.. math:: w(t)\, \| \hat\varepsilon(x_t, t) - z \|^2 = w(t)\, \sigma_t^2\, \| s(x_t, t) - \nabla \log q(x_t | x_0) \|^2.

:math:`w = 1` is the simple loss of Ho et al. 2020 (equation 14); :math:`w = g^2/\sigma^2` is the likelihood
weighting, with which half the summed loss, integrated over time, bounds the negative log-likelihood up to a constant
(Song et al. 2021b, https://arxiv.org/abs/2101.09258, theorem 1). Because :math:`g^2/\sigma^2 = -d\lambda/dt` for
every process, drawing times evenly in the log-SNR is the importance sampling that makes that loss's weight constant.
"""

from __future__ import annotations

__all__ = [
    "Objective",
    "DenoisingScoreMatching",
    "Weighting",
    "Simple",
    "Likelihood",
    "Times",
    "UniformTimes",
    "UniformLogSNR",
    "ChainTimes",
]

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Denoiser
from .processes import SDE
from .shapes import expand


class Weighting(ABC):
    """How much the error of the predicted noise counts at each time."""

    @abstractmethod
    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        """The weight w(t), in the shape of `t`."""


@dataclass(frozen=True)
class Simple(Weighting):
    """w(t) = 1 (Ho et al. 2020): the best samples."""

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Likelihood(Weighting):
    r""":math:`w(t) = g(t)^2/\sigma_t^2` (Song et al. 2021b): the best likelihoods."""

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        return process.g2(t) / process.var(t)


class Times(ABC):
    """How training times are drawn."""

    @abstractmethod
    def __call__(self, process: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        """Turns uniforms in [0, 1) into times, and gives 1/p(t), the factor that makes weighted means unbiased."""


@dataclass(frozen=True)
class UniformTimes(Times):
    """Times drawn evenly from [t_min, t_max]; the factor is left at 1, a mean over time rather than an integral."""

    def __call__(self, process: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        return process.t_min + (process.t_max - process.t_min) * u, torch.ones_like(u)


@dataclass(frozen=True)
class UniformLogSNR(Times):
    r"""Times drawn evenly in log-SNR: with the likelihood weighting the importance sampling of Song et al.
    2021b, under which every draw has the same weight."""

    def __call__(self, process: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64, device=u.device)
        first, last = process.log_snr(ends)
        t = process.time(first + (last - first) * u.double()).to(u.dtype)
        # Under UniformTimes a mean over t stands for the integral over t_max - t_min, and so it does here.
        density = process.g2(t) / process.var(t) / (first - last).to(u.dtype)
        return t, 1.0 / (density * (process.t_max - process.t_min))


@dataclass(frozen=True)
class ChainTimes(Times):
    """The steps i/n, i drawn evenly from 1..n: the discrete DDPM loss (Ho et al. 2020, algorithm 1).

    Args:
        n: the number of steps of the chain.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"ChainTimes needs n >= 1, the number of steps of the chain, got n={self.n}")

    def __call__(self, process: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        if abs(process.t_min - 1.0 / self.n) > 1e-9:
            raise ValueError(
                f"ChainTimes(n={self.n}) draws the steps of a chain of {self.n} steps, but the process begins at "
                f"t_min={process.t_min}; use DiscreteChain(...).sde() with as many steps"
            )
        return ((u.double() * self.n).floor() + 1.0).to(u.dtype) / self.n, torch.ones_like(u)


class Objective(ABC):
    """What training minimises."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
        """The loss of each sample.

        Args:
            denoiser: the model.
            x0: clean data in the model's range, with shape (B, *).
            u: uniforms in [0, 1) that choose the times, with shape (B,).
            z: standard normals in the shape of x0.
            condition: handed to the denoiser by name.

        Returns:
            The losses, with shape (B,).
        """


@dataclass(frozen=True)
class DenoisingScoreMatching(Objective):
    r"""The denoising score-matching loss, :math:`w(t) \|\hat\varepsilon(x_t, t) - z\|^2`.

    Args:
        weighting: w(t).
        times: how times are drawn.
        mean: the mean over the event's dimensions; False gives half their sum, which with the likelihood weighting
            is in nats per unit of time.
    """

    weighting: Weighting = Simple()
    times: Times = UniformTimes()
    mean: bool = True

    def __call__(self, denoiser: Denoiser, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
        process = denoiser.process
        t, factor = self.times(process, u)
        mean, std = process.marginal(x0, t)
        error = (denoiser.noise(mean + expand(std, x0) * z, t, **condition) - z).flatten(1).square()
        return self.weighting(process, t) * factor * (error.mean(1) if self.mean else 0.5 * error.sum(1))
