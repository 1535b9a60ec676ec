r"""Precision, recall, density and coverage, from balls around the items.

The ball :math:`B_k(a)` of an item a of a set A is closed, and reaches to the k-th nearest other item of A; the union of
all balls estimates the support of A. For samples :math:`y_1, ..., y_m` and a reference :math:`x_1, ..., x_n`:

.. math::
    \text{precision} &= \frac1m \sum_j 1\big[y_j \in \textstyle\bigcup_i B_k(x_i)\big], \qquad
    \text{recall} = \frac1n \sum_i 1\big[x_i \in \textstyle\bigcup_j B_k(y_j)\big] \\
    \text{density} &= \frac{1}{km} \sum_{i,j} 1[y_j \in B_k(x_i)], \qquad
    \text{coverage} = \frac1n \sum_i 1\big[\exists j: y_j \in B_k(x_i)\big]

Precision and recall (Kynkaanniemi et al. 2019, https://arxiv.org/abs/1904.06991, k = 3) of two sets of one distribution
are **not 1**, and depend on N and on the dimension: compare them at equal N, against their value for held-out data. A
single outlier enlarges a union much. Density and coverage (Naeem et al. 2020, https://arxiv.org/abs/2002.09797, k = 5)
of equal distributions are known: density 1, and coverage :math:`1 - \prod_{i=1}^k (n - i)/(n + m - i)`.

An item is not its own neighbour; a copy of it is one, at distance 0. The errors are those of random halves
(:mod:`sde.metrics.estimate`), with the balls computed again within each half: for 300 items in 2 to 64 dimensions they
are 0.9 to 1.1 times the standard deviation, where those of the jackknife are 1.1 to 2.0 times as large. The interval of
a proportion contains Wilson's, so that it has a width at 0 and 1 too.
"""

from __future__ import annotations

__all__ = ["Manifold", "precision_recall"]

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..noise import Stream
from ..shapes import check_count
from .estimate import Estimate, halves, proportion
from .sets import Index, check_pair, deal, distance_rows, index_pair, pooled_mean, slices

# Rounding of a squared distance, relative to the squared norms: a distance equal to a radius is within it.
_SLACK = 1e-12


