r"""The decoder: the probability of data values under a Gaussian in the model's range.

A diffusion ends at a state that still holds a little noise. The last link of a variational bound says how probable
the data are there, under :math:`\mathcal N(\mu, s^2)` for every dimension by itself. Level v of discrete data with L
levels owns the cell between the edges :math:`e_v` and :math:`e_{v+1}`, :math:`e_v = a v + b`
(:class:`sde.data.Scaling`), and the first and the last cell are open to the outside:

.. math::
    P(v) = \Phi\Big(\frac{e_{v+1} - \mu}{s}\Big) - \Phi\Big(\frac{e_v - \mu}{s}\Big), \qquad
    e_0 \to -\infty, \quad e_L \to \infty,

so that the probabilities of the levels sum to 1. Continuous data have the density itself.

Ho et al., Denoising Diffusion Probabilistic Models, 2020, https://arxiv.org/abs/2006.11239, equation 13. OpenAI's
programs approximate :math:`\Phi` by a hyperbolic tangent and cut every probability at 1e-12; here it is exact, in
float64.
"""

from __future__ import annotations

__all__ = ["log_cell_mass", "log_decoder"]

import math

import torch
from torch import Tensor

from ..data import Scaling
from ..shapes import sum_event


def log_cell_mass(scaling: Scaling, values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    r""":math:`\log P(v)` of each dimension by itself, in nats, float64.

    Args:
        scaling: of discrete data.
        values: levels, with shape (B, \*).
        mean: :math:`\mu` in the model's range, with shape (B, \*).
        std: :math:`s > 0`, of a shape that broadcasts against `mean`.

    Returns:
        With shape (B, \*).

    Raises:
        ValueError: if the data are continuous.
    """
    if scaling.levels is None:
        raise ValueError("continuous data have no levels, and so no cells to take the mass of")
    mean, std = mean.double(), std.to(mean.device).double()
    v = values.to(mean.device).double()
    below = (scaling.scale * v + scaling.shift - mean) / std
    above = (scaling.scale * (v + 1.0) + scaling.shift - mean) / std
    # A cell in the upper tail is reflected into the lower one, where log Phi keeps its digits.
    flip = below > 0.0
    upper, lower = torch.where(flip, -below, above), torch.where(flip, -above, below)
    log_upper = torch.special.log_ndtr(upper)
    between = log_upper + torch.log(-torch.expm1(torch.special.log_ndtr(lower) - log_upper))
    first, last = torch.special.log_ndtr(above), torch.special.log_ndtr(-below)
    return torch.where(v == 0, first, torch.where(v == scaling.levels - 1, last, between))


def log_decoder(scaling: Scaling, values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    r"""The log-probability of data under the decoder, in nats, float64 with shape (B,).

    Of discrete data :math:`\sum \log P(v)`; of continuous data the log-density of their place in the model's range, as
    :func:`sde.log_prob` has it. The arguments are those of :func:`log_cell_mass`.
    """
    if scaling.levels is not None:
        return sum_event(log_cell_mass(scaling, values, mean, std))
    wide = std.to(mean.device).double()
    y = scaling.to_model(values.to(mean.device), dtype=torch.float64)
    log_normal = -0.5 * (((y - mean) / wide).square() + (2.0 * math.pi * wide.square()).log())
    return sum_event(log_normal.expand_as(y))
