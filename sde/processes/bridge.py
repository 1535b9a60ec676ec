r"""Bridges: processes between pairs of data, from :math:`x_0` to a given end :math:`x_1`, as ordinary processes.

A process with scale :math:`\alpha_t` and variance :math:`\sigma_t^2`, conditioned on its state at the time T being
:math:`x_1` (Doob's h-transform), has the kernel

.. math::
    x_t = \underbrace{\alpha_t (1 - \rho_t)}_{m_0} x_0 + \underbrace{\rho_t\, \alpha_t / \alpha_T}_{m_1} x_1
        + \underbrace{\sigma_t \sqrt{1 - \rho_t}}_{s}\, z, \qquad
    \rho_t = \frac{\mathrm{SNR}_T}{\mathrm{SNR}_t},

so that :math:`u_t = x_t - m_1(t)\, x_1` follows a process of its own, with scale :math:`m_0` and variance :math:`s^2`
and with the diffusion g of the base. It begins at data and ends at 0, whatever the data, faster and faster in t: its
grid is one in log-SNR. So a bridge is a process whose
state is u and whose end is a condition; solvers, likelihoods, grids and objectives serve it as they are, and the
likelihood is that of :math:`x_0` given :math:`x_1`.

Of the bridges in the literature, the base VP or VE gives those of DDBM (Zhou et al. 2024,
https://arxiv.org/abs/2309.16948, table 1), and the Brownian motion that of I2SB (Liu et al. 2023,
https://arxiv.org/abs/2302.05872, proposition 3.3), whose symmetric schedule is this one in another variable.
"""

from __future__ import annotations

__all__ = ["Bridge", "Brownian"]

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..shapes import float64
from .base import SDE


@dataclass(frozen=True)
class Brownian(SDE):
    r"""Brownian motion, :math:`\alpha_t = 1` and :math:`\sigma_t^2 = \mathrm{std}^2\, t`, the base of a bridge.

    Args:
        std: the standard deviation at t = 1.
        t_min: the smallest time, close to the data.
        t_max: the largest time.
    """

    std: float = 1.0
    t_min: float = 1e-4
    t_max: float = 1.0

    def __post_init__(self) -> None:
        self.check_interval()
        if not self.std > 0.0:
            raise ValueError(f"Brownian needs std > 0, got std={self.std}")

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def var(self, t: Tensor) -> Tensor:
        return self.std**2 * t

    def f(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def g2(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.std**2)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-log_snr) / self.std**2


@dataclass(frozen=True)
class Bridge(SDE):
    r"""The bridge of a base process, in the state :math:`u_t = x_t - m_1(t)\, x_1`.

    .. math::
        \alpha = m_0 = \alpha_t (1 - \rho_t), \qquad \sigma^2 = s^2 = \sigma_t^2 (1 - \rho_t), \qquad
        f = f_{\mathrm{base}} - \frac{\rho_t\, g^2}{\sigma_t^2 (1 - \rho_t)}, \qquad g^2 = g_{\mathrm{base}}^2

    Args:
        base: the process that is conditioned on its end.
        end: :math:`1 - \rho` at `t_max`: at 0 there is neither signal nor noise, so that the path ends just before. The
            prior N(0, s^2) lacks the signal that is left, :math:`\sqrt{\mathrm{end}\,\mathrm{SNR}_T}` of s.

    Attributes:
        t_min: that of the base.
        t_max: the time just before the end of the base.
        needs: the end, the condition `image`: a network of the library, flattened or not, takes it by this name.

    Raises:
        ValueError: if `end` is not in (0, 1), or the base has no signal left at its end.
    """

    base: SDE = field(default_factory=Brownian)
    end: float = 1e-7

    t_min: float = field(init=False, default=0.0)
    t_max: float = field(init=False, default=0.0)
    needs = ("image",)

    def __post_init__(self) -> None:
        if not 0.0 < self.end < 1.0:
            raise ValueError(f"Bridge needs end in (0, 1), close to 0, got end={self.end}")
        last = self.base.log_snr(float64(self.base.t_max))
        if not math.isfinite(last):
            raise ValueError(f"Bridge needs a base with some signal at its end, got {self.base}")
        object.__setattr__(self, "t_min", self.base.t_min)
        object.__setattr__(self, "t_max", self.base.time(last - math.log1p(-self.end)).item())
        self.check_interval()

    def log_rest(self, t: Tensor) -> Tensor:
        r""":math:`\log(1 - \rho_t)`, in the shape of `t`."""
        return (-torch.expm1(self._log_rho(t))).log().to(t.dtype)

    def source_scale(self, t: Tensor) -> Tensor:
        r""":math:`m_1(t)`, the scale of the end :math:`x_1` in :math:`x_t`, in the shape of `t`."""
        last = self.base.log_alpha(float64(self.base.t_max)).item()
        return (self._log_rho(t) + self.base.log_alpha(t) - last).exp().to(t.dtype)

    def log_alpha(self, t: Tensor) -> Tensor:
        return self.base.log_alpha(t) + self.log_rest(t)

    def var(self, t: Tensor) -> Tensor:
        return self.base.var(t) * -torch.expm1(self._log_rho(t)).to(t.dtype)

    def f(self, t: Tensor) -> Tensor:
        ratio = 1.0 / torch.expm1(-self._log_rho(t))
        return self.base.f(t) - ratio.to(t.dtype) * self.base.g2(t) / self.base.var(t)

    def g2(self, t: Tensor) -> Tensor:
        return self.base.g2(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return self.base.log_snr(t) + self.log_rest(t)

    def time(self, log_snr: Tensor) -> Tensor:
        # SNR = SNR_t - SNR_T, so that SNR_t = SNR + SNR_T.
        last = self.base.log_snr(float64(self.base.t_max)).to(log_snr)
        return self.base.time(torch.logaddexp(log_snr, last))

    def _log_rho(self, t: Tensor) -> Tensor:
        """In float64, for it is a difference of two that are close to the end; at most that at `t_max`."""
        last = self.base.log_snr(float64(self.base.t_max)).item()
        return (last - self.base.log_snr(t.double())).clamp(max=math.log1p(-self.end))
