r"""Brownian paths: the same path for any number of steps, for any order of questions, in constant memory.

A path is a function of (seed, sample, time). It is found by descending a binary tree of cells: what a cell [l, r] of
length h knows is its increment and its space-time Levy area, the mean distance of the path from its chord,

.. math::
    D = W_r - W_l, \qquad H = \frac1h \int_l^r \Big(W_s - W_l - \frac{s - l}{h} D\Big) ds, \qquad
    D \sim \mathcal N(0, h), \quad H \sim \mathcal N(0, h/12),

independent of each other. Given both, those of the part [l, m] of length a, with b = h - a and
:math:`q = a^2 - ab + b^2`, are Gaussian,

.. math::
    D_1 = \frac ah D + \frac{6ab}{h^2} H + \sqrt{\frac{abq}{h^3}}\, z_1, \qquad
    H_1 = \frac{a^2}{h^2} H - \frac12 \sqrt{\frac{a^5 b}{h^3 q}}\, z_1 + \sqrt{\frac{a b^3}{12 h q}}\, z_2,

and those of [m, r] follow from the sums. The normals of a cell are a hash of its place in the tree. The cells that
hang from the root halve :math:`\sqrt t`, so that they are finest at the data end, where steps are short. In a cell of
the last level the path is the conditional mean plus the same two normals throughout: between times in different
cells its law is exact, and below that resolution it is smooth.

Gaines and Lyons, Variable Step Size Control in the Numerical Solution of Stochastic Differential Equations, 1997,
https://doi.org/10.1137/S0036139995286515; Li et al., Scalable Gradients for Stochastic Differential Equations, 2020,
https://arxiv.org/abs/2001.01328, algorithm 3; Jelincic, Tao, Turner, Cass, Foster and Ni, VBT: a virtual Brownian tree
with Levy area, 2024, https://arxiv.org/abs/2405.06464; Foster, Lyons and Oberhauser 2020,
https://arxiv.org/abs/1904.06998, for H.
"""

from __future__ import annotations

__all__ = ["BrownianNoise", "BrownianPath", "along_path"]

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .noise import Noise, StepNoise, Stream

# Few enough numbers for the normals of several levels to stay in the cache, as in KeyedNoise.
_BLOCK = 2**17


@dataclass(frozen=True)
class BrownianPath:
    r"""A source of noise that drives every solver by the same Brownian path, whatever its steps.

    The path of a sample is a function of the seed and the sample's index. A step from t to s gets
    :math:`(W_s - W_t)/\sqrt{|t - s|}`, so that runs with more and more steps converge to one another path by path. It
    serves processes of any `t_max`; times must not be negative. One question costs about `2 levels` normals.

    Args:
        seed: as of :class:`sde.noise.Noise`.
        levels: the depth of the tree; a deeper one refines the same path. Times t <= 1 are told apart down to
            :math:`2^{1-\mathrm{levels}} \sqrt t`, and steps should not be shorter than that; with 24, 4e-10 at
            t = 1e-5 and 1e-7 at t = 1.
    """

    seed: int
    levels: int = 24

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 40:
            raise ValueError(f"BrownianPath needs a tree of 1 to 40 levels, got levels={self.levels}")

    def batch(self, index: Tensor, shape: Sequence[int], dtype: torch.dtype) -> BrownianNoise:
        """The paths of the samples `index` (int64, (B,)), one event of `shape` each."""
        return BrownianNoise(Noise(self.seed).batch(index, shape, dtype), self.levels)


def along_path(noise: StepNoise) -> StepNoise:
    """What an adaptive method draws from: the noise itself if it is that of a path, or the path of its seed.

    Noise keyed by a seed becomes the noise of ``BrownianPath(seed)``.
    """
    return noise if noise.one_path else BrownianNoise(noise)


