r"""The sub-VP process, whose variance is never above that of VP with the same rates.

.. math::
    dx = -\tfrac12 \beta(t) x\, dt + \sqrt{\beta(t) \big(1 - e^{-2\int_0^t \beta}\big)}\, dw

Song et al. 2021, equations 13 and 35, https://arxiv.org/abs/2011.13456.
"""

from __future__ import annotations

__all__ = ["SubVP"]

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import SDE
from .vp import check_betas, linear_beta, linear_log_alpha


@dataclass(frozen=True)
class SubVP(SDE):
    r"""The sub-VP SDE, which Song et al. found to give the better likelihoods.

    .. math::
        \log\alpha_t = -\tfrac14 t^2 (\beta_{\max} - \beta_{\min}) - \tfrac12 t \beta_{\min}, \qquad
        \sigma_t^2 = (1 - \alpha_t^2)^2

    Song et al. 2021, equation 35. The prior is the standard normal.

    Args:
        beta_min: the rate :math:`\beta` at t = 0.
        beta_max: the rate :math:`\beta` at t = 1.
        t_min: the data end.
        t_max: the noise end.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self) -> None:
        self.check_interval()
        check_betas("SubVP", self.beta_min, self.beta_max)

    def log_alpha(self, t: Tensor) -> Tensor:
        return linear_log_alpha(t, self.beta_min, self.beta_max)

    def var(self, t: Tensor) -> Tensor:
        return torch.expm1(2.0 * self.log_alpha(t)).square()

    def f(self, t: Tensor) -> Tensor:
        return -0.5 * linear_beta(t, self.beta_min, self.beta_max)

    def g2(self, t: Tensor) -> Tensor:
        return -linear_beta(t, self.beta_min, self.beta_max) * torch.expm1(4.0 * self.log_alpha(t))

    def prior_var(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)
