"""The error budget of a job, in bits/dim."""

from __future__ import annotations

import math

import numpy as np
import torch

import sde
from sde.data import Scaling, Split
from sde.evaluation.error_budget import errors_of, some
from sde.evaluation.likelihood_job import score
from sde.exact import Gaussian

EYE = torch.eye(6, dtype=torch.float64)
MODEL = sde.Model(
    Gaussian(torch.zeros(6, dtype=torch.float64), 0.2 * EYE).denoiser(sde.VP()), Scaling.interval(17), (6,)
)
SPLIT = Split(torch.randint(17, (40, 6), generator=torch.Generator().manual_seed(0)).to(Scaling.interval(17).dtype))


def test_the_budget_is_that_of_the_rows_of_the_job() -> None:
    """The rows solved again are those that the job would write; the half-width covers what they are off by."""
    coarse, trace = sde.solvers.RungeKutta(rtol=1e-2, atol=1e-2), sde.Hutchinson(4)
    index = torch.linspace(0, 39, 8).round().long()
    errors = errors_of(MODEL, SPLIT, index, solver=coarse, trace=trace, seed=3)
    bits = {}
    for name, solver in (("coarse", coarse), ("fine", sde.solvers.RungeKutta(rtol=1e-9, atol=1e-9))):
        (rows,) = score(MODEL, SPLIT, batch_size=40, seed=3, solver=solver, trace=trace)
        bits[name] = torch.from_numpy(rows["bits_per_dim"])
    assert len(errors.budget.rows) == 8
    width = errors.budget.solver / (6 * math.log(2.0))
    off = (bits["coarse"] - bits["fine"])[index].abs()
    assert bool((off <= width).double().mean() >= 0.8), (off, width)
    assert errors.bits(6 * math.log(2.0)) == 1.0


def test_it_says_what_it_does_not_know() -> None:
    solver = sde.solvers.RungeKutta(rtol=1e-3, atol=1e-3)
    one = str(errors_of(MODEL, SPLIT, torch.arange(3), solver=solver, trace=sde.Hutchinson(1)))
    assert "from 3 images solved again" in one
    assert "probes unknown with one probe" in one
    exact = str(errors_of(MODEL, SPLIT, torch.arange(5), solver=solver, trace=sde.ExactTrace()))
    assert "from 5 images solved again" in exact
    assert "probes +- 0;" in exact


def test_rows_that_failed_are_passed_over() -> None:
    columns = {
        "index": np.array([0, 1, 2, 3, 4, 5, 6, 0]),
        "repeat": np.array([0, 0, 0, 0, 0, 0, 0, 1]),
        "bits_per_dim": np.array([1.0, np.nan, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
    }
    assert some(columns, 2).tolist() == [0, 6]
    assert some(columns, 99).tolist() == [0, 2, 3, 4, 5, 6]
    assert some({**columns, "bits_per_dim": np.full(8, np.nan)}, 3).tolist() == []
    assert some(columns, 0).tolist() == []
