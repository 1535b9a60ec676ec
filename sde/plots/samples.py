r"""Plots of samples, trajectories and densities in the plane."""

from __future__ import annotations

__all__ = ["density", "image_grid", "samples", "save_samples", "trajectory"]

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..data import Scaling
from ..grids import LogSNR
from ..model import Model
from ..solvers import Heun, Solver
from ..trace import ExactTrace
from .figures import image_figure, panels_of, png_text, subplots


def samples(x: Tensor, scaling: Scaling | None = None, *, n: int = 16, columns: int | None = None) -> Any:
    """Plot of samples: images as a grid, points in the plane as a scatter plot, other vectors and signals in a panel
    each, with a line for each channel.

    Args:
        x: data values, with shape (N, C, H, W), (N, D) or (N, C, L).
        scaling: the data's scaling, whose levels set black and white; by default the extremes do.
        n: the largest number of panels.
        columns: the number of images or panels in a row, and of points of the plane in a path: those of an
            interpolation, or a source and what was made of it. By default images are as square as possible.

    Returns:
        The matplotlib figure.
    """
    x = x.detach().cpu()
    if x.ndim == 4:
        return image_figure(enlarged_grid(x, scaling, columns))
    if x.ndim == 2 and x.shape[1] == 2:
        figure, axes = subplots()
        if columns is not None:
            axes.plot(*x.unflatten(0, (-1, columns)).permute(2, 1, 0).numpy(), linewidth=0.6, color="0.6")
        axes.scatter(*x.numpy().T, s=3, alpha=0.5, linewidths=0)
        axes.set_aspect("equal")
        return figure
    shown = [signal.reshape(-1, signal.shape[-1]).T for signal in x[:n]]
    figure, _ = panels_of(
        [(range(len(signal)), signal) for signal in shown], columns or math.ceil(math.sqrt(len(shown)))
    )
    figure.supxlabel("dimension")
    if len(x) > n:
        figure.suptitle(f"the first {n} of {len(x)}", fontsize=10)
    return figure


def save_samples(
    path: str | os.PathLike[str],
    x: Tensor,
    scaling: Scaling | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    model: Model | None = None,
    columns: int | None = None,
) -> None:
    """Writes :func:`samples` as a PNG; images in whole pixels.

    Args:
        path: the file.
        x: as in :func:`samples`.
        scaling: as in :func:`samples`.
        settings: the settings of the samples, which the file then contains (:mod:`sde.evaluation.outputs`).
        model: the model of the samples; if it is one of the plane, its :func:`density` is below them.
        columns: as in :func:`samples`.
    """
    text = png_text(path, settings)
    if x.ndim == 4:
        info = PngInfo()
        for name, value in text.items():
            info.add_text(name, value)
        enlarged_grid(x, scaling, columns).save(path, pnginfo=info)
    else:
        figure = samples(x, scaling, columns=columns) if model is None or not _plane(model) else density(model, x)
        figure.savefig(path, metadata=text)


def density(model: Model, points: Tensor | None = None, *, size: int = 60, solver: Solver | None = None) -> Any:
    """Picture of the density of a model of the plane, in data units, with points over it; of classes, their mean.

    Args:
        model: a model of continuous data with the event shape (2,).
        points: data values with shape (N, 2), by default 500 samples. The middle 98 % of them set the extent.
        size: the number of cells along each axis, at whose centres the density is computed.
        solver: a solver for :meth:`sde.Model.log_prob`; by default Heun's method with 20 steps. The trace is exact.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: if the model's data are not continuous points of the plane.
    """
    if not _plane(model):
        kind = "continuous" if model.scaling.levels is None else "discrete"
        suffix = "".join(f" given the condition {name}" for name in model.process.needs)
        raise ValueError(
            f"density: expected a model of continuous data of shape (2,), got {kind} of {model.shape}{suffix}"
        )
    points = model.sample(500) if points is None else points.detach().cpu()
    low, high = points.quantile(torch.tensor([0.01, 0.99], dtype=points.dtype, device="cpu"), dim=0)
    margin = 0.25 * (high - low).clamp(min=1e-6)
    edges = [
        torch.linspace(*ends, size + 1, dtype=torch.float64, device="cpu") for ends in zip(low - margin, high + margin)
    ]
    centres = torch.cartesian_prod(*((e[1:] + e[:-1]) / 2.0 for e in edges)).to(points.dtype)
    flow: dict[str, Any] = {"solver": solver or Heun(20, grid=LogSNR()), "trace": ExactTrace()}
    conditions = (
        [None] if model.classes is None else [{"label": torch.tensor(k, device="cpu")} for k in range(model.classes)]
    )
    nats = torch.stack([model.log_prob(centres, condition=condition, **flow).nats for condition in conditions])
    figure, axes = subplots()
    columns, rows = (e.numpy() for e in edges)
    mesh = axes.pcolormesh(columns, rows, nats.exp().mean(0).reshape(size, size).T.cpu().numpy(), cmap="Blues")
    axes.scatter(*points.numpy().T, s=2, alpha=0.5, linewidths=0, color="black")
    axes.set(xlim=columns[[0, -1]], ylim=rows[[0, -1]], aspect="equal")
    figure.colorbar(mesh, ax=axes, label="density")
    return figure