@dataclass(frozen=True)
class Manifold:
    """The four numbers of :func:`precision_recall`.

    Attributes:
        precision: the proportion of samples within the reference's support.
        recall: the proportion of the reference within the samples' support.
        density: the mean number of the reference's balls around a sample, divided by k; 1 for equal distributions.
        coverage: the proportion of the reference's balls that contain a sample; its expected value is `null`.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate

    def __str__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in vars(self).items())


def precision_recall(
    samples: Tensor,
    reference: Tensor,
    *,
    neighbours: int = 3,
    coverage_neighbours: int = 5,
    halvings: int = 20,
    seed: int = 0,
    index: Index | None = None,
    chunk_size: int = 512,
) -> Manifold:
    """Precision, recall, density and coverage.

    Args:
        samples: features with shape (m, D).
        reference: features with shape (n, D).
        neighbours: k of precision and recall.
        coverage_neighbours: k of density and coverage.
        halvings: the number of random divisions into halves.
        seed: the seed of the divisions.
        index: the indices of the items of both sets, int64 with shapes (m,) and (n,); positions by default.
        chunk_size: the number of rows of the distance matrix that are computed at a time.
    """
    owner, ks = "precision_recall", (neighbours, coverage_neighbours)
    for name, k in zip(("neighbours", "coverage_neighbours"), ks):
        check_count(owner, name, k)
    check_count(owner, "halvings", halvings, 2)
    check_pair(owner, samples, reference, 2 * max(ks) + 2)  # a neighbour is an item of the same half
    keys = index_pair(samples, reference, index)
    of_samples, of_reference = (_halves(owner, side, halvings, seed, max(ks) + 1) for side in keys)
    offset = pooled_mean(samples, reference)
    (precise,) = _squared_radii(samples, offset, of_samples, ks[:1], chunk_size)
    support, balls = _squared_radii(reference, offset, of_reference, ks, chunk_size)

    n, m, rows = len(reference), len(samples), halvings + 1
    inside = torch.zeros(rows, m, dtype=torch.bool, device=offset.device)
    counts = torch.zeros(rows, m, dtype=torch.int64, device=offset.device)
    recalled = torch.zeros(rows, n, dtype=torch.bool, device=offset.device)
    covered = torch.zeros_like(recalled)
    for part in slices(n, chunk_size):
        squares = distance_rows(reference[part], samples, offset)
        for r in range(rows):
            same = of_reference[r, part, None] == of_samples[r]
            inside[r] |= ((squares <= support[r, part, None]) & same).any(0)
            within = (squares <= balls[r, part, None]) & same
            counts[r] += within.sum(0)
            covered[r, part] = within.any(1)
            recalled[r, part] = ((squares <= precise[r]) & same).any(1)

    def estimate(flags: Tensor, half_of: Tensor, null: float | None = None, scale: float = 1.0) -> Estimate:
        values = [(flags * (half_of == half)).sum(1).double() / (scale * (half_of == half).sum(1)) for half in (0, 1)]
        result = halves(flags[-1].double().mean() / scale, values[0][:-1], values[1][:-1], null=null)
        return replace(result, low=max(0.0, result.low))

    def share(flags: Tensor, half_of: Tensor, null: float | None = None) -> Estimate:
        result, number = estimate(flags, half_of, null), flags.shape[1]
        wilson = proportion(round(result.value * number), number)
        return replace(result, low=min(result.low, wilson.low), high=max(wilson.high, min(1.0, result.high)))

    i = torch.arange(1, ks[1] + 1, dtype=torch.float64, device="cpu")
    expected = 1.0 - float(((n - i) / (n + m - i)).prod())
    return Manifold(
        share(inside, of_samples),
        share(recalled, of_reference),
        estimate(counts, of_samples, 1.0, ks[1]),
        share(covered, of_reference, expected),
    )


def _halves(owner: str, index: Tensor, halvings: int, seed: int, least: int) -> Tensor:
    """The half of every item in each division, 0 or 1, and in the last row 0: all items; with shape (R + 1, N)."""
    whole = torch.zeros_like(index)
    divisions = [deal(index, 2, seed, Stream.HALF, r) for r in range(halvings)]
    smallest = min(min(len(index) - int(half.sum()), int(half.sum())) for half in divisions)
    if smallest < least:
        raise ValueError(
            f"{owner}: expected at least {least} items in both halves of a set, the smallest has {smallest} of "
            f"{len(index)}; give more items, or more different indices"
        )
    return torch.stack([*divisions, whole])


def _squared_radii(x: Tensor, offset: Tensor, half_of: Tensor, ks: tuple[int, ...], size: int) -> list[Tensor]:
    """The squared distances of the items from their k-th nearest other ones of the same half, in every division.

    The k-th of a half is nearly always among the nearest 12 k of all; where it is not, the row is searched.

    Returns:
        For every k the squared radii with shape (R + 1, N).
    """
    n, most = len(x), max(ks)
    radii = [torch.empty(len(half_of), n, dtype=torch.float64, device=x.device) for _ in ks]
    for part in slices(n, size):
        squares = distance_rows(x[part], x, offset)
        rows = torch.arange(len(squares), device=x.device)
        squares[rows, rows + part.start] = torch.inf
        nearest = squares.topk(min(12 * most, n - 1), largest=False, sorted=True)
        norms = (x[part].double() - offset).square().sum(1)
        for r, half in enumerate(half_of):
            same = half[nearest.indices] == half[part, None]
            values = nearest.values.masked_fill(~same, torch.inf).sort(1).values[:, :most]
            if len(few := (same.sum(1) < most).nonzero()[:, 0]):
                others = half[None] != half[part][few, None]
                within_half = squares[few].masked_fill(others, torch.inf).topk(most, largest=False, sorted=True).values
                values[few] = within_half
            for radius, k in zip(radii, ks):
                radius[r, part] = values[:, k - 1] + _SLACK * (norms + values[:, k - 1])
    return radii
