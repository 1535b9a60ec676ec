r"""Memorisation: are samples copies of training items?

A sample x has a nearest training item at distance :math:`d_1` and a second nearest, of other features, at :math:`d_2`.
The ratio :math:`d_1 / d_2` is 0 for a copy and close to 1 for a new item in many dimensions; below 1/3 a sample counts
as copied (Yoon et al. 2023, https://openreview.net/forum?id=shciCbSk9h). Held-out data has small ratios too, where it
has near-duplicates and in few dimensions. So the numbers mean something only against those of held-out data, which are
the `null` of both estimates.
"""

from __future__ import annotations

__all__ = ["Memorisation", "memorisation"]

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .estimate import Estimate, mean_estimate, proportion
from .sets import check_pair, distance_rows, pooled_mean, repeated, slices


@dataclass(frozen=True)
class Memorisation:
    """The distances of samples to training items, against those of held-out data.

    Attributes:
        ratio: the mean distance ratio, with the samples' ratios as `per_item`; `null` is that of held-out data, and the
            p-value that of Welch's test for a smaller mean.
        copies: the proportion of samples with a ratio below the threshold, with Wilson's interval; `null` is that of
            held-out data, and the p-value that of Fisher's exact test for a larger proportion.
        nearest: the position of the nearest training item of each sample, int64 with shape (n,).
        distance: its distance, float64 with shape (n,).
        expected: the distance ratios of held-out data, with shape (m,).
    """

    ratio: Estimate
    copies: Estimate
    nearest: Tensor
    distance: Tensor
    expected: Tensor

    def __str__(self) -> str:
        return f"distance ratio: {self.ratio}\ncopies: {self.copies}"


def memorisation(
    samples: Tensor, training: Tensor, held_out: Tensor, *, threshold: float = 1 / 3, chunk_size: int = 512
) -> Memorisation:
    """The distance ratios of samples to their two nearest training items, against those of held-out data.

    Args:
        samples: features with shape (n, D).
        training: features of the training set with shape (N, D), with at least two different items.
        held_out: features of data of the same distribution that was not trained on, with shape (m, D).
        threshold: the ratio below which a sample counts as a copy.
        chunk_size: the number of items whose distances are computed at a time.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"memorisation: expected a threshold between 0 and 1, got {threshold}")
    check_pair("memorisation", samples, training)
    check_pair("memorisation (samples: the held-out data)", held_out, training)
    again, offset = repeated(training), pooled_mean(samples, training)
    ratios, nearest, distance = _ratios(samples, training, again, offset, chunk_size)
    expected, _, _ = _ratios(held_out, training, again, offset, chunk_size)
    from scipy.stats import fisher_exact

    below, expected_below = (int((r < threshold).sum()) for r in (ratios, expected))
    n, m = len(samples), len(held_out)
    table = [[below, n - below], [expected_below, m - expected_below]]
    copies = replace(
        proportion(below, n), null=expected_below / m, p_value=float(fisher_exact(table, "greater").pvalue)
    )
    ratio = replace(mean_estimate(ratios), null=float(expected.mean()), p_value=_smaller_mean(ratios, expected))
    return Memorisation(ratio, copies, nearest, distance, expected)


def _ratios(x: Tensor, training: Tensor, again: Tensor, offset: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The distance ratios (n,), and the nearest items and their distances, without training items that come again."""
    chunks = (distance_rows(x[part], training, offset) for part in slices(len(x), size))
    closest = [chunk.masked_fill_(again, torch.inf).topk(2, largest=False) for chunk in chunks]
    squares, order = torch.cat([c.values for c in closest]), torch.cat([c.indices for c in closest])
    distances = squares.sqrt()
    # Distinct training items closer than rounding tells apart: 0/0 is the ratio of a copy.
    ratios = (distances[:, 0] / distances[:, 1]).nan_to_num(nan=0.0)
    return ratios, order[:, 0], distances[:, 0]


def _smaller_mean(x: Tensor, y: Tensor) -> float:
    """The p-value of Welch's test against a smaller mean of x (https://doi.org/10.1093/biomet/34.1-2.28)."""
    from scipy.special import stdtr

    a, b = float(x.var()) / len(x), float(y.var()) / len(y)
    difference = float(x.mean() - y.mean())
    if a + b == 0.0:
        return 1.0 if difference >= 0 else 0.0
    degrees = (a + b) ** 2 / (a * a / (len(x) - 1) + b * b / (len(y) - 1))
    return float(stdtr(degrees, difference / math.sqrt(a + b)))
