r"""Scaling: the affine map between data values and the model's range, with its log-determinant.

A data value v and a model value y are related by

    y = scale (v + u) + shift.

Discrete data with L levels has v in {0, ..., L - 1}, and u in [0, 1) is the dequantisation noise: level v
has the quantisation bin [v, v + 1). Together the bins fill [0, L], which is mapped to [low, high] by
scale = (high - low) / L and shift = low. Continuous data has no levels and u = 0.

**Columns and channels.** The second axis says what a value is: a column of a table (N, D), or a channel of signals and
images (N, C, *spatial). Columns have units of their own, so that :meth:`Scaling.standardise` gives continuous data one
scale and one shift for each entry of that axis, shared by all positions. Levels are counts of one unit: discrete data
has one scale.

If y has the density q in D dimensions, then v + u has the density p(v + u) = q(y) |dy/dv|, where log |dy/dv| is the sum
of log scale over all dimensions, D log scale if there is one. In bits per dimension

    -log2 p(v + u) / D = -(log q(y) + log |dy/dv|) / (D log 2).

For discrete data the mean of this over uniform u is an upper bound on -log2 P(v) / D (Theis, van den Oord & Bethge,
"A note on the evaluation of generative models", ICLR 2016, section 3.1). The uniform density on [low, high]^D
has exactly log2 L bits/dim, for any low and high.

**Rounding.** Rounding can move y across the edge of its bin: with u = 1 - 2^-24, L = 256 and [low, high] = [-1, 1],
the float32 nearest to y lies in the next bin. The map is therefore computed in float64 in both directions, and u is
clamped to [delta, 1 - delta] with

    delta = (eps / 2 + 8 eps64) max(|low|, |high|) / scale,

where eps and eps64 are the machine epsilons of y's dtype and of float64. The first term is the largest rounding error
of y. The second exceeds the five float64 roundings of the map and its inverse, so that `to_data(to_model(v, u))` is v
for every u. On [-1, 1] in float32, delta is 8e-6 of a bin for 256 levels and 2e-3 of a bin for 65536 levels, where each
bin still contains at least 256 float32 values: enough for a dequantised density; float64 resolves more. A dtype in
which delta exceeds a quarter of a bin (bfloat16 for 256 levels) is refused.
"""

from __future__ import annotations

__all__ = ["Scaling", "check_entries", "nats_to_bits"]

