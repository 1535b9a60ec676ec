r"""The importance-weighted bound of a likelihood file: the repeats of a sample as the draws of one estimate.

Row k of a sample has :math:`\log w_k = \log p(x_k) + w = -D \log 2 \cdot \text{bits/dim}_k` in nats, and K of them
together

.. math::
    \log P(v) \ge E\Big[ \log \frac1K \sum_{k=1}^K w_k \Big],

which is tighter than the mean of the :math:`\log w_k` (:mod:`sde.likelihood.dequantisation`). The exponential of a
log-density with noise in it is too large on average: with an estimated trace the number would be no bound.
"""

from __future__ import annotations

__all__ = ["Weighted", "is_exact", "weighted"]

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..likelihood.dequantisation import importance_weighted

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Weighted:
    """The importance-weighted bound of a data set; samples that lack a draw are counted and else left out.

    Attributes:
        bits_per_dim: the mean over samples; NaN if there is none.
        standard_error: of that mean, over samples; NaN for a single one.
        draws: K, the draws of each sample.
        index: the samples, int64 with shape (N,).
        nats: the bound of each, float64 with shape (N,).
        incomplete: samples of which rows are missing.
        failed: samples with a row that failed.
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
    """Whether the trace of a file's rows was exact: none of them has a spread over probes, or hides one."""
    return bool((columns["standard_error"][np.isfinite(columns["bits_per_dim"])] == 0.0).all())


def weighted(columns: Columns, dims: int, draws: int) -> Weighted:
    """The importance-weighted bound over the first repeats of each sample of a likelihood file.

    Args:
        columns: columns by name, as :func:`sde.storage.store.read` gives them, of discrete data.
        dims: D, the dimensions of a sample.
        draws: K, how many repeats make one estimate; rows of later repeats are passed over.

    Raises:
        ValueError: if K < 1, there is no row, or the trace was an estimate.
    """
    if draws < 1 or len(columns["index"]) == 0:
        raise ValueError(f"weighted needs draws >= 1 and at least one row, got draws={draws}")
    if not is_exact(columns):
        raise ValueError(
            "with an estimated trace the importance-weighted bound is biased upwards, and no bound: take an exact trace"
        )
    rows = columns["repeat"] < draws
    samples, place = np.unique(columns["index"][rows], return_inverse=True)
    logs, there = np.full((draws, len(samples)), -np.inf), np.zeros((draws, len(samples)), dtype=bool)
    logs[columns["repeat"][rows], place] = -columns["bits_per_dim"][rows] * dims * math.log(2.0)
    there[columns["repeat"][rows], place] = True
    failed, good = (there & ~np.isfinite(logs)).any(0), np.isfinite(logs).all(0)
    nats = importance_weighted(torch.from_numpy(logs[:, good])).numpy()
    each = -nats / (dims * math.log(2.0))
    mean = float(each.mean()) if len(each) else math.nan
    error = float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    counts = {"incomplete": int((~there.all(0) & ~failed).sum()), "failed": int(failed.sum())}
    return Weighted(mean, error, draws, samples[good], nats, **counts)
