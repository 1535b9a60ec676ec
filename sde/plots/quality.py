r"""Plots of sample quality: measures with their intervals, values of single items, nearest training items."""

from __future__ import annotations

__all__ = ["fidelity_and_diversity", "histograms", "measures", "neighbours", "save_neighbours"]

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..metrics import Estimate, Memorisation
from .figures import subplots
from .samples import image_grid, samples


def measures(
    estimates: Mapping[str, Mapping[str, Estimate]], differences: Mapping[str, Mapping[str, Estimate]] | None = None
) -> Any:
    """Plot of the measures of sets of samples, a panel each, with a line for each set and its 95 % interval.

    A dashed line is the value of equal distributions, where it is known; a hollow point the value before correction.
    Distances that are far larger than their errors have an axis that is logarithmic above these.

    Args:
        estimates: the measures, by name of the set and of the measure.
        differences: those from the first set; a set with p < 0.01 is orange.

    Returns:
        The matplotlib figure.
    """
    names = list(dict.fromkeys(measure for by_measure in estimates.values() for measure in by_measure))
    columns = min(3, len(names))
    rows, left = math.ceil(len(names) / columns), 0.07 * max(len(name) for name in estimates)
    size = 2.3 * columns + left, (0.19 * len(estimates) + 0.9) * rows
    figure, grid = subplots(size, nrows=rows, ncols=columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, names):
        known = {
            i: e
            for i, by_measure in enumerate(estimates.values())
            if (e := by_measure.get(name)) and math.isfinite(e.value)
        }
        for place, e in known.items():
            d = (differences or {}).get(list(estimates)[place], {}).get(name)
            colour = "C1" if d is not None and d.p_value is not None and d.p_value < 0.01 else "C0"
            ends = [[max(0.0, end) if math.isfinite(end) else 0.0] for end in (e.value - e.low, e.high - e.value)]
            axes.errorbar([e.value], [place], xerr=ends, fmt="o", markersize=4, capsize=2, color=colour)
            if e.plain is not None:
                axes.plot([e.plain], [place], "o", markersize=4, fillstyle="none", color=colour)
            if e.null is not None:
                axes.plot([e.null] * 2, [place - 0.5, place + 0.5], "--", linewidth=0.8, color="0.4")
        errors = [e.high - e.low for e in known.values() if e.null == 0.0 and 0.0 < e.high - e.low < math.inf]
        if errors and max(e.value for e in known.values()) > 5.0 * max(errors):
            axes.set_xscale("symlog", linthresh=max(errors))
        else:
            axes.locator_params(axis="x", nbins=5)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set_yticks(range(len(estimates)), list(estimates), fontsize=7)
        axes.set_ylim(len(estimates) - 0.4, -0.6)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", linewidth=0.3)
    return figure


def fidelity_and_diversity(estimates: Mapping[str, Mapping[str, Estimate]]) -> Any:
    """Plot of precision over recall and of density over coverage, a point with 95 % intervals for each set of samples.

    Dashed lines are the values of equal distributions, where they are known.

    Args:
        estimates: as in :func:`measures`.

    Returns:
        The matplotlib figure, None if no set has these measures.
    """
    shown = {key: by_measure for key, by_measure in estimates.items() if "precision" in by_measure}
    if not shown:
        return None
    figure, panels = subplots((7.6, 3.4), ncols=2)
    for axes, (below, beside) in zip(panels, (("recall", "precision"), ("coverage", "density"))):
        for number, (key, by_measure) in enumerate(shown.items()):
            x, y = by_measure[below], by_measure[beside]
            x_error, y_error = ([[max(0.0, e.value - e.low)], [max(0.0, e.high - e.value)]] for e in (x, y))
            style: dict[str, Any] = {"color": f"C{number % 10}", "fmt": "os^Dv"[number // 10 % 5], "markersize": 4}
            axes.errorbar([x.value], [y.value], yerr=y_error, xerr=x_error, linewidth=0.8, label=key, **style)
            for line, null in ((axes.axvline, x.null), (axes.axhline, y.null)):
                if null is not None:
                    line(null, linestyle="--", linewidth=0.6, color="0.4")
        axes.set_xlabel(below, fontsize=8)
        axes.set_ylabel(beside, fontsize=8)
        axes.tick_params(labelsize=7)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=6, loc="outside right upper")
    return figure


def histograms(
    estimates: Mapping[str, Mapping[str, Estimate]], memorisation: Mapping[str, Memorisation] | None = None
) -> Any:
    """Histograms of the values of single items, a panel for each measure that has them.

    The distance ratios of held-out data are drawn in grey.

    Args:
        estimates: as in :func:`measures`.
        memorisation: the nearest training items, by name of the set.

    Returns:
        The matplotlib figure, None if no measure has values of items.
    """
    having = {m: None for by_measure in estimates.values() for m, e in by_measure.items() if _spread(e.per_item)}
    if not having:
        return None
    figure, grid = subplots((3.4 * len(having), 2.8), ncols=len(having), squeeze=False)
    for axes, name in zip(grid.flat, having):
        values = {key: by_measure[name].per_item for key, by_measure in estimates.items() if name in by_measure}
        curves: dict[str, Any] = {key: v[v.isfinite()].cpu().numpy() for key, v in values.items() if v is not None}
        if name == "distance_ratio" and memorisation:
            curves["held out"] = next(iter(memorisation.values())).expected.cpu().numpy()
        ends = [float(f(v)) for v in curves.values() if len(v) for f in (min, max)]
        for key, v in curves.items():
            how: dict[str, Any] = {"histtype": "step", "density": True, "range": (min(ends), max(ends)), "label": key}
            axes.hist(v, bins=30, **how, **({"color": "0.5"} if key == "held out" else {}))
        axes.set_xlabel(name.replace("_", " "), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=6)
    return figure


def _spread(values: Tensor | None) -> bool:
    finite = values[values.isfinite()] if values is not None else None
    return finite is not None and len(finite) > 0 and bool(finite.min() < finite.max())


def neighbours(x: Tensor, nearest: Tensor, levels: int | None = None) -> Any:
    """Picture of samples above their nearest training items: images as two rows, other items in panels side by side.

    Args:
        x: samples with shape (M, *).
        nearest: their nearest training items, with the same shape.
        levels: the number of levels of discrete values.

    Returns:
        A Pillow image of images, a matplotlib figure of other items.
    """
    if x.ndim == 4:
        image = image_grid(torch.cat([x, nearest]), levels, len(x))
        factor = max(1, 512 // image.width)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return samples(torch.stack([x, nearest], 1).flatten(0, 1), n=2 * len(x))


def save_neighbours(path: str | os.PathLike[str], x: Tensor, nearest: Tensor, levels: int | None = None) -> None:
    """Writes :func:`neighbours` as a PNG."""
    picture = neighbours(x, nearest, levels)
    if isinstance(picture, Image.Image):
        picture.save(path)
    else:
        picture.savefig(path)
