r"""Pyramids that connect all levels of a U-Net to its input and output.

An input pyramid passes coarser and coarser versions of the input to the levels of the encoder. An output pyramid sums
finer and finer versions of the output over the levels of the decoder. The two classes create one joint per level: a
module that maps the pyramid p and the features h of the level to a new p and h. See Song et al. (2021,
arXiv:2011.13456, appendix H), after Karras et al. (2020, arXiv:1912.04958).
"""

from __future__ import annotations

__all__ = [
    "InputPyramid",
    "InputResidual",
    "InputSkip",
    "NoInputs",
    "NoOutputs",
    "OutputPyramid",
    "OutputResidual",
    "OutputSkip",
]

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .filters import FIR, Filter
from .layers import conv
from .resampling import FilteredConv, Resampling
from .residual import BlockConfig

# The pyramid p and the features h.
PyramidFeatures = tuple[Tensor, Tensor]


class InputPyramid(ABC):
    """Connections from the input to the deeper levels of the encoder."""

    @abstractmethod
    def joint(self, config: BlockConfig, pyramid: int, features: int) -> tuple[nn.Module, int, int]:
        """The joint after a downsampling layer, and its output channels of p and of h.

        The joint is called as `joint(p, h, context)`; p has the sizes of the finer level, h those of this level.

        Args:
            config: the settings shared by the blocks of the network.
            pyramid: channels of p: first those of the data, then those of the previous joint.
            features: channels of h.
        """


class OutputPyramid(ABC):
    """Connections from the levels of the decoder to the output, which is computed from p after the finest level."""

    @abstractmethod
    def joint(self, config: BlockConfig, pyramid: int | None, features: int, outputs: int) -> tuple[nn.Module, int]:
        """The joint after the blocks of a level, and its output channels of p.

        The joint is called as `joint(p, h, context)`; p has the sizes of the coarser level, h those of this level.

        Args:
            config: the settings shared by the blocks of the network.
            pyramid: channels of p from the previous joint; None at the coarsest level, where p does not exist yet.
            features: channels of h.
            outputs: channels of the network's output.
        """

    @abstractmethod
    def outlet(self, config: BlockConfig, pyramid: int, outputs: int) -> nn.Module:
        """The last module, which maps p with `pyramid` channels to the output."""


@dataclass(frozen=True)
class NoInputs(InputPyramid):
    """No input pyramid."""

    def joint(self, config: BlockConfig, pyramid: int, features: int) -> tuple[nn.Module, int, int]:
        return _NoInput(), pyramid, features


@dataclass(frozen=True)
class InputSkip(InputPyramid):
    """Adds the filtered input to the features of each level: p <- R(p), h <- conv_1(p) + h.

    Args:
        filter: R.
        cat: whether the two are concatenated instead, which doubles the channels.
    """

    filter: Filter = field(default_factory=FIR)
    cat: bool = False

    def joint(self, config: BlockConfig, pyramid: int, features: int) -> tuple[nn.Module, int, int]:
        return _InputSkip(config, pyramid, features, self.filter, self.cat), pyramid, features * (2 if self.cat else 1)


@dataclass(frozen=True)
class InputResidual(InputPyramid):
    """Adds the resampled features of the level above: p <- c (R(p) + h), h <- p, with c the network's `skip_scale`.

    Args:
        resampling: R, with a convolution.
    """

    resampling: Resampling = field(default_factory=FilteredConv)

    def joint(self, config: BlockConfig, pyramid: int, features: int) -> tuple[nn.Module, int, int]:
        resample = self.resampling.down(config, pyramid, features)
        return _InputResidual(resample, config.skip_scale), features, features


@dataclass(frozen=True)
class NoOutputs(OutputPyramid):
    """No output pyramid: the output is computed from the features of the finest level."""

    def joint(self, config: BlockConfig, pyramid: int | None, features: int, outputs: int) -> tuple[nn.Module, int]:
        return _NoOutput(), features

    def outlet(self, config: BlockConfig, pyramid: int, outputs: int) -> nn.Module:
        return config.outlet(pyramid, outputs)


@dataclass(frozen=True)
class OutputSkip(OutputPyramid):
    """Sums the output over the levels: p <- R(p) + conv_3(a(norm(h))).

    Args:
        filter: R.
    """

    filter: Filter = field(default_factory=FIR)

    def joint(self, config: BlockConfig, pyramid: int | None, features: int, outputs: int) -> tuple[nn.Module, int]:
        return _OutputSkip(config, features, outputs, None if pyramid is None else self.filter), outputs

    def outlet(self, config: BlockConfig, pyramid: int, outputs: int) -> nn.Module:
        return nn.Identity()


@dataclass(frozen=True)
class OutputResidual(OutputPyramid):
    """Sums the features over the levels: p <- c (R(p) + h), h <- p, with c the network's `skip_scale`.

    At the coarsest level p <- conv_3(a(norm(h))).

    Args:
        resampling: R, with a convolution.
    """

    resampling: Resampling = field(default_factory=FilteredConv)

    def joint(self, config: BlockConfig, pyramid: int | None, features: int, outputs: int) -> tuple[nn.Module, int]:
        if pyramid is None:
            return _OutputHead(config, features), features
        resample = self.resampling.up(config, pyramid, features)
        return _OutputResidual(resample, config.skip_scale), features

    def outlet(self, config: BlockConfig, pyramid: int, outputs: int) -> nn.Module:
        return config.outlet(pyramid, outputs)


class _NoInput(nn.Module):
    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> PyramidFeatures:
        return p, h


class _InputSkip(nn.Module):
    def __init__(self, config: BlockConfig, pyramid: int, features: int, filter: Filter, cat: bool) -> None:
        super().__init__()
        self.filter, self.cat = filter, cat
        self.conv = conv(config.rank, pyramid, features, size=1)

    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> PyramidFeatures:
        p = self.filter.down(p)
        u = self.conv(p)
        return p, torch.cat([u, h], dim=1) if self.cat else u + h


class _InputResidual(nn.Module):
    def __init__(self, resample: nn.Module, scale: float) -> None:
        super().__init__()
        self.resample, self.scale = resample, scale

    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> PyramidFeatures:
        p = self.scale * (self.resample(p, context) + h)
        return p, p


class _NoOutput(nn.Module):
    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> PyramidFeatures:
        return h, h


class _OutputSkip(nn.Module):
    def __init__(self, config: BlockConfig, features: int, outputs: int, filter: Filter | None) -> None:
        super().__init__()
        self.filter = filter
        self.head = config.outlet(features, outputs)

    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> PyramidFeatures:
        u = self.head(h)
        return u if self.filter is None else self.filter.up(p, h.shape[2:]) + u, h


class _OutputHead(nn.Module):
    def __init__(self, config: BlockConfig, features: int) -> None:
        super().__init__()
        last = conv(config.rank, features, features, padding=1)
        self.head = nn.Sequential(config.norm(features), config.activation, last)

    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> PyramidFeatures:
        return self.head(h), h


class _OutputResidual(nn.Module):
    def __init__(self, resample: nn.Module, scale: float) -> None:
        super().__init__()
        self.resample, self.scale = resample, scale

    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> PyramidFeatures:
        p = self.scale * (self.resample(p, context, h.shape[2:]) + h)
        return p, p
