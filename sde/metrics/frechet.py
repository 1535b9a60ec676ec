r"""The Frechet distance between the Gaussians that have the moments of two sets of features.

.. math::
    F = |\mu_1 - \mu_2|^2 + \operatorname{tr} S_1 + \operatorname{tr} S_2
        - 2 \operatorname{tr} \big(S_1^{1/2} S_2 S_1^{1/2}\big)^{1/2}

with unbiased covariances S (Heusel et al. 2017, https://arxiv.org/abs/1706.08500, on the features of an Inception
network: FID). The last trace is the nuclear norm, the sum of the singular values, of :math:`F_1^T F_2` for any factors
:math:`S = F F^T`: roots of the eigenvalues of the product of the covariances would make errors of 1e-8 of those of
rounding, 1e-16. With fewer items than features the factors are the centred features, and the matrix
:math:`X Y^T / \sqrt{(n-1)(m-1)}` is as large as the sets: the same value, for less.

The estimate from N items is **too large by about c/N**, with a c that depends on the distributions, so that values at
different N cannot be compared, and equal distributions have a distance above 0 (Chong and Forsyth 2020,
https://arxiv.org/abs/1911.07023). The jackknife over groups of both sets removes this bias and gives a standard error,
if both sets have clearly more items than features.
"""

from __future__ import annotations

__all__ = ["frechet_distance"]

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .estimate import Estimate, jackknife
from .sets import Index, check_pair, group_pair, index_pair, pooled_mean, slices


def frechet_distance(
    samples: Tensor,
    reference: Tensor,
    *,
    groups: int = 20,
    seed: int = 0,
    index: Index | None = None,
    chunk_size: int = 4096,
) -> Estimate:
    """The Frechet distance with the jackknife's correction and error, and the uncorrected distance as `plain`.

    The value may be below 0 for sets of one distribution, as an unbiased estimate of 0 must. If a set has no more items
    than features, the correction is incomplete, as the note says: read the value as an upper bound.

    Args:
        samples: features with shape (n, D).
        reference: features with shape (m, D).
        groups: the number of groups of the jackknife. Each costs one more distance.
        seed: the seed of the groups.
        index: the indices of the items of both sets, int64 with shapes (n,) and (m,); positions by default.
        chunk_size: the number of items that are converted to float64 at a time.
    """
    owner = "frechet_distance"
    check_pair(owner, samples, reference, 3)
    keys = index_pair(samples, reference, index)
    first, second, groups = group_pair(owner, keys, groups, seed)
    n, m, d = len(samples), len(reference), samples.shape[1]
    offset = pooled_mean(samples, reference)
    few = max(n, m) <= d
    prepare = _products if few else _moments
    without = prepare(samples, reference, offset, (first, second), chunk_size)
    whole = without(None)
    omitted = torch.stack([without(g) for g in range(groups)])
    note = ""
    if (n - -(-n // groups)) <= d or (m - -(-m // groups)) <= d:
        note = (
            f"fewer items ({n}, {m}) than the {d} features and a group: the plain distance is biased upwards, and the "
            "correction removes only a part; compare at equal numbers of items"
        )
    return jackknife(whole, omitted, corrected=True, null=0.0, note=note)


@dataclass(frozen=True)
class _Sums:
    """The sums of n items minus an offset (D,), and of their outer products (D, D)."""

    n: int
    first: Tensor
    second: Tensor

    def minus(self, other: _Sums) -> _Sums:
        return _Sums(self.n - other.n, self.first - other.first, self.second - other.second)

    def mean_and_cov(self) -> tuple[Tensor, Tensor]:
        mean = self.first / self.n
        return mean, (self.second - self.n * torch.outer(mean, mean)) / (self.n - 1)


def _sums(x: Tensor, offset: Tensor, size: int) -> _Sums:
    first, second = torch.zeros_like(offset), offset.new_zeros(len(offset), len(offset))
    for part in slices(len(x), size):
        rows = x[part].double() - offset
        first += rows.sum(0)
        second.addmm_(rows.T, rows)
    return _Sums(len(x), first, second)


def _moments(
    x: Tensor, y: Tensor, offset: Tensor, groups: tuple[Tensor, Tensor], size: int
) -> Callable[[int | None], Tensor]:
    """The distance without a group, from the moments."""
    wholes = [_sums(side, offset, size) for side in (x, y)]

    def without(group: int | None) -> Tensor:
        sums = wholes
        if group is not None:
            omitted = [_sums(side[of == group], offset, size) for side, of in zip((x, y), groups)]
            sums = [whole.minus(part) for whole, part in zip(wholes, omitted)]
        (mean_x, cov_x), (mean_y, cov_y) = (s.mean_and_cov() for s in sums)
        cross = torch.linalg.svdvals(_root(cov_x).T @ _root(cov_y)).sum()
        return (mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2.0 * cross

    return without


def _root(cov: Tensor) -> Tensor:
    """A factor F with F F^T = cov, without the directions in which a set does not vary."""
    values, vectors = torch.linalg.eigh(cov)
    remaining = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, remaining] * values[remaining].sqrt()


def _products(
    x: Tensor, y: Tensor, offset: Tensor, groups: tuple[Tensor, Tensor], size: int
) -> Callable[[int | None], Tensor]:
    """The distance without a group, from the inner products of the items."""
    rows = [side.double() - offset for side in (x, y)]
    product = rows[0] @ rows[1].T

    def without(group: int | None) -> Tensor:
        remaining = [torch.ones_like(of, dtype=torch.bool) if group is None else of != group for of in groups]
        sides = [side[k] for side, k in zip(rows, remaining)]
        means = [side.mean(0) for side in sides]
        traces = [((side - mean).square().sum() / (len(side) - 1)) for side, mean in zip(sides, means)]
        centred = product[remaining[0]][:, remaining[1]]
        centred = centred - centred.mean(0) - centred.mean(1, keepdim=True) + centred.mean()
        nuclear = torch.linalg.svdvals(centred).sum() / ((len(sides[0]) - 1) * (len(sides[1]) - 1)) ** 0.5
        return (means[0] - means[1]).square().sum() + traces[0] + traces[1] - 2.0 * nuclear

    return without
