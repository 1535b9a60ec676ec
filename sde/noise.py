r"""Noise: random numbers as a function of (seed, stream, sample, counter).

Every random number is a hash of its address. So the noise of a sample does not depend on its batch, on the number of
processes or on earlier draws, and a run can be resumed or split anywhere. The hash is the finaliser of SplitMix64,
chained over the parts of the address,

.. math::
    k_0 = m(m(\mathrm{seed} + \gamma)), \quad k_{j+1} = m(k_j \oplus m(\mathrm{part}_j + \gamma)), \quad
    h_e = m(k_3 + (e + 1)\,\gamma), \qquad e = 0, 1, \dots

in 64-bit integers with wrap-around, which are the same on every device. The upper and the lower 32 bits of a hash give
two uniforms and, by the Box-Muller transform, two normals. On one type of device and in one dtype the normals are the
same bit for bit; all dtypes give the same normals up to rounding. Numbers in half precision are those of float32,
rounded to the nearest (normals) or towards 0 (uniforms, which stay below 1). The largest normal is 6.8.

Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014, https://doi.org/10.1145/2714064.2660195;
Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011, https://doi.org/10.1145/2063384.2063405.
"""

from __future__ import annotations

__all__ = ["Noise", "NoiseSource", "StepNoise", "KeyedNoise", "Stream", "repeat_key", "sample_index"]

import enum
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from .shapes import described, numbers_of, working_dtype


class Stream(enum.IntEnum):
    """The purpose of a draw; two streams of one sample are independent."""

    PRIOR = 1
    STEP = 2
    CORRECTOR = 3
    PROBE = 4
    DEQUANTISE = 5
    ORDER = 6
    TIME = 7
    PERTURB = 8
    PATH = 9
    AREA = 10
    RESAMPLE = 11
    MEASUREMENT = 12
    GROUP = 21
    PERMUTATION = 22
    DIRECTION = 23
    SPLIT = 24
    HALF = 25
    NETWORK = 31
    CONDITION = 41
    TEXT = 42
    AUGMENT = 51


def _signed(value: int) -> int:
    """The signed integer with the same 64 bits, as int64 stores it."""
    return (value & (2**64 - 1)) - (value & 2**63) * 2


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _mix_(h: Tensor) -> Tensor:
    """The finaliser of SplitMix64, in place. Right shifts of int64 copy the sign bit, so masks clear the copies."""
    h ^= (h >> 30) & 0x3FFFFFFFF
    h *= _FIRST
    h ^= (h >> 27) & 0x1FFFFFFFFF
    h *= _SECOND
    h ^= (h >> 31) & 0x1FFFFFFFF
    return h


