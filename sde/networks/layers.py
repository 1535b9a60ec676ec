r"""The layers that networks are made of, for data with one, two or three spatial axes: (B, C, n_1, ..., n_rank).

Weights start as in Ho et al. (2020, arXiv:2006.11239): uniform with variance 2 / (fan_in + fan_out) (Glorot and
Bengio 2010), biases zero, and the last layer of each block zero, so that a fresh block is its own shortcut.
"""

from __future__ import annotations

__all__ = ["Normalisation", "conv", "linear", "zeroed"]

from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from .convolution import Conv1d, Conv2d, Conv3d

Conv = Conv1d | Conv2d | Conv3d
Layer = TypeVar("Layer", bound=nn.Module)

_CONVS: dict[int, type[Conv]] = {1: Conv1d, 2: Conv2d, 3: Conv3d}


def conv(rank: int, inputs: int, outputs: int, size: int = 3, stride: int = 1, padding: int = 0) -> Conv:
    """A convolution along `rank` axes, with Glorot's weights and zero bias."""
    return _glorot(_CONVS[rank](inputs, outputs, size, stride, padding))


def linear(inputs: int, outputs: int, parts: int = 1, bias: bool = True) -> nn.Linear:
    """A linear layer with Glorot's weights and zero bias, where `parts` maps are stacked for each map by itself."""
    return _glorot(nn.Linear(inputs, outputs, bias=bias), parts)


def zeroed(layer: Layer) -> Layer:
    """The same layer with every parameter set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


@dataclass(frozen=True)
class Normalisation:
    """Group normalisation (Wu and He 2018, arXiv:1803.08494) with a number of groups that follows the channels.

    There are G groups: the largest divisor of the channels that is at most `groups` and leaves at least `least`
    channels in a group, and 1 where there is none. By default every multiple of 32 from 128 on has the 32 groups of
    Ho et al.; narrower layers have fewer, because a group of one channel loses that channel's mean, and everything
    where only one position is left. Wherever min(channels / 4, 32) divides the channels, it is that number (Song et
    al. 2021). `least=1` gives `groups` groups, whatever the width.

    Args:
        groups: The largest number of groups.
        least: The smallest number of channels in a group.
        eps: What is added to the variance.

    Raises:
        ValueError: If a number is not positive.
    """

    groups: int = 32
    least: int = 4
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for name, value in {"groups": self.groups, "least": self.least, "eps": self.eps}.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")

    def __call__(self, channels: int) -> nn.GroupNorm:
        """The layer for so many channels."""
        fitting = [g for g in range(1, self.groups + 1) if channels % g == 0 and channels >= self.least * g]
        return nn.GroupNorm(max(fitting, default=1), channels, eps=self.eps)


def _glorot(layer: Layer, parts: int = 1) -> Layer:
    for parameter in layer.parameters():
        if parameter.ndim == 1:
            nn.init.zeros_(parameter)
        else:
            for part in parameter.chunk(parts):
                nn.init.xavier_uniform_(part)
    return layer
