r"""Pictures of restorations: the truth, the measurement, draws, and their mean and standard deviation per pixel."""

from __future__ import annotations

__all__ = ["restoration_rows", "save_restorations"]

import os

import torch
from torch import Tensor

from ..data import Scaling
from ..evaluation.restoration_job import RestorationScorer, drawn
from ..evaluation.restoration_tasks import Task, measure
from ..evaluation.summary import Columns
from .figures import image_figure
from .samples import enlarged_grid

HIDDEN = (0.25, 0.35, 0.6)  # red, green and blue of pixels that are not measured


def restoration_rows(
    task: Task, scaling: Scaling, index: Tensor, truth: Tensor, values: Tensor, *, draws: int = 3, seed: int = 0
) -> tuple[Tensor, list[str]]:
    """A row of images for each item, (N, columns, C, H, W), and the titles of the columns.

    They are the truth, the measurement (as an image of its own size, or the smallest data that it fits; what is hidden
    is blue), some draws, the mean of all draws, and their standard deviation at every pixel, brightest where it is
    largest. Grey images have three channels.

    Args:
        task: the measurement that was made.
        scaling: the scaling of the data.
        index: the positions of the items, int64 with shape (N,).
        truth: the items, with shape (N, C, H, W).
        values: the draws, with shape (R, N, C, H, W).
        draws: the number of draws that are shown.
        seed: the seed of masks and noise.
    """
    operator, y = measure(task, truth, index, seed)
    if y.shape[1] == 1 and y.shape[2:] == truth.shape[2:]:
        y = y.expand_as(truth)
    seen = y if y.shape == truth.shape else operator.adjoint(operator.solve(y, 1.0, 0.0))
    low, high = (0.0, scaling.levels - 1.0) if scaling.levels else (float(truth.min()), float(truth.max()))
    spread = values.std(0, correction=0)
    spread = low + (high - low) * spread / spread.max().clamp(min=1e-12)
    shown = values[:draws]
    columns = [truth, seen.clamp(low, high), *shown, values.mean(0), spread]
    titles = ["truth", "measured", *(f"draw {k + 1}" for k in range(len(shown))), "mean", "deviation"]
    images = torch.stack([column.double() for column in columns], 1)
    if truth.shape[1] == 1:
        images = images.repeat(1, 1, 3, 1, 1)
    rows = operator.measured(y)
    if rows is not None and y.shape == truth.shape and images.shape[2] == 3:
        paint = low + (high - low) * images.new_tensor(HIDDEN)[:, None, None]
        images[:, 1] = torch.where(rows.expand(truth.shape), images[:, 1], paint)
    return images, titles


def save_restorations(
    path: str | os.PathLike[str], scorer: RestorationScorer, table: Columns, *, n: int = 6, draws: int = 3
) -> bool:
    """Writes a picture of :func:`restoration_rows` with titled columns.

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
    scaling = scorer.model.scaling
    index, values, truth = (torch.from_numpy(v) for v in drawn(table, scorer.split))
    images, titles = restoration_rows(
        scorer.task, scaling, index[:n], truth[:n], values[:, :n], draws=draws, seed=scorer.seed
    )
    image = enlarged_grid(images.flatten(0, 1), scaling, len(titles))
    image_figure(image, titles).savefig(path)
    return True
