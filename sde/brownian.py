r"""Brownian paths: the same path for any steps and any order of evaluation, in constant memory.

A path is a function of (seed, sample, time), evaluated by descending a binary tree of cells. A cell [l, r] of length h
has an increment D and a space-time Levy area H, the mean distance of the path from its chord,

.. math::
    D = W_r - W_l, \qquad H = \frac1h \int_l^r \Big(W_s - W_l - \frac{s - l}{h} D\Big) ds, \qquad
    D \sim \mathcal N(0, h), \quad H \sim \mathcal N(0, h/12),

which are independent of each other. Given D and H, those of the left part [l, m] of length a are Gaussian, with
b = h - a and :math:`q = a^2 - ab + b^2`:

.. math::
    D_1 = \frac ah D + \frac{6ab}{h^2} H + \sqrt{\frac{abq}{h^3}}\, z_1, \qquad
    H_1 = \frac{a^2}{h^2} H - \frac12 \sqrt{\frac{a^5 b}{h^3 q}}\, z_1 + \sqrt{\frac{a b^3}{12 h q}}\, z_2,

Those of the right part [m, r] follow from the sums. The two normals :math:`z_1, z_2` of a cell are a hash of its
position in the tree. A cell is split at the middle of :math:`\sqrt t`, so that the cells are shortest near t = 0,
where steps are short. Within a cell of the last level, the path is the conditional mean plus a term in the same two
normals: between times in different cells the distribution is exact, and within a cell the path is smooth.

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
from .shapes import float64

# Few enough numbers that the normals of several levels stay in the cache, as in KeyedNoise.
_BLOCK = 2**17


@dataclass(frozen=True)
class BrownianPath:
    r"""A source of noise that gives all solvers the same Brownian path, whatever their steps.

    The path of a sample is a function of the seed and the index of the sample. A step from t to s gets
    :math:`(W_s - W_t)/\sqrt{|t - s|}`, so that runs with more steps converge path by path. `t_max` may have any value;
    times must not be negative. One evaluation costs about `2 levels` normals.

    Args:
        seed: the seed, as in :class:`sde.noise.Noise`.
        levels: the depth of the tree; a deeper one refines the same path. For t <= 1 the resolution is
            :math:`2^{1-\mathrm{levels}} \sqrt t`, and steps should not be shorter than that; with 24 levels it is 4e-10
            at t = 1e-5 and 1e-7 at t = 1.
    """

    seed: int
    levels: int = 24

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 40:
            raise ValueError(f"BrownianPath needs 1 to 40 levels of its tree, got levels={self.levels}")

    def batch(self, index: Tensor, shape: Sequence[int], dtype: torch.dtype) -> BrownianNoise:
        """The paths of the samples `index` (int64, (B,)), each with the event shape `shape`."""
        return BrownianNoise(Noise(self.seed).batch(index, shape, dtype), self.levels)


def along_path(noise: StepNoise) -> StepNoise:
    """The noise of a Brownian path, for adaptive methods: `noise` itself if it is one, else a path computed from it.

    Noise keyed by a seed becomes the noise of ``BrownianPath(seed)``.
    """
    return noise if noise.one_path else BrownianNoise(noise)


@dataclass
class BrownianNoise(StepNoise):
    """The noise of Brownian paths, computed from draws of the stream PATH; other streams pass through.

    Args:
        draws: a source whose draws depend only on their number.
        levels: the depth of the tree, as in :class:`BrownianPath`.
    """

    draws: StepNoise
    levels: int = 24
    _recent: list[tuple[Tensor, _Point]] = field(default_factory=list, repr=False)

    one_path: ClassVar[bool] = True

    def normal(self, stream: Stream, k: int | Tensor, start: float | Tensor, stop: float | Tensor) -> Tensor:
        if stream not in (Stream.STEP, Stream.AREA):
            return self.draws.normal(stream, k, start, stop)
        t, s = (float64(time).reshape(-1) for time in (start, stop))
        at_t, at_s = self._point(t), self._point(s)
        # The next interval usually begins at one end of this one.
        self._recent = [(s, at_s), (t, at_t)]
        gap = _align(s - t, at_t.w)
        if stream is Stream.STEP:
            scaled = (at_s.w - at_t.w) / gap.abs().sqrt()
        else:
            # The mean distance from the chord is the same in both directions of time.
            mean = (at_s.integral - at_t.integral) / gap
            scaled = (mean - 0.5 * (at_t.w + at_s.w)) * (12.0 / gap.abs()).sqrt()
        return scaled.to(at_t.dtype)

    def select(self, index: Tensor) -> BrownianNoise:
        return BrownianNoise(self.draws.select(index), self.levels)

    def _point(self, t: Tensor) -> _Point:
        """The paths at times of shape (1,) or (B,); the ends of the last interval are not computed again."""
        if self._recent:
            (s, at_s), (r, at_r) = self._recent
            if bool(((s == t) | (r == t)).all()):
                is_s = _align(s == t, at_s.w)
                w, integral = torch.where(is_s, at_s.w, at_r.w), torch.where(is_s, at_s.integral, at_r.integral)
                return _Point(w, integral, at_s.dtype)
        return self._descend(t)

    def _descend(self, t: Tensor) -> _Point:
        if not bool(((t >= 0.0) & t.isfinite()).all()):
            raise ValueError(f"a Brownian path needs finite times t >= 0, got t={t.tolist()}")
        # The trees have the root cells [0, 1], [1, 2], [2, 4], [4, 8], ...; the root cells before the time are summed.
        tree = t.log2().ceil().clamp(min=0.0).long()
        trees = torch.arange(int(tree.max()) + 1, device=t.device)
        z = self._normals(trees[None], torch.zeros_like(trees)[None])
        dtype, z = z.dtype, z.double()
        w, integral, d, h = z.new_zeros(4, *z[:, 0, 0].shape).unbind()
        for i, width in enumerate(_root_cell(trees)[1].tolist()):
            step, mean = math.sqrt(width) * z[:, i, 0], math.sqrt(width / 12.0) * z[:, i, 1]
            inside, before = _align(tree == i, w), _align(tree > i, w)
            d, h = torch.where(inside, step, d), torch.where(inside, mean, h)
            integral = torch.where(before, integral + width * (w + mean + 0.5 * step), integral)
            w = torch.where(before, w + step, w)

        cells, offset, *coefficients = _descent(t, *_root_cell(tree), self.levels)
        any_right = coefficients[-1][:, 0].any(1).tolist()
        increment, area, lengths = (c.to(w.device).reshape(*c.shape, *(1,) * (w.ndim - 1)) for c in coefficients)
        block = max(1, _BLOCK // max(1, w.numel()))
        for level in range(self.levels + 1):
            if level % block == 0:
                z = self._normals(tree[:, None], cells[level : level + block].T).double()
            z1, z2 = z[:, level % block].unbind(1)
            (a, b, c), (e, f, g) = increment[level], area[level]
            part_d, part_h = a * d + b * h + c * z1, e * h + f * z1 + g * z2
            if any_right[level]:
                # Where the descent goes right, `part_d` and `part_h` belong to the right part: add the left part.
                right, whole, part = lengths[level]
                left_integral = whole * (h + 0.5 * d) - part * (part_h + 0.5 * part_d) - part * (d - part_d)
                integral = integral + right * ((whole - part) * w + left_integral)
                w = w + right * (d - part_d)
            d, h = part_d, part_h
        return _Point(w + d, integral + _align(offset, w) * (w + h + 0.5 * d), dtype)

    def _normals(self, tree: Tensor, cell: Tensor) -> Tensor:
        """The two normals of each cell, float with shape (B, n, 2, *) for cells of shape (1, n) or (B, n)."""
        position = (tree << 42) + cell  # independent of the depth of the tree, so that a deeper one refines the path
        k = torch.stack([2 * position, 2 * position + 1], -1).flatten(1)
        return self.draws.normal(Stream.PATH, k, 0.0, 0.0).unflatten(1, (-1, 2))


@dataclass(frozen=True)
class _Point:
    """A path at one time: W_t and its integral from 0 to t, float64 (B, *), and the dtype of the normals."""

    w: Tensor
    integral: Tensor
    dtype: torch.dtype


def _descent(t: Tensor, left: Tensor, width: Tensor, levels: int) -> tuple[Tensor, ...]:
    """The descent of a tree to a time: one step for each level and one within the leaf, L = levels + 1.

    Returns:
        The cells of the descent, int64 (L, n), numbered from 1 level by level; the distance of the time from the left
        end of its leaf, (n,); the coefficients of D, H and z_1 in the increment of the next part, (L, 3, n), and those
        of H, z_1 and z_2 in its area, (L, 3, n); and 1 where the next part is the right one, the length of the cell and
        that of its right part, (L, 3, n).
    """
    root = ((t - left) / width).clamp(0.0, 1.0).sqrt()
    leaf = (root * 2.0**levels).long().clamp(max=2**levels - 1)
    level = torch.arange(levels + 1, device=t.device)[:, None]
    cell, size = leaf >> (levels - level), 0.5**level
    low, middle, high = (left + width * ((cell + u) * size).square() for u in (0.0, 0.5, 1.0))
    middle[-1] = torch.minimum(torch.maximum(t, low[-1]), high[-1])
    right = torch.cat([cell[1:] & 1, torch.zeros_like(cell[:1])]).bool()

    a, b, h = middle - low, high - middle, high - low
    q = a * a - a * b + b * b
    d_z1 = (a * b * q / h**3).sqrt()
    h_z1, h_z2 = 0.5 * (a**5 * b / (h**3 * q)).sqrt(), (a * b**3 / (12.0 * h * q)).sqrt()
    to_left = [a / h, 6.0 * a * b / h**2, d_z1, (a / h) ** 2, -h_z1, h_z2]
    # H_2 = (h H - a H_1) / b + (a D - h D_1) / (2 b). The last row never goes right, and its b may be 0.
    c = b.clone()
    c[-1] = 1.0
    to_right = [b / h, -to_left[1], -d_z1, (b / h) ** 2, (a * h_z1 - 0.5 * h * d_z1) / c, -a * h_z2 / c]
    terms = torch.stack([torch.where(right, x, y) for x, y in zip(to_right, to_left)], 1)
    return (1 << level) + cell, a[-1], terms[:, :3], terms[:, 3:], torch.stack([right.double(), h, b], 1)


def _root_cell(tree: Tensor) -> tuple[Tensor, Tensor]:
    """The left end and the width of the root cell of a tree."""
    power = torch.exp2((tree - 1).clamp(min=0).double())
    return torch.where(tree > 0, power, 0.0), power


def _align(values: Tensor, x: Tensor) -> Tensor:
    """Values of shape (n,), reshaped to broadcast against `x` (B, *), in their own dtype."""
    return values.to(x.device).reshape(-1, *(1,) * (x.ndim - 1))
