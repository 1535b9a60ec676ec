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
        layer = conv(config.rank, pyramid, features, size=1)
        return _InputSkip(layer, self.filter, self.cat), pyramid, features * (2 if self.cat else 1)


@dataclass(frozen=True)
class InputResidual(InputPyramid):
    """Adds the resampled features of the level above: p <- c (R(p) + h), h <- p, with c the network's `skip_scale`.

    Args:
        resampling: R, with a convolution.
    """

    resampling: Resampling = field(default_factory=FilteredConv)

    def joint(self, config: BlockConfig, pyramid: int, features: int) -> tuple[nn.Module, int, int]:
        resample = self.resampling.down(config, pyramid, features)
        return _Sum(resample, config.skip_scale, upsamples=False), features, features


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
        head = config.outlet(features, outputs)
        return _Head(head) if pyramid is None else _OutputSkip(head, self.filter), outputs

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
            last = conv(config.rank, features, features, padding=1)
            return _Head(nn.Sequential(config.norm(features), config.activation, last)), features
        resample = self.resampling.up(config, pyramid, features)
        return _Sum(resample, config.skip_scale, upsamples=True), features

    def outlet(self, config: BlockConfig, pyramid: int, outputs: int) -> nn.Module:
        return config.outlet(pyramid, outputs)


class _NoInput(nn.Module):
    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> PyramidFeatures:
        return p, h


class _InputSkip(nn.Module):
    def __init__(self, layer: nn.Module, filter: Filter, cat: bool) -> None:
        super().__init__()
        self.conv, self.filter, self.cat = layer, filter, cat

    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> PyramidFeatures:
        p = self.filter.down(p)
        u = self.conv(p)
        return p, torch.cat([u, h], dim=1) if self.cat else u + h


class _NoOutput(nn.Module):
    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> PyramidFeatures:
        return h, h


class _OutputSkip(nn.Module):
    def __init__(self, head: nn.Module, filter: Filter) -> None:
        super().__init__()
        self.head, self.filter = head, filter

    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> PyramidFeatures:
        u = self.head(h)
        return self.filter.up(p, h.shape[2:]) + u, h


class _Head(nn.Module):
    """The joint of an output pyramid at the coarsest level, which has no p yet."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> PyramidFeatures:
        return self.head(h), h


class _Sum(nn.Module):
    """The joint of both residual pyramids."""

    def __init__(self, resample: nn.Module, scale: float, upsamples: bool) -> None:
        super().__init__()
        self.resample, self.scale, self.upsamples = resample, scale, upsamples

    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> PyramidFeatures:
        p = self.scale * (self.resample(p, context, h.shape[2:] if self.upsamples else None) + h)
        return p, p
