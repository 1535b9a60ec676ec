r"""Training times and their importance weights.

A distribution of times maps uniforms to times. Those of a batch may be independent or stratified:
:class:`sde.Training` spreads them evenly, :math:`u_k = (u + k/B) \bmod 1` with one random offset, which leaves the
expectation of the loss and lowers the variance of its mean over the batch (Kingma et al. 2021, Variational Diffusion
Models, appendix I.1,
https://arxiv.org/abs/2107.00630).
"""

from __future__ import annotations

__all__ = ["ChainTimes", "LogNormalTimes", "Times", "UniformLogSNR", "UniformTimes"]

import math
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
        """Times from uniforms u in [0, 1), and the factors of the loss there, each with shape (B,) and in the dtype of
        u, float32 at least.

        The factors are importance weights, under which the expectation of the loss is its mean over [t_min, t_max]; or
        1, where the distribution itself defines the loss.
        """


@dataclass(frozen=True)
class UniformTimes(Times):
    """Times uniform in [t_min, t_max]; the weight is 1, so the loss is a mean over time and not an integral."""

    def __call__(self, process: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        u = working(u)
        return process.t_min + (process.t_max - process.t_min) * u, torch.ones_like(u)


@dataclass(frozen=True)
class UniformLogSNR(Times):
    r"""Times uniform in log-SNR, with a density proportional to :math:`g(t)^2/\sigma_t^2 = -d\lambda_t/dt`.

    With the likelihood weighting this is the importance sampling of Song et al. 2021b, under which all times have the
    same weight. The antiderivative of :math:`g^2/\sigma^2` is :math:`-\lambda_t`; with :math:`B(t) = \int_0^t \beta` it
    is :math:`\log(e^B - 1)` for VP and :math:`2 \log \sinh(B/2)` for sub-VP, up to a constant, and linear in t for VE.
    :meth:`sde.SDE.time` inverts it, in closed form for these and by bisection for a process of one's own.
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
class LogNormalTimes(Times):
    r"""Times at which the logarithm of :math:`\tilde\sigma = \sigma_t/\alpha_t` is normal.

    The factor is 1: the loss is its mean under this distribution, as Karras et al. 2022 (table 1) define it with
    :class:`sde.objective.EDMWeighting`. The normal is truncated to the noise levels between `t_min` and `t_max`. For
    :class:`sde.RectifiedFlow` it is the logit-normal distribution of t (Esser et al. 2024,
    https://arxiv.org/abs/2403.03206).

    Args:
        mean: the mean of :math:`\log\tilde\sigma`.
        std: its standard deviation.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0.0 < self.std < math.inf):
            raise ValueError(f"LogNormalTimes needs finite mean and std > 0, got mean={self.mean}, std={self.std}")

    def __call__(self, process: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        u = working(u)
        ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64, device=u.device)
        low, high = torch.special.ndtr((-0.5 * process.log_snr(ends) - self.mean) / self.std)
        if not low < high:
            raise ValueError(
                f"{self} has no mass between the ends of {process}; log(sigma/alpha) there is "
                f"{(-0.5 * process.log_snr(ends)).tolist()}"
            )
        # Rounding must not leave the interval, nor the normal's quantile become infinite.
        normal = torch.special.ndtri((low + (high - low) * u.double()).clamp(1e-300, 1.0 - 1e-16))
        t = process.time(-2.0 * (self.mean + self.std * normal))
        return t.clamp(process.t_min, process.t_max).to(u.dtype), torch.ones_like(u)


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
