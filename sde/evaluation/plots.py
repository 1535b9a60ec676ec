"""A picture of several measures of the likelihood: each bound against the flow, image by image."""

from __future__ import annotations

__all__ = ["against_flow"]

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bounds_table import MEASURES


def against_flow(path: str | os.PathLike[str], columns: Mapping[str, NDArray[Any]]) -> bool:
    """Draws the bounds over the flow as a PNG, in bits/dim, with the line on which they are equal.

    An image is drawn once, at its means over the repeats in which both are finite; where there is no flow, or nothing
    beside it, nothing is drawn.

    Args:
        path: the file to write.
        columns: those of a file of measures, by name.

    Returns:
        Whether there was anything to draw.
    """
    found = {}
    for name in MEASURES:
        if name == "flow" or not {"flow", name} <= columns.keys():
            continue
        good = np.isfinite(columns["flow"]) & np.isfinite(columns[name])
        _, place = np.unique(columns["index"][good], return_inverse=True)
        if len(place):
            found[name] = [np.bincount(place, weights=columns[c][good]) / np.bincount(place) for c in ("flow", name)]
    if not found:
        return False
    from matplotlib.figure import Figure  # slow to import, and most users of the library draw nothing

    figure = Figure(figsize=(5.6, 5.0), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, (flow, bound) in found.items():
        axes.scatter(flow, bound, s=8, alpha=0.6, linewidths=0, label=name)
    ends = [float(f(flow)) for f in (np.min, np.max) for flow, _ in found.values()]
    low, high = min(ends), max(ends)
    axes.plot([low, high], [low, high], color="0.4", linewidth=1.0, label="equal")
    axes.set_xlabel("flow (bits/dim)")
    axes.set_ylabel("bound (bits/dim)")
    axes.legend()
    figure.savefig(path)
    return True
