r"""Downsampling and upsampling layers between the levels of a U-Net.

A `Resampling` creates these layers: a strided convolution, a filter without weights, a filter followed by a
convolution, or a residual block that resamples internally. All of them map a size n to ceil(n / 2), and upsampling
returns to the original size, so that any size from 1 upwards works.
"""

from __future__ import annotations

__all__ = ["Filtered", "FilteredConv", "InResidual", "Resampling", "StridedConv"]

from abc import ABC, abstractmethod
from collections.abc import Sequence
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
        return _ConvDown(config, inputs, outputs, self.symmetric)

    def up(self, config: BlockConfig, inputs: int, outputs: int) -> nn.Module:
        return _ConvUp(config, inputs, outputs)


@dataclass(frozen=True)
class Filtered(Resampling):
    """A filter without weights."""

    filter: Filter = field(default_factory=Box)

    def down(self, config: BlockConfig, inputs: int, outputs: int) -> nn.Module:
        return _Filter(self.filter, inputs, outputs)

    def up(self, config: BlockConfig, inputs: int, outputs: int) -> nn.Module:
        return _Filter(self.filter, inputs, outputs)


@dataclass(frozen=True)
class FilteredConv(Resampling):
    """A smooth filter and a convolution of size 3, with zero padding of the data but none between the two.

    See Karras et al. (2020, arXiv:1912.04958).

    Args:
        taps: the weights of the filter, as in :class:`FIR`.
    """

    taps: Sequence[float] = (1.0, 3.0, 3.0, 1.0)

    def down(self, config: BlockConfig, inputs: int, outputs: int) -> nn.Module:
        return _FilteredConvDown(config, inputs, outputs, FIR(self.taps))

    def up(self, config: BlockConfig, inputs: int, outputs: int) -> nn.Module:
        return _FilteredConvUp(config, inputs, outputs, FIR(self.taps))


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
        return _Residual(config, inputs, outputs, self.filter, self.projection)

    def up(self, config: BlockConfig, inputs: int, outputs: int) -> nn.Module:
        return _Residual(config, inputs, outputs, self.filter, self.projection)


class _ConvDown(nn.Module):
    def __init__(self, config: BlockConfig, inputs: int, outputs: int, symmetric: bool) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.conv = conv(config.rank, inputs, outputs, stride=2)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        before = [int(self.symmetric or n % 2) for n in x.shape[2:]]
        return self.conv(F.pad(x, [side for left in reversed(before) for side in (left, 1)]))


class _ConvUp(nn.Module):
    def __init__(self, config: BlockConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = conv(config.rank, inputs, outputs, padding=1)

    def forward(self, x: Tensor, context: Tensor, size: Sequence[int]) -> Tensor:
        return self.conv(Box().up(x, size))


class _Filter(nn.Module):
    """Downsampling, or upsampling to `size`."""

    def __init__(self, filter: Filter, inputs: int, outputs: int) -> None:
        super().__init__()
        if inputs != outputs:
            raise ValueError(f"a filter without a convolution keeps the channels: expected {inputs}, got {outputs}")
        self.filter = filter

    def forward(self, x: Tensor, context: Tensor, size: Sequence[int] | None = None) -> Tensor:
        return self.filter.down(x) if size is None else self.filter.up(x, size)


class _FilteredConvDown(nn.Module):
    def __init__(self, config: BlockConfig, inputs: int, outputs: int, filter: FIR) -> None:
        super().__init__()
        self.filter = filter
        self.conv = conv(config.rank, inputs, outputs, stride=2)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.conv(self.filter.smooth(x, len(self.filter.taps) // 2))


class _FilteredConvUp(nn.Module):
    def __init__(self, config: BlockConfig, inputs: int, outputs: int, filter: FIR) -> None:
        super().__init__()
        self.filter = filter
        self.conv = conv(config.rank, inputs, outputs)

    def forward(self, x: Tensor, context: Tensor, size: Sequence[int]) -> Tensor:
        return crop(self.conv(self.filter.spread(x, 1)), size)


class _Residual(nn.Module):
    """Downsampling, or upsampling to `size`."""

    def __init__(self, config: BlockConfig, inputs: int, outputs: int, filter: Filter, projection: bool) -> None:
        super().__init__()
        self.filter = filter
        self.residual = Residual(config, inputs, outputs, projection)

    def forward(self, x: Tensor, context: Tensor, size: Sequence[int] | None = None) -> Tensor:
        resample = self.filter.down if size is None else partial(self.filter.up, size=size)
        return self.residual(x, context, resample)