@dataclass
class BrownianNoise(StepNoise):
    """The noise of Brownian paths, made of draws of PATH; draws of other streams pass through.

    Args:
        draws: a source whose draws depend on their number alone.
        levels: the depth of the tree, as in :class:`BrownianPath`.
    """

    draws: StepNoise
    levels: int = 24
    _recent: list[tuple[Tensor, _Point]] = field(default_factory=list, repr=False)

    one_path: ClassVar[bool] = True

    def normal(self, stream: Stream, k: int | Tensor, start: float | Tensor, stop: float | Tensor) -> Tensor:
        if stream not in (Stream.STEP, Stream.AREA):
            return self.draws.normal(stream, k, start, stop)
        t, s = (torch.as_tensor(time, dtype=torch.float64).reshape(-1) for time in (start, stop))
        before, after = self._point(t), self._point(s)
        # The next question is about an interval that begins at an end of this one.
        self._recent = [(s, after), (t, before)]
        gap = _beside(s - t, before.w)
        if stream is Stream.STEP:
            scaled = (after.w - before.w) / gap.abs().sqrt()
        else:
            # The mean distance from the chord is the same in both directions of time.
            mean = (after.integral - before.integral) / gap
            scaled = (mean - 0.5 * (before.w + after.w)) * (12.0 / gap.abs()).sqrt()
        return scaled.to(before.dtype)

    def select(self, index: Tensor) -> BrownianNoise:
        return BrownianNoise(self.draws.select(index), self.levels)

    def _point(self, t: Tensor) -> _Point:
        """The paths at times of shape (1,) or (B,); an end of the last interval is not looked up again."""
        if self._recent:
            (s, after), (r, before) = self._recent
            if bool(((s == t) | (r == t)).all()):
                at = _beside(s == t, after.w)
                return _Point(
                    torch.where(at, after.w, before.w), torch.where(at, after.integral, before.integral), after.dtype
                )
        return self._descend(t)

    def _descend(self, t: Tensor) -> _Point:
        if not bool(((t >= 0.0) & t.isfinite()).all()):
            raise ValueError(f"a Brownian path runs over finite times t >= 0, got t={t.tolist()}")
        # Trees stand on the cells [0, 1], [1, 2], [2, 4], [4, 8], ...; a path passes the whole cells before its own.
        tree = t.log2().ceil().clamp(min=0.0).long()
        trees = torch.arange(int(tree.max()) + 1, device=t.device)
        z = self._normals(trees[None], torch.zeros_like(trees)[None])
        dtype, z = z.dtype, z.double()
        w, integral, d, h = z.new_zeros(4, *z[:, 0, 0].shape).unbind()
        for i, width in enumerate(_cell(trees)[1].tolist()):
            step, mean = math.sqrt(width) * z[:, i, 0], math.sqrt(width / 12.0) * z[:, i, 1]
            here, passed = _beside(tree == i, w), _beside(tree > i, w)
            d, h = torch.where(here, step, d), torch.where(here, mean, h)
            integral = torch.where(passed, integral + width * (w + mean + 0.5 * step), integral)
            w = torch.where(passed, w + step, w)

        way = _Way.to(t, *_cell(tree), self.levels)
        increment, area, lengths = (
            terms.to(w.device).reshape(*terms.shape, *(1,) * (w.ndim - 1))
            for terms in (way.increment, way.area, way.lengths)
        )
        block = max(1, _BLOCK // max(1, w.numel()))
        for level in range(self.levels + 1):
            if level % block == 0:
                z = self._normals(tree[:, None], way.cells[level : level + block].T).double()
            z1, z2 = z[:, level % block].unbind(1)
            (a, b, c), (e, f, g) = increment[level], area[level]
            part, rest = a * d + b * h + c * z1, e * h + f * z1 + g * z2
            if way.passes[level]:
                # Where the way goes right, `part` and `rest` are those of the right half.
                right, whole, half = lengths[level]
                over = whole * (h + 0.5 * d) - half * (rest + 0.5 * part) - half * (d - part)
                integral = integral + right * ((whole - half) * w + over)
                w = w + right * (d - part)
            d, h = part, rest
        return _Point(w + d, integral + _beside(way.rest, w) * (w + h + 0.5 * d), dtype)

    def _normals(self, tree: Tensor, cell: Tensor) -> Tensor:
        """The two normals of each cell, float with shape (B, n, 2, *) for cells of shape (1, n) or (B, n)."""
        place = (tree << 42) + cell  # a path is the same in a deeper tree, but for what is below the leaves
        k = torch.stack([2 * place, 2 * place + 1], -1).flatten(1)
        return self.draws.normal(Stream.PATH, k, 0.0, 0.0).unflatten(1, (-1, 2))


@dataclass(frozen=True)
class _Point:
    """A path at a time: W_t and its integral from 0 to t, float64 with shape (B, *), and the dtype of its normals."""

    w: Tensor
    integral: Tensor
    dtype: torch.dtype


@dataclass(frozen=True)
class _Way:
    """The way down a tree to a time, over its levels and the last step within a leaf, L = levels + 1.

    Attributes:
        cells: the cells on the way, int64 (L, n), numbered from 1 level by level.
        increment: what the increment of the part gone to is of D, H and z_1, (L, 3, n).
        area: what its area is of H, z_1 and z_2, (L, 3, n).
        lengths: 1 where the way goes right, the length of the cell, and the length of its right part, (L, 3, n).
        passes: whether any sample goes right, by level.
        rest: the time's distance from the left end of its leaf, (n,).
    """

    cells: Tensor
    increment: Tensor
    area: Tensor
    lengths: Tensor
    passes: list[bool]
    rest: Tensor

    @classmethod
    def to(cls, t: Tensor, left: Tensor, width: Tensor, levels: int) -> _Way:
        shares = ((t - left) / width).clamp(0.0, 1.0).sqrt()
        leaf = (shares * 2.0**levels).long().clamp(max=2**levels - 1)
        level = torch.arange(levels + 1, device=t.device)[:, None]
        cell, size = leaf >> (levels - level), 0.5**level
        low, middle, high = (left + width * ((cell + share) * size).square() for share in (0.0, 0.5, 1.0))
        middle[-1] = torch.minimum(torch.maximum(t, low[-1]), high[-1])
        goes_right = torch.cat([cell[1:] & 1, torch.zeros_like(cell[:1])])

        a, b, h = middle - low, high - middle, high - low
        q = a * a - a * b + b * b
        root = (a * b * q / h**3).sqrt()
        cross, own = 0.5 * (a**5 * b / (h**3 * q)).sqrt(), (a * b**3 / (12.0 * h * q)).sqrt()
        to_left = [a / h, 6.0 * a * b / h**2, root, (a / h) ** 2, -cross, own]
        # H_2 = (h H - a H_1) / b + (a D - h D_1) / (2 b); in the last row nothing goes right, and b may be 0.
        c = b.clone()
        c[-1] = 1.0
        to_right = [b / h, -to_left[1], -root, (b / h) ** 2, (a * cross - 0.5 * h * root) / c, -a * own / c]
        right = goes_right.bool()
        terms = torch.stack([torch.where(right, x, y) for x, y in zip(to_right, to_left)], 1)
        return cls(
            cells=(1 << level) + cell,
            increment=terms[:, :3],
            area=terms[:, 3:],
            lengths=torch.stack([right.double(), h, b], 1),
            passes=right.any(1).tolist(),
            rest=a[-1],
        )


def _cell(tree: Tensor) -> tuple[Tensor, Tensor]:
    """The left end and the width of the cell that a tree stands on."""
    power = torch.exp2((tree - 1).clamp(min=0).double())
    return torch.where(tree > 0, power, 0.0), power


def _beside(values: Tensor, x: Tensor) -> Tensor:
    """Values of shape (n,) laid against `x` of shape (B, *), in their own dtype."""
    return values.to(x.device).reshape(-1, *(1,) * (x.ndim - 1))
