r"""Training times: how they are drawn."""

from __future__ import annotations

__all__ = ["Times", "UniformTimes", "UniformLogSNR", "ChainTimes"]

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..processes import SDE


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
