r"""Kernel distances: the squared maximum mean discrepancy as a U-statistic, with any positive definite kernel.

.. math::
    M = \frac{1}{n(n-1)} \sum_{i \ne j} k(x_i, x_j) + \frac{1}{m(m-1)} \sum_{i \ne j} k(y_i, y_j)
        - \frac{2}{nm} \sum_{i,j} k(x_i, y_j)

is unbiased at every n and m (Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html). Three kernels:

- :class:`Polynomial`, :math:`(x \cdot y / D + 1)^3`: the kernel distance, on Inception features KID (Binkowski et al.
  2018, https://arxiv.org/abs/1801.01401). It sees moments up to the third.
- :class:`Gaussian`: sees every difference of distributions.
- :class:`NegativeDistance`, :math:`-|x - y|`: M is the energy distance :math:`2E|x-y| - E|x-x'| - E|y-y'|` (Szekely and
  Rizzo 2013, https://doi.org/10.1016/j.jspi.2013.03.018), which has no parameter and also sees every difference.

All pairs are used once, and the error is the jackknife's over groups. For two sets **of one distribution** the
statistic is degenerate: it is not normal, and the interval does not hold. There the p-value counts: the share of random
divisions of the pooled items with a distance as large.
"""

from __future__ import annotations

__all__ = ["Gaussian", "Kernel", "NegativeDistance", "Polynomial", "energy_distance", "kernel_distance", "mmd"]

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..shapes import check_count
from .estimate import Estimate, jackknife, permutation_p_value
from .sets import (
    Index,
    check_pair,
    group_pair,
    index_pair,
    permuted_labels,
    pooled_mean,
    slices,
    squared_distances,
)


