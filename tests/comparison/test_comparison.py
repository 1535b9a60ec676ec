"""The comparison of solvers: metrics against closed forms and brute force, budgets, costs, and the file."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sde
from sde import profiling as cost
from sde.comparison import (
    DesignPilot,
    Estimate,
    ExactProblem,
    Experiment,
    Row,
    Settings,
    Table,
    TrainedProblem,
    compare,
    digits_mixture,
    markdown,
    open_problem,
    plan,
    plan_designs,
    read_mixture,
    read_table,
    work_precision,
    write_report,
)
from sde.comparison.metrics import GROUPS, moments, sliced_wasserstein, strong
from sde.comparison.plan import FAILED, OK, REFUSED, TOO_SMALL
from sde.comparison.report import csv_text
from sde.data import Scaling
from sde.exact import Mixture
from sde.model import Model

T_19 = 2.0930240544  # Student's two-sided 95 % quantile for 19 degrees of freedom


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Distances


def test_the_strong_error_of_a_shift_and_its_median() -> None:
    x = normals(50, 2, 3)
    rms, median = strong(x + 0.3, x, scale=0.5)
    for estimate in (rms, median):
        assert (estimate.low, estimate.value, estimate.high) == pytest.approx((0.6, 0.6, 0.6))
    # One sample of 50 that is off by 5 everywhere: the mean square is 25/50, the median is 0.
    off = x.clone()
    off[17] += 5.0
    rms, median = strong(off, x, scale=1.0)
    assert rms.value == pytest.approx(math.sqrt(0.5))
    assert rms.low == 0.0
    assert rms.high > 1.0
    assert median == Estimate(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"strong.*\(50, 2, 3\).*\(50, 1, 3\)"):
        strong(x, x[:, :1], 1.0)


def test_the_band_of_the_strong_error_covers_it() -> None:
    """Normal errors of variance 1: true value 1. Of 200 bands of nominal 95 % at most 24 miss it, but for p < 1e-4."""
    estimates = [strong(normals(60, 2, seed=i), torch.zeros(60, 2), 1.0)[0] for i in range(200)]
    misses = sum(not e.low <= 1.0 <= e.high for e in estimates)
    assert misses <= 24
    assert np.mean([e.high - e.low for e in estimates]) < 0.4


def test_the_sliced_distance_of_a_shift_whatever_the_order() -> None:
    """All projections move by theta v, and the mean of (theta v)^2 is |v|^2 / D."""
    y = normals(200, 4, 2)
    v = normals(4, 2, seed=1)
    distance = sliced_wasserstein((y + v).flip(0), y, scale=2.0, directions=1000)
    # Of the mean over 1,000 directions the standard error is 2 %.
    assert distance.value == pytest.approx(v.norm().item() / math.sqrt(8) / 2.0, rel=0.07)
    assert sliced_wasserstein(y.flip(0), y, scale=1.0).value == 0.0
    assert sliced_wasserstein(y[:, 0], y[:, 1], 1.0) == sliced_wasserstein(y[:, 0], y[:, 1], 1.0)


def test_the_sliced_distance_of_normals_of_two_sizes() -> None:
    """In one dimension W2(N(0, 1), N(0, 4)) = 1."""
    distance = sliced_wasserstein(2.0 * normals(20_000, 1), normals(20_000, 1, seed=1), 1.0, directions=1)
    assert abs(distance.value - 1.0) < 2.0 * (distance.high - distance.value)
    assert distance.high - distance.value < 0.03


def test_the_sliced_distance_is_at_most_the_strong_error() -> None:
    x = normals(400, 5)
    near = x + 0.3 * normals(400, 5, seed=1) * x.abs()
    assert 0.01 < sliced_wasserstein(near, x, 1.0, directions=300).value < 1.02 * strong(near, x, 1.0)[0].value


def test_the_errors_of_the_moments_are_those_of_their_definition() -> None:
    x, mean = 0.5 + normals(100, 2, 2), torch.tensor([0.4, 0.5, 0.6, 0.5], dtype=torch.float64)
    cov = torch.diag(torch.tensor([1.0, 2.0, 1.0, 0.5], dtype=torch.float64))
    first, second = moments(x, mean, cov, scale=0.7)
    flat = x.flatten(1).numpy()
    assert first.value == pytest.approx(np.sqrt(((flat.mean(0) - mean.numpy()) ** 2).mean()) / 0.7)
    sample_cov = np.cov(flat.T)
    assert second.value == pytest.approx(np.linalg.norm(sample_cov - cov.numpy()) / np.linalg.norm(cov.numpy()))


@pytest.mark.parametrize("n", [100, 107])
def test_the_bands_are_those_of_the_jackknife_by_brute_force(n: int) -> None:
    """Each group is deleted from the samples, and all is computed again."""
    x, y = 0.3 + normals(n, 3), normals(n, 3, seed=1)
    mean, cov = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    others = [torch.tensor([i for i in range(n) if i % GROUPS != g]) for g in range(GROUPS)]
    for measure in (
        lambda x, y: sliced_wasserstein(x, y, 0.8),
        lambda x, y: moments(x, mean, cov, 0.8)[0],
        lambda x, y: moments(x, mean, cov, 0.8)[1],
    ):
        whole = measure(x, y)
        omitted = np.array([measure(x[k], y[k]).value ** 2 for k in others])
        half = T_19 * np.sqrt((GROUPS - 1) / GROUPS * ((omitted - omitted.mean()) ** 2).sum())
        assert whole.high == pytest.approx(np.sqrt(whole.value**2 + half))
        assert whole.low == pytest.approx(np.sqrt(max(0.0, whole.value**2 - half)))


def test_designed_solvers_come_with_the_cost_of_their_pilot(tmp_path: Path, mixture: Mixture) -> None:
    """Designed when they are measured, once; the calls are those of all pilot samples, the accurate solution
    included."""
    problem, settings = ExactProblem(mixture, sde.VP()), Settings(n=16, draws=40, repeats=1, tolerance=1e-6)
    tree = {"_target_": "sde.solvers.UniPC", "steps": 1, "grid": {"_target_": "sde.grids.LogSNR"}}
    plain = plan("unipc", tree, problem.process, grids={}, calls=[2], tolerances=[])
    rows = [*compare(problem, [*plain, *plan_designs([2], DesignPilot(8))], settings)]
    unipc, designed = rows
    assert (designed.solver, designed.steps, designed.nfe_max) == ("designed", 2, 2)
    assert designed.strong < unipc.strong
    assert (designed.pilot_samples, unipc.pilot_samples) == (8, 0)
    assert designed.pilot_seconds > designed.seconds
    assert designed.pilot_calls > 8 * 30
    text = markdown(rows)
    assert re.search(rf"designed +\| 2 +\| 8 +\| [0-9.]+ +\| {designed.pilot_calls} ", text)
    with Table(tmp_path / "a.h5", {}) as table:
        for row in rows:
            table.add(row)
    stored, _ = read_table(tmp_path / "a.h5")
    previous = {row.key: row for row in stored}
    assert [*compare(problem, plan_designs([2], DesignPilot(8)), settings, previous)] == [stored[1]]
    with pytest.raises(ValueError, match="samples of its pilot"):
        DesignPilot(3)


def test_the_bands_are_as_wide_as_the_distances_scatter() -> None:
    """Over 150 independent pairs the mean half-width over 2.093 is the standard deviation within 25 %; the standard
    error of that ratio is about 6 %, and that of its own bias at n = 200 a few per cent."""
    mean, cov = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    estimates_of: dict[str, list[Estimate]] = {"sliced": [], "mean": [], "covariance": []}
    for i in range(150):
        x, y = 0.5 + 1.5 * normals(200, 3, seed=2 * i), normals(200, 3, seed=2 * i + 1)
        a, b = moments(x, mean, cov, 1.0)
        for name, estimate in zip(estimates_of, (sliced_wasserstein(x, y, 1.0, directions=16), a, b)):
            estimates_of[name].append(estimate)
    for name, estimates in estimates_of.items():
        spread = np.std([e.value for e in estimates], ddof=1)
        ratio = np.mean([e.high - e.low for e in estimates]) / 2.0 / T_19 / spread
        assert 0.75 < ratio < 1.25, (name, ratio)


def test_distances_ask_for_enough_samples_of_one_shape() -> None:
    x = normals(39, 2)
    with pytest.raises(ValueError, match=r"\b40\b.*\(39, 2\)"):
        sliced_wasserstein(x, x, 1.0)
    with pytest.raises(ValueError, match=r"\(50, 2\).*\(60, 2\)"):
        sliced_wasserstein(normals(50, 2), normals(60, 2), 1.0)


# Problems


def test_the_moments_and_the_unit_of_an_exact_problem(mixture: Mixture) -> None:
    """Against 200,000 exact samples; the errors are within 5 standard errors of the mean and about 1 % of the rest."""
    problem = ExactProblem(mixture, sde.VP(t_min=0.05))
    x = problem.samples(200_000, seed=3, which=0)
    mean, cov = problem.moments(x)
    assert torch.allclose(x.mean(0), mean, atol=0.011)
    assert torch.allclose(x.T.cov(), cov, rtol=0.02, atol=0.01)
    clean = mixture.sample(200_000, generator=torch.Generator().manual_seed(0))
    assert problem.scale(x) == pytest.approx(clean.std().item(), rel=0.01)
    again, others = problem.samples(5, seed=3, which=0), problem.samples(5, seed=3, which=1)
    assert torch.equal(again, problem.samples(5, seed=3, which=0))
    assert not torch.equal(again, others)


def test_the_exact_ends_are_where_the_flow_of_a_gaussian_goes() -> None:
    r"""For data N(m, v I): x_min = a m + sqrt(v_min / v_max) (x_max - a_max m) with v_t = a_t^2 v + var_t."""
    process, v = sde.VP(), 0.09
    m = torch.tensor([0.5, -1.0], dtype=torch.float64)
    target = Mixture(torch.ones(1, dtype=torch.float64), m[None], v * torch.eye(2, dtype=torch.float64)[None])
    ends = ExactProblem(target, process).ends(6, seed=2, tolerance=1e-9)
    start = sde.sample(target.denoiser(process), (6, 2), solver=_Stay(1), seed=2).x
    low, high = (torch.tensor(t, dtype=torch.float64) for t in (process.t_min, process.t_max))
    below, above = (process.alpha(t) ** 2 * v + process.var(t) for t in (low, high))
    ratio = (below / above).sqrt()
    exact = process.alpha(low) * m + ratio * (start - process.alpha(high) * m)
    assert torch.allclose(ends, exact, atol=1e-7, rtol=0)


def test_the_digits_mixture_is_that_of_the_digits() -> None:
    target = digits_mixture(3)
    data = sde.data.digits()
    x = data.scaling.to_model(data.train.values, dtype=torch.float64).flatten(1)
    problem = ExactProblem(target, sde.VP())
    mean, cov = problem.moments(x)
    # One round of expectation maximisation reproduces mean and, but for its floor of 1e-3, covariance of the data.
    assert torch.allclose(mean, x.mean(0), atol=1e-3)
    assert torch.allclose(cov, x.T.cov(correction=0), atol=4e-3)
    assert problem.scale(x) == pytest.approx(x.std().item(), rel=0.01)
    assert target.means.dtype == torch.float64


def test_reading_a_mixture(tmp_path: Path, mixture: Mixture) -> None:
    covs = (mixture.basis * mixture.eigenvalues[:, None]) @ mixture.basis.mT
    good = {"weights": mixture.weights.numpy(), "means": mixture.means.numpy(), "covs": covs.numpy()}
    np.savez(tmp_path / "good.npz", **good, other=np.zeros(3))
    x = normals(5, 2)
    assert torch.allclose(read_mixture(tmp_path / "good.npz").log_prob(x), mixture.log_prob(x))
    with pytest.raises(FileNotFoundError, match=r"gone\.npz"):
        read_mixture(tmp_path / "gone.npz")
    np.savez(tmp_path / "lacks.npz", weights=good["weights"], means=good["means"])
    np.savez(tmp_path / "nan.npz", **{**good, "means": good["means"] * np.nan})
    np.savez(tmp_path / "pickled.npz", **{**good, "means": np.array([{}], dtype=object)})
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:300])
    (tmp_path / "text.npz").write_text("no")
    for name, words in {
        "lacks": r"lacks\.npz.*\bcovs\b",
        "nan": r"nan\.npz.*\bmeans\b",
        "pickled": r"pickled\.npz.*allow_pickle",
        "cut": r"cut\.npz.*weights, means, covs",
        "text": r"text\.npz.*weights, means, covs",
    }.items():
        with pytest.raises(ValueError, match=words):
            read_mixture(tmp_path / f"{name}.npz")


class _Net(torch.nn.Module):
    """A smooth float32 network of a point in the plane, its noise conditioning and, optionally, its class."""

    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        self.a = torch.nn.Parameter(0.5 * torch.randn(3, 2, generator=draws))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        shift = 0.0 if label is None else 0.1 * label[:, None].to(x)
        # The predicted noise is close to the state, which keeps the flow bounded.
        features = torch.cat([x, c_noise.to(x).expand(len(x))[:, None] / 1000.0], 1)
        return 0.9 * x + 0.1 * torch.tanh(features @ self.a + shift)


def trained(classes: int | None = None) -> Model:
    denoiser = sde.NetworkDenoiser(_Net(), sde.VP()).requires_grad_(False)
    return Model(denoiser, Scaling.identity(), (2,), classes)


def test_the_exact_results_of_a_network_are_its_flow_in_float64() -> None:
    problem = TrainedProblem(trained())
    ends = problem.ends(8, seed=1, tolerance=1e-9)
    assert ends.dtype == torch.float64
    assert problem.denoiser.network.a.dtype == torch.float32
    coarse = sde.sample(problem.denoiser, (8, 2), solver=sde.solvers.RungeKutta(rtol=1e-5, atol=1e-5), seed=1)
    assert coarse.x.dtype == torch.float32
    assert torch.allclose(coarse.x.double(), ends, atol=1e-3)
    finer = problem.ends(8, seed=1, tolerance=1e-11)
    # Far below the accuracy of a solution with a network in float32.
    assert (ends - finer).abs().max() < 1e-7
    a, b = (problem.samples(130, seed=1, which=i) for i in (0, 1))
    assert a.shape == (130, 2)
    assert not torch.equal(a, b)
    assert not torch.isclose(a[:8], ends, atol=1e-3).all(1).any()
    mean, cov = problem.moments(a)
    assert torch.allclose(mean, a.mean(0))
    assert torch.allclose(cov, a.T.cov())
    assert problem.scale(ends) == pytest.approx(ends.std().item())


def test_a_class_conditional_network_gets_the_classes_in_turn() -> None:
    problem = TrainedProblem(trained(classes=3))
    assert problem.condition(4, 5)["label"].tolist() == [1, 2, 0, 1, 2]
    rows = list(compare(problem, experiments({"heun": HEUN}, problem.process, calls=[8]), SMALL))
    assert rows[0].status == OK
    assert math.isfinite(rows[0].strong)


# Experiments


def test_an_experiment_has_its_old_name() -> None:
    assert sde.comparison.Cell is Experiment


UNIFORM = {"_target_": "sde.grids.Uniform"}
LOG_SNR = {"_target_": "sde.grids.LogSNR"}
EULER = {"_target_": "sde.solvers.Euler", "steps": 3, "grid": UNIFORM}
HEUN = {**EULER, "_target_": "sde.solvers.Heun"}
ANCESTRAL = {**EULER, "_target_": "sde.solvers.Ancestral"}
NESTED = {
    "_target_": "sde.solvers.PredictorCorrector",
    "predictor": ANCESTRAL,
    "corrector": {"_target_": "sde.solvers.Langevin", "snr": 0.1, "steps": 2},
}
ADAPTIVE = {"_target_": "sde.solvers.RungeKutta", "rtol": 1e-3, "atol": 1e-3}
SMALL = Settings(n=8, draws=40, repeats=1, tolerance=1e-8, directions=8)


def experiments(
    trees: Mapping[str, Mapping[str, Any]],
    process: sde.SDE,
    *,
    calls: list[int] | None = None,
    tolerances: list[float] | None = None,
    grids: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Experiment]:
    grids = {"log_snr": LOG_SNR} if grids is None else grids
    plans = [
        plan(name, tree, process, grids=grids, calls=calls or [], tolerances=tolerances or [], trust=[__name__])
        for name, tree in trees.items()
    ]
    return list(itertools.chain(*plans))


@dataclass(frozen=True)
class _Stay(sde.solvers.GridSteps):
    """A solver that does not change the state."""

    eta: ClassVar[float] = 0.0

    def refusal(self, dynamics: Any) -> str | None:
        return None

    def method(self, dynamics: Any, times: Tensor) -> Callable[..., Any]:
        return lambda k, x, memory, noise: (x, None)


@dataclass(frozen=True)
class Costly(_Stay):
    """Three calls in the first step, one per step, none in the last; at least 3 steps; multiplies by `value`."""

    value: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 3:
            raise ValueError(f"Costly needs 3 steps, got {self.steps}")

    def method(self, dynamics: Any, times: Tensor) -> Callable[..., Any]:
        def step(k: int, x: Any, memory: Any, noise: Any) -> Any:
            for _ in range(3 * (k == 0) + (k < self.steps - 1)):
                dynamics.drift(x, times[k])
            return (x[0] * self.value,), None

        return step


COSTLY = {**EULER, "_target_": f"{__name__}.Costly"}


@pytest.mark.parametrize(
    ("tree", "budget", "steps"),
    [(EULER, 7, 7), (HEUN, 7, 3), (HEUN, 8, 4), (NESTED, 7, 2), (NESTED, 9, 3), (COSTLY, 7, 5), (COSTLY, 5, 3)],
)
def test_a_budget_gives_the_largest_number_of_steps_within_it(tree: dict[str, Any], budget: int, steps: int) -> None:
    (experiment,) = experiments({"it": tree}, sde.VP(), calls=[budget])
    assert (experiment.status, experiment.steps, experiment.calls, experiment.tolerance) == (OK, steps, budget, 0.0)
    d = sde.exact.Gaussian(torch.zeros(2), torch.eye(2)).denoiser(sde.VP())
    assert experiment.method is not None
    nfe = int(sde.sample(d, (3, 2), solver=experiment.method).nfe.max())
    more = sde.instantiate.build(with_steps(tree, steps + 1), trust=[__name__])
    assert nfe <= budget < int(sde.sample(d, (3, 2), solver=more).nfe.max())


def with_steps(tree: dict[str, Any], steps: int) -> dict[str, Any]:
    if "predictor" in tree:
        return {**tree, "predictor": with_steps(tree["predictor"], steps)}
    return {**tree, "steps": steps}


def test_an_experiment_has_its_solver_grid_and_budget() -> None:
    both = {"uniform": UNIFORM, "log_snr": LOG_SNR}
    planned = experiments({"pc": NESTED, "rk": ADAPTIVE}, sde.VP(), calls=[6, 12], tolerances=[0.1, 0.01], grids=both)
    assert [(c.solver, c.grid, c.calls, c.tolerance) for c in planned] == [
        *(("pc", grid, budget, 0.0) for grid in both for budget in (6, 12)),
        ("rk", "", 0, 0.1),
        ("rk", "", 0, 0.01),
    ]
    assert [c.stochastic for c in planned] == [True] * 4 + [False] * 2
    # A corrector draws noise, also with a deterministic predictor.
    (flow,) = experiments({"pc": {**NESTED, "predictor": EULER}}, sde.VP(), calls=[6])
    assert flow.stochastic
    assert planned[3].method == sde.solvers.PredictorCorrector(
        sde.solvers.Ancestral(4, grid=sde.grids.LogSNR()), sde.solvers.Langevin(snr=0.1, steps=2)
    )
    assert sde.instantiate.build(json.loads(planned[3].config)) == planned[3].method
    assert planned[5].method == sde.solvers.RungeKutta(rtol=0.01, atol=0.01)
    # Without grids the solver uses its own.
    (default,) = experiments({"heun": HEUN}, sde.VP(), calls=[6], grids={})
    assert (default.grid, default.method) == ("", sde.solvers.Heun(3))
    # `steps: null` is an adaptive method.
    (experiment,) = experiments(
        {"t": {**EULER, "_target_": f"{__name__}.Either", "steps": None, "rtol": 1.0, "atol": 1.0}},
        sde.VP(),
        calls=[6],
        tolerances=[0.3],
    )
    assert (experiment.tolerance, experiment.method) == (0.3, Either(None, sde.grids.Uniform(), 0.3, 0.3))


@dataclass(frozen=True)
class Either(sde.solvers.Solver):
    """With steps or, without them, with tolerances."""

    steps: int | None
    grid: sde.grids.Grid
    rtol: float
    atol: float

    eta: ClassVar[float] = 0.0

    def refusal(self, dynamics: Any) -> str | None:
        return None

    def prepare(self, dynamics: Any, start: float, stop: float) -> Any:
        return None


def test_an_experiment_that_cannot_run_has_a_reason() -> None:
    small, refused = experiments({"heun": HEUN, "costly": COSTLY}, sde.VP(), calls=[1])
    assert (small.status, small.method) == (TOO_SMALL, None)
    assert re.search(r"\b2 calls\b", small.reason)
    assert (refused.status, refused.method, refused.reason) == (REFUSED, None, "Costly needs 3 steps, got 2")
    # A grid in log-SNR cannot reach the time 0 of a process without noise there.
    (experiment,) = experiments({"euler": EULER}, sde.VP(t_min=0.0), calls=[5])
    assert experiment.status == REFUSED
    assert "t=0.0" in experiment.reason
    (experiment,) = experiments({"pc": NESTED}, sde.VP(), calls=[2])
    assert (experiment.status, experiment.stochastic) == (TOO_SMALL, True)


@pytest.mark.parametrize(
    ("tree", "calls", "tolerances", "words"),
    [
        (EULER, [0], [], "calls=\\[0\\]"),
        (EULER, [2.5], [], "calls=\\[2.5\\]"),
        (EULER, [True], [], "calls=\\[True\\]"),
        (ADAPTIVE, [], [0.0], "tolerances=\\[0.0\\]"),
        (ADAPTIVE, [], ["a"], "tolerances=\\['a'\\]"),
        ({"_target_": "sde.VP"}, [5], [], r"'it'.*'sde\.VP'"),
        ({**EULER, "stepz": 1}, [5], [], "'stepz'"),
        ({"_target_": f"{__name__}.Plain"}, [5], [0.1], r"'it'.*_target_"),
    ],
)
def test_invalid_plans(tree: dict[str, Any], calls: list[Any], tolerances: list[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        experiments({"it": tree}, sde.VP(), calls=calls, tolerances=tolerances)


@dataclass(frozen=True)
class Plain(_Stay):
    """A solver whose config has no steps."""

    steps: int = 4


# Rows


@pytest.fixture
def problem(mixture: Mixture) -> ExactProblem:
    return ExactProblem(mixture, sde.VP())


def test_the_row_of_a_deterministic_solver(problem: ExactProblem) -> None:
    (experiment,) = experiments({"heun": HEUN}, problem.process, calls=[21])
    (row,) = compare(problem, [experiment], SMALL)
    x = sde.sample(problem.denoiser, (8, 2), solver=sde.solvers.Heun(10, grid=sde.grids.LogSNR()), seed=0).x
    rms, median = strong(x, problem.ends(8, 0, 1e-8), problem.scale(x))
    assert (row.strong, row.strong_low, row.strong_high) == pytest.approx((rms.value, rms.low, rms.high), rel=1e-6)
    assert (row.median, row.median_low, row.median_high) == pytest.approx(
        (median.value, median.low, median.high), rel=1e-6
    )
    assert (row.solver, row.grid, row.calls, row.steps, row.status, row.stochastic) == (
        *("heun", "log_snr", 21, 10, OK),
        False,
    )
    assert (row.nfe, row.nfe_max) == (20.0, 20)
    assert 0.0 < row.network_seconds < row.seconds
    assert row.memory >= row.own_memory > 8 * 2 * 8
    assert math.isnan(row.sliced)
    # Another seed, another error; and the error falls with order 2.
    (other,) = compare(problem, [experiment], replace(SMALL, seed=1))
    assert other.strong != row.strong
    (fine,) = compare(problem, experiments({"heun": HEUN}, problem.process, calls=[80]), SMALL)
    finer = next(compare(problem, experiments({"heun": HEUN}, problem.process, calls=[160]), SMALL))
    assert math.log2(fine.median / finer.median) == pytest.approx(2.0, abs=0.25)


def test_the_row_of_a_stochastic_solver_and_the_monte_carlo_floor_before_it(problem: ExactProblem) -> None:
    settings = replace(SMALL, draws=45)
    floor, row = compare(problem, experiments({"ancestral": ANCESTRAL}, problem.process, calls=[6]), settings)
    # In one batch of 45 instead of six: a sample does not depend on its batch.
    x = sde.sample(problem.denoiser, (45, 2), solver=sde.solvers.Ancestral(6, grid=sde.grids.LogSNR()), seed=0).x
    truth, others = (problem.samples(45, 0, which) for which in (0, 1))
    scale = problem.scale(x)
    for result, samples in ((row, x), (floor, others)):
        sliced = sliced_wasserstein(samples, truth, scale, 8)
        mean, covariance = moments(samples, *problem.moments(truth), scale)
        for name, estimate in {"sliced": sliced, "mean": mean, "covariance": covariance}.items():
            columns = [getattr(result, name + end) for end in ("", "_low", "_high")]
            assert columns == pytest.approx([estimate.value, estimate.low, estimate.high], rel=1e-6)
        assert math.isnan(result.strong)
    assert (floor.solver, floor.nfe, floor.status) == ("exact", 0.0, OK)
    assert (row.nfe, row.nfe_max, row.stochastic) == (6.0, 6, True)
    assert floor.sliced < row.sliced


def test_a_failed_run_is_a_row_and_the_comparison_continues(problem: ExactProblem) -> None:
    stuck = {**ADAPTIVE, "max_steps": 2}
    trees = {"stuck": stuck, "nan": {**COSTLY, "value": math.nan}, "euler": EULER}
    rows = list(compare(problem, experiments(trees, problem.process, calls=[9], tolerances=[1e-3]), SMALL))
    assert [row.status for row in rows] == [FAILED, FAILED, OK]
    assert "max_steps=2" in rows[0].reason
    assert "finite" in rows[1].reason


def test_finished_experiments_are_not_run_again(problem: ExactProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = {"euler": EULER, "ancestral": ANCESTRAL, "stuck": {**ADAPTIVE, "max_steps": 2}}
    planned = experiments(trees, problem.process, calls=[4], tolerances=[1e-3])
    rows = list(compare(problem, planned, SMALL))
    assert [row.solver for row in rows] == ["euler", "exact", "ancestral", "stuck"]
    done = {row.key: row for row in rows}
    ran = []
    monkeypatch.setattr("sde.comparison.run._measure", lambda row, *_: ran.append(row.solver) or row)
    monkeypatch.setattr(problem, "samples", None)
    monkeypatch.setattr(problem, "ends", None)
    again = list(compare(problem, planned, SMALL, done))
    assert ran == ["stuck"]
    assert all(a is b for a, b in zip(again[:3], rows))
    # The same name and budget with another config is another experiment.
    changed = experiments({"euler": EULER}, problem.process, calls=[4], grids={"log_snr": UNIFORM})
    list(compare(problem, changed, SMALL, done))
    assert ran == ["stuck", "euler"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 1},
        {"draws": 39},
        {"repeats": 0},
        {"tolerance": 0.0},
        {"n": "a"},
        {"seed": -1},
        {"directions": 0},
        {"tolerance": "a"},
        {"n": True},
    ],
)
def test_invalid_settings(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        Settings(**wrong)


# Costs


def test_the_seconds_are_medians_and_the_network_has_its_part(
    problem: ExactProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that advances by 1 at every reading, and by 100 in the second timed run."""
    ticks: Iterator[int] = itertools.count()
    late = [0.0]

    def clock(device: torch.device) -> float:
        tick = next(ticks)
        # Two readings per call: 10 in the first run, which is not timed, then 12 in every timed run.
        late[0] += 100.0 * (tick == 10 + 12 + 3)
        return tick + late[0]

    monkeypatch.setattr(cost, "now", clock)
    monkeypatch.setattr("sde.comparison.run.now", clock)
    (row,) = compare(problem, experiments({"euler": EULER}, problem.process, calls=[5]), replace(SMALL, repeats=3))
    assert (row.seconds, row.network_seconds) == (11.0, 5.0)
    assert late == [100.0]


