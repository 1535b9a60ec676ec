r"""The variance-exploding process: the continuous limit of noise-conditional score networks (NCSN).

.. math::
    dx = \sigma_{\min} \Big(\frac{\sigma_{\max}}{\sigma_{\min}}\Big)^t
        \sqrt{2 \log \frac{\sigma_{\max}}{\sigma_{\min}}}\, dw

Song et al. 2021, equations 9 and 31, https://arxiv.org/abs/2011.13456.
"""

from __future__ import annotations

__all__ = ["VE"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import SDE


@dataclass(frozen=True)
class VE(SDE):
    r"""The variance-exploding SDE with a geometric schedule.

    .. math:: \alpha_t = 1, \qquad \sigma_t = \sigma_{\min} (\sigma_{\max}/\sigma_{\min})^t

    Song et al. 2021, equation 31. The variance at t = 0 is :math:`\sigma_{\min}^2` and not 0: the state at `t_min` is
    data plus noise of about this variance. The prior is :math:`\mathcal N(0, \sigma_{\max}^2 I)`; `sigma_max` should
    be about the largest distance between two data points.

    Args:
        sigma_min: the standard deviation of the noise at t = 0, in units of the model's data range.
        sigma_max: the standard deviation of the noise at t = 1.
        t_min: the smallest time, close to the data.
        t_max: the largest time, close to the prior.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self) -> None:
        self.check_interval()
        if not 0.0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"VE needs 0 < sigma_min < sigma_max, got sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            )

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def var(self, t: Tensor) -> Tensor:
        return self.sigma_min**2 * torch.exp(2.0 * self._log_ratio * t)

    def f(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def g2(self, t: Tensor) -> Tensor:
        return 2.0 * self._log_ratio * self.var(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return -2.0 * (math.log(self.sigma_min) + self._log_ratio * t)

    def time(self, log_snr: Tensor) -> Tensor:
        return (-0.5 * log_snr - math.log(self.sigma_min)) / self._log_ratio

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)
