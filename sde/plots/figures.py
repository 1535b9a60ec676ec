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


def image_figure(image: Image.Image, columns: Sequence[str] = (), rows: Sequence[str] = ()) -> Any:
    """A figure of the size of an image in pixels, with a line below it for the titles of columns, and with a margin to
    the left for those of rows."""
    bottom, left = 40 if columns else 0, 120 if rows else 0
    width, height = image.width + left, image.height + bottom
    figure = _figure_class()(figsize=(width / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes((left / width, bottom / height, image.width / width, image.height / height))
    axes.imshow(np.asarray(image.convert("RGB")), interpolation="nearest", aspect="auto")
    axes.set(xticks=[], yticks=[], frame_on=False)
    for i, title in enumerate(columns):
        place = (left + (i + 0.5) / len(columns) * image.width) / width
        figure.text(place, 0.3 * bottom / height, title, ha="center", fontsize=8)
    for i, title in enumerate(rows):
        place = 1.0 - (i + 0.5) / len(rows) * image.height / height
        figure.text((left - 8) / width, place, title, ha="right", va="center", fontsize=8)
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
