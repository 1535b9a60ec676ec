r"""Plots of likelihoods and of their diagnostics."""

from __future__ import annotations

__all__ = ["bits_histogram", "diagnostics", "save_diagnostics", "save_likelihoods", "typicality"]

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..evaluation.out_of_distribution import latent_norm, norm_of_prior, sample_means
from ..likelihood.diagnostics import Calibration, RoundTrip
from ..processes import SDE
from .figures import png_text, subplots


def bits_histogram(sets: Mapping[str, NDArray[np.float64]]) -> Any:
    """Histograms of bits/dim, with the mean of each set as a line.

    Args:
        sets: the bits/dim of the samples of one or more data sets, each with shape (N,), by name.

    Returns:
        The matplotlib figure.
    """
    figure, axes = subplots()
    every = np.concatenate(list(sets.values()))
    edges = np.histogram_bin_edges(every, bins=min(60, max(5, round(math.sqrt(len(every))))))
    for i, (name, bits) in enumerate(sets.items()):
        axes.hist(bits, edges, density=True, alpha=0.5, color=f"C{i}", label=f"{name} ({len(bits)})")
        axes.axvline(bits.mean(), color=f"C{i}", linewidth=1.0)
    axes.set(xlabel="bits/dim", ylabel="density")
    axes.legend()
    return figure


def typicality(sets: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], mean: float, std: float) -> Any:
    """Plot of log-densities against the norms of the latents, with the norm of samples of the prior.

    Args:
        sets: norms and log-densities in nats, each with shape (N,), of one or more data sets by name.
        mean: the mean norm of a sample of the prior.
        std: its standard deviation.

    Returns:
        The matplotlib figure.
    """
    figure, axes = subplots()
    axes.axvspan(mean - 2.0 * std, mean + 2.0 * std, color="0.85", label="prior, mean and 2 standard deviations")
    axes.axvline(mean, color="0.4", linewidth=1.0)
    for name, (norms, nats) in sets.items():
        axes.scatter(norms, nats, s=6, alpha=0.6, linewidths=0, label=name)
    axes.set(xlabel="norm of the latent", ylabel="log p (nats)")
    axes.legend()
    return figure


def save_likelihoods(
    path: str | os.PathLike[str], process: SDE, dims: int, tables: Mapping[str, Mapping[str, NDArray[Any]]]
) -> list[Path]:
    """Writes the plots of likelihood files: NAME-bits.png (histogram) and NAME-typicality.png.

    Each sample counts once, with its means over repeats. Without any likelihood, nothing is written.

    Args:
        path: the file NAME.h5, in whose directory the plots are written.
        process: the process of the model, for the norms of the latents.
        dims: the number of dimensions of an event.
        tables: the columns of one or more likelihood files, by name.

    Returns:
        The files.
    """
    bits, points = {}, {}
    for name, columns in tables.items():
        norms = {**columns, "norm": latent_norm(process, columns["prior_log_prob"], dims)}
        if len(means := sample_means(columns)):
            bits[name], points[name] = means, (sample_means(norms, "norm"), sample_means(columns, "log_prob"))
    if not bits:
        return []
    figures = {"bits": bits_histogram(bits), "typicality": typicality(points, *norm_of_prior(process, dims))}
    stem = Path(path).with_suffix("")
    files = [stem.with_name(f"{stem.name}-{name}.png") for name in figures]
    for file, figure in zip(files, figures.values()):
        figure.savefig(file)
    return files


def diagnostics(trip: RoundTrip, times: Sequence[Calibration]) -> Any:
    """Plot of the checks of a likelihood: the error of the denoiser over the log-SNR, measured (with two standard
    errors) and predicted, and the difference of the two log-densities of each sample over its round-trip error.

    Returns:
        The matplotlib figure.
    """
    figure, (left, right) = subplots((10.0, 4.0), ncols=2)
    snr = [c.log_snr for c in times]
    errors = [2.0 * c.standard_error for c in times]
    left.errorbar(snr, [c.measured for c in times], yerr=errors, fmt="o-", markersize=3, label="measured")
    left.plot(snr, [c.predicted for c in times], "x--", label="predicted")
    left.set(xlabel="log-SNR", ylabel="mean square error of the noise")
    left.legend()
    right.scatter(trip.error.cpu().numpy(), (trip.backward - trip.forward).cpu().numpy(), s=8)
    right.set(xlabel="error of data -> latent -> data, per dimension", ylabel="log p backward - forward (nats)")
    return figure


def save_diagnostics(
    path: str | os.PathLike[str],
    trip: RoundTrip,
    times: Sequence[Calibration],
    *,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes :func:`diagnostics` as a PNG, with settings as in :func:`save_samples`."""
    diagnostics(trip, times).savefig(path, metadata=png_text(path, settings))
