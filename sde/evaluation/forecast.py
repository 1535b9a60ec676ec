r"""What a job will cost, from two of its batches."""

from __future__ import annotations

__all__ = ["Forecast", "forecast"]

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..data import Split
from ..model import Model
from ..profiling import Memory, Metered, now
from ..sampling import state_like
from .likelihood_job import score
from .sharding import WHOLE, Done, Share, nothing_done


@dataclass(frozen=True)
class Forecast:
    """The cost of a job, or of one process's share of it.

    Attributes:
        rows: how many rows there are to compute.
        nfe: the network calls of a row, as the mean over the pilot's rows.
        calls: the network calls of all rows together, each for one sample.
        seconds: the time.
        bytes: the most memory that parameters, states and activations take at once, as far as they are tensors.
        pilot: how many rows the pilot computed.
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


def forecast(
    model: Model,
    split: Split,
    *,
    repeats: int = 1,
    batch_size: int = 128,
    n: int | None = None,
    share: Share = WHOLE,
    done: Done = nothing_done,
    **settings: Any,
) -> Forecast:
    """Predicts calls, time and memory from the first two batches that are not done.

    The first shows the memory, and pays for what happens once; the second, by the clock, the time of a row. A job of
    one batch shows both by it.

    Args:
        model: the model.
        split: the data, raw values.
        repeats: as in :func:`sde.evaluation.likelihood_job.score`, like the arguments that follow.
        batch_size: samples at a time.
        n: score the first n samples only.
        share: which batches.
        done: what need not be scored again.
        settings: `seed`, `solver`, `trace`, `atol`, `dequantiser`.
    """
    metered = Metered(model.denoiser)
    counted = replace(model, denoiser=metered)
    which: dict[str, Any] = {"repeats": repeats, "batch_size": batch_size, "n": n, "share": share, "done": done}
    batches = score(counted, split, **which, **settings)
    rows = share.pending(len(split) if n is None else n, repeats, batch_size, done)
    if rows == 0:
        return Forecast(0, 0.0, 0.0, 0.0, 0, 0)
    device = state_like(model.denoiser).device
    start = now(device)
    with Memory(metered) as memory:
        pilot = [next(batches)]
    middle = now(device)
    pilot += [part for _, part in zip(range(1), batches)]
    seconds = (now(device) - middle if len(pilot) > 1 else middle - start) / len(pilot[-1]["index"])
    parameters = sum(p.numel() * p.element_size() for p in model.denoiser.parameters())
    nfe = float(np.concatenate([part["nfe"] for part in pilot]).mean())
    size = sum(len(part["index"]) for part in pilot)
    return Forecast(rows, nfe, math.ceil(nfe * rows), seconds * rows, parameters + memory.peak, size)
