r"""Ends of the noise schedule for data of one's own.

Song and Ermon, Improved Techniques for Training Score-Based Generative Models, 2020, technique 1,
https://arxiv.org/abs/2006.09011.
"""

from __future__ import annotations

__all__ = ["propose_beta_max", "propose_sigma_max"]

import dataclasses
import math
from typing import TypeVar

import torch
from torch import Tensor

from .linear_rate import LinearRate
from .vp import VP

Linear = TypeVar("Linear", bound=LinearRate)


def propose_sigma_max(x0: Tensor, *, chunk: int = 1024) -> float:
    r"""The largest Euclidean distance between two data points, the `sigma_max` of technique 1.

    With noise of this size every point can be reached from every other, so that the prior covers the data. All pairs
    are compared: the cost is :math:`N^2 D`, and some thousand points in random order serve as well as all.

    Args:
        x0: data in the model's range, with shape (N, \*) and N >= 2.
        chunk: how many points are compared with all others at once.

    Raises:
        ValueError: for fewer than two points, points that are not finite, or points that are all equal.
    """
    x = _checked(x0, 2)
    largest = max(float(torch.cdist(part, x).max()) for part in x.split(chunk))
    if largest == 0.0:
        raise ValueError(f"expected data that differ, got {len(x)} equal points")
    return largest


def propose_beta_max(x0: Tensor, nats: float, process: Linear | None = None) -> float:
    r"""The smallest `beta_max` for which the prior is close enough to the marginal at `t_max`.

    The measure is the average over the data of :math:`\mathrm{KL}(q(x_T \mid x_0) \,\|\, \mathcal N(0, I))`, which
    bounds the divergence of the marginal from the prior (the divergence is convex) and is the prior's term of the
    variational bound. It falls with `beta_max`, so bisection finds it.

    Args:
        x0: data in the model's range, with shape (N, \*).
        nats: the bound on the divergence of a data point, in nats, for all dimensions together.
        process: the process whose `beta_max` is asked for, :class:`sde.VP` or :class:`sde.SubVP`; its other settings
            are kept.

    Raises:
        ValueError: for data that are not finite, or a bound that is not positive or cannot be met with
            :math:`\beta_{\max} \le 10^4`.
    """
    x, start = _checked(x0, 1), VP() if process is None else process
    if not 0.0 < nats < math.inf:
        raise ValueError(f"expected a finite bound nats > 0, got nats={nats}")

    def divergence(beta_max: float) -> float:
        return float(dataclasses.replace(start, beta_max=beta_max).prior_divergence(x).mean())

    low, high = start.beta_min, 1e4
    if divergence(high) > nats:
        raise ValueError(f"no beta_max up to {high:g} brings the prior within nats={nats} of the data")
    while high - low > 1e-6 * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if divergence(middle) <= nats else (middle, high)
    return high


def _checked(x0: Tensor, least: int) -> Tensor:
    if x0.ndim < 2 or len(x0) < least:
        raise ValueError(f"expected data of shape (N, *) with N >= {least}, got {tuple(x0.shape)}")
    x = x0.double().flatten(1)
    finite = x.isfinite().all(1)
    if not bool(finite.all()):
        raise ValueError(f"expected finite data, got NaN or infinity in item {int((~finite).nonzero()[0])}")
    return x
