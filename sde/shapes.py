r"""Shapes: the one place where time meets data.

Data has shape (B, *): B samples and any event shape. Time has shape () or (B,). A function of time is evaluated in the
precision of the time it is given and only then laid against the data, in the precision of the data: a schedule
computed in float64 keeps its accuracy, and a float64 time never promotes a float32 state.
"""

from __future__ import annotations

__all__ = ["check_count", "check_event", "event_dims", "expand", "sum_event"]

import math

from torch import Tensor


def expand(values: Tensor, x: Tensor) -> Tensor:
    """Values of shape () or (B,), reshaped to multiply `x` of shape (B, *), in its dtype and on its device."""
    if values.ndim == 0:
        return values.to(device=x.device, dtype=x.dtype)
    if values.ndim != 1 or values.shape[0] != x.shape[0]:
        raise ValueError(
            f"a time is a scalar or has one entry per sample: expected shape () or ({x.shape[0]},), "
            f"got {tuple(values.shape)} for data of shape {tuple(x.shape)}"
        )
    return values.to(device=x.device, dtype=x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def sum_event(x: Tensor) -> Tensor:
    """The sum over the event: (B, *) -> (B,)."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def event_dims(x: Tensor) -> int:
    """D, the number of dimensions of one sample of `x` with shape (B, *)."""
    return math.prod(x.shape[1:])


def check_event(x: Tensor, shape: tuple[int, ...], owner: str = "this model") -> None:
    """Refuses a batch of another event shape than `shape`."""
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"{owner} is for data of shape (B, {', '.join(map(str, shape))}), got {tuple(x.shape)}")


def check_count(owner: str, argument: str, value: int, minimum: int = 1) -> None:
    """Refuses a value that is not a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{owner} needs a whole number {argument} >= {minimum}, got {argument}={value!r}")
