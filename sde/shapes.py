r"""Shapes: broadcasting functions of time over data.

Data has shape (B, *): B samples and any event shape. Time has shape () or (B,). A function of time is evaluated in the
dtype of the time, and only its result is cast to the dtype of the data. So a schedule computed in float64 stays
accurate, and a float64 time never promotes a float32 state.
"""

from __future__ import annotations

__all__ = ["event_dims", "expand", "sum_event"]

import math

from torch import Tensor


def expand(values: Tensor, x: Tensor) -> Tensor:
    """Values of shape () or (B,), reshaped to broadcast against `x` (B, *), in its dtype and on its device."""
    if values.ndim == 0:
        return values.to(device=x.device, dtype=x.dtype)
    if values.ndim != 1 or values.shape[0] != x.shape[0]:
        raise ValueError(
            f"expected a scalar or one time per sample, of shape () or ({x.shape[0]},), "
            f"got {tuple(values.shape)} for data of shape {tuple(x.shape)}"
        )
    return values.to(device=x.device, dtype=x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def sum_event(x: Tensor) -> Tensor:
    """The sum over the event dimensions: (B, *) -> (B,)."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def event_dims(x: Tensor) -> int:
    """The number of dimensions D of one sample of `x` (B, *)."""
    return math.prod(x.shape[1:])
