r"""Scoring a whole data set: batches fixed by index, rows that do not depend on when or where they were computed."""

from __future__ import annotations

__all__ = ["COLUMNS", "Rows", "Summary", "check_data", "join", "score", "states", "summarise", "tuned"]

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import Split
from ..dynamics import Reverse, WithLogDensity
from ..likelihood.dequantisation import Dequantised, Dequantiser, UniformDequantiser, dequantise
from ..likelihood.flow import default_solver, log_prob
from ..model import Model
from ..noise import Noise
from ..runtime import exact_float32
from ..sampling import state_like
from ..solvers import GridSteps, Solver
from ..solvers.base import FixedStep
from ..trace import Hutchinson, Trace
from ..tuning import load_grid, save_grid, tune_grid
from .sharding import WHOLE, Done, Share, nothing_done

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
    dequantiser: Dequantiser | None = None,
    share: Share = WHOLE,
    done: Done = nothing_done,
) -> Iterator[Rows]:
    r"""The rows of one batch after another: every sample once per repeat.

    With the density q of states and the weight w of the dequantisation (:mod:`sde.likelihood.dequantisation`), a row is

    .. math:: \text{bits/dim} = -\frac{\log q(x) + w}{D \log 2} .

    What does not fit is refused at once, before the first batch is asked for and the network is called.

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
        dequantiser: how discrete values become continuous; uniform noise by default.
        share: which batches; all by default.
        done: for a repeat the indices that need not be scored again; a batch all of whose samples are done is left out.

    Returns:
        A generator of the rows of a batch, by column.

    Raises:
        ValueError: if the data is not the model's (its shape, levels or labels), is empty or not finite, a number makes
            no sense, or the solver cannot serve.
    """
    check_data(model, split)
    total = len(split) if n is None else n
    counts = (repeats, batch_size, total)
    if not all(type(count) is int and count >= 1 for count in counts) or total > len(split):
        raise ValueError(
            f"score needs repeats >= 1, batch_size >= 1 and 1 <= n <= {len(split)} (the samples there are), "
            f"got repeats={repeats!r}, batch_size={batch_size!r}, n={n!r}"
        )
    if dequantiser is not None and model.scaling.levels is None:
        raise ValueError(
            f"this model is of continuous data, which is not dequantised: expected none, got {dequantiser}"
        )
    solver = default_solver(state_like(model.denoiser).dtype) if solver is None else solver
    trace = Hutchinson() if trace is None else trace
    if atol is not None and (isinstance(solver, FixedStep) or not atol > 0.0):
        raise ValueError(f"expected atol > 0 for an adaptive solver, or None, got atol={atol} for {solver}")
    process, one = model.process, torch.zeros(1, *model.shape)
    flow = Reverse(model.denoiser, eta=0.0)
    probe = trace.bind(Noise(seed), torch.zeros(1, dtype=torch.int64), one)
    solver.bind(WithLogDensity(flow, probe), process.t_min, process.t_max)
    settings = {"solver": solver, "trace": trace, "atol": atol}

    def rows() -> Iterator[Rows]:
        for repeat, index, new in share.batches(total, repeats, batch_size, done):
            whole = _score_batch(model, split, index, repeat, seed, dequantiser, settings)
            # Computed whole even where a part of it is done: its rows are those of an undisturbed job.
            yield {name: values[new.numpy()] for name, values in whole.items()}

    return rows()


def states(
    model: Model,
    split: Split,
    index: Tensor,
    *,
    dequantiser: Dequantiser | None = None,
    seed: int = 0,
    repeat: int = 0,
) -> tuple[Dequantised, dict[str, Tensor]]:
    """Samples as a model takes them: states, the weights that go with them, and the condition, on the model's device.

    Args:
        model: the model.
        split: the data, raw values.
        index: which samples, int64 with shape (B,).
        dequantiser: as in :func:`score`.
        seed: the seed of the dequantisation.
        repeat: which draw of it.
    """
    like, values = state_like(model.denoiser), split.values[index]
    if model.scaling.levels is None:
        volume = torch.full((len(index),), model.scaling.log_det(math.prod(model.shape)), dtype=torch.float64)
        made = Dequantised(model.scaling.to_model(values, dtype=like.dtype), volume)
    else:
        rule = UniformDequantiser() if dequantiser is None else dequantiser
        with exact_float32():  # learned noise comes of a network
            made = dequantise(rule, values, model.scaling, seed=seed, index=index, repeat=repeat, dtype=like.dtype)
    condition = {}
    if model.classes is not None and split.labels is not None:
        condition["label"] = split.labels[index].to(like.device)
    return Dequantised(made.x.detach().to(like.device), made.log_weight.detach()), condition


