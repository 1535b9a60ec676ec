r"""Scoring a whole data set: batches fixed by index, rows that do not depend on when they were computed."""

from __future__ import annotations

__all__ = ["COLUMNS", "Summary", "score", "summarise"]

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import Split
from ..dynamics import Reverse, WithLogDensity
from ..noise import Noise
from ..sampling import state_like
from ..solvers import RungeKutta, Solver
from ..trace import Hutchinson, Trace

if TYPE_CHECKING:
    from ..model import Model

# The columns of a likelihood file beside `index` and `repeat`.
COLUMNS = {
    "bits_per_dim": np.float64,
    "log_prob": np.float64,
    "prior_log_prob": np.float64,
    "divergence": np.float64,
    "standard_error": np.float64,
    "nfe": np.int64,
}

Rows = dict[str, NDArray[Any]]


def score(
    model: Model,
    split: Split,
    *,
    repeats: int = 1,
    batch_size: int = 128,
    n: int | None = None,
    seed: int = 0,
    solver: Solver | None = None,
    trace: Trace | None = None,
    atol: float | None = None,
    done: Callable[[int], frozenset[int]] = lambda repeat: frozenset(),
) -> Iterator[Rows]:
    """The rows of one batch after another: every sample once per repeat.

    What does not fit is refused at once, before the first batch is asked for.

    Args:
        model: the model.
        split: the data, raw values.
        repeats: how many draws of dequantisation noise and probes for each sample.
        batch_size: samples at a time.
        n: score the first n samples only.
        seed: the seed of dequantisation and probes.
        solver: as in :func:`sde.log_prob`.
        trace: as in :func:`sde.log_prob`.
        atol: as in :func:`sde.log_prob`.
        done: for a repeat the indices that need not be scored again; a batch all of whose samples are done is left out.

    Returns:
        A generator of the rows of a batch, by column.

    Raises:
        ValueError: if the data is not of the model's shape, a number makes no sense, or the solver cannot serve.
    """
    total = len(split) if n is None else n
    if not (repeats >= 1 and batch_size >= 1 and 1 <= total <= len(split)):
        raise ValueError(
            f"score needs repeats >= 1, batch_size >= 1 and 1 <= n <= {len(split)} (the samples there are), "
            f"got repeats={repeats}, batch_size={batch_size}, n={n}"
        )
    solver = RungeKutta() if solver is None else solver
    trace = Hutchinson() if trace is None else trace
    if tuple(split.values.shape[1:]) != model.shape:
        raise ValueError(
            f"this model is for data of shape (B, {', '.join(map(str, model.shape))}), got {tuple(split.values.shape)}"
        )
    if model.classes is not None and split.labels is None:
        raise ValueError(f"this model is told one of {model.classes} classes, and the data has no labels")
    process, one = model.process, torch.zeros(1, *model.shape)
    flow = Reverse(model.denoiser, eta=0.0)
    probe = trace.bind(Noise(seed), torch.zeros(1, dtype=torch.int64), one)
    solver.bind(WithLogDensity(flow, probe), process.t_min, process.t_max)

    def rows() -> Iterator[Rows]:
        for repeat in range(repeats):
            ready = done(repeat)
            for index in torch.arange(total).split(batch_size):
                if not ready.issuperset(index.tolist()):
                    yield _score_batch(model, split, index, repeat, ready, seed, solver, trace, atol)

    return rows()


def _score_batch(
    model: Model,
    split: Split,
    index: Tensor,
    repeat: int,
    ready: frozenset[int],
    seed: int,
    solver: Solver,
    trace: Trace,
    atol: float | None,
) -> Rows:
    condition = {}
    if model.classes is not None and split.labels is not None:
        condition["label"] = split.labels[index].to(state_like(model.denoiser).device)
    settings = {"solver": solver, "trace": trace, "atol": atol, "condition": condition}
    r = model.log_prob(split.values[index], seed=seed, index=index, repeat=repeat, **settings)
    rows = {
        "index": index,
        "repeat": torch.full_like(index, repeat),
        "bits_per_dim": model.scaling.bits_per_dim(r.nats.double(), math.prod(model.shape)),
        "log_prob": r.nats,
        "prior_log_prob": r.prior,
        "divergence": r.divergence,
        "standard_error": r.standard_error,
        "nfe": r.nfe,
    }
    # A batch is computed whole even where a part of it is done: its rows are those of an undisturbed job.
    new = torch.tensor([i not in ready for i in index.tolist()])
    return {name: value.cpu()[new].numpy() for name, value in rows.items()}


@dataclass(frozen=True)
class Summary:
    """A data set's result.

    Attributes:
        bits_per_dim: the mean over samples of each one's mean over repeats.
        standard_error: of that mean, over samples; NaN for a single one.
        nfe: the mean network calls of a row.
        samples: how many samples.
        rows: how many rows.
    """

    bits_per_dim: float
    standard_error: float
    nfe: float
    samples: int
    rows: int

    def __str__(self) -> str:
        return (
            f"{self.bits_per_dim:.4f} +- {self.standard_error:.4f} bits/dim "
            f"(mean and standard error over {self.samples} samples, {self.nfe:.1f} network calls each)"
        )


def summarise(columns: Mapping[str, NDArray[Any]]) -> Summary:
    """The summary of the rows of a likelihood file."""
    index, place = np.unique(columns["index"], return_inverse=True)
    if len(index) == 0:
        raise ValueError("there is no row to summarise yet")
    means = np.bincount(place, weights=columns["bits_per_dim"]) / np.bincount(place)
    error = means.std(ddof=1) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    return Summary(float(means.mean()), float(error), float(columns["nfe"].mean()), len(index), len(place))
