r"""Embeddings of the noise level: a scalar c becomes a vector of the sines and cosines of c at n = d / 2 frequencies,

.. math:: e(c) = (\sin \omega_1 c, \dots, \sin \omega_n c, \cos \omega_1 c, \dots, \cos \omega_n c),

with a geometric ladder of frequencies (`Positional`: Vaswani et al. 2017, arXiv:1706.03762, in the form of Ho et
al. 2020, arXiv:2006.11239) or random normal ones (`Fourier`: Tancik et al. 2020, arXiv:2006.10739; Song et al.
2021, arXiv:2011.13456).

An embedding is computed in the precision of the noise level and in float32 at least, whatever the precision of
the network: half precision rounds a phase of 1000 rad to a multiple of 0.5 rad, bfloat16 to one of 4 rad. In
float32 the rounding of the phase remains, an error of about 1e-7 times the phase in rad.
"""

from __future__ import annotations

__all__ = ["Fourier", "LevelEmbedding", "Positional"]

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class LevelEmbedding(nn.Module, ABC):
    """What a network needs of an embedding: its length `dim`, and the map from noise levels to vectors."""

    dim: int

    @abstractmethod
    def forward(self, level: Tensor) -> Tensor:
        """The embedding of `level`, with shape (B,) -> (B, dim), in float32 at least."""


class Positional(LevelEmbedding):
    r"""The sinusoidal embedding of Ho et al. (2020), with n = d / 2 frequencies in a geometric ladder,

    .. math:: \omega_i = s \, P^{-i / (n - k)}, \qquad i = 0, \dots, n - 1.

    It tells levels apart that differ by about 1 / s or more: for steps 0 ... 1000 take scale 1, for a time in
    [0, 1] scale 1000. Dhariwal and Nichol (2021, arXiv:2105.05233) have `shift=0` and `cosine_first=True`.

    Args:
        dim: d, the length of the embedding, even.
        scale: s, the highest frequency, in rad per unit of noise level.
        max_period: P, the ratio of the highest frequency to the lowest for `shift=1`.
        shift: k, whether the last frequency is s / P itself (1) or the one before it (0).
        cosine_first: Whether the cosines come before the sines.

    Raises:
        ValueError: If `dim` is not even and positive, `scale` or `max_period` is not positive, or `shift` is
            neither 0 nor 1.
    """

    def __init__(
        self, dim: int, scale: float = 1.0, max_period: float = 1e4, shift: int = 1, cosine_first: bool = False
    ) -> None:
        super().__init__()
        _check(dim, scale=scale, max_period=max_period)
        if shift not in (0, 1):
            raise ValueError(f"shift must be 0 or 1, got {shift}")
        self.dim, self.scale, self.max_period = dim, scale, max_period
        self.shift, self.cosine_first = shift, cosine_first

    def forward(self, level: Tensor) -> Tensor:
        """The sines and the cosines of `level` with shape (B,) -> (B, dim), in float32 at least."""
        # The frequencies are made anew in the precision at hand: a buffer would be rounded by `net.half()`, and
        # `net.double()` would keep its rounding to float32.
        n, dtype = self.dim // 2, _precision(level)
        exponent = torch.arange(n, dtype=dtype, device=level.device) / max(n - self.shift, 1)
        frequencies = torch.pow(self.max_period, -exponent)
        phase = (self.scale * level.to(dtype))[:, None] * frequencies  # rad, (B, n)
        halves = (phase.cos(), phase.sin()) if self.cosine_first else (phase.sin(), phase.cos())
        return torch.cat(halves, dim=1)

    def extra_repr(self) -> str:
        order = f"shift={self.shift}, cosine_first={self.cosine_first}"
        return f"{self.dim}, scale={self.scale}, max_period={self.max_period}, {order}"


class Fourier(LevelEmbedding):
    r"""Gaussian random Fourier features (Song et al. 2021), with n = d / 2 frequencies that are never trained,

    .. math:: \omega_i = 2 \pi w_i, \qquad w_i \sim \mathcal{N}(0, s^2), \qquad i = 1, \dots, n.

    The w_i are drawn from torch's global generator at construction and saved in the state dict. Song et al. embed
    the logarithm of sigma: `logarithm=True` where the network is told sigma itself.

    Args:
        dim: d, the length of the embedding, even.
        scale: s, the standard deviation of w_i, in turns per unit of noise level.
        logarithm: Whether log c stands in the place of c.

    Raises:
        ValueError: If `dim` is not even and positive, or `scale` is not positive.
    """

    def __init__(self, dim: int, scale: float = 16.0, logarithm: bool = False) -> None:
        super().__init__()
        _check(dim, scale=scale)
        self.dim, self.scale, self.logarithm = dim, scale, logarithm
        self.parts: Tensor
        self.register_buffer("parts", split(scale * nn.init.normal_(torch.empty(dim // 2, dtype=torch.float32))))

    def forward(self, level: Tensor) -> Tensor:
        """The sines, then the cosines, of `level` with shape (B,) -> (B, dim), in float32 at least."""
        level = level.to(_precision(level))
        if self.logarithm:
            level = level.log()
        high, middle, low = self.parts.to(level.dtype).unbind()
        phase = 2 * math.pi * (level[:, None] * (high + middle + low))  # rad, (B, n)
        return torch.cat([phase.sin(), phase.cos()], dim=1)

    def extra_repr(self) -> str:
        return f"{self.dim}, scale={self.scale}, logarithm={self.logarithm}"


def split(frequencies: Tensor) -> Tensor:
    """Float32 numbers of shape (n,) as sums of three numbers of 8 significant bits each, with shape (3, n).

    `net.half()` and `net.bfloat16()` keep such parts, where they would turn a frequency of 50 by up to 0.1 turns per
    unit of noise level. This is the form in which `Fourier` holds its w_i.
    """
    high = frequencies.bfloat16().float()
    middle = (frequencies - high).bfloat16().float()
    return torch.stack([high, middle, frequencies - high - middle])


def _precision(level: Tensor) -> torch.dtype:
    return torch.promote_types(level.dtype, torch.float32)


def _check(dim: int, **positive: float) -> None:
    if dim < 2 or dim % 2:
        raise ValueError(f"an embedding pairs sines with cosines: dim must be even and positive, got {dim}")
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
