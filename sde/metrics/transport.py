r"""Wasserstein distances in one dimension: over random directions (sliced), and column by column.

In one dimension the optimal coupling pairs the quantiles,

.. math:: W_p^p = \int_0^1 |F^{-1}(u) - G^{-1}(u)|^p \, du,

for sets of equal size the sorted values. The **sliced** distance is the root of the mean of :math:`W_p^p` over
directions :math:`\theta` on the sphere (Bonneel et al. 2015, https://doi.org/10.1007/s10851-014-0506-3).

Both are above 0 for finite sets of one distribution. This **floor**, the root of the mean over random divisions of the
pooled items, is the `null` of the estimate: a distance says something as far as it is above it, and the p-value says
how sure that is. The interval is the jackknife's over groups, for the distance at these numbers of items, floor
included. For sets of one distribution it does not hold, and the p-value counts.
"""

from __future__ import annotations

__all__ = ["column_wasserstein", "random_directions", "sliced_wasserstein"]

from dataclasses import replace

import torch
from torch import Tensor

from ..noise import Noise, Stream
from ..shapes import check_count
from .estimate import Estimate, jackknife, permutation_p_value, root
from .sets import Index, check_pair, group_pair, index_pair, permuted_labels, slices

# Directions that are sorted at a time.
_BLOCK = 16


def sliced_wasserstein(
    samples: Tensor,
    reference: Tensor,
    *,
    order: int = 2,
    directions: int | Tensor = 128,
    groups: int = 20,
    permutations: int = 99,
    seed: int = 0,
    index: Index | None = None,
) -> Estimate:
    r"""The sliced Wasserstein distance, in units of the features, with its floor as `null`.

    Args:
        samples: features with shape (n, D).
        reference: features with shape (m, D).
        order: the order p, 1 or 2.
        directions: the number L of random directions, or unit vectors with shape (D, L).
        groups: the number of groups of the jackknife.
        permutations: the number of permutations of the floor and the p-value; 0 for neither.
        seed: the seed of directions, groups and permutations.
        index: the indices of the items of both sets, int64 with shapes (n,) and (m,); positions by default.
    """
    owner = "sliced_wasserstein"
    check_pair(owner, samples, reference, 3)
    theta = random_directions(samples, directions, seed) if isinstance(directions, int) else directions.double()
    if theta.ndim != 2 or len(theta) != samples.shape[1]:
        raise ValueError(f"{owner}: expected directions ({samples.shape[1]}, L), got {tuple(theta.shape)}")
    whole, omitted, permuted = _costs(owner, samples, reference, theta, order, groups, permutations, seed, index)
    return _distance(whole.mean(), omitted.mean(1), permuted.mean(1), order)


def column_wasserstein(
    samples: Tensor,
    reference: Tensor,
    *,
    order: int = 1,
    groups: int = 20,
    permutations: int = 99,
    seed: int = 0,
    index: Index | None = None,
) -> list[Estimate]:
    """The Wasserstein distance of every column of two tables, each in the unit of its column, with its floor as `null`.

    With D columns the smallest of D p-values is small by chance: multiply it by D (Bonferroni).

    Args:
        order: the order p, 1 or 2. The other arguments are those of :func:`sliced_wasserstein`.
    """
    owner = "column_wasserstein"
    check_pair(owner, samples, reference, 3)
    columns = torch.eye(samples.shape[1], dtype=torch.float64, device=samples.device)
    whole, omitted, permuted = _costs(owner, samples, reference, columns, order, groups, permutations, seed, index)
    return [_distance(whole[d], omitted[:, d], permuted[:, d], order) for d in range(len(whole))]


def random_directions(x: Tensor, number: int, seed: int) -> Tensor:
    """Random unit vectors (D, L)."""
    check_count("sliced_wasserstein", "directions", number)
    lines = torch.arange(number, device=x.device)
    theta = Noise(seed).normal(Stream.DIRECTION, lines, torch.zeros_like(lines), x.shape[1:], torch.float64)
    return (theta / theta.norm(dim=1, keepdim=True)).T


def _distance(whole: Tensor, omitted: Tensor, permuted: Tensor, order: int) -> Estimate:
    estimate = jackknife(whole, omitted)
    if len(permuted):
        p_value = permutation_p_value(whole, permuted)
        estimate = replace(estimate, null=float(permuted.mean()), p_value=p_value)
    return root(estimate) if order == 2 else estimate


def _costs(
    owner: str,
    x: Tensor,
    y: Tensor,
    theta: Tensor,
    order: int,
    groups: int,
    permutations: int,
    seed: int,
    index: Index | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """W_p^p along every direction: of both sets (L,), without each group (G, L), and permuted (P, L)."""
    if order not in (1, 2):
        raise ValueError(f"{owner}: expected order 1 or 2, got {order}")
    check_count(owner, "permutations", permutations, 0)
    keys = index_pair(x, y, index)
    first, second, groups = group_pair(owner, keys, groups, seed)
    labels = permuted_labels(keys, permutations, seed)
    whole, omitted, permuted = [], [], []
    for block in slices(theta.shape[1], _BLOCK):
        lines = theta[:, block]
        n_lines = lines.shape[1]
        projected = [torch.cat([side[p].double() @ lines for p in slices(len(side), 4096)]) for side in (x, y)]
        (xs, of_x), (ys, of_y) = (side.T.sort(dim=1) for side in projected)
        whole.append(_cost(xs, ys, order))
        # The indices of the sort give the group of every sorted value; without a group they are still sorted.
        of_x, of_y = first[of_x], second[of_y]
        without = [(xs[of_x != g].reshape(n_lines, -1), ys[of_y != g].reshape(n_lines, -1)) for g in range(groups)]
        omitted.append(torch.stack([_cost(a, b, order) for a, b in without]))
        pooled, items = torch.cat(projected).T.sort(dim=1)
        costs = [xs.new_empty(0, n_lines)]
        for label in labels:
            chosen = label[items]
            sets = pooled[chosen].reshape(n_lines, -1), pooled[~chosen].reshape(n_lines, -1)
            costs.append(_cost(*sets, order)[None])
        permuted.append(torch.cat(costs))
    return torch.cat(whole), torch.cat(omitted, dim=1), torch.cat(permuted, dim=1)


def _cost(x: Tensor, y: Tensor, order: int) -> Tensor:
    """W_p^p of the rows of sorted values (L, n) and (L, m), with shape (L,)."""
    n, m = x.shape[1], y.shape[1]
    if n == m:
        return (x - y).abs().pow(order).mean(1)
    # Both quantile functions are constant between neighbouring multiples of 1/n and 1/m, here in units of 1/(n m).
    steps = [torch.arange(1, a + 1, device=x.device) * b for a, b in ((n, m), (m, n))]
    ends = torch.cat(steps).unique()
    widths = ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)
    return (x[:, (ends - 1) // m] - y[:, (ends - 1) // n]).abs().pow(order) @ widths
