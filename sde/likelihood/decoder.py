r"""The decoder: the probability of data values under a Gaussian in the model's range.

A diffusion ends at a state with a little noise. The last term of a variational bound is the log-probability of the
data under the Gaussian :math:`\mathcal N(\mu, s^2)`, independently in every dimension. Level v of discrete data with L
levels has the quantisation bin between the edges :math:`e_v` and :math:`e_{v+1}`, :math:`e_v = a v + b`
(:class:`sde.data.Scaling`), and the first and the last bin extend to infinity:

.. math::
    P(v) = \Phi\Big(\frac{e_{v+1} - \mu}{s}\Big) - \Phi\Big(\frac{e_v - \mu}{s}\Big), \qquad
    e_0 \to -\infty, \quad e_L \to \infty,

so that the probabilities of the levels sum to 1. For continuous data it is the Gaussian density.

Ho et al., Denoising Diffusion Probabilistic Models, 2020, https://arxiv.org/abs/2006.11239, equation 13. OpenAI's
programs approximate :math:`\Phi` by a hyperbolic tangent and clip every probability at 1e-12; here it is exact, in
float64.
"""

from __future__ import annotations

__all__ = ["log_bin_mass", "log_decoder"]

import math

import torch
from torch import Tensor

from ..data import Scaling
from ..shapes import sum_event


def log_bin_mass(scaling: Scaling, values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    r""":math:`\log P(v)` of each dimension, in nats, float64.

    Args:
        scaling: the scaling of discrete data.
        values: levels, with shape (B, \*).
        mean: :math:`\mu` in the model's range, with shape (B, \*).
        std: :math:`s > 0`, with a shape that broadcasts to that of `mean`.

    Returns:
        With shape (B, \*).

    Raises:
        ValueError: if the data is continuous.
    """
    width, low, levels = scaling.bins
    mean, std = mean.double(), std.to(mean.device).double()
    v = values.to(mean.device).double()
    below = (width * v + low - mean) / std
    above = (width * (v + 1.0) + low - mean) / std
    # Bins in the upper tail are reflected into the lower one, where log Phi is precise.
    flip = below > 0.0
    upper, lower = torch.where(flip, -below, above), torch.where(flip, -above, below)
    log_upper = torch.special.log_ndtr(upper)
    between = log_upper + torch.log(-torch.expm1(torch.special.log_ndtr(lower) - log_upper))
    first, last = torch.special.log_ndtr(above), torch.special.log_ndtr(-below)
    return torch.where(v == 0, first, torch.where(v == levels - 1, last, between))


def log_decoder(scaling: Scaling, values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    r"""The log-probability of data under the decoder, in nats, float64 with shape (B,).

    For discrete data :math:`\sum \log P(v)`, for continuous data the log-density in the model's range, as in
    :func:`sde.log_prob`. The arguments are those of :func:`log_bin_mass`.
    """
    if scaling.levels is not None:
        return sum_event(log_bin_mass(scaling, values, mean, std))
    std = std.to(mean.device).double()
    y = scaling.to_model(values.to(mean.device), dtype=torch.float64)
    log_normal = -0.5 * (((y - mean) / std).square() + (2.0 * math.pi * std.square()).log())
    return sum_event(log_normal.expand_as(y))
