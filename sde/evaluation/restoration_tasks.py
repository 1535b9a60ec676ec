r"""Restoration tasks: which measurement is made of every item of a data set, in data units.

What is random in a task, a mask or the noise, is keyed by the seed and the item's position in its data set: item 17 has
the same mask and the same noise in every batch and on every rank.
"""

from __future__ import annotations

__all__ = [
    "Colourise",
    "CompressedSensing",
    "Deblur",
    "Denoise",
    "FourierSampling",
    "Inpaint",
    "SuperResolution",
    "Task",
    "measure",
]

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..measurement import Downsample, Fourier, Grayscale, Identity, Mask, Matrix, Operator, SeparableBlur
from ..noise import Noise, Stream
from ..shapes import float64


@dataclass(frozen=True)
class Task(ABC):
    """A measurement of every item.

    Args:
        noise: the standard deviation of its noise in data units (levels of images).
    """

    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.noise < math.inf:
            raise ValueError(f"{type(self).__name__} needs a finite noise >= 0, in levels, got noise={self.noise}")

    @abstractmethod
    def operator(self, shape: tuple[int, ...], index: Tensor, seed: int) -> Operator:
        """The operator for some items.

        Args:
            shape: the event shape.
            index: the positions of the items, int64 with shape (B,).
            seed: the seed of masks.
        """


def measure(task: Task, x: Tensor, index: Tensor, seed: int) -> tuple[Operator, Tensor]:
    r"""The operator of some items, and what it measures of them with noise, float64 with shape (B, \*m).

    Args:
        task: the task.
        x: data values, with shape (B, \*).
        index: the positions of the items, int64 with shape (B,).
        seed: the seed of masks and noise.
    """
    operator = task.operator(tuple(x.shape[1:]), index, seed)
    y = operator(x.double())
    z = Noise(seed).normal(Stream.MEASUREMENT, index, torch.zeros_like(index), y.shape[1:], torch.float64)
    return operator, y + task.noise * z


def _uniforms(index: Tensor, seed: int, n: int) -> Tensor:
    """Uniform numbers for masks, of shape (B, n)."""
    return Noise(seed).uniform(Stream.MEASUREMENT, index, torch.ones_like(index), (n,), torch.float64)


def _box(shape: tuple[int, ...], index: Tensor, seed: int, fraction: float) -> Tensor:
    """All but a block with this fraction of the pixels, at a random place."""
    spatial = shape[1:] or shape
    sides = [max(1, round(n * fraction ** (1.0 / len(spatial)))) for n in spatial]
    u = _uniforms(index, seed, len(spatial))
    hidden = torch.ones(len(index), *spatial, dtype=torch.bool, device="cpu")
    for axis, (n, side) in enumerate(zip(spatial, sides)):
        first = (u[:, axis] * (n - side + 1)).long()[:, None]
        place = torch.arange(n, device="cpu")
        inside = (place >= first) & (place < first + side)
        hidden &= inside.reshape(-1, *(n if i == axis else 1 for i in range(len(spatial))))
    return ~hidden


def _half(shape: tuple[int, ...], index: Tensor, seed: int, fraction: float) -> Tensor:
    """All but the last rows, with this fraction of the pixels."""
    spatial = shape[1:] or shape
    known = torch.arange(spatial[0], device="cpu") < round(spatial[0] * (1.0 - fraction))
    return known.reshape(1, -1, *(1,) * (len(spatial) - 1)).expand(len(index), *spatial)


def _random(shape: tuple[int, ...], index: Tensor, seed: int, fraction: float) -> Tensor:
    """Each pixel is hidden with this probability."""
    spatial = shape[1:] or shape
    return (_uniforms(index, seed, math.prod(spatial)) >= fraction).reshape(-1, *spatial)


_MASKS: dict[str, Callable[[tuple[int, ...], Tensor, int, float], Tensor]] = {
    "box": _box,
    "half": _half,
    "random": _random,
}


