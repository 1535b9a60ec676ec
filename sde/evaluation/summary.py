"""Summaries of result files: means over samples, each sample with its mean over repeats."""

from __future__ import annotations

__all__ = [
    "Columns",
    "Rows",
    "RunningMean",
    "Summary",
    "join",
    "mean_and_error",
    "means_over_repeats",
    "nats_and_error",
    "summarise",
]

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rows = dict[str, NDArray[Any]]
Columns = Mapping[str, NDArray[Any]]


def join(*tables: Columns) -> Rows:
    """The rows of several tables with the same columns, in order."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def means_over_repeats(index: NDArray[np.int64], *columns: ArrayLike) -> list[NDArray[Any]]:
    """The samples in order, and the mean of each column over the rows of each sample."""
    samples, place = np.unique(index, return_inverse=True)
    counts = np.bincount(place)
    return [samples, *(np.bincount(place, weights=column) / counts for column in columns)]


def mean_and_error(values: NDArray[Any]) -> tuple[float, float]:
    """The mean of some values and its standard error; NaN without values, or for the error of a single one."""
    n = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return float(values.mean()) if n else math.nan, error


@dataclass(frozen=True)
class Summary:
    """The result of a data set. Failed rows, whose log-density is not finite, are counted and otherwise left out.

    Attributes:
        bits_per_dim: the mean over samples of each one's mean over repeats; NaN if every row failed.
        standard_error: of that mean, over samples; NaN for a single sample.
        nfe: the mean number of network calls of a row.
        samples: the number of samples.
        rows: the number of rows, including failed ones.
        failed: the number of failed rows.
    """

    bits_per_dim: float
    standard_error: float
    nfe: float
    samples: int
    rows: int
    failed: int = 0

    def __str__(self) -> str:
        failed = f"; {self.failed} of {self.rows} rows failed and are left out" if self.failed else ""
        return (
            f"{self.bits_per_dim:.4f} +- {self.standard_error:.4f} bits/dim "
            f"(mean and standard error over {self.samples} samples, {self.nfe:.1f} network calls each{failed})"
        )


def summarise(columns: Columns) -> Summary:
    """The summary of the rows of a likelihood file."""
    if len(columns["index"]) == 0:
        raise ValueError("expected at least one row to summarise, got 0 rows")
    good = np.isfinite(columns["bits_per_dim"])
    samples, means = means_over_repeats(columns["index"][good], columns["bits_per_dim"][good])
    calls, _ = mean_and_error(columns["nfe"][good])
    return Summary(*mean_and_error(means), calls, len(samples), len(good), len(good) - int(good.sum()))


def nats_and_error(summary: Summary, dims: int) -> tuple[float, float]:
    r"""The mean log-density of a summary in nats, :math:`-D \log 2` times its bits/dim, and its standard error.

    Args:
        summary: the summary of a likelihood file.
        dims: D, the number of dimensions of a sample.
    """
    unit = dims * math.log(2.0)
    return -unit * summary.bits_per_dim, unit * summary.standard_error


@dataclass
class RunningMean:
    """The mean over samples of a column, with its standard error, while rows arrive; the cost is that of the new rows.

    Values that are not finite are left out.
    """

    _samples: dict[int, tuple[float, int]] = field(default_factory=dict)
    _origin: float = 0.0
    _sum: float = 0.0
    _squares: float = 0.0

    def add(self, index: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Adds the values of some rows."""
        for sample, value in zip(index.tolist(), values.tolist()):
            if not math.isfinite(value):
                continue
            if not self._samples:
                self._origin = value  # near the mean, so that the squares are small
            total, count = self._samples.get(sample, (0.0, 0))
            before = total / count if count else 0.0
            total, count = total + value - self._origin, count + 1
            self._samples[sample] = total, count
            self._sum += total / count - before
            self._squares += (total / count) ** 2 - before**2

    def __str__(self) -> str:
        n = len(self._samples)
        mean = self._sum / n if n else math.nan
        var = max(self._squares / n - mean**2, 0.0) * n / (n - 1) if n > 1 else math.nan
        return f"{self._origin + mean:.4f} +- {math.sqrt(var / n) if n else math.nan:.4f}"
