r"""The linear interpolant of flow matching and rectified flow.

.. math:: x_t = (1 - t)\, x_0 + t z

Lipman et al., Flow Matching for Generative Modeling, 2023, https://arxiv.org/abs/2210.02747; Liu et al., Flow Straight
and Fast, 2023, https://arxiv.org/abs/2209.03003. Here t runs from data to noise.
"""

from __future__ import annotations

__all__ = ["RectifiedFlow"]

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import SDE


@dataclass(frozen=True)
class RectifiedFlow(SDE):
    r"""The process with :math:`\alpha_t = 1 - t` and :math:`\sigma_t = t`.

    .. math:: f(t) = -\frac{1}{1 - t}, \qquad g^2(t) = \frac{2 t}{1 - t}

    The velocity of its flow is :math:`E[z - x_0 \mid x_t]`, which networks of rectified flow predict. At t = 1 the
    signal vanishes and the coefficients are infinite, so the path ends just before; the prior is
    :math:`\mathcal N(0, t_{\max}^2 I)`.

    Args:
        t_min: the smallest time, close to the data.
        t_max: the largest time, close to the prior, less than 1.
    """

    t_min: float = 1e-5
    t_max: float = 0.999

    def __post_init__(self) -> None:
        self.check_interval()
        if not self.t_max < 1.0:
            raise ValueError(f"RectifiedFlow needs t_max < 1, where the signal vanishes, got t_max={self.t_max}")

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    def var(self, t: Tensor) -> Tensor:
        return t.square()

    def f(self, t: Tensor) -> Tensor:
        return -1.0 / (1.0 - t)

    def g2(self, t: Tensor) -> Tensor:
        return 2.0 * t / (1.0 - t)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * log_snr)
