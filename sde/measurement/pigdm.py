r"""PiGDM: pseudo-inverse guidance, with one variance for all directions.

Song et al., Pseudoinverse-Guided Diffusion Models for Inverse Problems, 2023,
https://openreview.net/forum?id=9_gsMA8MRKQ.
"""

from __future__ import annotations

__all__ = ["PiGDM"]

from torch import Tensor

from .posterior import PosteriorDenoiser, Pull


class PiGDM(PosteriorDenoiser):
    r"""Guidance by :math:`p(y \mid x_t) \approx \mathcal N(y; A\, E[x_0|x_t], v_t A A^T + \sigma^2 I)`, with the
    variance taken to be constant in its gradient.

    .. math::
        \nabla \log p(y | x_t) \approx J^T A^T (v_t A A^T + \sigma^2 I)^{-1} (y - A\, E[x_0|x_t]),

    J being the Jacobian of the denoiser. One vector-Jacobian product; linear operators. It is exact for normal data
    whose covariance given :math:`x_t` is :math:`v_t I`.

    Bias: the weights of modes are wrong where the noise is small, while the draws fit y.

    Args:
        inner, measurement, variance: as in :class:`PosteriorDenoiser`.
    """

    def change(self, x0: Tensor, pull: Pull, t: Tensor) -> Tensor:
        pulled = self.update(x0, t).pulled(self.measurement.residual(x0))
        return self._covariance_scale(x0, t) * pull(pulled)
