r"""Denoisers whose :math:`x_0` is limited to the range of the data.

Data in a known range, such as images in [-1, 1], cannot have a posterior mean outside it, but a network's estimate
:math:`\hat x_0` can lie outside. A sampler would carry the excess on; a limit :math:`\ell` removes it,

.. math:: \tilde x_0 = \ell\big(\hat x_0(x_t, t)\big), \qquad
          s(x_t, t) = \frac{\alpha_t \tilde x_0 - x_t}{\sigma_t^2},

and the noise and the velocity follow from :math:`\tilde x_0` too, so that :math:`x_t = \alpha_t x_0 + \sigma_t
\varepsilon` still holds. A step of ancestral sampling then has the mean of :math:`q(x_s | x_t, \tilde x_0)`, which is
DDPM's rule. DDIM then recomputes the noise from :math:`\tilde x_0`. A DDIM step that combines :math:`\tilde x_0` with
the network's own noise corresponds to no denoiser, because the two do not add up to :math:`x_t`.

Ho et al. 2020, https://arxiv.org/abs/2006.11239; Saharia et al., Photorealistic Text-to-Image Diffusion Models with
Deep Language Understanding, 2022, https://arxiv.org/abs/2205.11487, section 2.3.
"""

from __future__ import annotations

__all__ = ["Clip", "DynamicThreshold", "Limited"]

import math
from abc import abstractmethod

import torch
from torch import Tensor

from ..shapes import expand, working
from .base import Denoiser, Wrapper
from .parametrisation import Prediction, from_x0


class Limited(Wrapper):
    r"""A denoiser whose :math:`x_0` goes through a function :math:`\ell`, and all predictions with it."""

    @abstractmethod
    def limit(self, x0: Tensor) -> Tensor:
        r"""The function :math:`\ell`, on data of shape (B, \*), one sample at a time."""

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        state = working(x_t)
        x0 = self.limit(self.inner.predict(Prediction.X0, state, t, **condition))
        return (x0 if what is Prediction.X0 else from_x0(what, self.process, x0, state, t)).to(x_t.dtype)


class Clip(Limited):
    r"""Static thresholding, :math:`\ell(x_0) = \min(\max(x_0, \mathrm{low}), \mathrm{high})`.

    With it, `sde.solvers.Ancestral` takes the steps of diffusers' `DDPMScheduler` with `clip_sample`, and
    `sde.solvers.DDIM` those of its `DDIMScheduler` with `use_clipped_model_output=True`. By default that scheduler
    combines the network's noise with the clipped :math:`x_0`.

    Args:
        inner: the denoiser whose :math:`x_0` is clipped.
        low: the smallest value of the data, in the model's range.
        high: the largest.

    Raises:
        ValueError: if `low` is not below `high`.
    """

    def __init__(self, inner: Denoiser, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(inner)
        if not low < high:
            raise ValueError(f"Clip needs low < high, the range of the data, got low={low}, high={high}")
        self.low, self.high = low, high

    def limit(self, x0: Tensor) -> Tensor:
        return x0.clamp(self.low, self.high)

    def extra_repr(self) -> str:
        return f"low={self.low}, high={self.high}"


class DynamicThreshold(Limited):
    r"""Dynamic thresholding (Saharia et al. 2022): clipping at a quantile of each sample, then rescaling to the range.

    .. math:: \ell(x_0) = \frac{b}{s} \min(\max(x_0, -s), s), \qquad
              s = \min\big(\max(b, Q_q(|x_0|)), \mathrm{maximum}\big)

    with the quantile :math:`Q_q` over the entries of one sample, interpolated linearly. Where the quantile is at most b
    this is :class:`Clip`. The `thresholding` of diffusers' schedulers is this with b = 1, q =
    `dynamic_thresholding_ratio` and `maximum` = `sample_max_value`; its default `sample_max_value=1.0` makes it a clip.
    The solvers correspond as in :class:`Clip`.

    Args:
        inner: the denoiser whose :math:`x_0` is thresholded.
        quantile: q, in [0, 1].
        bound: b, the data's range being [-b, b].
        maximum: the largest s, at least b; None for no maximum, as in the paper.

    Raises:
        ValueError: if `quantile` is not in [0, 1], `bound` is not positive, or `maximum` is below it.
    """

    def __init__(
        self, inner: Denoiser, quantile: float = 0.995, bound: float = 1.0, maximum: float | None = None
    ) -> None:
        super().__init__(inner)
        if not 0.0 <= quantile <= 1.0:
            raise ValueError(f"DynamicThreshold needs a quantile in [0, 1], got quantile={quantile}")
        if not bound > 0.0:
            raise ValueError(f"DynamicThreshold needs bound > 0, the data's range being [-bound, bound], got {bound}")
        if maximum is not None and not maximum >= bound:
            raise ValueError(
                f"DynamicThreshold needs maximum >= bound, or None for no limit, got maximum={maximum}, bound={bound}"
            )
        self.quantile, self.bound, self.maximum = quantile, bound, maximum

    def limit(self, x0: Tensor) -> Tensor:
        size = (x0.flatten(1) if x0.ndim > 1 else x0[:, None]).abs().sort(1).values
        place = self.quantile * (size.shape[1] - 1)
        low = math.floor(place)
        # torch.quantile supports neither half precision nor vmap.
        s = torch.lerp(size[:, low], size[:, math.ceil(place)], place - low).clamp(min=self.bound, max=self.maximum)
        s = expand(s, x0)
        return torch.maximum(torch.minimum(x0, s), -s) * (self.bound / s)

    def extra_repr(self) -> str:
        return f"quantile={self.quantile}, bound={self.bound}, maximum={self.maximum}"
