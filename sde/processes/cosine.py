r"""The cosine schedule in continuous time: the limit of the improved DDPM chain.

.. math::
    \alpha_t = \frac{\cos u_t}{\cos u_0}, \qquad
    u_t = \frac{\pi}{2}\, \frac{t + s}{1 + s}, \qquad \sigma_t^2 = 1 - \alpha_t^2

Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, equation 17,
https://arxiv.org/abs/2102.09672.
"""

from __future__ import annotations

__all__ = ["Cosine"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import SDE


@dataclass(frozen=True)
class Cosine(SDE):
    r"""The variance-preserving SDE with the cosine schedule.

    .. math::
        \log\alpha_t = \log\cos u_t - \log\cos u_0, \qquad
        \beta(t) = g^2(t) = \frac{\pi}{1 + s} \tan u_t, \qquad u_t = \frac{\pi}{2}\, \frac{t + s}{1 + s}

    Nichol and Dhariwal 2021, equation 17; :meth:`sde.DiscreteChain.cosine` is its chain. The signal vanishes at t = 1,
    where the rate is infinite, so the path ends before: `t_max` is the end that Lu et al. 2022 (DPM-Solver,
    https://arxiv.org/abs/2206.00927) take for this schedule, where :math:`\alpha = 0.0084`. The prior is the standard
    normal.

    Args:
        offset: the offset s, which keeps the rate at t = 0 away from 0.
        t_min: the smallest time, close to the data.
        t_max: the largest time, close to the prior, less than 1.
    """

    offset: float = 0.008
    t_min: float = 1e-5
    t_max: float = 0.9946

    def __post_init__(self) -> None:
        self.check_interval()
        if not self.t_max < 1.0:
            raise ValueError(f"Cosine needs t_max < 1, where the signal vanishes, got t_max={self.t_max}")
        if not 0.0 <= self.offset < math.inf:
            raise ValueError(f"Cosine needs a finite offset >= 0, got offset={self.offset}")

    def log_alpha(self, t: Tensor) -> Tensor:
        # cos(u_0 + d) / cos(u_0) - 1 by the sum formula, without the difference of two logarithms close to 0.
        d = self._rate * t
        return torch.log1p(-2.0 * (0.5 * d).sin().square() - d.sin() * math.tan(self._start))

    def var(self, t: Tensor) -> Tensor:
        return -torch.expm1(2.0 * self.log_alpha(t))

    def f(self, t: Tensor) -> Tensor:
        return -self._rate * (self._start + self._rate * t).tan()

    def g2(self, t: Tensor) -> Tensor:
        return -2.0 * self.f(t)

    def time(self, log_snr: Tensor) -> Tensor:
        # With alpha^2 = sigmoid(log_snr): both sides of the right-angled triangle of u, so that no digit is lost.
        target, cosine = log_snr.double(), math.cos(self._start)
        opposite = (math.sin(self._start) ** 2 + cosine**2 * (-target).sigmoid()).sqrt()
        return ((torch.atan2(opposite, cosine * target.sigmoid().sqrt()) - self._start) / self._rate).to(log_snr.dtype)

    def prior_var(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    @property
    def _rate(self) -> float:
        return 0.5 * math.pi / (1.0 + self.offset)

    @property
    def _start(self) -> float:
        return self._rate * self.offset
