r"""Embeddings of the noise level c as a vector of sines and cosines at n = d / 2 frequencies,

.. math:: e(c) = (\sin \omega_1 c, \dots, \sin \omega_n c, \cos \omega_1 c, \dots, \cos \omega_n c),

with geometrically spaced frequencies (`Positional`: Vaswani et al. 2017, arXiv:1706.03762, in the form of Ho et al.
2020, arXiv:2006.11239) or normally distributed ones (`Fourier`: Tancik et al. 2020, arXiv:2006.10739; Song et al. 2021,
arXiv:2011.13456).

An embedding is computed in the precision of the noise level, but at least in float32, for any precision of the network:
half precision rounds a phase of 1000 rad to a multiple of 0.5 rad, and bfloat16 to a multiple of 4 rad. In float32 the
rounding error of the phase is about 1e-7 times the phase in rad.
"""

from __future__ import annotations

__all__ = ["Fourier", "LevelEmbedding", "Positional"]

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .checks import check_positive


class LevelEmbedding(nn.Module, ABC):
    """A map from noise levels to vectors of length `dim`."""

    dim: int

    @abstractmethod
    def forward(self, level: Tensor) -> Tensor:
        """The embedding of `level`, with shape (B,) -> (B, dim), at least in float32."""


class Positional(LevelEmbedding):
    r"""Sinusoidal embedding of Ho et al. (2020), with n = d / 2 geometrically spaced frequencies,

    .. math:: \omega_i = s \, P^{-i / (n - k)}, \qquad i = 0, \dots, n - 1.

    It distinguishes levels that differ by about 1 / s or more: use scale 1 for steps 0 ... 1000, and scale 1000 for a
    time in [0, 1]. Dhariwal and Nichol (2021, arXiv:2105.05233) use `shift=0` and `cosine_first=True`.

    Args:
        dim: d, the length of the embedding, even.
        scale: s, the highest frequency, in rad per unit of noise level.
        max_period: P, the ratio of the highest frequency to the lowest for `shift=1`.
        shift: k, 1 if the last frequency is s / P, 0 if s / P would be the next one.
        cosine_first: whether the cosines come before the sines.

    Raises:
        ValueError: if `dim` is not even and positive, `scale` or `max_period` is not positive, or `shift` is neither 0
            nor 1.
    """

    def __init__(
        self, dim: int, scale: float = 1.0, max_period: float = 1e4, shift: int = 1, cosine_first: bool = False
    ) -> None:
        super().__init__()
        _check(dim, scale=scale, max_period=max_period)
        if shift not in (0, 1):
            raise ValueError(f"expected 0 or 1, got shift={shift}")
        self.dim, self.scale, self.max_period = dim, scale, max_period
        self.shift, self.cosine_first = shift, cosine_first

    def forward(self, level: Tensor) -> Tensor:
        """The sines and cosines of `level` with shape (B,) -> (B, dim), at least in float32."""
        # The frequencies are recomputed in the current precision: `net.half()` would round a buffer, and `net.double()`
        # would preserve its rounding to float32.
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
    r"""Gaussian random Fourier features (Song et al. 2021), with n = d / 2 fixed frequencies,

    .. math:: \omega_i = 2 \pi w_i, \qquad w_i \sim \mathcal{N}(0, s^2), \qquad i = 1, \dots, n.

    The w_i are sampled from torch's global generator at construction and saved in the state dict. Song et al. embed the
    logarithm of sigma: set `logarithm=True` if the noise level is sigma itself.

    Args:
        dim: d, the length of the embedding, even.
        scale: s, the standard deviation of w_i, in turns per unit of noise level.
        logarithm: whether log c is embedded in place of c.

    Raises:
        ValueError: if `dim` is not even and positive, or `scale` is not positive.
    """

    def __init__(self, dim: int, scale: float = 16.0, logarithm: bool = False) -> None:
        super().__init__()
        _check(dim, scale=scale)
        self.dim, self.scale, self.logarithm = dim, scale, logarithm
        self.parts: Tensor
        self.register_buffer(
            "parts", split(scale * nn.init.normal_(torch.empty(dim // 2, dtype=torch.float32, device=None)))
        )

    def forward(self, level: Tensor) -> Tensor:
        """The sines, then the cosines, of `level` with shape (B,) -> (B, dim), at least in float32."""
        level = level.to(_precision(level))
        if self.logarithm:
            level = level.log()
        high, middle, low = self.parts.to(level.dtype).unbind()
        phase = 2 * math.pi * (level[:, None] * (high + middle + low))  # rad, (B, n)
        return torch.cat([phase.sin(), phase.cos()], dim=1)

    def extra_repr(self) -> str:
        return f"{self.dim}, scale={self.scale}, logarithm={self.logarithm}"


def split(frequencies: Tensor) -> Tensor:
    """Splits float32 numbers of shape (n,) into sums of three numbers of 8 significant bits each, with shape (3, n).

    `net.half()` and `net.bfloat16()` do not change these parts, whereas they would change a frequency of 50 by up to
    0.1 turns per unit of noise level. `Fourier` stores its w_i in this form.
    """
    high = frequencies.bfloat16().float()
    middle = (frequencies - high).bfloat16().float()
    return torch.stack([high, middle, frequencies - high - middle])


def _precision(level: Tensor) -> torch.dtype:
    return torch.promote_types(level.dtype, torch.float32)


def _check(dim: int, **positive: float) -> None:
    if dim < 2 or dim % 2:
        raise ValueError(f"expected an even, positive number (a sine and a cosine per frequency), got dim={dim}")
    check_positive(**positive)
