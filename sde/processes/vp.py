r"""The variance-preserving process: the continuous limit of DDPM.

.. math::
    dx = -\tfrac12 \beta(t) x\, dt + \sqrt{\beta(t)}\, dw, \qquad
    \beta(t) = \beta_{\min} + t (\beta_{\max} - \beta_{\min})

Song et al. 2021, equations 11 and 33, https://arxiv.org/abs/2011.13456.
"""

from __future__ import annotations

__all__ = ["VP", "check_betas", "linear_beta", "linear_log_alpha"]

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import SDE


def linear_beta(t: Tensor, beta_min: float, beta_max: float) -> Tensor:
    r""":math:`\beta(t) = \beta_{\min} + t (\beta_{\max} - \beta_{\min})`."""
    return beta_min + t * (beta_max - beta_min)


def linear_log_alpha(t: Tensor, beta_min: float, beta_max: float) -> Tensor:
    r""":math:`\log\alpha_t = -\tfrac12 \int_0^t \beta(s)\, ds` for the linear :math:`\beta`."""
    return -t * (0.25 * t * (beta_max - beta_min) + 0.5 * beta_min)


def check_betas(name: str, beta_min: float, beta_max: float) -> None:
    """Refuses rates that would let the signal grow."""
    if not 0.0 < beta_min <= beta_max:
        raise ValueError(f"{name} needs 0 < beta_min <= beta_max, got beta_min={beta_min}, beta_max={beta_max}")


@dataclass(frozen=True)
class VP(SDE):
    r"""The variance-preserving SDE, :math:`\alpha_t^2 + \sigma_t^2 = 1`.

    .. math::
        \log\alpha_t = -\tfrac14 t^2 (\beta_{\max} - \beta_{\min}) - \tfrac12 t \beta_{\min}, \qquad
        \sigma_t^2 = 1 - \alpha_t^2

    Song et al. 2021, equation 33. The prior is the standard normal.

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
        check_betas("VP", self.beta_min, self.beta_max)

    def log_alpha(self, t: Tensor) -> Tensor:
        return linear_log_alpha(t, self.beta_min, self.beta_max)

    def var(self, t: Tensor) -> Tensor:
        return -torch.expm1(2.0 * self.log_alpha(t))

    def f(self, t: Tensor) -> Tensor:
        return -0.5 * self.g2(t)

    def g2(self, t: Tensor) -> Tensor:
        return linear_beta(t, self.beta_min, self.beta_max)

    def time(self, log_snr: Tensor) -> Tensor:
        # alpha^2 = sigmoid(log_snr) gives log alpha; t is then the positive root of a quadratic, in the form that keeps
        # its digits when beta_max is close to beta_min.
        log_alpha = -0.5 * torch.nn.functional.softplus(-log_snr.double())
        a, b = 0.25 * (self.beta_max - self.beta_min), 0.5 * self.beta_min
        return (-2.0 * log_alpha / (b + (b * b - 4.0 * a * log_alpha).sqrt())).to(log_snr.dtype)

    def prior_var(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)
