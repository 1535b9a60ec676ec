r"""DiffPIR and DDNM: the denoised data is moved to fit the measurement, without a gradient through the network.

Zhu et al., Denoising Diffusion Models for Plug-and-Play Image Restoration, 2023, https://arxiv.org/abs/2305.08995; Wang
et al., Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model, 2022, https://arxiv.org/abs/2212.00490.
"""

from __future__ import annotations

__all__ = ["DiffPIR"]

import math

from torch import Tensor

from ..denoisers import Denoiser
from .measurement import Measurement
from .posterior import PosteriorDenoiser, Pull
from .update import IsotropicUpdate
from .variance import Variance


class DiffPIR(PosteriorDenoiser):
    r"""The mean of :math:`\mathcal N(E[x_0|x_t], v I)` given y, without a gradient.

    .. math::
        E[x_0|x_t,y] \approx d + v A^T (v A A^T + \sigma^2 I)^{-1} (y - A d), \qquad d = E[x_0|x_t]

    with :math:`v = \sigma_t^2 / (\alpha_t^2\, \mathrm{weight})` (Zhu et al., whose weight is lambda), or v = `variance`
    where this is given: the cheapest proposal of `solvers.Particles`. With noise = 0 it is the projection of DDNM.

    Bias: as that of :class:`PiGDM`, and larger. As a proposal of particles it is corrected by their weights.

    Args:
        inner, measurement, variance: as in :class:`PosteriorDenoiser`.
        weight: the weight of the prior without a variance; larger values trust y less.
    """

    gradient = False

    def __init__(
        self, inner: Denoiser, measurement: Measurement, variance: Variance | None = None, *, weight: float = 1.0
    ) -> None:
        super().__init__(inner, measurement, variance)
        if not 0.0 < weight < math.inf:
            raise ValueError(f"DiffPIR needs a finite weight > 0, got weight={weight}")
        self.weight = weight

    def change(self, x0: Tensor, pull: Pull, t: Tensor) -> Tensor:
        process, residual = self.process, self.measurement.residual(x0)
        if self.known:
            return self.update(x0, t).change(residual)
        rule = process.var(t) / (process.alpha(t).square() * self.weight)
        return IsotropicUpdate(self.measurement, rule.to(x0), measured=False).change(residual)
