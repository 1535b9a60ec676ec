r"""Scaling: the affine map between data values and the range in which a model works, with its
log-determinant.

A data value v is laid against a model value y by

    y = scale (v + u) + shift.

Discrete data with L levels has v in {0, ..., L - 1}, and u in [0, 1) is the dequantisation noise: level v
owns the cell [v, v + 1), so that all cells together fill [0, L], which the map carries to [low, high] with
scale = (high - low) / L and shift = low. Continuous data has no levels and u = 0.

A density q of y in D dimensions gives v + u the density p(v + u) = q(y) scale^D, hence in bits per dimension

    -log2 p(v + u) / D = -(log q(y) + D log scale) / (D log 2).

For discrete data its mean over uniform u is an upper bound on -log2 P(v) / D (Theis, van den Oord & Bethge,
"A note on the evaluation of generative models", ICLR 2016, section 3.1). The uniform density on [low, high]^D
scores exactly log2 L, whatever low and high are.

**Rounding.** Rounding y can carry it over the edge of its cell: with u = 1 - 2^-24, L = 256 and [low, high] =
[-1, 1] the nearest float32 of y lies in the next cell already. The map is therefore computed in float64 both
ways, and u is kept inside [delta, 1 - delta] with

    delta = (eps / 2 + 8 eps64) max(|low|, |high|) / scale,

where eps and eps64 are the machine epsilons of y's dtype and of float64. The first term is the largest
rounding error of y, the second is more than the five roundings of float64 on the way there and back, so
`to_data(to_model(v, u))` is v for every u. On [-1, 1] in float32, delta is 8e-6 of a cell for 256 levels and
2e-3 for 65536, where float32 leaves at least 256 values to a cell: enough for a dequantised density; float64
is there for more. A dtype in which delta exceeds a quarter of a cell (bfloat16 for 256 levels) is refused.
"""

from __future__ import annotations

__all__ = ["Scaling", "nats_to_bits"]

import math
import operator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Nats = TypeVar("Nats", float, Tensor, NDArray[np.float64])


def nats_to_bits(nats: Nats, dims: int) -> Nats:
    """Log-likelihoods in nats as bits per dimension, `-nats / (D log 2)`, without a zero that is negative."""
    return (0.0 - nats) / (dims * math.log(2.0))


