r"""Between two levels of a U-Net: the layers that halve the sizes on the way down and double them on the way up.

Each choice is an object that a U-Net asks for its layers: a strided convolution, a filter without weights, a filter
followed by a convolution, or a residual block that resamples inside. All take a size n to ceil(n / 2), and the way up
returns to the size that was there before, so that any size from 1 on will do.
"""

from __future__ import annotations

__all__ = ["Filtered", "FilteredConv", "InResidual", "Resampling", "StridedConv"]

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from .filters import FIR, Box, Filter, cropped
from .layers import conv
from .residual import Residual, Style


class Resampling(ABC):
    """What a U-Net puts between its levels."""

    @abstractmethod
    def down(self, style: Style, inputs: int, outputs: int) -> nn.Module:
        """A module called with x, with shape (B, inputs, n_1, ...), and the context
        -> (B, outputs, ceil(n_1 / 2), ...)."""

    @abstractmethod
    def up(self, style: Style, inputs: int, outputs: int) -> nn.Module:
        """A module called with x, with shape (B, inputs, *), the context, and the sizes to reach
        -> (B, outputs, *size)."""


@dataclass(frozen=True)
class StridedConv(Resampling):
    """A convolution of size 3 and stride 2 going down; repetition, then a convolution of size 3, going up.

    Args:
        symmetric: Where the zeros are put of which an even size needs one: on both sides, so that the last stays
            unread (Dhariwal and Nichol 2021), or after the last position (the "SAME" padding in the code of Ho et
            al. 2020). An odd size has one on either side.
    """

    symmetric: bool = False

    def down(self, style: Style, inputs: int, outputs: int) -> nn.Module:
        return _ConvDown(style, inputs, outputs, self.symmetric)

    def up(self, style: Style, inputs: int, outputs: int) -> nn.Module:
        return _ConvUp(style, inputs, outputs)


@dataclass(frozen=True)
class Filtered(Resampling):
    """A filter alone, without weights."""

    filter: Filter = field(default_factory=Box)

    def down(self, style: Style, inputs: int, outputs: int) -> nn.Module:
        return _FilterDown(self.filter, inputs, outputs)

    def up(self, style: Style, inputs: int, outputs: int) -> nn.Module:
        return _FilterUp(self.filter, inputs, outputs)


@dataclass(frozen=True)
class FilteredConv(Resampling):
    """A smooth filter and a convolution of size 3, with zeros outside of the data but none between the two (Karras et
    al. 2020, arXiv:1912.04958).

    Args:
        taps: The weights of the filter, as in :class:`FIR`.
    """

    taps: Sequence[float] = (1.0, 3.0, 3.0, 1.0)

    def down(self, style: Style, inputs: int, outputs: int) -> nn.Module:
        return _FilteredConvDown(style, inputs, outputs, FIR(self.taps))

    def up(self, style: Style, inputs: int, outputs: int) -> nn.Module:
        return _FilteredConvUp(style, inputs, outputs, FIR(self.taps))


@dataclass(frozen=True)
class InResidual(Resampling):
    """A residual block whose branch and shortcut are filtered, the branch after its first activation (Brock et al.
    2019, arXiv:1809.11096).

    Args:
        filter: The filter.
        projection: Whether the shortcut is a convolution even where the channels stay (Song et al. 2021).
    """

    filter: Filter = field(default_factory=Box)
    projection: bool = False

    def down(self, style: Style, inputs: int, outputs: int) -> nn.Module:
        return _ResidualDown(style, inputs, outputs, self.filter, self.projection)

    def up(self, style: Style, inputs: int, outputs: int) -> nn.Module:
        return _ResidualUp(style, inputs, outputs, self.filter, self.projection)


class _ConvDown(nn.Module):
    def __init__(self, style: Style, inputs: int, outputs: int, symmetric: bool) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.conv = conv(style.rank, inputs, outputs, stride=2)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        before = [int(self.symmetric or n % 2) for n in x.shape[2:]]
        return self.conv(F.pad(x, [side for left in reversed(before) for side in (left, 1)]))


class _ConvUp(nn.Module):
    def __init__(self, style: Style, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = conv(style.rank, inputs, outputs, padding=1)

    def forward(self, x: Tensor, context: Tensor, size: Sequence[int]) -> Tensor:
        return self.conv(Box().up(x, size))


class _FilterDown(nn.Module):
    def __init__(self, filter: Filter, inputs: int, outputs: int) -> None:
        super().__init__()
        _check_same(inputs, outputs)
        self.filter = filter

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.filter.down(x)


class _FilterUp(nn.Module):
    def __init__(self, filter: Filter, inputs: int, outputs: int) -> None:
        super().__init__()
        _check_same(inputs, outputs)
        self.filter = filter

    def forward(self, x: Tensor, context: Tensor, size: Sequence[int]) -> Tensor:
        return self.filter.up(x, size)


class _FilteredConvDown(nn.Module):
    def __init__(self, style: Style, inputs: int, outputs: int, filter: FIR) -> None:
        super().__init__()
        self.filter = filter
        self.conv = conv(style.rank, inputs, outputs, stride=2)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.conv(self.filter.smooth(x, len(self.filter.taps) // 2))


class _FilteredConvUp(nn.Module):
    def __init__(self, style: Style, inputs: int, outputs: int, filter: FIR) -> None:
        super().__init__()
        self.filter = filter
        self.conv = conv(style.rank, inputs, outputs)

    def forward(self, x: Tensor, context: Tensor, size: Sequence[int]) -> Tensor:
        return cropped(self.conv(self.filter.spread(x, 1)), size)


class _ResidualDown(nn.Module):
    def __init__(self, style: Style, inputs: int, outputs: int, filter: Filter, projection: bool) -> None:
        super().__init__()
        self.filter = filter
        self.residual = Residual(style, inputs, outputs, projection)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.residual(x, context, self.filter.down)


class _ResidualUp(nn.Module):
    def __init__(self, style: Style, inputs: int, outputs: int, filter: Filter, projection: bool) -> None:
        super().__init__()
        self.filter = filter
        self.residual = Residual(style, inputs, outputs, projection)

    def forward(self, x: Tensor, context: Tensor, size: Sequence[int]) -> Tensor:
        return self.residual(x, context, partial(self.filter.up, size=size))


def _check_same(inputs: int, outputs: int) -> None:
    if inputs != outputs:
        raise ValueError(f"a filter without a convolution keeps the channels: expected {inputs} to stay, got {outputs}")
