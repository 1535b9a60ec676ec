r"""The importance-weighted bound of a likelihood file, with the repeats of a sample as draws.

Row k of a sample has :math:`\log w_k = \log p(x_k) + w = -D \log 2 \cdot \text{bits/dim}_k` in nats. The bound of K
rows

.. math::
    \log P(v) \ge E\Big[ \log \frac1K \sum_{k=1}^K w_k \Big],

is tighter than the mean of the :math:`\log w_k` (:mod:`sde.likelihood.dequantisation`). With an estimated trace it
would not be a bound, because the exponential of a noisy log-density is too large on average.
"""

from __future__ import annotations

__all__ = ["WeightedBound", "is_exact", "weighted_bound"]

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.scaling import nats_to_bits
from ..likelihood.dequantisation import importance_weighted
from ..shapes import check_count
from .summary import Columns, mean_and_error


@dataclass(frozen=True)
class WeightedBound:
    """The importance-weighted bound of a data set. Samples without all draws are counted and otherwise left out.

    Attributes:
        bits_per_dim: the mean over samples; NaN without samples.
        standard_error: of that mean, over samples; NaN for a single sample.
        draws: K, the number of draws of each sample.
        index: the samples, int64 with shape (N,).
        nats: the bound of each sample, float64 with shape (N,).
        incomplete: the number of samples with missing rows.
        failed: the number of samples with failed rows.
    """

    bits_per_dim: float
    standard_error: float
    draws: int
    index: NDArray[np.int64]
    nats: NDArray[np.float64]
    incomplete: int = 0
    failed: int = 0

    def __str__(self) -> str:
        reasons = ((self.incomplete, "with missing rows"), (self.failed, "with failed rows"))
        left = "".join(f"; {count} {reason} left out" for count, reason in reasons if count)
        return (
            f"{self.bits_per_dim:.4f} +- {self.standard_error:.4f} bits/dim by the importance-weighted bound of "
            f"{self.draws} draws (mean and standard error over {len(self.index)} samples{left})"
        )


def is_exact(columns: Columns) -> bool:
    """Whether the trace was exact in all rows of a file: their standard error over probes is 0, not unknown."""
    return bool((columns["standard_error"][np.isfinite(columns["bits_per_dim"])] == 0.0).all())


def weighted_bound(columns: Columns, dims: int, draws: int) -> WeightedBound:
    """The importance-weighted bound over the first repeats of each sample of a likelihood file.

    Args:
        columns: the columns of a likelihood file of discrete data, by name.
        dims: D, the number of dimensions of a sample.
        draws: K, the number of repeats that are used; rows of later repeats are ignored.

    Raises:
        ValueError: if K < 1, there is no row, or the trace was estimated.
    """
    check_count("weighted_bound", "draws", draws)
    if len(columns["index"]) == 0:
        raise ValueError("weighted_bound needs at least one row, got 0 rows")
    if not is_exact(columns):
        raise ValueError(
            "with an estimated trace the importance-weighted bound is biased upwards: expected an exact trace"
        )
    rows = columns["repeat"] < draws
    samples, place = np.unique(columns["index"][rows], return_inverse=True)
    logs, exists = np.full((draws, len(samples)), -np.inf), np.zeros((draws, len(samples)), dtype=bool)
    logs[columns["repeat"][rows], place] = -columns["bits_per_dim"][rows] * dims * math.log(2.0)
    exists[columns["repeat"][rows], place] = True
    failed, good = (exists & ~np.isfinite(logs)).any(0), np.isfinite(logs).all(0)
    nats = importance_weighted(torch.from_numpy(logs[:, good])).numpy()
    counts = {"incomplete": int((~exists.all(0) & ~failed).sum()), "failed": int(failed.sum())}
    return WeightedBound(*mean_and_error(nats_to_bits(nats, dims)), draws, samples[good], nats, **counts)
