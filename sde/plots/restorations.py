r"""Pictures of restorations: the truth, the measurement, draws, and their mean and standard deviation per pixel."""

from __future__ import annotations

__all__ = ["save_restorations"]

import os

import torch

from ..evaluation.restoration_job import RestorationScorer, drawn
from ..evaluation.restoration_tasks import measure
from ..evaluation.summary import Columns
from .figures import image_figure
from .samples import enlarged_grid


def save_restorations(
    path: str | os.PathLike[str], scorer: RestorationScorer, table: Columns, *, n: int = 6, draws: int = 3
) -> bool:
    """Writes a picture with one row for each item and titled columns.

    The columns are the truth, the measurement (as an image of its own size, or the smallest data that it fits), some
    draws, the mean of all draws, and their standard deviation at every pixel, brightest where it is largest.

    Args:
        path: the PNG file.
        scorer: the scorer of a restoration job.
        table: the rows of its file.
        n: the number of items.
        draws: the number of draws that are shown.

    Returns:
        Whether the file was written: other data than images has no picture.
    """
    if len(scorer.model.shape) != 3:
        return False
    index, values, truth = (torch.from_numpy(v) for v in drawn(table, scorer.split))
    index, values, truth = index[:n], values[:, :n], truth[:n]
    operator, y = measure(scorer.task, truth, index, scorer.seed)
    seen = y if y.shape == truth.shape else operator.adjoint(operator.solve(y, 1.0, 0.0))
    spread = values.std(0, correction=0)
    levels = scorer.model.scaling.levels
    low, high = (0.0, levels - 1.0) if levels else (float(truth.min()), float(truth.max()))
    spread = low + (high - low) * spread / spread.max().clamp(min=1e-12)
    shown = values[:draws]
    columns = [truth, seen.clamp(low, high), *shown, values.mean(0), spread]
    titles = ["truth", "measured", *(f"draw {k + 1}" for k in range(len(shown))), "mean", "deviation"]
    image = enlarged_grid(torch.stack(columns, 1).flatten(0, 1), scorer.model.scaling, len(columns))
    image_figure(image, titles).savefig(path)
    return True
