r"""Basic layers for data with one, two or three spatial axes: (B, C, n_1, ..., n_rank).

Initialisation as in Ho et al. (2020, arXiv:2006.11239): weights uniform with variance 2 / (fan_in + fan_out) (Glorot
and Bengio 2010), biases zero, and the last layer of each block zero, so that a new block is equal to its shortcut.
"""

from __future__ import annotations

__all__ = ["Normalisation", "conv", "linear", "zero_init"]

from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from .checks import check_positive
from .convolution import Conv1d, Conv2d, Conv3d

Conv = Conv1d | Conv2d | Conv3d
Layer = TypeVar("Layer", bound=nn.Module)

_CONVS: dict[int, type[Conv]] = {1: Conv1d, 2: Conv2d, 3: Conv3d}


def conv(rank: int, inputs: int, outputs: int, size: int = 3, stride: int = 1, padding: int = 0) -> Conv:
    """A convolution over `rank` axes with Glorot initialisation and zero bias."""
    return _glorot(_CONVS[rank](inputs, outputs, size, stride, padding))


def linear(inputs: int, outputs: int, parts: int = 1, bias: bool = True) -> nn.Linear:
    """A linear layer of `parts` stacked maps, each with Glorot initialisation, and zero bias."""
    return _glorot(nn.Linear(inputs, outputs, bias=bias), parts)


def zero_init(layer: Layer) -> Layer:
    """Sets every parameter of a layer to zero, and returns the layer."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


@dataclass(frozen=True)
class Normalisation:
    """Group normalisation (Wu and He 2018, arXiv:1803.08494) with a number of groups that depends on the channels.

    The number of groups is the largest divisor of the channels that is at most `groups` and gives each group at least
    `least` channels, or 1 if there is none. By default every multiple of 32 from 128 upwards has the 32 groups of Ho et
    al. Narrower layers have fewer groups, because a group of a single channel loses that channel's mean, and loses
    everything at a single position. If min(channels / 4, 32) divides the channels, it is the number of groups, as in
    Song et al. (2021). With `least=1` there are `groups` groups for any width that `groups` divides.

    Args:
        groups: the maximum number of groups.
        least: the minimum number of channels per group.
        eps: the constant added to the variance.

    Raises:
        ValueError: if a number is not positive.
    """

    groups: int = 32
    least: int = 4
    eps: float = 1e-6

    def __post_init__(self) -> None:
        check_positive(groups=self.groups, least=self.least, eps=self.eps)

    def __call__(self, channels: int) -> nn.GroupNorm:
        """The layer for the given number of channels."""
        divisors = [g for g in range(1, self.groups + 1) if channels % g == 0 and channels >= self.least * g]
        return nn.GroupNorm(max(divisors, default=1), channels, eps=self.eps)


def _glorot(layer: Layer, parts: int = 1) -> Layer:
    for parameter in layer.parameters():
        if parameter.ndim == 1:
            nn.init.zeros_(parameter)
        else:
            for part in parameter.chunk(parts):
                nn.init.xavier_uniform_(part)
    return layer
