"""What else a job's bits/dim rest on: the error budget of some of its samples, in bits/dim."""

from __future__ import annotations

__all__ = ["Errors", "errors_of", "some"]

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import Split
from ..likelihood.dequantisation import Dequantiser
from ..likelihood.error_budget import ErrorBudget, error_budget
from ..likelihood.flow import log_prob
from ..model import Model
from ..runtime import exact_float32
from ..solvers import Solver
from ..trace import Trace
from .likelihood_job import states


@dataclass(frozen=True)
class Errors:
    """An error budget in bits/dim.

    Attributes:
        budget: the budget in nats.
        dims: the dimensions of a sample.
    """

    budget: ErrorBudget
    dims: int

    def bits(self, nats: float) -> float:
        """Nats of a sample as bits/dim."""
        return nats / (self.dims * math.log(2.0))

    def __str__(self) -> str:
        b = self.budget
        probes = self.bits(b.probes.mean().item())
        spread = "unknown with one probe" if math.isnan(probes) else f"+- {probes:.2g}"
        return (
            f"99 % half-widths of an image in bits/dim, from {len(b.rows)} images solved again: solver +- "
            f"{self.bits(b.solver.mean().item()):.2g}, probes {spread}; on the mean: at most "
            f"{self.bits(b.prior_mismatch):.2g} by the prior, {self.bits(b.truncation.value):+.2g} +- "
            f"{self.bits(b.truncation.half_width):.2g} by tripling t_min"
        )


def some(columns: Mapping[str, NDArray[Any]], rows: int) -> Tensor:
    """So many of the samples of a job that came out finite, evenly spread, int64."""
    index = np.unique(columns["index"][np.isfinite(columns["bits_per_dim"]) & (columns["repeat"] == 0)])
    places = np.unique(np.linspace(0, max(len(index) - 1, 0), min(rows, len(index))).round().astype(np.int64))
    return torch.from_numpy(index[places].astype(np.int64))


def errors_of(
    model: Model,
    split: Split,
    index: Tensor,
    *,
    solver: Solver,
    trace: Trace,
    seed: int = 0,
    atol: float | None = None,
    dequantiser: Dequantiser | None = None,
) -> Errors:
    """Solves some samples of a split again, and finer.

    Args:
        model: the model.
        split: the data, raw values.
        index: which samples, int64.
        solver: as in :func:`sde.evaluation.likelihood_job.score`, like what follows.
        trace: as there.
        seed: as there.
        atol: as there.
        dequantiser: as there.
    """
    made, condition = states(model, split, index, dequantiser=dequantiser, seed=seed)
    call: dict[str, Any] = {
        "solver": solver,
        "trace": trace,
        "seed": seed,
        "index": index,
        "condition": condition,
        "atol": atol,
    }
    with exact_float32():
        result = log_prob(model.denoiser, made.x, **call)
        return Errors(
            error_budget(model.denoiser, made.x, result, rows=len(index), **call),
            math.prod(model.shape),
        )