@dataclass(frozen=True)
class Noise:
    r"""The source of all noise of a run.

    Args:
        seed: any integer, used modulo 2^64; two seeds give independent noise.
    """

    seed: int

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, numbers.Integral):
            raise ValueError(f"expected seed to be a whole number, got {described(self.seed)}")

    def bits(self, stream: Stream, index: Tensor, counter: Tensor, n: int) -> Tensor:
        """The n hashes at each address, as int64.

        Args:
            stream: the purpose of the draw.
            index: the samples, int64; broadcast against `counter`.
            counter: the position within the stream of the sample (a step, a probe, an epoch), int64.
            n: the number of hashes at each address.

        Returns:
            Uniform bits, with shape (\\*, n), where (\\*) is the broadcast shape of `index` and `counter`.
        """
        address = torch.tensor([_signed(self.seed), int(stream)], dtype=torch.int64, device=index.device)
        seed, purpose = _mix_(address + _GAMMA)
        key = _mix_(_mix_(seed) ^ purpose) ^ _mix_(index + _GAMMA)
        key = _mix_(key) ^ _mix_(counter + _GAMMA)
        elements = torch.arange(1, n + 1, device=index.device) * _GAMMA
        return _mix_(_mix_(key)[..., None] + elements)

    def normal(
        self, stream: Stream, index: Tensor, counter: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Standard normals with shape (\\*, *shape), for the addresses of :meth:`bits`."""
        n, working = math.prod(shape), working_dtype(dtype)
        h = self.bits(stream, index, counter, (n + 1) // 2)
        # Box-Muller transform; adding one half keeps the first uniform above 0.
        radius = (((h >> 32) & 0xFFFFFFFF).to(working) + 0.5).mul_(2.0**-32).log_().mul_(-2.0).clamp_(min=0.0).sqrt_()
        angle = (h & 0xFFFFFFFF).to(working).mul_(2.0 * math.pi * 2.0**-32)
        z = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1).to(dtype)
        return z[..., :n].reshape((*z.shape[:-1], *shape))

    def uniform(
        self, stream: Stream, index: Tensor, counter: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Uniforms in [0, 1), with shape (\\*, *shape).

        They are multiples of 2^-53 (float64) or 2^-24; those in half precision are rounded towards 0 after that.
        """
        digits = 53 if dtype == torch.float64 else 24
        h = self.bits(stream, index, counter, math.prod(shape))
        h = (h >> (64 - digits)) & (2**digits - 1)
        u = h.to(working_dtype(dtype)).mul_(2.0**-digits)
        rounded = u.to(dtype)
        if rounded is not u:
            # The bits of a positive float, less 1, are those of the next smaller one.
            rounded = (rounded.view(torch.int16) - (rounded > u).to(torch.int16)).view(dtype)
        return rounded.reshape((*h.shape[:-1], *shape))

    def rademacher(
        self, stream: Stream, index: Tensor, counter: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Signs -1 and 1 with equal probability, with shape (\\*, *shape)."""
        h = self.bits(stream, index, counter, math.prod(shape))
        return ((h >> 62) & 2).to(dtype).sub_(1.0).reshape((*h.shape[:-1], *shape))

    def generator(self, stream: Stream, index: int, counter: int = 0) -> torch.Generator:
        """A CPU generator seeded by one address, for code that needs a `torch.Generator`."""
        bits = self.bits(stream, torch.tensor(index, device="cpu"), torch.tensor(counter, device="cpu"), 1)
        return torch.Generator().manual_seed(int(bits) & (2**63 - 1))

    def batch(self, index: Tensor, shape: Sequence[int], dtype: torch.dtype) -> KeyedNoise:
        """The noise of the samples `index` (int64, (B,)) for a solver, one event of `shape` per draw."""
        return KeyedNoise(self, index, tuple(shape), dtype)


Key = TypeVar("Key", int, Tensor)


def repeat_key(key: Key, repeat: int) -> Key:
    """The key of a sample's noise, or of a draw of it, in one of its repeats: every repeat has 2^40 keys of its own."""
    return key + repeat * 2**40


def sample_index(x: Tensor, index: Tensor | None) -> Tensor:
    """The positions of a batch's samples in their data set, which key their noise, int64 with shape (B,).

    Args:
        x: the batch, whose device they come on.
        index: the positions; 0 to B - 1 by default.
    """
    index = torch.arange(len(x), device=x.device) if index is None else numbers_of("index", index)
    if index.shape != (len(x),) or index.dtype != torch.int64:
        raise ValueError(f"expected index int64 with shape ({len(x)},), got {index.dtype} {tuple(index.shape)}")
    return index.to(x.device)


class NoiseSource(Protocol):
    """A source of noise for batches: :class:`Noise`, or any object with this method."""

    def batch(self, index: Tensor, shape: Sequence[int], dtype: torch.dtype) -> StepNoise:
        """The noise of the samples `index` (int64, (B,)), one event of `shape` per draw."""


class StepNoise(ABC):
    """The source of the normals in the steps of a solver.

    Attributes:
        one_path: whether draws over any intervals, also overlapping ones, are increments of one Brownian path.
    """

    one_path: ClassVar[bool] = False

    @abstractmethod
    def normal(self, stream: Stream, k: int | Tensor, start: float | Tensor, stop: float | Tensor) -> Tensor:
        """The standard normals of draw `k` of a stream, with shape (B, *).

        A draw depends on k and not on the length of the step. An adaptive method that rejects a step and tries a
        shorter one with the same normals is biased; it needs a source whose draws are increments of one path.

        Args:
            stream: STEP for the increment of the Brownian motion, divided by the square root of the step; AREA for
                its space-time Levy area, divided by the square root of a twelfth of the step (:mod:`sde.brownian`),
                which is independent of the increment; CORRECTOR for normals outside the path; PATH for the normals
                from which a path is computed; RESAMPLE for the draws among particles.
            k: the number of the draw, counted from 0 within the stream; int64 of shape (B,) for different numbers per
                sample, or of shape (B, n) or (1, n) for n draws at once, with results of shape (B, n, *).
            start: the time before the step; of shape (B,) for different times per sample.
            stop: the time after it; a Brownian source returns the scaled increment between the two times.
        """

    @abstractmethod
    def select(self, index: Tensor) -> StepNoise:
        """The same noise for a selection of the samples."""


# Enough normals that arithmetic and not function calls dominates the cost; few enough to stay in the cache.
_BLOCK = 2**17


@dataclass
class KeyedNoise(StepNoise):
    """Noise keyed by (seed, stream, sample, step), computed for a bounded block of steps at a time."""

    noise: Noise
    index: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    _blocks: dict[Stream, tuple[int, Tensor]] = field(default_factory=dict, repr=False)

    def normal(self, stream: Stream, k: int | Tensor, start: float | Tensor, stop: float | Tensor) -> Tensor:
        if isinstance(k, Tensor):
            index = self.index.reshape(-1, *(1,) * (k.ndim - 1))
            return self.noise.normal(stream, index, k.to(index.device), self.shape, self.dtype)
        first, block = self._blocks.get(stream, (0, None))
        if block is None or not first <= k < first + len(block):
            size = max(1, min(64, _BLOCK // max(1, len(self.index) * math.prod(self.shape))))
            first, steps = k, torch.arange(k, k + size, device=self.index.device)
            block = self.noise.normal(stream, self.index, steps[:, None], self.shape, self.dtype)
            self._blocks[stream] = (first, block)
        return block[k - first]

    def select(self, index: Tensor) -> KeyedNoise:
        return KeyedNoise(self.noise, self.index[index], self.shape, self.dtype)