import math
import operator
import warnings
from collections.abc import Sequence
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

    The map is computed in float64 on the device of its argument; for a device without float64, pass tensors on the CPU.

    Args:
        scale: length of a unit of v in units of y, positive: one number, or for continuous data one for each column or
            channel, the entries of the second axis of v.
        shift: the value of y at v + u = 0, or one for each column or channel.
        levels: number of levels L, from 2 to 2^31: v is an integer in {0, ..., L - 1}. None for continuous data.

    Raises:
        ValueError: if `scale` is not positive, a number is not finite, `levels` is out of range, `scale` and `shift`
            have different lengths, or discrete data has more than one scale.
    """

    scale: float | Sequence[float]
    shift: float | Sequence[float]
    levels: int | None = None

    def __post_init__(self) -> None:
        scale, shift = (np.asarray(value, dtype=np.float64) for value in (self.scale, self.shift))
        if not (np.isfinite(scale).all() and (scale > 0).all() and np.isfinite(shift).all()):
            raise ValueError(
                f"expected a finite scale > 0 and a finite shift, got scale={self.scale}, shift={self.shift}"
            )
        if scale.shape != shift.shape or scale.ndim > 1 or scale.size == 0:
            raise ValueError(
                "expected one scale and one shift, or one of each for every column or channel, got "
                f"scale={self.scale}, shift={self.shift}"
            )
        if self.levels is not None and not 2 <= operator.index(self.levels) <= 2**31:
            raise ValueError(
                f"expected 2 to 2^31 levels for discrete data or levels=None for continuous data, got "
                f"levels={self.levels}"
            )
        if self.levels is not None and scale.ndim:
            raise ValueError(f"expected one scale for discrete data, with levels={self.levels}, got {self.scale}")
        for name, value in (("scale", scale), ("shift", shift)):
            object.__setattr__(self, name, tuple(value.tolist()) if value.ndim else value.item())

    @classmethod
    def interval(cls, levels: int, low: float = -1.0, high: float = 1.0) -> Scaling:
        """Scaling of discrete data, whose quantisation bins together fill [low, high]."""
        if not low < high:
            raise ValueError(f"expected low < high, got low={low}, high={high}")
        if levels is None or operator.index(levels) < 2:
            raise ValueError(f"expected at least 2 levels, got levels={levels}")
        return cls(scale=(high - low) / levels, shift=low, levels=levels)

    @classmethod
    def identity(cls) -> Scaling:
        """The identity for continuous data: model values are data values."""
        return cls(scale=1.0, shift=0.0)

    @classmethod
    def standardise(cls, x: Tensor, *, one_scale: bool = False) -> Scaling:
        """Scaling of continuous data to mean 0 and standard deviation 1 in each column or channel.

        A constant column, which has no density, is shifted to 0 in its own unit.

        Args:
            x: training values, with shape (N, D) or (N, C, *spatial); (N,) for a single column.
            one_scale: whether all columns or channels have the mean and standard deviation of all entries together:
                for coordinates in one unit, whose proportions matter.

        Raises:
            ValueError: if an entry is not finite, or all entries of each column are equal.
        """
        cls.identity().check(x)
        columns = [x] if one_scale or x.ndim < 2 else x.unbind(1)
        moments = [(float(v.mean()), float(v.std(correction=0))) for v in (c.detach().double() for c in columns)]
        # Rounding errors in the mean of n equal numbers leave a std slightly above 0.
        varies = [std > 1e-12 * abs(mean) for mean, std in moments]
        if not any(varies):
            mean, std = moments[0]
            raise ValueError(
                f"expected values that vary, got mean {mean} and standard deviation {std}: they cannot be standardised"
            )
        scale = [1.0 / std if varying else 1.0 for (_, std), varying in zip(moments, varies)]
        shift = [-mean / std if varying else -mean for (mean, std), varying in zip(moments, varies)]
        return cls(scale, shift) if len(moments) > 1 else cls(scale[0], shift[0])

    @property
    def bins(self) -> tuple[float, float, int]:
        """The width of a quantisation bin and the lower edge of the first one, in the model's range, and their number.

        Raises:
            ValueError: if the data is continuous.
        """
        if self.levels is None or not isinstance(self.scale, float) or not isinstance(self.shift, float):
            raise ValueError("continuous data has no quantisation bins: expected a scaling with levels, got none")
        return self.scale, self.shift, self.levels

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of data values: uint8 up to 256 levels, int32 for more, float32 without levels."""
        if self.levels is None:
            return torch.float32
        return torch.uint8 if self.levels <= 256 else torch.int32

    def check_event(self, shape: Sequence[int]) -> None:
        """Raises a ValueError if events of this shape, (D,) or (C, *spatial), do not have a scale for each column or
        channel."""
        if not isinstance(self.scale, float) and (len(shape) == 0 or shape[0] != len(self.scale)):
            raise ValueError(
                f"this scaling is for {len(self.scale)} columns or channels: expected the event shape "
                f"({len(self.scale)}, ...), got {tuple(shape)}"
            )

    def warn_of_spreads(self, v: Tensor, *, whole: bool = True) -> None:
        """Warns of columns or channels of continuous data whose standard deviations in the model's range differ more
        than tenfold.

        Args:
            v: training values, with shape (N, D) or (N, C, *spatial).
            whole: whether these are all; else columns that are constant in them may vary in others, and do not count.
        """
        if self.levels is not None or not v.is_floating_point():
            return
        scales = np.broadcast_to(np.asarray(self.scale), v.shape[1]).tolist()
        stds = (a * float(c.double().std(correction=0)) for c, a in zip(v.unbind(1), scales))
        spreads = [(std, i) for i, std in enumerate(stds) if whole or std > 0.0]
        (small, i), (large, j) = (min(spreads), max(spreads)) if spreads else ((1.0, 0), (1.0, 0))
        if 10.0 * small < large:
            warnings.warn(
                "the columns or channels of the data differ more than tenfold in the model's range: the standard "
                f"deviation of number {i} is {small:.2g}, that of number {j} {large:.2g}"
                + ("" if whole else f" (of {len(v)} samples)")
                + ". Leave out constant ones, and scale each of the others by its own, as "
                "sde.data.Scaling.standardise does",
                stacklevel=4,
            )

    def check(self, v: Tensor, name: str = "value") -> None:
        """Raises an error for values that are not data values of this scaling.

        Args:
            v: data values, with any non-empty shape.
            name: the name of the values in the error.

        Raises:
            ValueError: if `v` is empty; if a value is not finite (continuous data) or not an integer in
                {0, ..., levels - 1} (discrete data). The error names the first such index and value.
        """
        if v.numel() == 0:
            raise ValueError(f"{name} has shape {tuple(v.shape)} and is empty: expected at least one value")
        self.check_event(v.shape[1:])
        if self.levels is None:
            check_entries(name, v, torch.isfinite(v), "a finite number")
            return
        if v.is_floating_point():
            valid = (v >= 0) & (v < self.levels) & (v == v.floor())
        else:
            # The extremes first: torch compares in the dtype of v, where 256 as uint8 is 0, and int64 takes eight
            # times the memory of uint8.
            lowest, highest = (int(extreme) for extreme in v.aminmax())
            if lowest >= 0 and highest < self.levels:
                return
            valid = (v >= 0) & (v.to(torch.int64) < self.levels)
        check_entries(name, v, valid, f"an integer from 0 to {self.levels - 1} (levels={self.levels})")

    def to_model(self, v: Tensor, u: Tensor | None = None, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Model values y = scale (v + u) + shift.

        Args:
            v: data values, with shape (B, *).
            u: dequantisation noise in [0, 1] with the shape of `v`, for discrete data only; 1/2, the middle of each
                bin, by default. It is clamped by a rounding error inside the bin (see the module), so that `to_data`
                returns v; gradients pass through.
            dtype: floating dtype of y.

        Returns:
            y, with shape (B, *).

        Raises:
            ValueError: if `check` refuses `v`; if `u` has another shape, lies outside [0, 1] or is given for
                continuous data; or if `dtype` is too coarse for the number of levels.
        """
        self.check(v)
        if self.levels is None:
            if u is not None:
                raise ValueError("expected u=None for continuous data, which has no dequantisation noise")
            scale, shift = self._coefficients(v)
            return (scale * v.to(torch.float64) + shift).to(dtype)
        if u is None:
            u = torch.full_like(v, 0.5, dtype=torch.float64)
        if u.shape != v.shape:
            raise ValueError(f"expected u with the shape {tuple(v.shape)} of v, got {tuple(u.shape)}")
        check_entries("u", u, (u >= 0) & (u <= 1), "dequantisation noise in [0, 1]")
        margin, (width, low, _) = self._margin(dtype), self.bins
        inside = u.to(torch.float64).clamp(margin, 1.0 - margin)
        return (width * (v.to(torch.float64) + inside) + low).to(dtype)

    def to_data(self, y: Tensor) -> Tensor:
        """Data values of model values: the level whose bin contains y; (y - shift) / scale for continuous data.

        Args:
            y: model values, with shape (B, *). Values below the first bin or above the last one become the first or
                last level.

        Returns:
            v, with shape (B, *): uint8 up to 256 levels, int32 for more; in the dtype of y for continuous data.

        Raises:
            ValueError: if the data is discrete and a y is NaN, and the error names the first such index; or if
                `check_event` refuses its shape.
        """
        scale, shift = self._coefficients(y)
        v = (y.to(torch.float64) - shift) / scale
        if self.levels is None:
            return v.to(y.dtype)
        check_entries("y", y, ~v.isnan(), "a number, because NaN has no level")
        return v.floor().clamp(0, self.levels - 1).to(self.dtype)

    def log_det(self, dims: int) -> float:
        """`log |dy/dv|` of an event with D = `dims` dimensions, in nats: the sum of log scale over its dimensions.

        Raises:
            ValueError: if D is not a multiple of the number of columns or channels that have a scale.
        """
        if isinstance(self.scale, float):
            return dims * math.log(self.scale)
        if dims % len(self.scale):
            raise ValueError(f"expected a multiple of the {len(self.scale)} columns or channels, got dims={dims}")
        return dims // len(self.scale) * math.fsum(map(math.log, self.scale))

    def bits_per_dim(self, nats: Tensor, dims: int) -> Tensor:
        """Bits per dimension in data units: `-(log q(y) + log |dy/dv|) / (D log 2)`.

        Args:
            nats: log-density log q(y) of the model, in nats, with shape (B,).
            dims: D, the number of dimensions of the event.

        Returns:
            Bits/dim, with shape (B,). For continuous data they depend on the unit of the data and may be negative.
        """
        return nats_to_bits(nats + self.log_det(dims), dims)

    def _margin(self, dtype: torch.dtype) -> float:
        """delta, the distance of the noise from the edges of a bin, as a fraction of the bin (see the module)."""
        width, low, levels = self.bins
        high = low + width * levels
        rounding = torch.finfo(dtype).eps / 2 + 8 * torch.finfo(torch.float64).eps
        margin = rounding * max(abs(low), abs(high)) / width
        if margin > 0.25:
            raise ValueError(
                f"{dtype} is too coarse for {levels} levels on [{low:g}, {high:g}]: rounding spans "
                f"{margin:.2g} of a level; use a dtype of higher precision"
            )
        return margin

    def _coefficients(self, x: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Scale and shift as numbers, or as float64 tensors that broadcast to `x` with shape (B, *)."""
        self.check_event(x.shape[1:])
        if isinstance(self.scale, float) and isinstance(self.shift, float):
            return self.scale, self.shift
        both = torch.tensor([self.scale, self.shift], dtype=torch.float64, device=x.device)
        scale, shift = both.reshape(2, -1, *[1] * (x.ndim - 2))
        return scale, shift


def check_entries(name: str, values: Tensor, valid: Tensor, expected: str) -> None:
    """Raises a ValueError that names the first entry of `values` where `valid`, of the same shape, is False."""
    if not bool(valid.all()):
        index = torch.nonzero(~valid)[0].tolist()
        raise ValueError(f"{name}{index} is {values[tuple(index)].item()}: expected {expected}")
