r"""Forecast: the cost of a likelihood job, predicted from two of its batches."""

from __future__ import annotations

__all__ = ["Forecast", "forecast"]

import math
from dataclasses import dataclass, replace

import numpy as np

from ..profiling import Memory, Metered, now
from ..sampling import state_like
from .likelihood_job import FlowScorer
from .sharding import BatchPlan, Done, nothing_done


@dataclass(frozen=True)
class Forecast:
    """The cost of a job, or of the part of one of its processes.

    Attributes:
        rows: the number of rows to compute.
        nfe: the network calls of a row, the mean over the rows of the pilot.
        calls: the network calls of all rows together, each for one sample.
        seconds: the time.
        bytes: the peak memory of parameters, states and activations, as far as they are tensors.
        pilot: the number of rows that the pilot computed.
    """

    rows: int
    nfe: float
    calls: float
    seconds: float
    bytes: int
    pilot: int

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds), 60)
        return (
            f"{self.rows} rows, {self.calls:.3g} network calls ({self.nfe:.1f} a row), about "
            f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} (h:mm:ss), {self.bytes / 2**20:.3g} MiB; "
            f"predicted from {self.pilot} rows, nothing was written"
        )


def forecast(scorer: FlowScorer, plan: BatchPlan, done: Done = nothing_done) -> Forecast:
    """Predicts network calls, time and memory from the first two unfinished batches.

    The first batch shows the memory and includes one-time costs; the time of a row is that of the second batch. If
    there is one batch only, it shows both.

    Args:
        scorer: the scorer.
        plan: the batches.
        done: the finished rows.
    """
    model, metered = scorer.model, Metered(scorer.model.denoiser)
    batches = replace(scorer, model=replace(model, denoiser=metered)).score(plan, done)
    rows = plan.pending(done)
    if rows == 0:
        return Forecast(0, 0.0, 0.0, 0.0, 0, 0)
    device = state_like(model.denoiser).device
    start = now(device)
    with Memory(metered) as memory:
        pilot = [next(batches)]
    middle = now(device)
    pilot += [batch for _, batch in zip(range(1), batches)]
    seconds = (now(device) - middle if len(pilot) > 1 else middle - start) / len(pilot[-1]["index"])
    parameters = sum(p.numel() * p.element_size() for p in model.denoiser.parameters())
    nfe = float(np.concatenate([batch["nfe"] for batch in pilot]).mean())
    size = sum(len(batch["index"]) for batch in pilot)
    return Forecast(rows, nfe, math.ceil(nfe * rows), seconds * rows, parameters + memory.peak, size)
