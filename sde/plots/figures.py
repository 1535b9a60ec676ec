r"""Figures of matplotlib, made without pyplot: of one image, of panels, or of axes to draw in.

Matplotlib is imported on first use.
"""

from __future__ import annotations

__all__ = ["image_figure", "panels_of", "png_text", "subplots"]

import functools
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

DPI = 120


def image_figure(image: Image.Image, times: Sequence[str] = ()) -> Any:
    """A figure of the size of an image in pixels, and, with times, a line higher: one below each column."""
    width, height, margin = image.width, image.height, 40 if times else 0
    figure = _figure_class()(figsize=(width / DPI, (height + margin) / DPI), dpi=DPI)
    axes = figure.add_axes((0.0, margin / (height + margin), 1.0, height / (height + margin)))
    axes.imshow(np.asarray(image.convert("RGB")), interpolation="nearest", aspect="auto")
    axes.set(xticks=[], yticks=[], frame_on=False)
    for i, time in enumerate(times):
        figure.text((i + 0.5) / len(times), 0.3 * margin / (height + margin), time, ha="center", fontsize=8)
    return figure


def subplots(size: tuple[float, float] = (6.4, 4.0), **panels: Any) -> tuple[Any, Any]:
    """A figure of a size in inches, and its axes: one, or those of `Figure.subplots`."""
    figure = _figure_class()(figsize=size, dpi=DPI, layout="constrained")
    return figure, figure.subplots(**panels)


def panels_of(curves: Sequence[tuple[Any, Tensor]], columns: int) -> tuple[Any, list[Any]]:
    """A figure with a panel for each entry of `curves`, row by row, on common axes, and its panels.

    An entry is (x, y) with x of shape (L,) and y of shape (L, C): C lines, in colours that are those of all panels.
    """
    rows = math.ceil(len(curves) / columns)
    size = max(4.0, 1.4 * columns + 0.6), max(3.0, 1.1 * rows + 0.6)
    figure, grid = subplots(size, nrows=rows, ncols=columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(curves) :]:
        axes.set_axis_off()
    panels = list(grid.flat[: len(curves)])
    for axes, (x, y) in zip(panels, curves):
        axes.plot(x, y.numpy(), linewidth=0.8, marker="." if len(y) == 1 else "")
        axes.tick_params(labelsize=6)
    return figure, panels


def png_text(path: str | os.PathLike[str], settings: Mapping[str, Any] | None) -> dict[str, str]:
    """The settings as the text of a PNG; other formats have no place for them."""
    png = settings is not None and Path(path).suffix == ".png"
    return {"settings": json.dumps(settings, sort_keys=True)} if png else {}


@functools.cache
def _figure_class() -> Any:
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        """A figure that a notebook shows without pyplot: IPython asks an object for its `_repr_png_`."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png")
            return buffer.getvalue()

    return ShownFigure
