"""The error budget of a job, in nats and in bits/dim."""

from __future__ import annotations

import math

import numpy as np
import torch

import sde
from sde.data import Scaling, Split
from sde.evaluation.likelihood_job import FlowScorer, error_budget_of, some_samples
from sde.evaluation.sharding import BatchPlan
from sde.evaluation.summary import Rows
from sde.exact import Gaussian

EYE = torch.eye(6, dtype=torch.float64)
MODEL = sde.Model(
    Gaussian(torch.zeros(6, dtype=torch.float64), 0.2 * EYE).denoiser(sde.VP()), Scaling.interval(17), (6,)
)
SPLIT = Split(torch.randint(17, (40, 6), generator=torch.Generator().manual_seed(0)).to(Scaling.interval(17).dtype))


def rows_of(seed: int, solver: sde.solvers.Solver, trace: sde.Trace) -> Rows:
    """The rows of a job."""
    (rows,) = FlowScorer(MODEL, SPLIT, seed, solver, trace).score(BatchPlan(40, batch_size=40))
    return rows


def test_the_budget_is_that_of_the_rows_of_the_job() -> None:
    """The rows solved again are those that the job would write; the half-width covers what they are off by."""
    coarse, trace = sde.solvers.RungeKutta(rtol=1e-2, atol=1e-2), sde.Hutchinson(4)
    index = torch.linspace(0, 39, 8).round().long()
    budget = error_budget_of(FlowScorer(MODEL, SPLIT, 3, coarse, trace), rows_of(3, coarse, trace), index)
    bits = {}
    for name, solver in (("coarse", coarse), ("fine", sde.solvers.RungeKutta(rtol=1e-9, atol=1e-9))):
        bits[name] = torch.from_numpy(rows_of(3, solver, trace)["bits_per_dim"])
    assert len(budget.rows) == 8
    width = budget.in_bits(6).solver
    torch.testing.assert_close(width, budget.solver / (6 * math.log(2.0)))
    off = (bits["coarse"] - bits["fine"])[index].abs()
    assert bool((off <= width).double().mean() >= 0.8), (off, width)


def test_it_says_what_it_does_not_know() -> None:
    solver = sde.solvers.RungeKutta(rtol=1e-3, atol=1e-3)
    one, exact = (
        str(error_budget_of(FlowScorer(MODEL, SPLIT, 0, solver, trace), rows_of(0, solver, trace), torch.arange(n)))
        for trace, n in ((sde.Hutchinson(1), 3), (sde.ExactTrace(), 5))
    )
    assert "in nats, from 3 samples" in one
    assert "probes unknown" in one
    assert "in nats, from 5 samples" in exact
    assert "probes +- 0;" in exact


def test_rows_that_failed_are_passed_over() -> None:
    columns = {
        "index": np.array([0, 1, 2, 3, 4, 5, 6, 0]),
        "repeat": np.array([0, 0, 0, 0, 0, 0, 0, 1]),
        "bits_per_dim": np.array([1.0, np.nan, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
    }
    assert some_samples(columns, 2).tolist() == [0, 6]
    assert some_samples(columns, 99).tolist() == [0, 2, 3, 4, 5, 6]
    assert some_samples({**columns, "bits_per_dim": np.full(8, np.nan)}, 3).tolist() == []
    assert some_samples(columns, 0).tolist() == []
