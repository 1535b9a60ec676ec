r"""Truncation: the time at which the path of a bound with a decoder ends, `t_min` or a later one.

For every time t, the reverse SDE down to t with a decoder from there is a model of the data with a bound of its own.
The best time depends on the network. For a network that was trained on levels as points it is near `t_min`. A network
that was trained with uniform dequantisation, on levels spread over their quantisation bins of width a, has no
information within a bin. To predict the middle of the bin with the precision
:math:`\tilde\sigma = \sigma/\alpha \ll a` costs it

.. math:: \log_2 \frac{a}{\sqrt{2 \pi e}\, \tilde\sigma} \text{ bits/dim}

that say nothing about the data. A bound that ends where :math:`\tilde\sigma` is about half a bin avoids this cost.
"""

from __future__ import annotations

__all__ = ["default_end", "truncated_at"]

import math
from dataclasses import dataclass

from torch import Tensor

from ..data import Scaling
from ..denoisers import Denoiser, Prediction, Wrapper
from ..processes import SDE, ChainSDE
from ..shapes import float64


def default_end(process: SDE, scaling: Scaling) -> float | None:
    """The default noise at the end of the path, in bin widths: 1/2, or None, for `t_min`, for continuous data and for
    a discrete chain, whose bound includes its own last step."""
    return None if scaling.levels is None or isinstance(process, ChainSDE) else 0.5


def truncated_at(denoiser: Denoiser, scaling: Scaling, bins: float | None) -> Denoiser:
    r"""The denoiser with its process truncated at the time where :math:`\sigma/\alpha` is a number of bin widths.

    A process with more noise than that at `t_min` is not truncated.

    Args:
        denoiser: the model.
        scaling: the scaling of its data, with levels.
        bins: the noise in widths of a quantisation bin; None is `t_min`.

    Raises:
        ValueError: if the data is continuous, or the process never has this noise.
    """
    if bins is None:
        return denoiser
    process = denoiser.process
    low, high = process.log_snr(float64([process.t_min, process.t_max])).tolist()
    if scaling.levels is None:
        raise ValueError(
            f"continuous data has no quantisation bins, its bound ends at t_min: expected end=None, got end={bins}"
        )
    width, *_ = scaling.bins
    widest = math.exp(-0.5 * high) / width
    if isinstance(bins, bool) or not isinstance(bins, int | float) or not 0.0 < bins < widest:
        raise ValueError(f"expected the noise in widths of a bin, 0 < end < {widest:.4g}, got end={bins!r}")
    log_snr = -2.0 * math.log(bins * width)
    if log_snr >= low:
        return denoiser
    t_min = process.time(float64(log_snr)).item()
    return _TruncatedDenoiser(denoiser, _TruncatedProcess(process, t_min, process.t_max))


@dataclass(frozen=True)
class _TruncatedProcess(SDE):
    """A process that begins at a later `t_min`."""

    process: SDE
    t_min: float
    t_max: float

    def log_alpha(self, t: Tensor) -> Tensor:
        return self.process.log_alpha(t)

    def var(self, t: Tensor) -> Tensor:
        return self.process.var(t)

    def f(self, t: Tensor) -> Tensor:
        return self.process.f(t)

    def g2(self, t: Tensor) -> Tensor:
        return self.process.g2(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return self.process.log_snr(t)

    def prior_var(self, t: Tensor) -> Tensor:
        return self.process.prior_var(t)


class _TruncatedDenoiser(Wrapper):
    """A denoiser with another process."""

    def __init__(self, inner: Denoiser, process: SDE) -> None:
        super().__init__(inner)
        self.process = process

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.inner.predict(what, x_t, t, **condition)
