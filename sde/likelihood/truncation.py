r"""Where a bound with a decoder ends: at `t_min`, or at a later time, where the noise is as wide as asked for.

Every time serves: the reverse SDE down to t, and from there the decoder, are a model of the data with a bound of its
own. Which time is best is the network's to say. One that has learned levels as points ends best near `t_min`. One that
has learned levels spread over their cells, of width a, by uniform dequantisation knows nothing within a cell: asked for
the middle of it at the precision :math:`\tilde\sigma = \sigma/\alpha \ll a`, it pays

.. math:: \log_2 \frac{a}{\sqrt{2 \pi e}\, \tilde\sigma} \text{ bits/dim}

for what is no property of the data, and a bound that ends at about half a cell pays next to nothing.
"""

from __future__ import annotations

__all__ = ["default_end", "ending_at"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Scaling
from ..denoisers import Denoiser, Prediction, Wrapper
from ..processes import SDE, ChainSDE


def default_end(process: SDE, scaling: Scaling) -> float | None:
    """The noise to end at, in cells: 1/2, but None, which is `t_min`, for a discrete chain, whose own data end is part
    of its bound, and for continuous data, which has no cells."""
    return None if scaling.levels is None or isinstance(process, ChainSDE) else 0.5


def ending_at(denoiser: Denoiser, scaling: Scaling, cells: float | None) -> Denoiser:
    r"""The same denoiser, of a process that ends where :math:`\sigma/\alpha` is so many cells wide, or at `t_min` if
    there it is wider.

    Args:
        denoiser: the model.
        scaling: the scaling of its data, whose levels have cells.
        cells: the noise in widths of a cell; None is `t_min`.

    Raises:
        ValueError: if the data are continuous, or the process has no such noise.
    """
    if cells is None:
        return denoiser
    process = denoiser.process
    low, high = process.log_snr(torch.tensor([process.t_min, process.t_max], dtype=torch.float64)).tolist()
    if scaling.levels is None:
        raise ValueError(
            f"continuous data have no cells, and a bound of theirs ends at t_min: expected none, got {cells}"
        )
    widest = math.exp(-0.5 * high) / scaling.scale
    if isinstance(cells, bool) or not isinstance(cells, int | float) or not 0.0 < cells < widest:
        raise ValueError(
            f"a bound ends where the noise is some cells wide: expected 0 < end < {widest:.4g}, got {cells!r}"
        )
    log_snr = -2.0 * math.log(cells * scaling.scale)
    if log_snr >= low:
        return denoiser
    return _Ending(denoiser, _Later(process, process.time(torch.tensor(log_snr, dtype=torch.float64)).item()))


@dataclass(frozen=True)
class _Later(SDE):
    """A process from a later time on."""

    process: SDE
    t_min: float

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.process.t_max

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


class _Ending(Wrapper):
    """A denoiser as it is, of another process."""

    def __init__(self, inner: Denoiser, process: SDE) -> None:
        super().__init__(inner)
        self.process = process

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.inner.predict(what, x_t, t, **condition)
