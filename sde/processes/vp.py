r"""The variance-preserving process: the continuous limit of DDPM.

.. math::
    dx = -\tfrac12 \beta(t) x\, dt + \sqrt{\beta(t)}\, dw, \qquad
    \beta(t) = \beta_{\min} + t (\beta_{\max} - \beta_{\min})

Song et al. 2021, equations 11 and 33, https://arxiv.org/abs/2011.13456.
"""

from __future__ import annotations

__all__ = ["VP"]

from dataclasses import dataclass

import torch
from torch import Tensor

from .linear_rate import LinearRate


@dataclass(frozen=True)
class VP(LinearRate):
    r"""The variance-preserving SDE, :math:`\alpha_t^2 + \sigma_t^2 = 1`.

    .. math::
        \log\alpha_t = -\tfrac14 t^2 (\beta_{\max} - \beta_{\min}) - \tfrac12 t \beta_{\min}, \qquad
        \sigma_t^2 = 1 - \alpha_t^2

    Song et al. 2021, equation 33. The prior is the standard normal.

    Args:
        beta_min: the rate :math:`\beta` at t = 0.
        beta_max: the rate :math:`\beta` at t = 1.
        t_min: the smallest time, close to the data.
        t_max: the largest time, close to the prior.
    """

    def var(self, t: Tensor) -> Tensor:
        return -torch.expm1(2.0 * self.log_alpha(t))

    def g2(self, t: Tensor) -> Tensor:
        return self.beta(t)

    def time(self, log_snr: Tensor) -> Tensor:
        # The antiderivative of g^2/var is log(e^B - 1) = -log_snr, with B the integral of beta.
        return self.time_of_integral(torch.nn.functional.softplus(-log_snr.double())).to(log_snr.dtype)
