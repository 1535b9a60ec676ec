r"""The likelihood job: bits/dim of a data set along the probability flow.

Batches are fixed by index, and the rows do not depend on when or where they are computed. With the density q of the
states and the log-weight w of their dequantisation or scaling (:mod:`sde.likelihood.dequantisation`), a row has

.. math:: \text{bits/dim} = -\frac{\log q(x) + w}{D \log 2} .
"""

from __future__ import annotations

__all__ = [
    "FlowScorer",
    "accuracy_asked",
    "batch_states",
    "budget_report",
    "check_data",
    "error_budget_of",
    "flow_scorer",
    "likelihood_jobs",
    "pinned",
    "report",
]

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from ..data import Source
from ..data.dataset import check_labels
from ..likelihood.dequantisation import Dequantiser, States, states
from ..likelihood.error_budget import ErrorBudget, error_budget
from ..likelihood.flow import DensityFlow, LogProb, check_unguided, default_solver, log_prob, tolerance
from ..model import Model
from ..runtime import exact_float32
from ..sampling import state_like
from ..shapes import check_count, check_event
from ..solvers import RungeKutta, Solver
from ..storage.results import Plain, read
from ..trace import Trace
from .importance_weighting import is_exact, weighted_bound
from .job import Job, Scorer
from .job_setup import JobSetup, tolerance_of
from .out_of_distribution import detect
from .summary import Columns, Rows, nats_and_error, summarise

# The columns of a likelihood file beside `index` and `repeat`, name to dtype.
_FLOATS = ("bits_per_dim", "log_prob", "prior_log_prob", "divergence", "standard_error")
COLUMNS: Mapping[str, DTypeLike] = {**dict.fromkeys(_FLOATS, np.float64), "nfe": np.int64}