@dataclass(frozen=True)
class Inpaint(Task):
    """Some pixels are hidden.

    Args:
        noise: as in :class:`Task`.
        mask: `box` hides a block at a random place, `half` the lower rows, `random` single pixels.
        fraction: the fraction of the pixels that is hidden.
    """

    mask: str = "box"
    fraction: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask not in _MASKS or not 0.0 < self.fraction < 1.0:
            raise ValueError(
                f"Inpaint: expected a mask of {', '.join(_MASKS)} and a fraction in (0, 1), got {self.mask!r}, "
                f"{self.fraction}"
            )

    def operator(self, shape: tuple[int, ...], index: Tensor, seed: int) -> Operator:
        mask = _MASKS[self.mask](shape, index, seed, self.fraction)
        return Mask(mask if len(shape) == 1 else mask[:, None].expand(-1, *shape))


@dataclass(frozen=True)
class SuperResolution(Task):
    """The image is smaller: :class:`sde.measurement.Downsample` with these `factor` and `kernel`."""

    factor: int = 2
    kernel: str = "box"

    def __post_init__(self) -> None:
        super().__post_init__()
        Downsample(self.factor, self.kernel)

    def operator(self, shape: tuple[int, ...], index: Tensor, seed: int) -> Operator:
        return Downsample(self.factor, self.kernel)


@dataclass(frozen=True)
class Deblur(Task):
    """The image is blurred, with reflecting edges.

    Args:
        noise: as in :class:`Task`.
        std: the standard deviation of the Gaussian kernel, in pixels; it is cut off at three of them.
    """

    std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.std < math.inf:
            raise ValueError(f"Deblur needs a finite std > 0, in pixels, got std={self.std}")

    def operator(self, shape: tuple[int, ...], index: Tensor, seed: int) -> Operator:
        reach = min(math.ceil(3.0 * self.std), min(shape[1:] or shape) - 1)
        weights = (-0.5 * (float64(range(-reach, reach + 1)) / self.std).square()).exp()
        return SeparableBlur(weights / weights.sum())


@dataclass(frozen=True)
class Denoise(Task):
    """The image is noisy."""

    noise: float = 25.0

    def operator(self, shape: tuple[int, ...], index: Tensor, seed: int) -> Operator:
        return Identity()


@dataclass(frozen=True)
class Colourise(Task):
    """The colours are lost: the brightness is known."""

    def operator(self, shape: tuple[int, ...], index: Tensor, seed: int) -> Operator:
        return Grayscale()


@dataclass(frozen=True)
class CompressedSensing(Task):
    """Random projections, the same for all items.

    Args:
        noise: as in :class:`Task`.
        fraction: the number of projections, as a fraction of the dimension.
    """

    fraction: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.fraction <= 1.0:
            raise ValueError(f"CompressedSensing needs a fraction in (0, 1], got {self.fraction}")

    def operator(self, shape: tuple[int, ...], index: Tensor, seed: int) -> Operator:
        return Matrix.random(max(1, round(self.fraction * math.prod(shape))), shape, seed)


@dataclass(frozen=True)
class FourierSampling(Task):
    """Some Fourier coefficients: whole lines of the first spatial frequency, the lowest ones and others at random.

    Args:
        noise: as in :class:`Task`.
        acceleration: the number of lines over that of measured ones.
    """

    acceleration: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1.0 <= self.acceleration < math.inf:
            raise ValueError(f"FourierSampling needs an acceleration >= 1, got {self.acceleration}")

    def operator(self, shape: tuple[int, ...], index: Tensor, seed: int) -> Operator:
        spatial = shape[1:] or shape
        lines, measured = spatial[0], max(1, round(spatial[0] / self.acceleration))
        frequency = torch.fft.fftfreq(lines, device="cpu").abs() * lines
        # The lowest third of those that are kept, and the others in a random order.
        order = torch.where(frequency <= measured / 6.0, frequency / lines - 1.0, _uniforms(index, seed, lines))
        known = torch.zeros(len(index), lines, dtype=torch.bool, device="cpu")
        known.scatter_(1, order.argsort(1)[:, :measured], True)
        mask = known.reshape(-1, lines, *(1,) * (len(spatial) - 1)).expand(-1, *spatial)
        return Fourier(mask if len(shape) == 1 else mask[:, None].expand(-1, *shape))
