r"""Pictures of what a run made: grids of images, scatter plots, loss curves. Matplotlib is imported on first use."""

from __future__ import annotations

__all__ = ["bits_histogram", "diagnostics", "image_grid", "likelihoods", "loss_curve", "save_samples", "typicality"]

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .data import Scaling
from .evaluation.out_of_distribution import latent_norm, norm_of_prior, sample_means
from .likelihood.diagnostics import Calibration, RoundTrip
from .processes import SDE


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


def likelihoods(
    path: str | os.PathLike[str],
    process: SDE,
    dims: int,
    found: Mapping[str, Mapping[str, NDArray[Any]]],
) -> list[Path]:
    """Draws :func:`bits_histogram` and :func:`typicality` of likelihood files as NAME-bits.png and NAME-typicality.png.

    A sample is drawn once, at its means over repeats; where no row has a likelihood, nothing is drawn.

    Args:
        path: the file NAME.h5 that the pictures go beside.
        process: the model's, for the norms of the latents.
        dims: the number of dimensions of an event.
        found: the columns of one or more likelihood files, by name.

    Returns:
        The files written.
    """
    bits, places = {}, {}
    for name, columns in found.items():
        norms = {**columns, "norm": latent_norm(process, columns["prior_log_prob"], dims)}
        if len(means := sample_means(columns)):
            bits[name], places[name] = means, (sample_means(norms, "norm"), sample_means(columns, "log_prob"))
    if not bits:
        return []
    stem = Path(path).with_suffix("")
    pictures = [stem.with_name(f"{stem.name}-{what}.png") for what in ("bits", "typicality")]
    bits_histogram(pictures[0], bits)
    typicality(pictures[1], places, *norm_of_prior(process, dims))
    return pictures


def bits_histogram(path: str | os.PathLike[str], sets: Mapping[str, NDArray[np.float64]]) -> None:
    """Draws histograms of bits/dim as a PNG, with the mean of each set as a line.

    Args:
        path: the file to write.
        sets: the bits/dim of the samples of one or more data sets, each with shape (N,), by name.
    """
    figure, axes = _figure()
    every = np.concatenate(list(sets.values()))
    edges = np.histogram_bin_edges(every, bins=min(60, max(5, round(math.sqrt(len(every))))))
    for i, (name, bits) in enumerate(sets.items()):
        axes.hist(bits, edges, density=True, alpha=0.5, color=f"C{i}", label=f"{name} ({len(bits)})")
        axes.axvline(bits.mean(), color=f"C{i}", linewidth=1.0)
    axes.set_xlabel("bits/dim")
    axes.set_ylabel("density")
    axes.legend()
    figure.savefig(path)


def typicality(
    path: str | os.PathLike[str],
    sets: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    mean: float,
    std: float,
) -> None:
    """Draws log-densities against the norms of the latents as a PNG, with the norm that the prior's draws have.

    Args:
        path: the file to write.
        sets: norms and log-densities in nats, each with shape (N,), of one or more data sets by name.
        mean: the mean norm of a draw of the prior.
        std: its standard deviation.
    """
    figure, axes = _figure()
    axes.axvspan(mean - 2.0 * std, mean + 2.0 * std, color="0.85", label="prior, mean and 2 standard deviations")
    axes.axvline(mean, color="0.4", linewidth=1.0)
    for name, (norms, nats) in sets.items():
        axes.scatter(norms, nats, s=6, alpha=0.6, linewidths=0, label=name)
    axes.set_xlabel("norm of the latent")
    axes.set_ylabel("log p (nats)")
    axes.legend()
    figure.savefig(path)


def diagnostics(path: str | os.PathLike[str], trip: RoundTrip, times: Sequence[Calibration]) -> None:
    """Draws the checks of a likelihood as a PNG: the error of the denoiser over the log-SNR, measured and predicted,
    with two standard errors, and the two log-densities of each sample against its error of the round trip."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.0), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    snr = [c.log_snr for c in times]
    errors = [2.0 * c.standard_error for c in times]
    left.errorbar(snr, [c.measured for c in times], yerr=errors, fmt="o-", markersize=3, label="measured")
    left.plot(snr, [c.predicted for c in times], "x--", label="predicted")
    left.set_xlabel("log-SNR")
    left.set_ylabel("mean square error of the noise")
    left.legend()
    right.scatter(trip.error.cpu().numpy(), (trip.backward - trip.forward).cpu().numpy(), s=8)
    right.set_xlabel("error of data -> latent -> data, per dimension")
    right.set_ylabel("log p backward - forward (nats)")
    figure.savefig(path)


def _enlarged(image: Image.Image, least: int = 512) -> Image.Image:
    """Small images, such as 8x8 digits, in whole pixels large enough to be seen."""
    factor = max(1, least // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _figure():  # type: ignore[no-untyped-def]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=120, layout="constrained")
    return figure, figure.add_subplot()
