"""The comparison of posterior samplers: exact draws at the floor, wrong ones above it, rows that are computed once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sde.comparison import Way, compare_posteriors, posterior_problem, posterior_report, posterior_ways
from sde.measurement import DiffPIR, Matrix, Measurement
from sde.processes import VE
from sde.solvers import Ancestral, DPMSolverPP, Particles
from sde.storage.store import read


def test_a_problem_is_one_of_a_prior_of_unit_variance() -> None:
    problem = posterior_problem(8, 0.1, seed=3)
    x = problem.prior.sample(4000, generator=torch.Generator().manual_seed(0))
    assert abs(float(x.var(0, correction=0).mean()) - 1.0) < 0.05
    assert problem.A.shape == (4, 8)
    expected = problem.prior.posterior(A=problem.A, y=problem.y, noise=0.1)
    torch.testing.assert_close(problem.posterior.weights, expected.weights)


def test_rows_are_computed_once_and_reported(tmp_path: Path) -> None:
    ways = {
        "exact": Way(None, lambda v: DPMSolverPP(12, 2)),
        "DiffPIR": Way(lambda d, y, v: DiffPIR(d, y), lambda v: Ancestral(12)),
        "Particles": Way(DiffPIR, lambda v: Particles(4, 3, variance=v), polished=True),
    }
    path, settings = tmp_path / "posterior.h5", {"noises": [0.1], "problems": 2, "draws": 200}
    states = compare_posteriors(path, ways, **settings)  # type: ignore[arg-type]
    assert [next(states) for _ in range(3)] == [(0, 8), (1, 8), (2, 8)]
    states.close()
    assert [*compare_posteriors(path, ways, **settings)] == [(n, 8) for n in range(2, 9)]  # type: ignore[arg-type]
    assert [*compare_posteriors(path, ways, **settings)] == [(8, 8)]  # type: ignore[arg-type]
    columns = read(path).columns
    assert columns["calls"].tolist() == [0, 0, 13, 13, 13, 13, 125, 125]
    mean = [columns["error"][columns["repeat"] == k].mean() for k in range(3)]
    assert mean[1] < 0.6 * mean[2]  # the exact score against a method that misses modes
    table = posterior_report(path)
    first = [line.split(" | ")[0] for line in table.splitlines()]
    assert first == ["| method", "| ---", "| floor", "| exact", "| DiffPIR", "| Particles", "", table.splitlines()[-1]]
    assert "log evidence off by" in table.splitlines()[-1]
    assert {file.suffix for file in tmp_path.iterdir()} == {".h5", ".csv", ".md", ".png"}
    with pytest.raises(ValueError, match="another job"):
        next(compare_posteriors(path, ways, noises=[0.1], problems=2, draws=50))


def test_every_way_of_the_library_is_made(tmp_path: Path) -> None:
    problem = posterior_problem(8, 0.1, seed=0)
    denoiser = problem.prior.denoiser(VE())
    y = Measurement(Matrix(problem.A), problem.y[None], 0.1)
    variance = DiffPIR(denoiser, y).variance
    for way in posterior_ways().values():
        assert way.method is None or way.method(denoiser, y, variance).weighed
    assert isinstance(posterior_ways()["Particles(50, 16)"].solver(variance), Particles)
