r"""The sub-VP process, whose variance is at most that of VP with the same rates.

.. math::
    dx = -\tfrac12 \beta(t) x\, dt + \sqrt{\beta(t) \big(1 - e^{-2\int_0^t \beta}\big)}\, dw

Song et al. 2021, equations 13 and 35, https://arxiv.org/abs/2011.13456.
"""

from __future__ import annotations

__all__ = ["SubVP"]

from dataclasses import dataclass

import torch
from torch import Tensor

from .linear_rate import LinearRate


@dataclass(frozen=True)
class SubVP(LinearRate):
    r"""The sub-VP SDE, which gave the better likelihoods in Song et al. 2021.

    .. math::
        \log\alpha_t = -\tfrac14 t^2 (\beta_{\max} - \beta_{\min}) - \tfrac12 t \beta_{\min}, \qquad
        \sigma_t^2 = (1 - \alpha_t^2)^2

    Song et al. 2021, equation 35. The prior is the standard normal.

    Args:
        beta_min: the rate :math:`\beta` at t = 0.
        beta_max: the rate :math:`\beta` at t = 1.
        t_min: the smallest time, close to the data.
        t_max: the largest time, close to the prior.
    """

    def var(self, t: Tensor) -> Tensor:
        return torch.expm1(2.0 * self.log_alpha(t)).square()

    def g2(self, t: Tensor) -> Tensor:
        return -self.beta(t) * torch.expm1(4.0 * self.log_alpha(t))

    def time(self, log_snr: Tensor) -> Tensor:
        # The antiderivative of g^2/var is 2 log sinh(B/2) = -log_snr - 2 log 2, with B the integral of beta.
        return self.time_of_integral(2.0 * torch.asinh(0.5 * torch.exp(-0.5 * log_snr.double()))).to(log_snr.dtype)
