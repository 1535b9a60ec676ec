r"""Augmentation: changes of the training data, of which a network that is conditioned on them learns nothing wrong.

A change is drawn for every visit of a sample, from its position and the epoch. A network that is given the vector a of
the change learns the density of the changed data given a, and at a = 0, the default in sampling and likelihoods, that
of the data as it is: the augmentation does not leak. Without the vector the model is one of the changed data, which is
meant where a mirror image is as likely as the image.

The changes of EDM are geometric. With u a fair coin, n standard normal and r uniform on [-pi, pi], in this order,

- mirror: x -> -x if u = 1; the vector has u; always applied;
- upside down: y -> -y if u = 1; u; applied with probability p, as are all that follow;
- size: times 2^(0.2 n); n;
- rotation: by r; cos r - 1, sin r;
- stretching: times 2^(0.2 n) in the direction r, or in the direction 0 with probability 1/2, and times 2^(-0.2 n)
  across; n cos r, n sin r;
- shift: by 0.125 n of the width and 0.125 n of the height; both n;

where the vector of a change that is not applied is 0. All but the mirror images resample the image, by interpolation of
6 by 6 pixels, where the original has a wavelet filter of twice the resolution; beyond its edges the image is reflected.

Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, https://arxiv.org/abs/2206.00364,
appendix F.2.
"""

from __future__ import annotations

__all__ = ["Augmentation", "Geometric", "HorizontalFlip"]

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..noise import Noise, Stream


class Augmentation(ABC):
    """A random change of samples."""

    @property
    @abstractmethod
    def length(self) -> int:
        """The length of the vector of a change, the condition `augment` of a network; 0 without one."""

    @abstractmethod
    def draw(self, noise: Noise, index: Tensor, counter: Tensor) -> Tensor:
        """The changes of some samples.

        Args:
            noise: the source of all draws.
            index: the samples, int64 with shape (B,).
            counter: the visits of the samples, int64 with shape (B,).

        Returns:
            Their parameters, float64 with shape (B, K); zeros mean no change.
        """

    @abstractmethod
    def vector(self, changes: Tensor) -> Tensor:
        """The vectors of changes with shape (B, K), float32 with shape (B, length)."""

    @abstractmethod
    def apply(self, x0: Tensor, changes: Tensor) -> Tensor:
        r"""The changed samples.

        Args:
            x0: the samples in the model's range, with shape (B, \*).
            changes: those of :meth:`draw`, with shape (B, K).

        Raises:
            ValueError: if this is no change of data of such a shape.
        """


@dataclass(frozen=True)
class HorizontalFlip(Augmentation):
    """The mirror image, with probability 1/2: the last axis of images, signals and volumes reversed.

    Args:
        conditional: whether the network is given whether a sample was changed.
    """

    conditional: bool = False

    @property
    def length(self) -> int:
        return int(self.conditional)

    def draw(self, noise: Noise, index: Tensor, counter: Tensor) -> Tensor:
        return (noise.uniform(Stream.AUGMENT, index, counter, (1,), torch.float64) < 0.5).double()

    def vector(self, changes: Tensor) -> Tensor:
        return changes[:, : self.length].float()

    def apply(self, x0: Tensor, changes: Tensor) -> Tensor:
        if x0.ndim < 3:
            raise ValueError(f"a mirror image needs an axis in space: expected (B, C, *spatial), got {tuple(x0.shape)}")
        return _where(changes[:, 0] > 0.5, x0.flip(-1), x0)


