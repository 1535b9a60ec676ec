r"""Forecast: the cost of a likelihood job, predicted from two of its batches."""

from __future__ import annotations

__all__ = ["Forecast", "forecast"]

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..likelihood.error_budget import budget_calls
from ..likelihood.flow import DensityFlow
from ..profiling import Memory, Metered, now
from ..runtime import exact_float32
from ..sampling import evaluating, state_like
from ..shapes import float64
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
        budget: the largest number of calls that the error budget takes, included in `calls` and `seconds`.
    """

    rows: int
    nfe: float
    calls: float
    seconds: float
    bytes: int
    pilot: int
    budget: float = 0.0

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds), 60)
        budget = f", and at most {self.budget:.3g} for the error budget" if self.budget else ""
        return (
            f"{self.rows} rows, {self.calls:.3g} network calls ({self.nfe:.1f} a row{budget}), about "
            f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} (h:mm:ss), {self.bytes / 2**20:.3g} MiB; "
            f"predicted from {self.pilot} rows, nothing was written"
        )


def forecast(scorer: FlowScorer, plan: BatchPlan, done: Done = nothing_done, *, budget: int = 0) -> Forecast:
    """Predicts network calls, time and memory from the first two unfinished batches.

    The first batch shows the memory and includes one-time costs; the time of a row is that of the second batch. If
    there is one batch only, it shows both.

    Args:
        scorer: the scorer.
        plan: the batches.
        done: the finished rows.
        budget: the number of samples that are solved again for the error budget.
    """
    model, metered = scorer.model, Metered(scorer.model.denoiser)
    batches = replace(scorer, model=replace(model, denoiser=metered)).score(plan, done)
    rows, again = plan.pending(done), torch.arange(min(budget, plan.samples), device="cpu")
    if rows == 0 and not len(again):
        return Forecast(0, 0.0, 0.0, 0.0, 0, 0)
    device = state_like(model.denoiser).device
    start = now(device)
    with Memory(metered) as memory:
        pilot = [next(batches) if rows else scorer.rows(again, 0)]
    middle = now(device)
    pilot += [batch for _, batch in zip(range(1), batches)]
    seconds = (now(device) - middle if len(pilot) > 1 else middle - start) / len(pilot[-1]["nfe"])
    parameters = sum(p.numel() * p.element_size() for p in model.denoiser.parameters())
    nfe = float(np.concatenate([batch["nfe"] for batch in pilot]).mean())
    size = sum(len(batch["nfe"]) for batch in pilot)
    calls = budget_calls(len(again), nfe)
    total = seconds * rows + (_seconds_of_call(scorer, again) * calls / len(again) if len(again) else 0.0)
    return Forecast(rows, nfe, math.ceil(nfe * rows + calls), total, parameters + memory.peak, size, calls)


def _seconds_of_call(scorer: FlowScorer, index: Tensor) -> float:
    """The seconds of a network call in the error budget, which is made for all of its samples at once."""
    batch, condition = scorer.batch(index)
    process, x = scorer.model.process, batch.x.double()
    how: dict[str, Any] = {"seed": scorer.seed, "index": batch.keys, "condition": condition}
    with torch.no_grad(), exact_float32(), evaluating(scorer.model.denoiser):
        flow, times = DensityFlow(scorer.model.denoiser, x, scorer.trace, **how), []
        for _ in range(2):  # the first one may be slower
            start = now(x.device)
            flow.dynamics.drift(flow.start, float64(process.t_max))
            times.append(now(x.device) - start)
    return min(times)
