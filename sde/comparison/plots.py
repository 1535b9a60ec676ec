r"""The work-precision plot: error as a function of network calls, both on logarithmic axes.

Each column of panels shows one grid, because the curve of a method depends on its grid at least as much as on its
order. The upper rows show the strong and the median errors of deterministic solvers, the last row the distances of
stochastic ones. A solver has the same colour in all panels. Solvers without a grid are in every panel. Matplotlib is
imported on first use.
"""

from __future__ import annotations

__all__ = ["work_precision"]

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..storage.files import write_atomically
from .table import Row

# Twelve distinguishable colours, dark enough for thin lines; more solvers repeat them with another marker.
_COLOURS = (
    *("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf"),
    *("#8c564b", "#e377c2", "#000000", "#bcbd22", "#000080", "#7f7f7f"),
)
_MARKERS = "os^Dv"
_LARGEST_ERROR = 10.0
# The rows of panels: column of the table, label, whether it is for stochastic solvers.
_METRICS = (
    ("strong", "strong error", False),
    ("median", "median error", False),
    ("sliced", "sliced Wasserstein distance", True),
)


def work_precision(rows: Sequence[Row], path: str | os.PathLike[str], title: str = "") -> None:
    """Writes the plot to a PNG file.

    Args:
        rows: the rows of a comparison; only rows with status `ok` are plotted.
        path: the file to write.
        title: the title of the figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    ok = [row for row in rows if row.status == "ok" and row.nfe > 0]
    floor = next((row for row in rows if row.solver == "exact"), None)
    metrics = [metric for metric in _METRICS if any(row.stochastic is metric[2] for row in ok)]
    if not metrics:
        raise ValueError(f"work_precision: expected at least one row with status ok and nfe > 0, got 0 of {len(rows)}")
    grids = list(dict.fromkeys(row.grid for row in ok if row.grid)) or [""]
    names = list(dict.fromkeys(row.solver for row in ok))
    count = len(_COLOURS)
    styles = {n: (_COLOURS[i % count], _MARKERS[i // count % len(_MARKERS)]) for i, n in enumerate(names)}

    figure = Figure(figsize=(4.0 * len(grids) + 2.0, 3.3 * len(metrics) + 0.4), dpi=120, layout="constrained")
    panels = figure.subplots(len(metrics), len(grids), squeeze=False, sharex=True, sharey="row")
    for (name, label, stochastic), panel_row in zip(metrics, panels):
        selection = [row for row in ok if row.stochastic is stochastic]
        for grid, axes in zip(grids, panel_row):
            _panel(axes, [row for row in selection if row.grid in ("", grid)], name, styles)
            words = [*([f"grid: {grid}"] if grid else []), "stochastic" if stochastic else "deterministic"]
            axes.set_title(", ".join(words), fontsize=10)
            if stochastic and floor is not None:
                axes.axhspan(floor.sliced_low, floor.sliced_high, color="0.85", zorder=0)
                axes.axhline(floor.sliced, color="0.5", linewidth=0.8)
        if not stochastic:
            _slopes(panel_row, selection, name)
        panel_row[0].set_ylabel(label, fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel("network calls", fontsize=10)
    keys = [Line2D([], [], color=c, marker=m, markersize=4, linewidth=1.2, label=n) for n, (c, m) in styles.items()]
    if floor is not None:
        keys.append(Line2D([], [], color="0.5", linewidth=4, alpha=0.5, label="exact samples"))
    if any(not row.stochastic for row in ok):
        keys.append(Line2D([], [], color="0.6", linestyle=":", label="orders 1, 2, 3"))
    figure.legend(handles=keys, loc="outside right center", fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    write_atomically(Path(path), lambda file: figure.savefig(file, format="png"))


def _panel(axes: Any, rows: Sequence[Row], name: str, styles: dict[str, tuple[str, str]]) -> None:
    for solver, (colour, marker) in styles.items():
        curve = sorted((row for row in rows if row.solver == solver), key=lambda row: row.nfe)
        x = [row.nfe for row in curve]
        value, low, high = ([getattr(row, name + end) for row in curve] for end in ("", "_low", "_high"))
        axes.plot(x, value, color=colour, marker=marker, markersize=3.5, linewidth=1.2)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xscale="log", yscale="log")
    axes.grid(which="major", alpha=0.35, linewidth=0.6)
    axes.tick_params(labelsize=8, which="both")
    # The budgets span little more than a decade, so they are better ticks than powers of ten.
    ticks = sorted({row.calls for row in rows if row.calls})
    if ticks:
        # Adaptive solvers may need many more calls.
        largest = max(row.nfe for row in rows)
        ticks += [t for t in (100, 200, 500, 1000, 2000, 5000) if 1.5 * ticks[-1] < t <= largest]
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.set_xticks([], minor=True)


def _slopes(panel_row: Sequence[Any], rows: Sequence[Row], name: str) -> None:
    """Draws dotted lines of orders 1, 2 and 3 in a row of panels, from the median error at the fewest calls."""
    begin, end = min(row.nfe for row in rows), max(row.nfe for row in rows)
    first = {row.solver: getattr(row, name) for row in sorted(rows, key=lambda row: -row.nfe)}
    top = statistics.median(first.values())
    low, high = panel_row[0].get_ylim()
    for axes in panel_row:
        for order in (1, 2, 3):
            ends = [top, top * (begin / end) ** order]
            axes.plot([begin, end], ends, color="0.6", linestyle=":", linewidth=1.0, zorder=0)
    # Errors of many standard deviations are cut off, because they would leave little space for the others.
    panel_row[0].set_ylim(low, min(high, _LARGEST_ERROR) if low < 0.1 * _LARGEST_ERROR else high)
