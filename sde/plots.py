r"""Pictures of what a run made: grids of images, scatter plots, loss curves. Matplotlib is imported on first use."""

from __future__ import annotations

__all__ = ["image_grid", "loss_curve", "save_samples"]

import json
import math
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .data import Scaling


def save_samples(path: str | os.PathLike[str], x: Tensor, scaling: Scaling) -> None:
    """Draws samples as a PNG: images as a grid, points in the plane as a scatter plot, other vectors and signals as
    lines.

    Args:
        path: the file to write.
        x: data values, with shape (N, C, H, W), (N, D) or (N, C, L).
        scaling: the data's scaling, whose levels set black and white.
    """
    if x.ndim == 4:
        _enlarged(image_grid(x, scaling.levels)).save(path)
        return
    figure, axes = _figure()
    if x.ndim == 2 and x.shape[1] == 2:
        axes.scatter(*x.numpy().T, s=3, alpha=0.5, linewidths=0)
        axes.set_aspect("equal")
    else:
        axes.plot(x.flatten(1).numpy().T, linewidth=0.6, alpha=0.6)
        axes.set_xlabel("dimension")
    figure.savefig(path)


def image_grid(x: Tensor, levels: int | None) -> Image.Image:
    """A grid, as square as may be, of images with shape (N, C, H, W); more than 3 channels are shown side by side."""
    low, high = (0.0, levels - 1.0) if levels else (float(x.min()), float(x.max()))
    grey = ((x.double() - low) / max(high - low, 1e-12) * 255.0).round().clamp(0, 255).to(torch.uint8)
    if grey.shape[1] not in (1, 3):
        grey = grey.movedim(1, 2).flatten(2, 3).reshape(len(x), 1, x.shape[2], -1)
    n, c, h, w = grey.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = torch.zeros(c, rows * (h + 1) - 1, columns * (w + 1) - 1, dtype=torch.uint8)
    for i, image in enumerate(grey):
        top, left = (i // columns) * (h + 1), (i % columns) * (w + 1)
        canvas[:, top : top + h, left : left + w] = image
    array = canvas.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if c == 1 else array)


def loss_curve(metrics: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draws the losses of a `metrics.jsonl` over the steps as a PNG; a run too short for a line has an empty one."""
    path_of_metrics = Path(metrics)
    text = path_of_metrics.read_text() if path_of_metrics.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    figure, axes = _figure()
    for key, label, style in (("loss", "training", "-"), ("valid_loss", "validation (EMA)", "o-")):
        points = np.array([(line["step"], line[key]) for line in lines if key in line])
        if len(points):
            axes.plot(points[:, 0], points[:, 1], style, label=label, linewidth=1.0, markersize=3)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_yscale("log" if all(line.get("loss", 1.0) > 0 for line in lines) else "linear")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path)


def _enlarged(image: Image.Image, least: int = 512) -> Image.Image:
    """Small images, such as 8x8 digits, in whole pixels large enough to be seen."""
    factor = max(1, least // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _figure():  # type: ignore[no-untyped-def]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=120, layout="constrained")
    return figure, figure.add_subplot()