@dataclass(frozen=True)
class FlowScorer(Scorer):
    """The log-density of samples along the probability flow.

    Args:
        model: the model.
        split: the data, raw values.
        seed: the seed of dequantisation and probes.
        solver, trace, atol: as in :func:`sde.log_prob`.
        dequantiser: the noise for discrete data; uniform by default.
        guided: whether a guided model has the density of its flow.

    Raises:
        ValueError: if the shape, values or labels of the data do not fit the model, the solver cannot integrate the
            flow, or the model is guided without `guided`. No network call is made.
    """

    model: Model
    split: Source
    seed: int = 0
    solver: Solver | None = None
    trace: Trace | None = None
    atol: float | None = None
    dequantiser: Dequantiser | None = None
    guided: bool = False

    def __post_init__(self) -> None:
        model = self.model
        check_data(model, self.split)
        if not self.guided:
            check_unguided(model.denoiser, "; guided=true scores the flow itself, from which its samples come")
        if self.dequantiser is not None and model.scaling.levels is None:
            raise ValueError(f"continuous data is not dequantised: expected no dequantiser, got {self.dequantiser}")
        solver = _solver_of(self)
        tolerance(solver, math.prod(model.shape), self.atol)
        flow = DensityFlow(model.denoiser, torch.zeros(1, *model.shape, device="cpu"), self.trace)
        solver.bind(flow.dynamics, model.process.t_min, model.process.t_max)

    @property
    def columns(self) -> Mapping[str, DTypeLike]:
        return COLUMNS

    @property
    def shown(self) -> Sequence[str]:
        return ["bits_per_dim"]

    def rows(self, index: Tensor, repeat: int) -> Rows:
        batch, condition = self.batch(index, repeat)
        r = self.log_prob(batch, condition)
        values = (batch.bits_per_dim(r.nats), r.nats, r.prior, r.divergence, r.standard_error, r.nfe)
        return {name: column.cpu().numpy() for name, column in zip(COLUMNS, values)}

    def batch(self, index: Tensor, repeat: int = 0) -> tuple[States, dict[str, Tensor]]:
        """The states of some samples and their condition."""
        return batch_states(self.model, self.split, index, self.dequantiser, seed=self.seed, repeat=repeat)

    def log_prob(self, batch: States, condition: Mapping[str, Tensor]) -> LogProb:
        """The log-density of states, in nats."""
        with exact_float32():
            call: dict[str, Any] = {"index": batch.keys, "condition": condition, "guided": self.guided}
            return log_prob(self.model.denoiser, batch.x, **call, **self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as arguments of :func:`sde.log_prob`."""
        return {"solver": self.solver, "trace": self.trace, "atol": self.atol, "seed": self.seed}


def batch_states(
    model: Model,
    split: Source,
    index: Tensor,
    dequantiser: Dequantiser | None = None,
    *,
    seed: int = 0,
    repeat: int = 0,
) -> tuple[States, dict[str, Tensor]]:
    """The states of some samples of a split and their condition, on the model's device.

    Args:
        model: the model.
        split: the data, raw values.
        index: the samples, int64 with shape (B,).
        dequantiser, seed, repeat: as in :func:`sde.likelihood.dequantisation.states`.
    """
    draw: dict[str, Any] = {"dequantiser": dequantiser, "seed": seed, "index": index, "repeat": repeat}
    values, condition = split[index]
    with torch.no_grad():
        return states(model.denoiser, model.scaling, values, **draw), condition_of(model, condition)


def condition_of(model: Model, condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The conditions of some samples that the model takes: their labels, if it has classes, and others by name."""
    takes = model.denoiser.takes or {}
    names = [n for n in condition if n in takes or (n == "label" and model.classes is not None)]
    device = state_like(model.denoiser).device
    return {name: condition[name].to(device) for name in names if name != "label" or model.classes is not None}


def check_data(model: Model, split: Source) -> None:
    """Refuses data whose shape, values or labels do not fit the model."""
    values = split.extent
    check_event(values, model.shape)
    if model.scaling.levels is None and not values.is_floating_point():
        raise ValueError(f"this model is for continuous values: expected a floating dtype, got {values.dtype}")
    split.check(model.scaling, "the data")
    if model.classes is not None and split.labels is None:
        raise ValueError(f"this model is conditioned on one of {model.classes} classes, but the data has no labels")
    if model.classes is not None and split.labels is not None:
        check_labels("labels", split.labels, model.classes)


def flow_scorer(setup: JobSetup, split: Source, *, solved: bool = True) -> FlowScorer:
    """The scorer that a config describes by `seed`, `dequantise` and, if `solved`, `solver`, `trace` and `atol`."""
    settings: dict[str, Any] = {"seed": setup.config["seed"], "dequantiser": setup.dequantiser}
    settings["guided"] = setup.config.get("guided", False)
    if solved:
        settings |= {"solver": setup.build("solver"), "trace": setup.build("trace")}
        settings["atol"] = tolerance_of(setup.config["atol"])
    return FlowScorer(setup.model, split, **settings)


def pinned(setup: JobSetup, scorer: FlowScorer, path: Path) -> tuple[FlowScorer, dict[str, Plain]]:
    """The scorer of a file, and the part of its key for a tolerance of the log-density that the config leaves open.

    The rows of a file have one tolerance and one rule for the first step: files that version 0.1.0 began, which name
    neither, keep its 0.01 nats and its first step.
    """
    solver = _solver_of(scorer)
    atol = tolerance(solver, math.prod(scorer.model.shape), scorer.atol)
    if scorer.atol is not None or atol is None:
        return scorer, {}
    if setup.config["atol"] == "auto" and path.exists() and "atol" not in read(path).attributes:
        plain = replace(solver, first_ratio=None) if isinstance(solver, RungeKutta) else solver
        return replace(scorer, atol=0.01, solver=plain), {}
    return scorer, {"atol": atol}


def accuracy_asked(setup: JobSetup) -> bool:
    """Whether the config states an `error` or `error_per_image` (:mod:`sde.evaluation.likelihood_accuracy`).

    Raises:
        ValueError: if it has a solver, a tolerance or a pilot of its own as well.
    """
    config = setup.config
    if config.get("error") is None and config.get("error_per_image") is None:
        return False
    if config["pilot"] or config["atol"] not in ("auto", None) or setup.build("solver") != default_solver():
        raise ValueError("error and error_per_image choose the solver: leave out solver=, atol= and pilot=")
    return True


def _solver_of(scorer: FlowScorer) -> Solver:
    return default_solver() if scorer.solver is None else scorer.solver


def likelihood_jobs(setup: JobSetup, *, progress: Callable[[float], object] | None = None) -> list[Job[FlowScorer]]:
    """The jobs of a config: the split of the data, and the out-of-distribution data if there is any.

    With `pilot`, the time grid of the solver is tuned on the training split, and saved unless this is a dry run.
    Files of other jobs are refused before that.

    Args:
        setup: the setup.
        progress: called with the fraction of the pilot run that is done.

    Raises:
        ValueError: if a key of the config is out of range, or a file belongs to another job.
    """
    config, out, jobs = setup.config, setup.output(".h5"), list[Job[FlowScorer]]()
    splits = {setup.name: setup.split(config["split"]), **setup.other_data()}
    key, chosen = setup.key("dry_run", "ood", "ood_array", "budget", "guided"), accuracy_asked(setup)
    metadata = {**setup.metadata, "log_prob_unit": "nats, in the model's range"}
    for name, split in splits.items():
        n = config["n"] if not jobs else config["n"] and min(config["n"], len(split))
        path = out if not jobs else out.with_name(f"{out.stem}-{name.replace(' ', '-')}.h5")
        scorer = flow_scorer(setup, split)
        scorer, atol = (scorer, {}) if chosen else pinned(setup, scorer, path)
        named: dict[str, Plain] = {**key, **atol, "data": split.fingerprint}
        jobs.append(Job(name, scorer, setup.plan(split, n), path, named, metadata))
    check_count("a job", "budget", config["budget"], 0)
    for job in jobs:
        # Which the pilot run finds.
        job.check(*(["solver"] if config["pilot"] else []), *(["choice"] if chosen else []))
    if config["pilot"]:
        solver = _tuned_solver(setup, jobs[0].scorer, progress)
        tuned: dict[str, Plain] = {"solver": repr(solver)}
        jobs = [replace(job, scorer=replace(job.scorer, solver=solver), key={**job.key, **tuned}) for job in jobs]
        for job in jobs:
            job.check()
    return jobs


def _tuned_solver(setup: JobSetup, scorer: FlowScorer, progress: Callable[[float], object] | None) -> Solver:
    model, train, pilot = setup.model, setup.data.train, setup.config["pilot"]
    check_data(model, train)
    check_count("a tuned grid", "pilot", pilot)
    if pilot > len(train):
        raise ValueError(f"expected pilot <= {len(train)}, the number of training samples, got pilot={pilot}")
    data, condition = train[torch.arange(pilot, device="cpu")]
    condition = condition_of(model, condition)
    how: dict[str, Any] = {"trace": scorer.trace, "seed": scorer.seed, "save": not setup.config["dry_run"]}
    how["progress"] = progress
    return model.tuned(setup.build("solver"), setup.directory, data=data, condition=condition, **how)


def report(jobs: Sequence[Job[FlowScorer]]) -> Iterator[str]:
    """The results of finished likelihood jobs, the jobs of :func:`likelihood_jobs`, one line each."""
    tables, first = [job.table() for job in jobs], jobs[0]
    model, table, dims = first.scorer.model, tables[0], math.prod(first.scorer.model.shape)
    for job, columns in zip(jobs, tables):
        summary = summarise(columns)
        mean, error = nats_and_error(summary, dims)
        # Levels have bits; the density of continuous data is usually stated in nats.
        nats = "" if model.scaling.levels else f"; log p {mean:.4f} +- {error:.4f} nats"
        yield f"{job.name}: {summary}{nats}; wrote {job.path}"
    if len(jobs) > 1:
        for statistic, detection in detect(*tables).items():
            yield f"AUROC by {statistic}: {detection}"
    if model.scaling.levels and first.plan.repeats > 1:
        if is_exact(table):
            yield f"{first.name}: {weighted_bound(table, dims, first.plan.repeats)}"
        else:
            yield f"{first.name}: use trace=exact for the tighter importance-weighted bound of the repeats"


def budget_report(
    job: Job[FlowScorer], samples: int, *, progress: Callable[[float], object] | None = None
) -> str | None:
    """The error budget of a finished job in one line; None without samples.

    Args:
        job: the job.
        samples: the number of samples that are solved again.
        progress: called with the fraction of the work that is done.
    """
    table = job.table()
    index = some_samples(table, samples)
    if not len(index):
        return None
    budget = error_budget_of(job.scorer, table, index, progress=progress)
    return f"{job.name}: {budget.in_bits(math.prod(job.scorer.model.shape))}"


def some_samples(columns: Columns, n: int) -> Tensor:
    """The indices of n samples with finite rows, evenly spread, int64."""
    index = np.unique(columns["index"][np.isfinite(columns["bits_per_dim"]) & (columns["repeat"] == 0)])
    places = np.unique(np.linspace(0, max(len(index) - 1, 0), min(n, len(index))).round().astype(np.int64))
    return torch.from_numpy(index[places].astype(np.int64))


def error_budget_of(
    scorer: FlowScorer, columns: Columns, index: Tensor, *, progress: Callable[[float], object] | None = None
) -> ErrorBudget:
    """The error budget of some samples of a likelihood file, all of which are solved again, in nats.

    Args:
        scorer: the scorer of the file.
        columns: the columns of the file.
        index: the samples, int64 with shape (B,).
        progress: as in :func:`sde.error_budget`.
    """
    batch, condition = scorer.batch(index)
    place = {int(i): row for row, i in enumerate(columns["index"]) if columns["repeat"][row] == 0}
    rows = [place[i] for i in index.tolist()]
    names = ("log_prob", "prior_log_prob", "divergence", "standard_error", "nfe")
    nats, prior, divergence, error, nfe = (torch.from_numpy(columns[name][rows]).to(batch.x.device) for name in names)
    # The file has neither the latent nor the products, which a budget does not need.
    result = LogProb(nats, prior, divergence, error, nfe, torch.full_like(batch.x, math.nan), torch.zeros_like(nfe))
    call: dict[str, Any] = {"index": index, "condition": condition, "rows": len(index), **scorer.settings}
    with exact_float32():
        return error_budget(scorer.model.denoiser, batch.x, result, progress=progress, **call)