@dataclass(frozen=True)
class Geometric(Augmentation):
    """EDM's changes of images (see the module), with a vector of length 9.

    Args:
        probability: p.
        mirror: whether images are mirrored.
        size: the standard deviation of the logarithm to base 2 of the factor of the size.
        stretching: that of the factor of the stretching.
        shift: the standard deviation of the shift, as a fraction of the width and of the height.
        rotation: the largest angle of the rotation, as a fraction of pi.

    Raises:
        ValueError: if a number is negative, or p or the angle is above 1.
    """

    probability: float = 0.12
    mirror: bool = True
    size: float = 0.2
    stretching: float = 0.2
    shift: float = 0.125
    rotation: float = 1.0

    def __post_init__(self) -> None:
        for name, limit in (
            ("probability", 1),
            ("rotation", 1),
            *((n, math.inf) for n in ("size", "stretching", "shift")),
        ):
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"Geometric needs 0 <= {name} <= {limit}, got {name}={getattr(self, name)}")

    @property
    def length(self) -> int:
        return 9

    def draw(self, noise: Noise, index: Tensor, counter: Tensor) -> Tensor:
        u = noise.uniform(Stream.AUGMENT, index, counter, (14,), torch.float64).T  # (14, B)
        coin, applied = (u[:2] < 0.5).double(), (u[2:7] < self.probability).double()
        angle, direction = (2.0 * u[7:9] - 1.0) * math.pi
        # The quantile of the normal distribution; u = 0 would be infinite.
        n = math.sqrt(2.0) * torch.erfinv((2.0 * u[10:14] - 1.0).clamp(min=-1.0 + 2.0**-52))
        flips = [coin[0] * self.mirror, coin[1] * applied[0]]
        stretching = [n[1] * applied[3], direction * (u[9] < 0.5) * applied[3]]
        shift = [n[2] * applied[4], n[3] * applied[4]]
        changes = [*flips, n[0] * applied[1], angle * self.rotation * applied[2], *stretching, *shift]
        return torch.stack(changes, 1)

    def vector(self, changes: Tensor) -> Tensor:
        mirror, down, size, angle, n, direction, *shift = changes.unbind(1)
        turn, stretching = [angle.cos() - 1.0, angle.sin()], [n * direction.cos(), n * direction.sin()]
        return torch.stack([mirror, down, size, *turn, *stretching, *shift], 1).float()

    def apply(self, x0: Tensor, changes: Tensor) -> Tensor:
        if x0.ndim != 4:
            raise ValueError(f"Geometric changes images: expected (B, C, H, W), got {tuple(x0.shape)}")
        x0 = _where(changes[:, 0] > 0.5, x0.flip(-1), x0)
        x0 = _where(changes[:, 1] > 0.5, x0.flip(-2), x0)
        rows = torch.nonzero((changes[:, 2:] != 0.0).any(1))[:, 0]
        if len(rows) == 0:
            return x0
        some, (height, width) = x0[rows], x0.shape[-2:]
        working = torch.promote_types(x0.dtype, torch.float32)
        # From the pixels (x, y) of the result to those of the image, with the middle as the origin.
        back = torch.linalg.inv(self._matrices(changes[rows].double(), height, width))
        middle = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=torch.float64, device=x0.device)
        y, x = (torch.arange(n, dtype=torch.float64, device=x0.device) for n in (height, width))
        places = torch.stack(torch.meshgrid(x - middle[0], y - middle[1], indexing="xy"), -1)  # (H, W, 2)
        source = torch.einsum("bij,hwj->bhwi", back[:, :2, :2], places) + (back[:, :2, 2] + middle)[:, None, None]
        return x0.index_copy(0, rows, _resampled(some.to(working), source).to(x0.dtype))

    def _matrices(self, changes: Tensor, height: int, width: int) -> Tensor:
        """The changes but those by flips, as matrices of homogeneous coordinates in pixels, with shape (B, 3, 3)."""
        _, _, n_size, angle, n_stretch, direction, n_x, n_y = changes.unbind(1)
        one, zero = torch.ones_like(angle), torch.zeros_like(angle)

        def matrix(xx: Tensor, xy: Tensor, yx: Tensor, yy: Tensor, x: Tensor = zero, y: Tensor = zero) -> Tensor:
            return torch.stack([xx, xy, x, yx, yy, y, zero, zero, one], 1).reshape(-1, 3, 3)

        def turn(angle: Tensor) -> Tensor:
            return matrix(angle.cos(), -angle.sin(), angle.sin(), angle.cos())

        size, factor = torch.exp2(self.size * n_size), torch.exp2(self.stretching * n_stretch)
        stretch = turn(direction) @ matrix(factor, zero, zero, 1.0 / factor) @ turn(-direction)
        shift = matrix(one, zero, zero, one, self.shift * width * n_x, self.shift * height * n_y)
        return shift @ stretch @ turn(angle) @ matrix(size, zero, zero, size)


def _resampled(images: Tensor, places: Tensor) -> Tensor:
    """The values of images (B, C, H, W) between their pixels, at places (B, H', W', 2) in units of pixels, x before y,
    by Lagrange's interpolation of 6 by 6 pixels, which is exact for polynomials of degree 5."""
    size, height, width = len(images), *images.shape[2:]
    low = places.floor()
    taps = torch.arange(-2, 4, dtype=places.dtype, device=places.device)
    distance = (places - low)[..., None] - taps  # (B, H', W', 2, 6)
    apart = taps[:, None] - taps + torch.eye(6, dtype=taps.dtype, device=taps.device)
    # The product over the other taps: (x - x_m) / (x_k - x_m).
    others = distance[..., None, :].masked_fill(torch.eye(6, dtype=torch.bool, device=taps.device), 1.0)
    weights = (others / apart).prod(-1).to(images.dtype)
    limit = torch.tensor([[width], [height]], device=places.device)
    index = (low[..., None] + taps).long() % (2 * limit)
    index = torch.minimum(index, 2 * limit - 1 - index)  # reflected at the edges
    flat, result = images.flatten(2), torch.zeros((), dtype=images.dtype, device=images.device)
    for j in range(6):
        row = torch.zeros((), dtype=images.dtype, device=images.device)
        for i in range(6):
            pixel = (index[..., 1, j] * width + index[..., 0, i]).reshape(size, 1, -1)
            row = row + flat.gather(2, pixel.expand(-1, images.shape[1], -1)) * weights[..., 0, i].reshape(size, 1, -1)
        result = result + row * weights[..., 1, j].reshape(size, 1, -1)
    return result.reshape(*images.shape[:2], *places.shape[1:3])


def _where(chosen: Tensor, changed: Tensor, x0: Tensor) -> Tensor:
    return torch.where(chosen.reshape(-1, *(1,) * (x0.ndim - 1)), changed, x0)
