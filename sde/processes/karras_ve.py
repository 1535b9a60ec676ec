r"""The variance-exploding process whose time is the noise level.

.. math:: dx = \sqrt{2 t}\, dw, \qquad \sigma_t = t

Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, section 3,
https://arxiv.org/abs/2206.00364.
"""

from __future__ import annotations

__all__ = ["KarrasVE"]

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import SDE


@dataclass(frozen=True)
class KarrasVE(SDE):
    r"""The variance-exploding SDE with :math:`\alpha_t = 1` and :math:`\sigma_t = t`.

    Karras et al. 2022, table 1; :class:`sde.EDM` is the parametrisation of the network that goes with it. Time runs
    from `sigma_min` to `sigma_max`. The prior is :math:`\mathcal N(0, \sigma_{\max}^2 I)`.

    Args:
        sigma_min: the standard deviation of the noise at the data's end, which is `t_min`.
        sigma_max: the standard deviation of the noise at the prior's end, which is `t_max`;
            :func:`sde.processes.propose_sigma_max` finds one for data.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"KarrasVE needs 0 < sigma_min < sigma_max, got sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            )

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.sigma_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.sigma_max

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def var(self, t: Tensor) -> Tensor:
        return t.square()

    def f(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def g2(self, t: Tensor) -> Tensor:
        return 2.0 * t

    def log_snr(self, t: Tensor) -> Tensor:
        return -2.0 * t.log()

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-0.5 * log_snr)
