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

An item is not its own neighbour; a copy of it is one, at distance 0. The errors are the jackknife's over groups, with
the balls computed again without each group. They are conservative, because a ball depends on single items: in 8
dimensions 1.3 times (density) to 2 times (coverage) the standard deviation. The interval of a proportion contains
Wilson's, so that it has a width at 0 and 1 too.
"""

from __future__ import annotations

__all__ = ["Manifold", "precision_recall"]

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..shapes import check_count
from .estimate import Estimate, jackknife, proportion
from .sets import Index, check_pair, distance_rows, group_pair, index_pair, pooled_mean, slices

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
    groups: int = 20,
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
        groups: the number of groups of the jackknife.
        seed: the seed of the groups.
        index: the indices of the items of both sets, int64 with shapes (m,) and (n,); positions by default.
        chunk_size: the number of rows of the distance matrix that are computed at a time.
    """
    owner, ks = "precision_recall", (neighbours, coverage_neighbours)
    for name, k in zip(("neighbours", "coverage_neighbours"), ks):
        check_count(owner, name, k)
    least = max(ks) + 1
    check_pair(owner, samples, reference, least + 1)
    keys = index_pair(samples, reference, index)
    of_samples, of_reference, groups = group_pair(owner, keys, groups, seed, least)
    offset = pooled_mean(samples, reference)
    (precise,) = _squared_radii(samples, offset, of_samples, groups, ks[:1], chunk_size)
    support, balls = _squared_radii(reference, offset, of_reference, groups, ks, chunk_size)

    n, m = len(reference), len(samples)
    # Row h < G of these is without group h, the last one with all groups.
    h = torch.arange(groups + 1, device=of_samples.device)[:, None]
    of_sample, of_ref = of_samples != h, of_reference != h
    inside = torch.zeros(groups + 1, m, dtype=torch.bool, device=offset.device)
    counts = torch.zeros(groups + 1, m, dtype=torch.int64, device=offset.device)
    recalled = torch.zeros(groups + 1, n, dtype=torch.bool, device=offset.device)
    covered = torch.zeros_like(recalled)
    for part in slices(n, chunk_size):
        squares = distance_rows(reference[part], samples, offset)
        for g in range(groups + 1):
            # A radius of -inf holds nothing: the omitted items have no balls.
            within = squares <= support[g, part, None]
            inside[g] |= within.any(0)
            within = squares <= balls[g, part, None]
            counts[g] += within.sum(0)
            covered[g, part] = (within & of_sample[g]).any(1)
            recalled[g, part] = (squares <= precise[g]).any(1)

    def estimate(flags: Tensor, kept: Tensor, null: float | None = None, scale: float = 1.0) -> Estimate:
        values = (flags * kept).sum(1).double() / (scale * kept.sum(1))
        result = jackknife(values[-1], values[:-1], null=null)
        return replace(result, low=max(0.0, result.low))

    def share(flags: Tensor, kept: Tensor, null: float | None = None) -> Estimate:
        result, n = estimate(flags, kept, null), int(kept[-1].sum())
        wilson = proportion(round(result.value * n), n)
        return replace(result, low=min(result.low, wilson.low), high=max(wilson.high, min(1.0, result.high)))

    i = torch.arange(1, ks[1] + 1, dtype=torch.float64, device="cpu")
    expected = 1.0 - float(((n - i) / (n + m - i)).prod())
    return Manifold(
        share(inside, of_sample),
        share(recalled, of_ref),
        estimate(counts, of_sample, 1.0, ks[1]),
        share(covered, of_ref, expected),
    )


def _squared_radii(
    x: Tensor, offset: Tensor, group_of: Tensor, groups: int, ks: tuple[int, ...], size: int
) -> list[Tensor]:
    """The squared distances of the items from their k-th nearest other ones, without each group and without none.

    The nearest k of a set without a group are among the nearest k of each of its groups.

    Returns:
        For every k the squared radii with shape (G + 1, N), -inf for the items of the omitted group.
    """
    n, most = len(x), max(ks)
    largest = int(group_of.bincount().max())
    order = group_of.argsort(stable=True)
    start = torch.searchsorted(group_of[order], torch.arange(groups, device=x.device))
    # The columns of every group side by side; n stands for none.
    columns = torch.full((groups, largest), n, dtype=torch.int64, device=x.device)
    columns[group_of[order], torch.arange(n, device=x.device) - start[group_of[order]]] = order
    radii = [torch.empty(groups + 1, n, dtype=torch.float64, device=x.device) for _ in ks]
    for part in slices(n, size):
        squares = distance_rows(x[part], x, offset)
        rows = torch.arange(len(squares), device=x.device)
        squares[rows, rows + part.start] = torch.inf
        squares = torch.cat([squares, squares.new_full((len(squares), 1), torch.inf)], dim=1)[:, columns]
        nearest = squares.topk(min(most, largest), largest=False).values
        norms = (x[part].double() - offset).square().sum(1)
        for g in range(groups + 1):
            kept = nearest[:, torch.arange(groups, device=x.device) != g].flatten(1)
            smallest = kept.topk(most, largest=False, sorted=True).values
            for radius, k in zip(radii, ks):
                radius[g, part] = smallest[:, k - 1] + _SLACK * (norms + smallest[:, k - 1])
    for radius in radii:
        radius[group_of, torch.arange(n, device=x.device)] = -torch.inf
    return radii