@dataclass(frozen=True)
class Scaling:
    r"""The map y = scale (v + u) + shift between data values v and model values y.

    Computed in float64 on the device of its argument: on a device without float64, hand over tensors on the
    CPU.

    Args:
        scale: Length of a unit of v in units of y, positive.
        shift: The y of v + u = 0.
        levels: Number of levels L, from 2 to 2^31: v is an integer in {0, ..., L - 1}. None for continuous
            data.

    Raises:
        ValueError: If `scale` is not positive, a number is not finite, or `levels` is out of range.
    """

    scale: float
    shift: float
    levels: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0 and math.isfinite(self.shift)):
            raise ValueError(
                f"expected a finite scale > 0 and a finite shift, got scale={self.scale}, shift={self.shift}"
            )
        if self.levels is not None and not 2 <= operator.index(self.levels) <= 2**31:
            raise ValueError(
                f"discrete data has from 2 to 2^31 levels, got levels={self.levels}; "
                "levels=None stands for continuous data"
            )

    @classmethod
    def interval(cls, levels: int, low: float = -1.0, high: float = 1.0) -> Scaling:
        """Discrete data with that many levels, whose cells together fill [low, high]."""
        if not low < high:
            raise ValueError(f"expected low < high, got low={low}, high={high}")
        if levels is None or operator.index(levels) < 2:
            raise ValueError(f"an interval is divided into at least 2 levels, got levels={levels}")
        return cls(scale=(high - low) / levels, shift=low, levels=levels)

    @classmethod
    def identity(cls) -> Scaling:
        """Continuous data that the model sees as it is."""
        return cls(scale=1.0, shift=0.0)

    @classmethod
    def standardise(cls, x: Tensor) -> Scaling:
        """Continuous data, to mean 0 and standard deviation 1 over all entries of `x` together.

        Args:
            x: Training values, with any shape.

        Raises:
            ValueError: If an entry is not finite, or the entries do not vary.
        """
        cls.identity().check(x)
        wide = x.detach().to(torch.float64)
        mean, std = float(wide.mean()), float(wide.std(correction=0))
        # The mean of n equal numbers is off by some roundings, which leaves a std that is not quite 0.
        if not std > 1e-12 * abs(mean):
            raise ValueError(
                f"values with mean {mean} and standard deviation {std} do not vary: they cannot be standardised"
            )
        return cls(scale=1.0 / std, shift=-mean / std)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of data values: uint8 up to 256 levels, int32 beyond, float32 without levels."""
        if self.levels is None:
            return torch.float32
        return torch.uint8 if self.levels <= 256 else torch.int32

    def check(self, v: Tensor, name: str = "value") -> None:
        """Refuses values that are not data values of this scaling.

        Args:
            v: Data values, with any shape but an empty one.
            name: What the error calls them.

        Raises:
            ValueError: If there is no value; if one is not finite (continuous), or not an integer in
                {0, ..., levels - 1} (discrete). The first such index and value are named.
        """
        if v.numel() == 0:
            raise ValueError(f"{name} has shape {tuple(v.shape)}, which holds no value: expected at least one")
        if self.levels is None:
            bad, expected = ~torch.isfinite(v), "a finite number"
        else:
            expected = f"an integer from 0 to {self.levels - 1} (levels={self.levels})"
            if v.is_floating_point():
                bad = ~((v >= 0) & (v < self.levels) & (v == v.floor()))
            else:
                # In two steps: torch compares in the dtype of v, where uint8 takes 256 for 0, and int64 is
                # eight times the memory of uint8.
                lowest, highest = (int(extreme) for extreme in v.aminmax())
                if lowest >= 0 and highest < self.levels:
                    return
                bad = (v < 0) | (v.to(torch.int64) >= self.levels)
        if bool(bad.any()):
            index = torch.nonzero(bad)[0].tolist()
            raise ValueError(f"{name}{index} is {v[tuple(index)].item()}: expected {expected}")

    def to_model(self, v: Tensor, u: Tensor | None = None, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Model values y = scale (v + u) + shift.

        Args:
            v: Data values, with shape (B, *).
            u: Dequantisation noise in [0, 1] with the shape of `v`, for discrete data only; without it u =
                1/2, the middle of each cell. It is kept a rounding error inside the cell (see the module), so
                that `to_data` gives v back; gradients pass through.
            dtype: Floating dtype of y.

        Returns:
            y, with shape (B, *).

        Raises:
            ValueError: If `v` is refused by `check`, `u` is of another shape, out of [0, 1] or given for
                continuous data, or `dtype` is too coarse for so many levels.
        """
        self.check(v)
        if self.levels is None:
            if u is not None:
                raise ValueError("continuous data has no dequantisation noise: expected u=None")
            return (self.scale * v.to(torch.float64) + self.shift).to(dtype)
        if u is None:
            u = torch.full_like(v, 0.5, dtype=torch.float64)
        if u.shape != v.shape:
            raise ValueError(f"u has one entry per value: expected shape {tuple(v.shape)}, got {tuple(u.shape)}")
        outside = ~((u >= 0) & (u <= 1))
        if bool(outside.any()):
            index = torch.nonzero(outside)[0].tolist()
            raise ValueError(f"u{index} is {u[tuple(index)].item()}: dequantisation noise lies in [0, 1)")
        margin = self._margin(self.levels, dtype)
        inside = u.to(torch.float64).clamp(margin, 1.0 - margin)
        return (self.scale * (v.to(torch.float64) + inside) + self.shift).to(dtype)

    def to_data(self, y: Tensor) -> Tensor:
        """Data values of model values: the level whose cell holds y, or v = (y - shift) / scale for
        continuous data.

        Args:
            y: Model values, with shape (B, *). Beyond the first or last cell they go to the first or last
                level.

        Returns:
            v, with shape (B, *): uint8 up to 256 levels, int32 beyond; for continuous data in the dtype of y.

        Raises:
            ValueError: If a y is NaN and the data discrete; the first such index is named.
        """
        v = (y.to(torch.float64) - self.shift) / self.scale
        if self.levels is None:
            return v.to(y.dtype)
        if bool(v.isnan().any()):
            index = torch.nonzero(v.isnan())[0].tolist()
            raise ValueError(f"the model value {index} is nan, which has no level: expected a number")
        return v.floor().clamp(0, self.levels - 1).to(self.dtype)

    def log_det(self, dims: int) -> float:
        """`log |dy/dv| = D log scale` of an event of D = `dims` dimensions, in nats."""
        return dims * math.log(self.scale)

    def bits_per_dim(self, nats: Tensor, dims: int) -> Tensor:
        """`-(log q(y) + log |dy/dv|) / (D log 2)`: bits per dimension of data, on the scale of data values.

        Args:
            nats: Log-density log q(y) of the model, in nats, with shape (B,).
            dims: D, the number of dimensions of the event.

        Returns:
            Bits/dim, with shape (B,). For continuous data they depend on the unit of the data and may be
            negative.
        """
        return nats_to_bits(nats + self.log_det(dims), dims)

    def _margin(self, levels: int, dtype: torch.dtype) -> float:
        """delta, the share of a cell by which the noise is kept off its edges (see the module)."""
        high = self.shift + self.scale * levels
        rounding = torch.finfo(dtype).eps / 2 + 8 * torch.finfo(torch.float64).eps
        margin = rounding * max(abs(self.shift), abs(high)) / self.scale
        if margin > 0.25:
            raise ValueError(
                f"{dtype} is too coarse for {levels} levels on [{self.shift:g}, {high:g}]: rounding spans "
                f"{margin:.2g} of a level; use a wider dtype"
            )
        return margin
