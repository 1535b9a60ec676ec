r"""Filters without weights that halve and double the spatial sizes of (B, C, n_1, ..., n_rank), with rank 1 to 3.

Downsampling computes position j of the result as a weighted mean of the positions around 2 j and 2 j + 1. Upsampling
spreads position j over the positions around 2 j and 2 j + 1, and preserves the scale. Downsampling takes a size n to
ceil(n / 2): the last position of an odd size is repeated. Upsampling takes m to 2 m, or to 2 m - 1 by dropping the last
position.
"""

from __future__ import annotations

__all__ = ["FIR", "Box", "Filter", "crop"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

ByRank = dict[int, Callable[..., Tensor]]

_CONV: ByRank = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSED: ByRank = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_POOL: ByRank = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class Filter(ABC):
    """Downsampling and upsampling between two levels of a U-Net."""

    @abstractmethod
    def down(self, x: Tensor) -> Tensor:
        """(B, C, n_1, ...) -> (B, C, ceil(n_1 / 2), ...)."""

    @abstractmethod
    def up(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """(B, C, *) -> (B, C, *size), where `down` maps `size` to the sizes of `x`."""


@dataclass(frozen=True)
class Box(Filter):
    """The mean of two neighbours for downsampling, repetition for upsampling: a cheaper `FIR((1, 1))`."""

    def down(self, x: Tensor) -> Tensor:
        return _POOL[x.ndim - 2](_even(x), 2)

    def up(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(x, size=list(size), mode="nearest")


@dataclass(frozen=True)
class FIR(Filter):
    """A smooth filter along each axis with zero padding.

    See Zhang (2019, arXiv:1904.11486) and Karras et al. (2020, arXiv:1912.04958).

    Args:
        taps: the weights of the filter up to scale, symmetric and of even number.

    Raises:
        ValueError: if the taps are empty, odd in number, not symmetric, or sum to zero.
    """

    taps: Sequence[float] = (1.0, 3.0, 3.0, 1.0)

    def __post_init__(self) -> None:
        taps = tuple(self.taps)
        if not taps or len(taps) % 2 or taps != taps[::-1] or sum(taps) == 0:
            raise ValueError(f"expected symmetric taps of even number with a non-zero sum, got taps={taps}")
        object.__setattr__(self, "taps", taps)

    def down(self, x: Tensor) -> Tensor:
        return self.smooth(x, len(self.taps) // 2 - 1, stride=2)

    def up(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return crop(self.spread(x, 0), size)

    def smooth(self, x: Tensor, padding: int, stride: int = 1) -> Tensor:
        """`x` padded to even sizes and then by `padding` zeros on each side, filtered with the given stride."""
        x, kernel = _even(x), self._kernel(x)
        return _CONV[x.ndim - 2](x, kernel, stride=stride, padding=padding, groups=x.shape[1])

    def spread(self, x: Tensor, margin: int) -> Tensor:
        """`x` upsampled to twice its sizes, with `margin` more positions of the filtered data on each side."""
        rank = x.ndim - 2
        kernel = 2**rank * self._kernel(x)
        full = _CONV_TRANSPOSED[rank](x, kernel, stride=2, groups=x.shape[1])  # len(taps) / 2 - 1 more on each side
        return F.pad(full, [margin + 1 - len(self.taps) // 2] * (2 * rank))

    def _kernel(self, x: Tensor) -> Tensor:
        """The product of the taps along each axis, for each channel: (C, 1, taps, ...), with sum 1."""
        # Created on the device, because a copy from the host would synchronise.
        taps = torch.stack([torch.full((), tap / sum(self.taps), dtype=x.dtype, device=x.device) for tap in self.taps])
        kernel = taps
        for _ in range(x.ndim - 3):
            kernel = kernel[..., None] * taps
        return kernel.expand(x.shape[1], 1, *kernel.shape)


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first `size` positions of `x` along the spatial axes."""
    for axis, n in enumerate(size, start=2):
        x = x.narrow(axis, 0, n)
    return x


def _even(x: Tensor) -> Tensor:
    """`x` with the last position of each odd spatial axis repeated."""
    for axis in range(2, x.ndim):
        if x.shape[axis] % 2:
            x = torch.cat([x, x.narrow(axis, x.shape[axis] - 1, 1)], dim=axis)
    return x