class _Wasteful(sde.Denoiser):
    """A denoiser that allocates 1000 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.process = sde.VP()

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return x_t * torch.ones(1000, dtype=torch.float64).sum()


def test_memory_is_the_peak_of_live_tensors() -> None:
    metered = cost.Metered(_Wasteful())
    before = torch.zeros(10_000, dtype=torch.float64)
    with cost.Memory(metered) as memory:
        a = torch.zeros(100, dtype=torch.float64)
        b = a[:50] + before[:50]
        view = b[:10]
        del b
        assert memory.peak == 800 + 400
        before.add_(1.0)
        a.add_(1.0)
        assert memory.peak == 1200
        del a, view
        c = torch.zeros(150, dtype=torch.float64)
        assert memory.peak == 1200
        assert memory.own == 1200
        d = metered(c, torch.tensor(0.5))
        assert memory.own == 1200
        assert memory.peak == 1200 + 8000 + 8
        d = d + 1.0
        assert memory.own == 3 * 1200
    assert len(d) == 150


# The file


def row(solver: str = "heun", **columns: Any) -> Row:
    return Row(**{"solver": solver, "grid": "log_snr", "calls": 10, "config": '{"a": "é"}', "nfe": 9.5, **columns})


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [
        row(strong=0.1, strong_low=0.05, stochastic=True, nfe_max=3, memory=2**40),
        row("b", status=REFUSED, reason='a "reason"\nof two lines'),
    ]
    with Table(tmp_path / "a.h5", {"n": 3, "sde": {"beta": 0.1}}) as table:
        for i, r in enumerate(rows):
            table.add(r)
            # A reader sees whole files meanwhile.
            assert repr(read_table(tmp_path / "a.h5")[0]) == repr(rows[: i + 1])
        content = (tmp_path / "a.h5").stat()
        table.add(row("b", status=REFUSED, reason='a "reason"\nof two lines'))
        assert (tmp_path / "a.h5").stat().st_mtime_ns == content.st_mtime_ns
    stored, settings = read_table(tmp_path / "a.h5")
    assert repr(stored) == repr(rows)
    assert settings == {"n": 3, "sde": {"beta": 0.1}}
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_a_table_is_continued_and_a_row_of_the_same_key_replaced(tmp_path: Path) -> None:
    with Table(tmp_path / "a.h5", {}) as table:
        table.add(row(status=FAILED))
        table.add(row("b"))
    (tmp_path / ".a.h5.0123456789abcdef.tmp").write_bytes(b"of a killed one")
    with Table(tmp_path / "a.h5", {}) as table:
        assert [r.solver for r in table.rows.values()] == ["heun", "b"]
        table.add(row(status=OK))
        table.add(row(calls=11))
    stored, _ = read_table(tmp_path / "a.h5")
    assert [(r.solver, r.status, r.calls) for r in stored] == [("heun", OK, 10), ("b", OK, 10), ("heun", OK, 11)]
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_files_with_other_settings_or_other_content_are_refused_and_unchanged(tmp_path: Path) -> None:
    with Table(tmp_path / "a.h5", {"n": 3, "sde": {"beta": 1}}) as table:
        table.add(row())
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()}"):
            Table(tmp_path / "a.h5", {"n": 3, "sde": {"beta": 1}})
    whole = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(ValueError, match=r"a\.h5.*sde\.beta.* 1 .* 2;.*out="):
        Table(tmp_path / "a.h5", {"n": 3, "sde": {"beta": 2}})
    # Not even a key that may change when a training run is continued.
    with pytest.raises(ValueError, match=r"a\.h5.*device.*null.*'cuda'"):
        Table(tmp_path / "a.h5", {"n": 3, "sde": {"beta": 1}, "device": "cuda"})
    assert (tmp_path / "a.h5").read_bytes() == whole
    altered = bytearray(whole)
    altered[len(altered) // 2] ^= 1
    for content in (b"", b"text", whole[:-10], bytes(altered)):
        (tmp_path / "b.h5").write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.h5.*(SDERES1|SHA-256)"):
            Table(tmp_path / "b.h5", {})
        assert (tmp_path / "b.h5").read_bytes() == content
    from sde.storage.store import Store

    Store.open(tmp_path / "c.h5", {"x": np.float64}, key={}).close()
    with pytest.raises(ValueError, match=r"c\.h5.*solver"):
        Table(tmp_path / "c.h5", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "b.h5", "c.h5"]


def test_each_set_of_settings_has_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = []
    for settings in ({"n": 1}, {"n": 2}, {"n": 1}):
        with Table.open(None, "digits-VP", settings) as table:
            paths.append(table.path)
    assert paths[0] == paths[2] != paths[1]
    assert all(p.parent.name.startswith("digits-VP-") and p.parent.parent == Path("runs/compare") for p in paths)
    with Table.open("here/there", "digits-VP", {"n": 5}) as table:
        assert table.path == Path("here/there/compare.h5")


# The report


def banded(name: str, value: float, half: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


ROWS = [
    Row("euler", "uniform", 5, nfe=5.0, **banded("strong", 0.5, 0.1), **banded("median", 0.4, 0.1), seconds=1.0),
    Row("euler", "uniform", 20, nfe=20.0, **banded("strong", 0.2, 0.1), **banded("median", 0.1, 0.0), seconds=0.5),
    Row("heun", "uniform", 5, nfe=4.0, **banded("strong", 12.3, 0.1), **banded("median", 2.0, 0.1)),
    Row("heun", "uniform", 20, nfe=20.0, **banded("strong", 0.15, 0.03), **banded("median", 0.05, 0.01)),
    Row("third", "uniform", 5, status=TOO_SMALL, reason="one step takes 6 calls"),
    Row("third", "uniform", 20, status=REFUSED, reason="no good"),
    Row("exact", stochastic=True, nfe=0.0, **banded("sliced", 0.06, 0.01), **banded("mean", 0.02, 0.01)),
    Row("ancestral", "uniform", 5, stochastic=True, nfe=5.0, **banded("sliced", 0.3, 0.03)),
    Row("rk", tolerance=0.01, nfe=26.5, nfe_max=30, **banded("strong", 0.01, 0.001), **banded("median", 0.0, 0.0)),
]
ROWS[1] = replace(ROWS[1], network_seconds=0.4, memory=2**21, own_memory=2**20)


def table_of(text: str, title: str) -> list[list[str]]:
    lines = text.partition(f"**{title}")[2].splitlines()[2:]
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines))
    assert len({len(line) for line in rows}) == 1, "not aligned"
    return [[entry.strip() for entry in line.strip("|").split("|")] for line in rows if not line.startswith("|-")]


def test_the_tables() -> None:
    text = markdown(ROWS)
    assert table_of(text, "Strong error") == [
        ["solver", "grid", "5", "20"],
        ["euler", "uniform", "**0.5 ±20%**", "**0.2 ±50%**"],
        ["heun", "uniform", "12 ±1%", "**0.15 ±20%**"],
        ["third", "uniform", "-", "refused"],
    ]
    assert table_of(text, "Median error")[1:3] == [
        ["euler", "uniform", "**0.4 ±25%**", "0.1 ±0%"],
        ["heun", "uniform", "2 ±5%", "**0.05 ±20%**"],
    ]
    assert table_of(text, "Sliced Wasserstein distance") == [
        ["solver", "grid", "5", "20"],
        ["exact samples", "", "0.06 ±17%", "0.06 ±17%"],
        ["ancestral", "uniform", "**0.3 ±10%**", ""],
    ]
    assert table_of(text, "Adaptive")[1] == ["rk", "0.01", "26.5", "30", "0.01 ±10%", "0", ""]
    assert table_of(text, "Cost")[1] == ["euler", "uniform", "20", "500.0", "400.0", "5000", "2.00", "1.00"]
    assert "- third uniform: refused: no good" in text
    assert "one step takes" not in text
    assert "stochastic" not in markdown(ROWS[:4])
    assert "deterministic" not in markdown(ROWS[6:8])


def test_all_columns_stand_in_the_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(ROWS))))
    assert [r["solver"] for r in rows] == [r.solver for r in ROWS]
    assert float(rows[0]["strong_low"]) == 0.4
    assert rows[4]["reason"] == "one step takes 6 calls"


def test_the_report_is_written(tmp_path: Path) -> None:
    text = write_report(ROWS, tmp_path, "a title")
    assert text.startswith("a title\n")
    assert text.splitlines()[-1] == f"wrote compare.h5, compare.md, compare.csv, compare.png in {tmp_path}"
    assert (tmp_path / "compare.md").read_text() == f"a title\n\n{markdown(ROWS)}"
    with Image.open(tmp_path / "compare.png") as image:
        image.load()
        assert image.width > 600
    # Where nothing ran there is nothing to draw.
    text = write_report([ROWS[5]], tmp_path, "t")
    assert "compare.png" not in text
    with pytest.raises(ValueError, match=r"work_precision.*\b0 of 1\b"):
        work_precision([ROWS[5]], tmp_path / "a.png")


def test_the_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One panel per grid and measure; one colour or marker per solver; what did not run is left out."""
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or save(self, *a, **k))
    many = [replace(ROWS[1], solver=f"s{i}", grid="karras", strong=0.1 * i + 0.1) for i in range(14)]
    work_precision([*ROWS, *many], tmp_path / "a.png", "title")
    figure = figures[0]
    titles = [axes.get_title() for axes in figure.axes]
    kinds = ["deterministic"] * 4 + ["stochastic"] * 2
    assert titles == [f"grid: {grid}, {kind}" for grid, kind in zip(["uniform", "karras"] * 3, kinds)]
    (legend,) = figure.legends
    labels = [t.get_text() for t in legend.get_texts()]
    solvers = ["euler", "heun", "ancestral", "rk", *(f"s{i}" for i in range(14))]
    assert labels == [*solvers, "exact samples", "orders 1, 2, 3"]
    looks = {(h.get_color(), h.get_marker()) for h in legend.legend_handles[: len(solvers)]}
    assert len(looks) == len(solvers)
    first = figure.axes[0]
    curves = {line.get_color(): line.get_xydata().tolist() for line in first.lines if len(line.get_xydata())}
    colours = {label: h.get_color() for label, h in zip(labels, legend.legend_handles)}
    assert curves[colours["euler"]] == [[5.0, 0.5], [20.0, 0.2]]
    assert curves[colours["rk"]] == [[26.5, 0.01]]
    assert first.get_xscale() == first.get_yscale() == "log"
    slopes = [line.get_xydata() for line in first.lines if line.get_linestyle() == ":"]
    orders = [math.log(d[0, 1] / d[1, 1]) / math.log(d[1, 0] / d[0, 0]) for d in slopes]
    assert orders == pytest.approx([1.0, 2.0, 3.0])
    # The largest error, 12.3, is cut off, unless all errors are large.
    assert first.get_ylim()[1] == 10.0
    work_precision([replace(r, **banded("strong", 100.0 * r.strong, 1.0)) for r in ROWS[:4]], tmp_path / "b.png")
    assert figures[1].axes[0].get_ylim()[1] > 1230.0


# Opening


def test_opening_a_problem(tmp_path: Path, mixture: Mixture) -> None:
    covs = (mixture.basis * mixture.eigenvalues[:, None]) @ mixture.basis.mT
    np.savez(tmp_path / "blobs.npz", weights=mixture.weights, means=mixture.means, covs=covs)
    tree = {"_target_": "sde.VE", "sigma_max": 20.0}
    problem, name, facts = open_problem(str(tmp_path / "blobs.npz"), None, tree)
    assert (name, problem.process, problem.shape) == ("blobs-VE", sde.VE(sigma_max=20.0), (2,))
    assert facts["process"] == tree
    assert open_problem(str(tmp_path / "blobs.npz"), None, None)[0].process == sde.VP()
    np.savez(tmp_path / "blobs.npz", weights=mixture.weights, means=2.0 * mixture.means, covs=covs)
    assert open_problem(str(tmp_path / "blobs.npz"), None, tree)[2]["target"] != facts["target"]
    with pytest.raises(ValueError, match=r"target=a\b.*ckpt=b\b"):
        open_problem("a", "b", None)
