"""Validation: the loss of other data, as a whole and by noise level."""

from __future__ import annotations

__all__ = ["Validation", "validate"]

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data import Scaling
from ..denoisers import Denoiser
from ..noise import Noise
from ..objective import Objective
from ..sampling import evaluating
from ..shapes import recording
from .batches import Batch, BatchSource
from .iterated import Iterated
from .loss import Loss, Rows, draws, prepare
from .ranks import anywhere, rank, size, total


@dataclass(frozen=True)
class Validation:
    """The loss of a data set.

    Attributes:
        loss: the mean.
        levels: the mean within equal parts of the objective's distribution of times, from data to noise; NaN for a
            part without a sample.
    """

    loss: float
    levels: tuple[float, ...]


def validate(
    denoiser: Denoiser,
    objective: Objective,
    batches: BatchSource | Iterable[Any],
    scaling: Scaling | None = None,
    *,
    seed: int = 0,
    conditions: Sequence[str] | None = None,
) -> float:
    """The mean loss over one epoch of other data, with the same noise at every call.

    Args:
        denoiser: the model.
        objective: the loss.
        batches: as in :class:`Training`, like the arguments that follow.
        scaling: the map between the data units of the batches and the model's range.
        seed: the seed of times and noise.
        conditions: the names of the conditions that the denoiser takes.
    """
    source = batches if isinstance(batches, BatchSource) else Iterated(batches, seed=seed)
    return losses_of(Loss(denoiser, objective), source, scaling, seed=seed, conditions=conditions).loss


@recording(False)
def losses_of(
    loss: Loss,
    source: BatchSource,
    scaling: Scaling | None,
    *,
    seed: int = 0,
    conditions: Sequence[str] | None = None,
    levels: int = 1,
    spare: Batch | None = None,
) -> Validation:
    """The losses over one epoch; the arguments are those of :func:`validate`.

    Args:
        source: the batches of this rank: number `rank + i * size` of the epoch is its i-th.
        levels: the number of parts of the distribution of times.
        spare: a batch for the forward passes of a rank that has no batch left, whose losses do not count. The ranks
            take equally many forward passes, in which those with parts of the weights meet.
    """
    noise, sums = Noise(seed), torch.zeros(2, levels + 1, dtype=torch.float64, device="cpu")
    remaining, number = iter(source.epoch()), rank()
    batch = next(remaining, None)
    with evaluating(loss):
        while anywhere(batch is not None) and (shown := batch or spare) is not None:
            x0, condition = prepare(loss.denoiser, shown, scaling, source.noise, conditions)
            u, z = draws(noise, number, x0, Rows(0, len(x0), len(x0)))
            values = loss(x0, u, z, condition)
            if batch is not None:
                sums[0, 0] += values.sum().item()
                sums[1, 0] += len(x0)
                bins = (u.double() * levels).long().cpu() + 1
                sums[0].index_add_(0, bins, values.double().cpu())
                sums[1].index_add_(0, bins, torch.ones_like(bins, dtype=torch.float64))
            batch, number = next(remaining, None), number + size()
    sums = total(sums)
    means = [value / count if count else math.nan for value, count in zip(*sums.tolist())]
    return Validation(means[0], tuple(means[1:]))