def tuned(
    model: Model,
    split: Split,
    solver: GridSteps,
    trace: Trace | None = None,
    directory: str | os.PathLike[str] | None = None,
    *,
    pilot: int = 64,
    seed: int = 0,
    keep: bool = True,
) -> GridSteps:
    """The solver on the grid that a pilot run on data designs for a model's likelihoods; see :func:`sde.tune_grid`.

    Args:
        model: the model.
        split: the samples of the pilot, best those of training.
        solver: a deterministic solver of fixed steps.
        trace: as in :func:`score`.
        directory: a run directory, which keeps the grid in `grids/`: one that is there for just this solver is used.
        pilot: the pilot takes the first so many samples.
        seed: the seed of its dequantisation and probes.
        keep: whether to write a new grid there.
    """
    if not isinstance(solver, GridSteps):
        raise ValueError(
            f"a grid is tuned for a solver of fixed steps, got {solver}: leave pilot out, or take heun, ..."
        )
    check_data(model, split)
    if type(pilot) is not int or not 1 <= pilot <= len(split):
        raise ValueError(f"expected 1 <= pilot <= {len(split)} (the samples there are), got pilot={pilot!r}")
    grid = None if directory is None else load_grid(directory, solver, data=True)
    if grid is None:
        made, condition = states(model, split, torch.arange(pilot), seed=seed)
        grid = tune_grid(model.denoiser, data=made.x, solver=solver, trace=trace, condition=condition, seed=seed)
        if directory is not None and keep:
            save_grid(directory, solver, grid, data=True)
    return replace(solver, grid=grid)


def check_data(model: Model, split: Split) -> None:
    """Refuses data that is not the model's: its shape, its values or its labels."""
    values, levels = split.values, model.scaling.levels
    if tuple(values.shape[1:]) != model.shape:
        raise ValueError(
            f"this model is for data of shape (B, {', '.join(map(str, model.shape))}), got {tuple(values.shape)}"
        )
    if levels is None and not values.is_floating_point():
        raise ValueError(f"this model is of continuous values: expected a floating dtype, got {values.dtype}")
    model.scaling.check(values, "the data")
    if model.classes is not None and split.labels is None:
        raise ValueError(f"this model is told one of {model.classes} classes, and the data has no labels")
    if model.classes is not None and split.labels is not None and int(split.labels.max()) >= model.classes:
        raise ValueError(f"this model is told one of {model.classes} classes, and a label is {int(split.labels.max())}")


def _score_batch(
    model: Model,
    split: Split,
    index: Tensor,
    repeat: int,
    seed: int,
    dequantiser: Dequantiser | None,
    settings: Mapping[str, Any],
) -> Rows:
    made, condition = states(model, split, index, dequantiser=dequantiser, seed=seed, repeat=repeat)
    with exact_float32():
        # Repeats differ in their probes too: each takes its own range of keys.
        keys = index + repeat * 2**40
        r = log_prob(model.denoiser, made.x, seed=seed, index=keys, condition=condition, **settings)
    rows = {
        "index": index,
        "repeat": torch.full_like(index, repeat),
        "bits_per_dim": -(r.nats.double().cpu() + made.log_weight) / (math.prod(model.shape) * math.log(2.0)),
        "log_prob": r.nats,
        "prior_log_prob": r.prior,
        "divergence": r.divergence,
        "standard_error": r.standard_error,
        "nfe": r.nfe,
    }
    return {name: value.cpu().numpy() for name, value in rows.items()}


def join(*parts: Mapping[str, NDArray[Any]]) -> Rows:
    """Rows one after another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class Summary:
    """A data set's result; rows that failed, whose log-density is not finite, are counted and else left out.

    Attributes:
        bits_per_dim: the mean over samples of each one's mean over repeats; NaN if every row failed.
        standard_error: of that mean, over samples; NaN for a single one.
        nfe: the mean network calls of a row.
        samples: how many samples.
        rows: how many rows, failed ones included.
        failed: how many of them failed.
    """

    bits_per_dim: float
    standard_error: float
    nfe: float
    samples: int
    rows: int
    failed: int = 0

    @property
    def short(self) -> str:
        """The mean with its standard error."""
        return f"{self.bits_per_dim:.4f} +- {self.standard_error:.4f} bits/dim"

    def __str__(self) -> str:
        failed = f"; {self.failed} of {self.rows} rows failed and are left out" if self.failed else ""
        return (
            f"{self.short} "
            f"(mean and standard error over {self.samples} samples, {self.nfe:.1f} network calls each{failed})"
        )


def summarise(columns: Mapping[str, NDArray[Any]]) -> Summary:
    """The summary of the rows of a likelihood file."""
    if len(columns["index"]) == 0:
        raise ValueError("there is no row to summarise yet")
    good = np.isfinite(columns["bits_per_dim"])
    failed = len(good) - int(good.sum())
    if failed == len(good):
        return Summary(math.nan, math.nan, math.nan, 0, len(good), failed)
    index, place = np.unique(columns["index"][good], return_inverse=True)
    means = np.bincount(place, weights=columns["bits_per_dim"][good]) / np.bincount(place)
    error = means.std(ddof=1) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    calls = columns["nfe"][good].mean()
    return Summary(float(means.mean()), float(error), float(calls), len(index), len(good), failed)
