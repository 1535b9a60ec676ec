r"""Processes whose rate is a linear function of time.

.. math::
    \beta(t) = \beta_{\min} + t (\beta_{\max} - \beta_{\min}), \qquad
    \log\alpha_t = -\tfrac12 \int_0^t \beta(s)\, ds
        = -\tfrac14 t^2 (\beta_{\max} - \beta_{\min}) - \tfrac12 t \beta_{\min}

Song et al. 2021, equations 32 to 35, https://arxiv.org/abs/2011.13456.
"""

from __future__ import annotations

__all__ = ["LinearRate"]

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import SDE


@dataclass(frozen=True)
class LinearRate(SDE):
    r"""An SDE with the drift :math:`-\tfrac12 \beta(t) x`, a linear :math:`\beta` and the standard normal as its prior.

    A leaf defines :meth:`var` and :meth:`g2`.

    Args:
        beta_min: the rate :math:`\beta` at t = 0.
        beta_max: the rate :math:`\beta` at t = 1.
        t_min: the smallest time, close to the data.
        t_max: the largest time, close to the prior.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self) -> None:
        self.check_interval()
        if not 0.0 < self.beta_min <= self.beta_max:
            raise ValueError(
                f"{type(self).__name__} needs 0 < beta_min <= beta_max, "
                f"got beta_min={self.beta_min}, beta_max={self.beta_max}"
            )

    def beta(self, t: Tensor) -> Tensor:
        r"""The rate :math:`\beta(t)`."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def log_alpha(self, t: Tensor) -> Tensor:
        return -t * (0.25 * t * (self.beta_max - self.beta_min) + 0.5 * self.beta_min)

    def f(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    def time_of_integral(self, integral: Tensor) -> Tensor:
        r"""The time at which :math:`\int_0^t \beta = -2 \log\alpha_t` has a value, in its shape and dtype."""
        # The positive root of a quadratic, in the form that stays accurate when beta_max is close to beta_min.
        a, b = 0.25 * (self.beta_max - self.beta_min), 0.5 * self.beta_min
        return integral / (b + (b * b + 2.0 * a * integral).sqrt())

    def prior_var(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)
