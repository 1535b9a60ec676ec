"""Two results on the same data: what differs, and how sure that is."""

from __future__ import annotations

__all__ = ["Paired", "paired"]

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..likelihood.error_budget import quantile
from ..storage.results import read

Columns = Mapping[str, NDArray[Any]]
Source = Columns | str | os.PathLike[str]


@dataclass(frozen=True)
class Paired:
    """The difference of two results, the second less the first.

    Attributes:
        difference: the mean over samples.
        standard_error: its standard error.
        low: the lower end of its 99 % interval, by Student's law.
        high: the upper end.
        correlation: of the two results over samples; the closer to 1, the more the pairing helps.
        samples: how many samples are compared; the repeats of each count as one, their mean.
        rows: how many rows.
        dropped: rows of either result that have no partner, or whose values are not finite.
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
    """Compares two results row by row, by the same index and repeat, such as two models' or two solvers'.

    Rows of one index and repeat have the same dequantisation noise, and the same probes where both results were made
    with one seed. What they share cancels.

    Args:
        first: the path of a result file, or columns by name: `index`, `repeat` and the one to compare.
        second: likewise.
        column: the one to compare.

    Raises:
        ValueError: if a column is missing, a row is there twice, fewer than two samples are in both, or two files are
            of different data, where the same index means another sample; or if a file is no result file.
        FileNotFoundError: if there is no such file.
    """
    (one, data), (two, others) = (_opened(source) for source in (first, second))
    if data is not None and others is not None and data != others:
        raise ValueError(
            f"paired: expected two results on the same data, but {first} is of data {str(data)[:12]}..., and "
            f"{second} of {str(others)[:12]}...: the same index is another sample there"
        )
    a, b = (_by_key(columns, column) for columns in (one, two))
    common = [key for key in a if key in b and math.isfinite(a[key]) and math.isfinite(b[key])]
    rows = np.array(common, dtype=np.int64).reshape(-1, 2)
    index, place = np.unique(rows[:, 0], return_inverse=True)
    if len(index) < 2:
        raise ValueError(f"paired: expected at least two samples in both results, got {len(index)}")
    x, y = (np.bincount(place, weights=[values[key] for key in common]) / np.bincount(place) for values in (a, b))
    n, d = len(index), y - x
    difference, error = float(d.mean()), float(d.std(ddof=1)) / math.sqrt(n)
    width = error * quantile(n - 1)
    spread = float(x.std() * y.std())
    correlation = float(((x - x.mean()) * (y - y.mean())).mean()) / spread if spread > 0.0 else math.nan
    dropped = len(a) + len(b) - 2 * len(common)
    return Paired(difference, error, difference - width, difference + width, correlation, n, len(common), dropped)


def _opened(source: Source) -> tuple[Columns, Any]:
    """The columns of a source, and the fingerprint of its data where it tells one."""
    if isinstance(source, Mapping):
        return source, None
    results = read(source)
    return results.columns, results.attributes.get("data")


def _by_key(columns: Columns, column: str) -> dict[tuple[int, int], float]:
    """The values of a column by (index, repeat)."""
    missing = [name for name in ("index", "repeat", column) if name not in columns]
    if missing:
        raise ValueError(f"paired: expected the columns index, repeat and {column}; {', '.join(missing)} is missing")
    keys = zip(columns["index"].tolist(), columns["repeat"].tolist(), strict=True)
    values = dict(zip(keys, columns[column].tolist(), strict=True))
    if len(values) < len(columns["index"]):
        raise ValueError("paired: expected one row for each index and repeat, got some of them twice")
    return values
