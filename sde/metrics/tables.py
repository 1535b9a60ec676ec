r"""The distance between the correlations of two tables.

.. math:: R^2 = \frac{2}{D(D - 1)} \sum_{a < b} \big(r_{ab} - r'_{ab}\big)^2

with Pearson's correlations r of the columns. The mean square over pairs of columns is above 0 for finite tables of one
distribution; its mean over random divisions of the pooled rows is the floor, given as `null`. Correlations do not see
what single columns look like, which is for :func:`sde.metrics.column_wasserstein`; what neither sees is for
:func:`sde.metrics.classifier_two_sample_test`.
"""

from __future__ import annotations

__all__ = ["correlation_distance"]

from dataclasses import replace

import torch
from torch import Tensor

from ..shapes import check_count
from .estimate import Estimate, jackknife, permutation_p_value, root
from .sets import Index, check_pair, group_pair, index_pair, permuted_labels, pooled_mean


def correlation_distance(
    samples: Tensor,
    reference: Tensor,
    *,
    groups: int = 20,
    permutations: int = 99,
    seed: int = 0,
    index: Index | None = None,
) -> Estimate:
    """The root mean square difference of the correlations of all pairs of columns, with its floor as `null`.

    Args:
        samples: a table with shape (n, D), D >= 2.
        reference: a table with shape (m, D).
        groups: the number of groups of the jackknife.
        permutations: the number of permutations of the floor and the p-value; 0 for neither.
        seed: the seed of groups and permutations.
        index: the indices of the rows of both tables, int64 with shapes (n,) and (m,); positions by default.
    """
    owner = "correlation_distance"
    check_pair(owner, samples, reference, 4)
    check_count(owner, "permutations", permutations, 0)
    if samples.shape[1] < 2:
        raise ValueError(f"{owner}: expected at least two columns, got {samples.shape[1]}")
    offset = pooled_mean(samples, reference)
    x, y = (side.double() - offset for side in (samples, reference))
    for name, side in (("samples", x), ("reference", y)):
        constant = (side == side[:1]).all(0)
        if constant.any():
            raise ValueError(
                f"{owner}: column {int(constant.nonzero()[0])} of the {name} is constant and has no correlation; leave "
                "it out of both tables"
            )
    keys = index_pair(samples, reference, index)
    first, second, groups = group_pair(owner, keys, groups, seed, 3)
    whole = _mean_square(x, y)
    omitted = [_mean_square(x[first != g], y[second != g]) for g in range(groups)]
    estimate = jackknife(whole, torch.stack(omitted))
    if permutations:
        pooled, labels = torch.cat([x, y]), permuted_labels(keys, permutations, seed)
        permuted = torch.stack([_mean_square(pooled[label], pooled[~label]) for label in labels])
        p_value = permutation_p_value(whole, permuted)
        estimate = replace(estimate, null=float(permuted.mean()), p_value=p_value)
    return root(estimate)


def _mean_square(x: Tensor, y: Tensor) -> Tensor:
    differences = _correlations(x) - _correlations(y)
    d = len(differences)
    return differences.square().sum() / (d * (d - 1))


def _correlations(x: Tensor) -> Tensor:
    """The correlations (D, D); a column that is constant without a group has those 0 with others."""
    centred = x - x.mean(0)
    scaled = centred / centred.norm(dim=0).clamp(min=torch.finfo(x.dtype).tiny)
    return (scaled.T @ scaled).fill_diagonal_(1.0)
