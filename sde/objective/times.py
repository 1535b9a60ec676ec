r"""Training times and their importance weights."""

from __future__ import annotations

__all__ = ["Times", "UniformTimes", "UniformLogSNR", "ChainTimes"]

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..processes import SDE
from ..shapes import working


class Times(ABC):
    """A distribution of training times."""

    @abstractmethod
    def __call__(self, process: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times from uniforms u in [0, 1), and the importance weights 1/p(t), each with shape (B,) and in the dtype of
        u, float32 at least."""


@dataclass(frozen=True)
class UniformTimes(Times):
    """Times uniform in [t_min, t_max]; the weight is 1, so the loss is a mean over time and not an integral."""

    def __call__(self, process: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        u = working(u)
        return process.t_min + (process.t_max - process.t_min) * u, torch.ones_like(u)


@dataclass(frozen=True)
class UniformLogSNR(Times):
    r"""Times uniform in log-SNR.

    With the likelihood weighting this is the importance sampling of Song et al. 2021b, under which all times have the
    same weight.
    """

    def __call__(self, process: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        u = working(u)
        ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64, device=u.device)
        first, last = process.log_snr(ends)
        t = process.time(first + (last - first) * u.double()).to(u.dtype)
        # The weight is normalised so that, as with UniformTimes, the loss is a mean over [t_min, t_max].
        density = process.g2(t) / process.var(t) / (first - last).to(u.dtype)
        return t, 1.0 / (density * (process.t_max - process.t_min))


@dataclass(frozen=True)
class ChainTimes(Times):
    """Times i/n with i uniform in 1..n: the discrete DDPM loss (Ho et al. 2020, algorithm 1).

    Args:
        n: the number of steps of the chain.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"ChainTimes needs n >= 1 steps of the chain, got n={self.n}")

    def __call__(self, process: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        if abs(process.t_min - 1.0 / self.n) > 1e-9:
            raise ValueError(
                f"ChainTimes(n={self.n}) needs the process of a chain with {self.n} steps, whose t_min is 1/{self.n}, "
                f"got t_min={process.t_min}; use DiscreteChain(...).sde() with the same number of steps"
            )
        u = working(u)
        return ((u.double() * self.n).floor() + 1.0).to(u.dtype) / self.n, torch.ones_like(u)
