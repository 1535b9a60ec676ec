r"""Downsampling and upsampling layers between the levels of a U-Net.

A `Resampling` creates these layers: a strided convolution, a filter without weights, a filter followed by a
convolution, or a residual block that resamples internally. All of them map a size n to ceil(n / 2), and upsampling
returns to the original size, so that any size from 1 upwards works.
"""

from __future__ import annotations

__all__ = ["Filtered", "FilteredConv", "InResidual", "Resampling", "StridedConv"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from .filters import FIR, Box, Filter, crop
from .layers import conv
from .residual import BlockConfig, Residual


class Resampling(ABC):
    """The layers between the levels of a U-Net."""

    @abstractmethod
    def down(self, config: BlockConfig, inputs: int, outputs: int) -> nn.Module:
        """A module called as `module(x, context)`, with x of shape (B, inputs, n_1, ...)
        -> (B, outputs, ceil(n_1 / 2), ...)."""

    @abstractmethod
    def up(self, config: BlockConfig, inputs: int, outputs: int) -> nn.Module:
        """A module called as `module(x, context, size)`, with x of shape (B, inputs, *)
        -> (B, outputs, *size)."""


@dataclass(frozen=True)
class StridedConv(Resampling):
    """A convolution of size 3 and stride 2 for downsampling; repetition and a convolution of size 3 for upsampling.

    Args:
        symmetric: the zero padding of an even size: on both sides, so that the last zero is not used (Dhariwal and
            Nichol 2021), or only after the last position (the "SAME" padding in the code of Ho et al. 2020). An odd
            size has one zero on each side.
    """

    symmetric: bool = False

    def down(self, config: BlockConfig, inputs: int, outputs: int) -> nn.Module:
        return _Convolution(self._pad, conv(config.rank, inputs, outputs, stride=2))

    def up(self, config: BlockConfig, inputs: int, outputs: int) -> nn.Module:
        return _Convolution(Box().up, conv(config.rank, inputs, outputs, padding=1))

    def _pad(self, x: Tensor) -> Tensor:
        before = [int(self.symmetric or n % 2) for n in x.shape[2:]]
        return F.pad(x, [side for left in reversed(before) for side in (left, 1)])


@dataclass(frozen=True)
class Filtered(Resampling):
    """A filter without weights."""

    filter: Filter = field(default_factory=Box)

    def down(self, config: BlockConfig, inputs: int, outputs: int) -> nn.Module:
        if inputs != outputs:
            raise ValueError(f"a filter without a convolution keeps the channels: expected {inputs}, got {outputs}")
        return _Filter(self.filter)

    up = down


@dataclass(frozen=True)
class FilteredConv(Resampling):
    """A smooth filter and a convolution of size 3, with zero padding of the data but none between the two.

    See Karras et al. (2020, arXiv:1912.04958).

    Args:
        taps: the weights of the filter, as in :class:`FIR`.
    """

    taps: Sequence[float] = (1.0, 3.0, 3.0, 1.0)

    def down(self, config: BlockConfig, inputs: int, outputs: int) -> nn.Module:
        return _Convolution(partial(_smooth, FIR(self.taps)), conv(config.rank, inputs, outputs, stride=2))

    def up(self, config: BlockConfig, inputs: int, outputs: int) -> nn.Module:
        return _Convolution(partial(_spread, FIR(self.taps)), conv(config.rank, inputs, outputs))


@dataclass(frozen=True)
class InResidual(Resampling):
    """A residual block with a filter in the shortcut and, after the first activation, in the branch.

    See Brock et al. (2019, arXiv:1809.11096).

    Args:
        filter: the filter.
        projection: whether the shortcut is a convolution even if the channels are unchanged (Song et al. 2021).
    """

    filter: Filter = field(default_factory=Box)
    projection: bool = False

    def down(self, config: BlockConfig, inputs: int, outputs: int) -> nn.Module:
        return _Residual(Residual(config, inputs, outputs, self.projection), self.filter)

    up = down


class _Convolution(nn.Module):
    """A convolution after a map without weights, for downsampling, or for upsampling to `size`."""

    def __init__(self, prepare: Callable[..., Tensor], convolution: nn.Module) -> None:
        super().__init__()
        self.prepare, self.conv = prepare, convolution

    def forward(self, x: Tensor, context: Tensor, size: Sequence[int] | None = None) -> Tensor:
        if size is None:
            return self.conv(self.prepare(x))
        return crop(self.conv(self.prepare(x, size)), size)


def _smooth(filter: FIR, x: Tensor) -> Tensor:
    return filter.smooth(x, len(filter.taps) // 2)


def _spread(filter: FIR, x: Tensor, size: Sequence[int]) -> Tensor:
    return filter.spread(x, 1)


class _Filter(nn.Module):
    """Downsampling, or upsampling to `size`."""

    def __init__(self, filter: Filter) -> None:
        super().__init__()
        self.filter = filter

    def forward(self, x: Tensor, context: Tensor, size: Sequence[int] | None = None) -> Tensor:
        return self.filter.down(x) if size is None else self.filter.up(x, size)


class _Residual(nn.Module):
    """Downsampling, or upsampling to `size`."""

    def __init__(self, residual: Residual, filter: Filter) -> None:
        super().__init__()
        self.residual, self.filter = residual, filter

    def forward(self, x: Tensor, context: Tensor, size: Sequence[int] | None = None) -> Tensor:
        resample = self.filter.down if size is None else partial(self.filter.up, size=size)
        return self.residual(x, context, resample)
