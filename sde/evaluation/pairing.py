"""Paired comparison of two results on the same data."""

from __future__ import annotations

__all__ = ["Paired", "paired"]

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..instantiate.annotations import nearest
from ..likelihood.error_budget import quantile
from ..storage.results import read
from .summary import Columns, mean_and_error, means_over_repeats

Source = Columns | str | os.PathLike[str]


@dataclass(frozen=True)
class Paired:
    """The difference of two results, the second minus the first.

    Attributes:
        difference: the mean over samples.
        standard_error: its standard error.
        low: the lower end of its 99 % interval, by Student's t distribution.
        high: the upper end.
        correlation: of the two results over samples; the closer to 1, the more the pairing reduces the error.
        samples: the number of samples, each with its mean over repeats.
        rows: the number of rows that are compared.
        dropped: the number of rows of either result without a partner, or with values that are not finite.
    """

    difference: float
    standard_error: float
    low: float
    high: float
    correlation: float
    samples: int
    rows: int
    dropped: int

    def __str__(self) -> str:
        return (
            f"{self.difference:+.5f} +- {self.standard_error:.5f} (99 %: {self.low:+.5f} to {self.high:+.5f}; "
            f"{self.samples} samples, correlation {self.correlation:.3f})"
        )


def paired(first: Source, second: Source, *, column: str = "bits_per_dim") -> Paired:
    """Compares two results, for example of two models or two solvers, row by row.

    With the same seed, rows of the same index and repeat have the same dequantisation noise and probes. The errors that
    they have in common cancel.

    Args:
        first: the path of a result file, or columns by name: `index`, `repeat` and the one to compare.
        second: likewise.
        column: the column to compare.

    Raises:
        ValueError: if a column is missing, a row occurs twice, fewer than two samples are in both results, the files
            are for different data, so that the same index means another sample, or a file is not a result file.
        FileNotFoundError: if a file does not exist.
    """
    (one, data_one), (two, data_two) = (_load(source) for source in (first, second))
    if data_one is not None and data_two is not None and data_one != data_two:
        raise ValueError(
            f"paired: expected two results on the same data, but {first} has data {str(data_one)[:12]}... and "
            f"{second} has data {str(data_two)[:12]}..., where the same index is another sample"
        )
    a, b = (_by_row(columns, column) for columns in (one, two))
    common = [key for key in a if key in b and math.isfinite(a[key]) and math.isfinite(b[key])]
    rows = np.array([key[0] for key in common], dtype=np.int64)
    samples, x, y = means_over_repeats(rows, *([values[key] for key in common] for values in (a, b)))
    n = len(samples)
    if n < 2:
        raise ValueError(f"paired: expected at least two samples in both results, got {n}")
    difference, error = mean_and_error(y - x)
    width = error * quantile(n - 1)
    spread = float(x.std() * y.std())
    correlation = float(((x - x.mean()) * (y - y.mean())).mean()) / spread if spread > 0.0 else math.nan
    dropped = len(a) + len(b) - 2 * len(common)
    return Paired(difference, error, difference - width, difference + width, correlation, n, len(common), dropped)


def _load(source: Source) -> tuple[Columns, Any]:
    """The columns of a source, and the fingerprint of its data or None."""
    if isinstance(source, Mapping):
        return source, None
    results = read(source)
    return results.columns, results.attributes.get("data")


def _by_row(columns: Columns, column: str) -> dict[tuple[int, int], float]:
    """The values of a column by (index, repeat)."""
    for name in ("index", "repeat", column):
        if name not in columns:
            advice = f"; give another column={nearest(column, columns)}" if name == column else ""
            raise ValueError(f"paired: there is no column {name!r}: the columns are {', '.join(columns)}{advice}")
    keys = zip(columns["index"].tolist(), columns["repeat"].tolist(), strict=True)
    values = dict(zip(keys, columns[column].tolist(), strict=True))
    if len(values) < len(columns["index"]):
        raise ValueError("paired: expected one row for each index and repeat, got duplicates")
    return values
