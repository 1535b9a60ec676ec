r"""Plots of the losses of a training."""

from __future__ import annotations

__all__ = ["losses", "save_losses"]

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..training import Report
from .figures import subplots


def losses(reports: Iterable[Report], validation: Sequence[tuple[int, float]] = ()) -> Any:
    """Plot of the losses over the steps.

    Args:
        reports: the reports of a training.
        validation: the steps and values of validation losses.

    Returns:
        The matplotlib figure.
    """
    return _loss_figure([(report.step, report.loss) for report in reports], validation)


def save_losses(path: str | os.PathLike[str], metrics: str | os.PathLike[str]) -> None:
    """Writes the losses of a `metrics.jsonl` over the steps as a PNG; without a line, the plot is empty.

    Args:
        path: the file.
        metrics: the metrics of a run.
    """
    source = Path(metrics)
    lines = [json.loads(line) for line in (source.read_text() if source.exists() else "").splitlines()]
    training, validation = (
        [(line["step"], line[key]) for line in lines if key in line] for key in ("loss", "valid_loss")
    )
    _loss_figure(training, validation).savefig(path)


def _loss_figure(training: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]]) -> Any:
    figure, axes = subplots()
    for points, label, style in ((training, "training", "-"), (validation, "validation (EMA)", "o-")):
        if points:
            axes.plot(*zip(*points), style, label=label, linewidth=1.0, markersize=3)
    scale = "log" if all(loss > 0 for _, loss in training) else "linear"
    axes.set(xlabel="step", ylabel="loss", yscale=scale)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    return figure