class Kernel(Protocol):
    """A symmetric kernel of float64 rows.

    Attributes:
        shift_invariant: whether k(x + c, y + c) = k(x, y); then the rows come centred, which saves digits.
    """

    @property
    def shift_invariant(self) -> bool: ...

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The kernel of all pairs of rows: (n, D), (m, D) -> (n, m)."""


@dataclass(frozen=True)
class Polynomial:
    r"""The kernel :math:`(x \cdot y / D + c)^p` of the kernel distance.

    Args:
        degree: the degree p.
        constant: the constant c.
    """

    degree: int = 3
    constant: float = 1.0
    shift_invariant: bool = False

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T).div_(x.shape[1]).add_(self.constant).pow_(self.degree)


@dataclass(frozen=True)
class Gaussian:
    r"""The kernel :math:`\exp(-|x - y|^2 / (2 h^2))`.

    Args:
        bandwidth: h, in units of the features.
    """

    bandwidth: float
    shift_invariant: bool = True

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return squared_distances(x, y).mul_(-0.5 / self.bandwidth**2).exp_()


@dataclass(frozen=True)
class NegativeDistance:
    """The kernel -\\|x - y\\| of the energy distance."""

    shift_invariant: bool = True

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return squared_distances(x, y).sqrt_().neg_()


def kernel_distance(
    samples: Tensor,
    reference: Tensor,
    *,
    kernel: Kernel | None = None,
    groups: int = 20,
    permutations: int = 0,
    seed: int = 0,
    index: Index | None = None,
    chunk_size: int = 2048,
) -> Estimate:
    """The squared maximum mean discrepancy, unbiased, with the jackknife's error and, on request, a p-value.

    Args:
        samples: features with shape (n, D).
        reference: features with shape (m, D).
        kernel: the kernel; `Polynomial()` by default.
        groups: the number of groups of the jackknife.
        permutations: the number of permutations of the p-value, whose smallest value is 1/(permutations + 1); 0 for
            none.
        seed: the seed of the groups and permutations.
        index: the indices of the items of both sets, int64 with shapes (n,) and (m,); positions by default.
        chunk_size: the side of the blocks of the kernel matrix that are computed at a time.
    """
    owner, kernel = "kernel_distance", kernel or Polynomial()
    check_pair(owner, samples, reference, 3)
    check_count(owner, "permutations", permutations, 0)
    keys = index_pair(samples, reference, index)
    first, second, groups = group_pair(owner, keys, groups, seed)
    offset = pooled_mean(samples, reference) if kernel.shift_invariant else samples.new_zeros(1, dtype=torch.float64)
    labels = torch.cat([first, second + groups])
    members = torch.zeros(len(labels), 2 * groups, dtype=torch.float64, device=labels.device)
    members.scatter_(1, labels[:, None], 1.0)
    # The indicators of the groups and those of the permuted first sets have one pass over the kernel matrix in common.
    permuted = permuted_labels(keys, permutations, seed).T
    sums, quadratic, rows = _pass(samples, reference, offset, kernel, members, permuted, chunk_size)
    counts = members.sum(0)
    whole = _statistic(sums, counts)
    omitted = []
    for g in range(groups):
        remaining = torch.arange(2 * groups, device=labels.device) % groups != g
        omitted.append(_statistic(sums[remaining][:, remaining], counts[remaining]))
    estimate = jackknife(whole, torch.stack(omitted), null=0.0)
    if not permutations:
        return estimate
    n, m = len(samples), len(reference)
    within = rows @ permuted.double()
    values = quadratic / (n * (n - 1)) - 2.0 * (within - quadratic) / (n * m)
    values += (rows.sum() - 2.0 * within + quadratic) / (m * (m - 1))
    return replace(estimate, p_value=permutation_p_value(whole, values))


def mmd(
    samples: Tensor,
    reference: Tensor,
    *,
    bandwidth: float | None = None,
    groups: int = 20,
    permutations: int = 199,
    seed: int = 0,
    index: Index | None = None,
    chunk_size: int = 2048,
) -> Estimate:
    """The squared maximum mean discrepancy with a Gaussian kernel, and its permutation p-value.

    Args:
        bandwidth: the bandwidth h; by default its square is half the mean squared distance of pooled items. The other
            arguments are those of :func:`kernel_distance`.
    """
    if bandwidth is None:
        check_pair("mmd", samples, reference)
        offset, n = pooled_mean(samples, reference), len(samples) + len(reference)
        parts = [(side, part) for side in (samples, reference) for part in slices(len(side), 4096)]
        bandwidth = (sum(float((side[part].double() - offset).square().sum()) for side, part in parts) / (n - 1)) ** 0.5
    return kernel_distance(
        samples,
        reference,
        kernel=Gaussian(bandwidth),
        groups=groups,
        permutations=permutations,
        seed=seed,
        index=index,
        chunk_size=chunk_size,
    )


def energy_distance(
    samples: Tensor,
    reference: Tensor,
    *,
    groups: int = 20,
    permutations: int = 199,
    seed: int = 0,
    index: Index | None = None,
    chunk_size: int = 2048,
) -> Estimate:
    r"""The energy distance :math:`2 E|x - y| - E|x - x'| - E|y - y'|`, unbiased, and its permutation p-value.

    It has the unit of the features: standardise features that have different units. The arguments are those of
    :func:`kernel_distance`.
    """
    return kernel_distance(
        samples,
        reference,
        kernel=NegativeDistance(),
        groups=groups,
        permutations=permutations,
        seed=seed,
        index=index,
        chunk_size=chunk_size,
    )


def _pass(
    x: Tensor, y: Tensor, offset: Tensor, kernel: Kernel, members: Tensor, permuted: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the kernel matrix K of the pooled items without its diagonal.

    Returns:
        The sums over pairs of groups (2G, 2G), z^T K z of the indicators z (P,), and the sums of the rows (N,).
    """
    n, groups = len(x), members.shape[1]
    # Chunks do not span both sets.
    blocks = [*slices(n, size), *(slice(n + part.start, n + part.stop) for part in slices(len(y), size))]

    def rows_of(part: slice) -> Tensor:
        side, start = (x, 0) if part.stop <= n else (y, n)
        return side[part.start - start : part.stop - start].double() - offset

    sums = offset.new_zeros(groups, groups)
    quadratic, totals = offset.new_zeros(permuted.shape[1]), offset.new_zeros(len(members))
    for a, first in enumerate(blocks):
        rows, of_rows = rows_of(first), permuted[first].double()
        for second in blocks[a:]:
            block = kernel(rows, rows_of(second))
            if first == second:
                # Half of a diagonal block, because every block is counted with its transpose.
                block.fill_diagonal_(0.0).mul_(0.5)
            of_groups = members[first].T @ (block @ members[second])
            sums += of_groups + of_groups.T
            quadratic += 2.0 * (of_rows * (block @ permuted[second].double())).sum(0)
            totals[first] += block.sum(1)
            totals[second] += block.sum(0)
    return sums, quadratic, totals


def _statistic(sums: Tensor, counts: Tensor) -> Tensor:
    """The U-statistic from the sums over pairs of groups, the first half of them of the first set."""
    half = len(counts) // 2
    n, m = counts[:half].sum(), counts[half:].sum()
    within = sums[:half, :half].sum() / (n * (n - 1)) + sums[half:, half:].sum() / (m * (m - 1))
    return within - 2.0 * sums[:half, half:].sum() / (n * m)