def _plane(model: Model) -> bool:
    return model.shape == (2,) and model.scaling.levels is None and not model.process.needs


def image_grid(x: Tensor, levels: int | None, columns: int | None = None) -> Image.Image:
    """Grid of images with shape (N, C, H, W), row by row; the channels stand side by side if there are not 1 or 3.

    Args:
        x: the images.
        levels: the number of grey levels; None for black and white at the extremes.
        columns: the number of images in a row; by default the grid is as square as possible.
    """
    low, high = (0.0, levels - 1.0) if levels else (float(x.min()), float(x.max()))
    grey = ((x.double() - low) / max(high - low, 1e-12) * 255.0).round().clamp(0, 255).to(torch.uint8)
    if grey.shape[1] not in (1, 3):
        grey = grey.movedim(1, 2).flatten(2, 3).reshape(len(x), 1, x.shape[2], -1)
    n, c, h, w = grey.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = torch.zeros(c, rows * (h + 1) - 1, columns * (w + 1) - 1, dtype=torch.uint8, device="cpu")
    for i, image in enumerate(grey):
        top, left = (i // columns) * (h + 1), (i % columns) * (w + 1)
        canvas[:, top : top + h, left : left + w] = image
    array = canvas.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if c == 1 else array)


def trajectory(
    path: Iterable[tuple[Tensor, Tensor | tuple[Tensor, ...]]], scaling: Scaling | None = None, *, n: int = 8
) -> Any:
    """Plot of the states of a few samples over time.

    Images and signals are a row for each sample and a column for each time; points in the plane are curves from the
    start (grey) to the end (black); of other vectors there is a panel for each sample, with curves over t.

    Args:
        path: (t, x) at successive times, as `solver.bind(dynamics).trajectory((x,))` yields them: t with shape () or
            (B,), and x with shape (B, C, H, W), (B, D) or (B, C, L) in the model's range.
        scaling: the map to data values; by default the states are plotted as they are.
        n: the largest number of samples, and of times for images and signals.

    Returns:
        The matplotlib figure.
    """
    points = [(t.reshape(-1)[0].item(), (x if isinstance(x, Tensor) else x[0])[:n].detach().cpu()) for t, x in path]
    if not points:
        raise ValueError("trajectory: expected at least one (t, x), got none")
    if points[0][1].ndim > 2:
        chosen = np.linspace(0, len(points) - 1, min(n, len(points))).round().astype(int)
        points = [points[i] for i in chosen]
    t = np.array([time for time, _ in points])
    states = torch.stack([x if scaling is None else scaling.to_data(x) for _, x in points], 1)  # (B, times, *)
    if states.ndim == 5:
        return image_figure(enlarged_grid(states.flatten(0, 1), scaling, len(t)), [f"{time:.1g}" for time in t])
    if states.ndim == 4:
        signals = [(range(states.shape[-1]), x.T) for x in states.flatten(0, 1)]
        figure, panels = panels_of(signals, len(t))
        for axes, time in zip(panels[-len(t) :], t):
            axes.set_xlabel(f"t = {time:.2g}")
        return figure
    if states.shape[2] != 2:
        figure, _ = panels_of([(t, x) for x in states], math.ceil(math.sqrt(len(states))))
        figure.supxlabel("t")
        return figure
    figure, axes = subplots()
    axes.plot(*states.permute(2, 1, 0).numpy(), linewidth=0.8, alpha=0.6)
    axes.scatter(*states[:, 0].numpy().T, s=8, color="0.6", label=f"t = {t[0]:.2g}")
    axes.scatter(*states[:, -1].numpy().T, s=8, color="black", label=f"t = {t[-1]:.2g}")
    axes.set_aspect("equal")
    axes.legend()
    return figure


def enlarged_grid(x: Tensor, scaling: Scaling | None, columns: int | None = None) -> Image.Image:
    """The grid of images; small ones, such as 8x8 digits, at a multiple of their size."""
    image = image_grid(x, None if scaling is None else scaling.levels, columns)
    factor = max(1, 512 // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
