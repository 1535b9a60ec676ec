"""Plots of a data set's bounds: each bound against the likelihood of the flow, sample by sample."""

from __future__ import annotations

__all__ = ["against_flow"]

import os

import numpy as np

from .bounds_table import MEASURES
from .summary import Columns, means_over_repeats


def against_flow(path: str | os.PathLike[str], columns: Columns) -> bool:
    """Plots the bounds over the flow as a PNG, in bits/dim, with the line of equality.

    Each sample is one point per bound, at its means over the repeats in which both are finite. Without the flow, or
    without a bound, no file is written.

    Args:
        path: the file to write.
        columns: the columns of a bounds file, by name.

    Returns:
        Whether the file was written.
    """
    points = {}
    for name in MEASURES:
        if name == "flow" or not {"flow", name} <= columns.keys():
            continue
        good = np.isfinite(columns["flow"]) & np.isfinite(columns[name])
        if good.any():
            points[name] = means_over_repeats(*(columns[column][good] for column in ("index", "flow", name)))[1:]
    if not points:
        return False
    from matplotlib.figure import Figure  # slow to import, and rarely needed

    figure = Figure(figsize=(5.6, 5.0), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, (flow, bound) in points.items():
        axes.scatter(flow, bound, s=8, alpha=0.6, linewidths=0, label=name)
    ends = [float(f(flow)) for f in (np.min, np.max) for flow, _ in points.values()]
    line = [min(ends), max(ends)]
    axes.plot(line, line, color="0.4", linewidth=1.0, label="equal")
    axes.set(xlabel="flow (bits/dim)", ylabel="bound (bits/dim)")
    axes.legend()
    figure.savefig(path)
    return True
