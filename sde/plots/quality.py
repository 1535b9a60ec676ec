r"""Plots of sample quality: measures with their intervals, values of single items, nearest training items."""

from __future__ import annotations

__all__ = ["histograms", "measures", "neighbours", "save_neighbours"]

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


def measures(estimates: Mapping[str, Mapping[str, Estimate]]) -> Any:
    """Plot of the measures of sets of samples, a panel each, with 95 % intervals.

    A dashed line is the value of equal distributions, where it is known; a hollow point the value before correction.

    Args:
        estimates: the measures, by name of the set and of the measure.

    Returns:
        The matplotlib figure.
    """
    names = list(dict.fromkeys(measure for found in estimates.values() for measure in found))
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    wide = max(2.2, 0.3 * len(estimates) + 1.2)
    figure, grid = subplots((wide * columns, 2.6 * rows + 0.4), nrows=rows, ncols=columns, squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, names):
        for place, found in enumerate(estimates.values()):
            if (e := found.get(name)) is None or not math.isfinite(e.value):
                continue
            ends = [[max(0.0, e.value - e.low)], [max(0.0, e.high - e.value)]]
            ends = [[end[0] if math.isfinite(end[0]) else 0.0] for end in ends]
            axes.errorbar([place], [e.value], yerr=ends, fmt="o", markersize=4, capsize=3, color=f"C{place % 10}")
            if e.plain is not None:
                axes.plot([place], [e.plain], "o", markersize=4, fillstyle="none", color=f"C{place % 10}")
            if e.null is not None:
                axes.plot([place - 0.4, place + 0.4], [e.null] * 2, "--", linewidth=0.8, color="0.4")
        axes.set_title(name, fontsize=9)
        axes.set_xticks(range(len(estimates)), list(estimates), rotation=60, ha="right", fontsize=7)
        axes.set_xlim(-0.6, len(estimates) - 0.4)
        axes.tick_params(axis="y", labelsize=7)
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
    having = {m: None for found in estimates.values() for m, e in found.items() if _spread(e.per_item)}
    if not having:
        return None
    figure, grid = subplots((3.4 * len(having), 2.8), ncols=len(having), squeeze=False)
    for axes, name in zip(grid.flat, having):
        values = {key: found[name].per_item for key, found in estimates.items() if name in found}
        curves: dict[str, Any] = {key: v[v.isfinite()].cpu().numpy() for key, v in values.items() if v is not None}
        if name == "distance_ratio" and memorisation:
            curves["held out"] = next(iter(memorisation.values())).expected.cpu().numpy()
        ends = [float(f(v)) for v in curves.values() if len(v) for f in (min, max)]
        for key, v in curves.items():
            how: dict[str, Any] = {"histtype": "step", "density": True, "range": (min(ends), max(ends)), "label": key}
            axes.hist(v, bins=30, **how, **({"color": "0.5"} if key == "held out" else {}))
        axes.set_xlabel(name, fontsize=8)
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
