r"""Pyramids: the data itself beside the features of a U-Net, at every level (Song et al. 2021, arXiv:2011.13456,
appendix H, after Karras et al. 2020, arXiv:1912.04958).

An input pyramid hands ever coarser forms of the input to the levels of the encoder, an output pyramid sums ever finer
forms of the output over the levels of the decoder. A pyramid is an object that a U-Net asks for its joints, each
called with the pyramid p so far and the features h of a level, and answering with both.
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
from .residual import Style

# The pyramid and the features, after a joint.
Joined = tuple[Tensor, Tensor]


class InputPyramid(ABC):
    """What a U-Net does with its input beyond the first level."""

    @abstractmethod
    def joint(self, style: Style, pyramid: int, features: int) -> tuple[nn.Module, int, int]:
        """The joint after a step down, with the channels of p and of h that it gives.

        It is called with p, with the sizes of the level above, h with those of this level, and the context.

        Args:
            style: What the blocks of the network have in common.
            pyramid: Channels of p: of the data at first, later what the joint before gave.
            features: Channels of h.
        """


class OutputPyramid(ABC):
    """How a U-Net comes to its output, which is read out of p after the finest level."""

    @abstractmethod
    def joint(self, style: Style, pyramid: int | None, features: int, outputs: int) -> tuple[nn.Module, int]:
        """The joint after the blocks of a level, with the channels of p that it gives.

        It is called with p, with the sizes of the level below, h with those of this level, and the context.

        Args:
            style: What the blocks of the network have in common.
            pyramid: Channels of p, as the joint before gave it; None at the coarsest level, where there is no p yet.
            features: Channels of h.
            outputs: Channels of the network's output.
        """

    @abstractmethod
    def outlet(self, style: Style, pyramid: int, outputs: int) -> nn.Module:
        """The last module, from p with so many channels to the output."""


@dataclass(frozen=True)
class NoInputs(InputPyramid):
    """No input pyramid."""

    def joint(self, style: Style, pyramid: int, features: int) -> tuple[nn.Module, int, int]:
        return _NoJoint(), pyramid, features


@dataclass(frozen=True)
class InputSkip(InputPyramid):
    """Adds the filtered input to the features of each level: p <- R(p), h <- conv_1(p) + h.

    Args:
        filter: R.
        cat: Whether the two are concatenated instead, which doubles the channels.
    """

    filter: Filter = field(default_factory=FIR)
    cat: bool = False

    def joint(self, style: Style, pyramid: int, features: int) -> tuple[nn.Module, int, int]:
        return _InputSkip(style, pyramid, features, self.filter, self.cat), pyramid, features * (2 if self.cat else 1)


@dataclass(frozen=True)
class InputResidual(InputPyramid):
    """Adds the resampled features of the level above: p <- c (R(p) + h), h <- p, with c the network's `skip_scale`.

    Args:
        resampling: R, with a convolution.
    """

    resampling: Resampling = field(default_factory=FilteredConv)

    def joint(self, style: Style, pyramid: int, features: int) -> tuple[nn.Module, int, int]:
        resample = self.resampling.down(style, pyramid, features)
        return _InputResidual(resample, style.skip_scale), features, features


@dataclass(frozen=True)
class NoOutputs(OutputPyramid):
    """No output pyramid: the output is read out of the features of the finest level."""

    def joint(self, style: Style, pyramid: int | None, features: int, outputs: int) -> tuple[nn.Module, int]:
        return _Features(), features

    def outlet(self, style: Style, pyramid: int, outputs: int) -> nn.Module:
        return style.outlet(pyramid, outputs)


@dataclass(frozen=True)
class OutputSkip(OutputPyramid):
    """The output is a sum over the levels: p <- R(p) + conv_3(a(norm(h))).

    Args:
        filter: R.
    """

    filter: Filter = field(default_factory=FIR)

    def joint(self, style: Style, pyramid: int | None, features: int, outputs: int) -> tuple[nn.Module, int]:
        return _OutputSkip(style, features, outputs, None if pyramid is None else self.filter), outputs

    def outlet(self, style: Style, pyramid: int, outputs: int) -> nn.Module:
        return nn.Identity()


@dataclass(frozen=True)
class OutputResidual(OutputPyramid):
    """Features are summed over the levels: p <- c (R(p) + h), h <- p, with c the network's `skip_scale`. The coarsest
    level begins with p <- conv_3(a(norm(h))).

    Args:
        resampling: R, with a convolution.
    """

    resampling: Resampling = field(default_factory=FilteredConv)

    def joint(self, style: Style, pyramid: int | None, features: int, outputs: int) -> tuple[nn.Module, int]:
        if pyramid is None:
            return _OutputHead(style, features), features
        resample = self.resampling.up(style, pyramid, features)
        return _OutputResidual(resample, style.skip_scale), features

    def outlet(self, style: Style, pyramid: int, outputs: int) -> nn.Module:
        return style.outlet(pyramid, outputs)


class _NoJoint(nn.Module):
    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> Joined:
        return p, h


class _InputSkip(nn.Module):
    def __init__(self, style: Style, pyramid: int, features: int, filter: Filter, cat: bool) -> None:
        super().__init__()
        self.filter, self.cat = filter, cat
        self.conv = conv(style.rank, pyramid, features, size=1)

    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> Joined:
        p = self.filter.down(p)
        u = self.conv(p)
        return p, torch.cat([u, h], dim=1) if self.cat else u + h


class _InputResidual(nn.Module):
    def __init__(self, resample: nn.Module, scale: float) -> None:
        super().__init__()
        self.resample, self.scale = resample, scale

    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> Joined:
        p = self.scale * (self.resample(p, context) + h)
        return p, p


class _Features(nn.Module):
    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> Joined:
        return h, h


class _OutputSkip(nn.Module):
    def __init__(self, style: Style, features: int, outputs: int, filter: Filter | None) -> None:
        super().__init__()
        self.filter = filter
        self.head = style.outlet(features, outputs)

    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> Joined:
        u = self.head(h)
        return u if self.filter is None else self.filter.up(p, h.shape[2:]) + u, h


class _OutputHead(nn.Module):
    def __init__(self, style: Style, features: int) -> None:
        super().__init__()
        last = conv(style.rank, features, features, padding=1)
        self.head = nn.Sequential(style.norm(features), style.activation, last)

    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> Joined:
        return self.head(h), h


class _OutputResidual(nn.Module):
    def __init__(self, resample: nn.Module, scale: float) -> None:
        super().__init__()
        self.resample, self.scale = resample, scale

    def forward(self, p: Tensor, h: Tensor, context: Tensor) -> Joined:
        p = self.scale * (self.resample(p, context, h.shape[2:]) + h)
        return p, p
