"""Error budgets: that they cover the error they are for, part by part and in all, against exact densities."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sde.denoisers import Denoiser, Prediction, Wrapper
from sde.exact import Gaussian, Mixture
from sde.likelihood import LogProb, log_prob
from sde.likelihood.error_budget import ErrorBudget, Mean, budget_calls, error_budget, half_width
from sde.processes import SDE, VE, VP, SubVP
from sde.solvers import DEIS, Heun, RungeKutta
from sde.trace import ExactTrace, Hutchinson, Orthogonal, Trace

DTYPE = torch.float64
COARSE = RungeKutta(rtol=1e-3, atol=1e-3)


class Counter(Wrapper):
    """Counts the calls of all samples."""

    count = 0

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.count += len(x_t)
        return self.inner.predict(what, x_t, t, **condition)

    def select(self, index: Tensor) -> Wrapper:
        return self


def data(target: Mixture | Gaussian, process: SDE, n: int) -> Tensor:
    return target.at(process, process.t_min).sample(n, generator=torch.Generator().manual_seed(6))


def random_mixture(seed: int, dims: int) -> Mixture:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(3, dims, generator=generator, dtype=DTYPE)
    roots = torch.randn(3, dims, dims, generator=generator, dtype=DTYPE) / dims**0.5
    covs = 0.5 * roots @ roots.mT + 0.02 * torch.eye(dims, dtype=DTYPE)
    return Mixture(torch.rand(3, generator=generator, dtype=DTYPE) + 0.1, means, covs)


def scored(d: Any, x: Tensor, **settings: Any) -> tuple[LogProb, ErrorBudget]:
    """The result and its budget, from the same settings."""
    budget_alone = {name: settings.pop(name) for name in ("rows", "repeats", "finer") if name in settings}
    r = log_prob(d, x, **settings)
    return r, error_budget(d, x, r, **settings, **budget_alone)


# ---- coverage

SLOW = (Hutchinson(4, gaussian=True), Orthogonal(4), ExactTrace())
COVERED = [Hutchinson(8), *(pytest.param(trace, marks=pytest.mark.slow) for trace in SLOW)]


@pytest.mark.parametrize("trace", COVERED, ids=repr)
def test_it_covers_the_error(trace: Trace) -> None:
    """In at least 98 of 104 cases, 8 of each of 13 random mixtures in 5 dimensions, where 99 % are promised: fewer than
    98 have a probability of 1e-4."""
    covered, widths, errors = 0, [], []
    for seed in range(13):
        process: SDE = (VP(), SubVP(), VE())[seed % 3]
        target = random_mixture(seed, 5)
        x, end, d = data(target, process, 8), target.at(process, process.t_max), target.denoiser(process)
        r, budget = scored(d, x, trace=trace, solver=COARSE, prior=end, seed=seed, rows=4)
        error = (r.nats - target.log_prob(x, process, process.t_min)).abs()
        covered += int((error <= budget.total).sum())
        widths.append(budget.total)
        errors.append(error)
    assert covered >= 98
    # A width that covered by being far too wide would be of no use.
    ratio = float(torch.cat(widths).median() / torch.cat(errors).median())
    assert ratio < 12.0


@pytest.mark.parametrize("process", [VP(), VE()], ids=["VP", "VE"])
def test_the_solver_s_width_covers_the_rows_that_were_not_solved_again(process: SDE, mixture: Mixture) -> None:
    x, end, d = data(mixture, process, 100), mixture.at(process, process.t_max), mixture.denoiser(process)
    r, budget = scored(d, x, trace=ExactTrace(), solver=COARSE, atol=1e-3, prior=end, rows=8)
    error = (r.nats - mixture.log_prob(x, process, process.t_min)).abs()
    assert int((error <= budget.solver).sum()) >= 95
    assert float(budget.solver.median()) < 20.0 * float(error.square().mean().sqrt())
    assert torch.equal(budget.total, budget.solver)


@pytest.mark.parametrize("solver", [Heun(30), DEIS(25)], ids=["Heun", "DEIS"])
def test_a_solver_of_fixed_steps(mixture: Mixture, solver: Any) -> None:
    """Twice the steps show at least half of its error, at twice its calls; a solution at 1e-7 shows all of it."""
    x, end, d = data(mixture, VP(), 20), mixture.at(VP(), 1.0), Counter(mixture.denoiser(VP()))
    r, budget = scored(d, x, trace=ExactTrace(), solver=solver, prior=end, rows=20)
    assert d.count <= (1 + 2 * 2) * int(r.nfe.sum())
    error = (r.nats - mixture.log_prob(x, VP(), VP().t_min)).abs()
    assert int((error <= budget.solver).sum()) >= 19
    rms = float(error.square().mean().sqrt())
    width = 2.8453 * rms  # the 0.995 quantile of 20 degrees of freedom
    assert 0.8 * width < float(budget.solver.median()) < 2.5 * width


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_its_cost_is_a_small_multiple_of_that_of_the_result(mixture: Mixture, tolerance: float) -> None:
    """At most six times the calls; a row that would need more is not followed to its end."""
    d, solver = Counter(mixture.denoiser(VP())), RungeKutta(rtol=tolerance, atol=tolerance)
    x, done = data(mixture, VP(), 4), list[float]()
    r = log_prob(d, x, solver=solver)
    d.count = 0
    budget = error_budget(d, x, r, solver=solver, progress=done.append)
    assert d.count <= budget_calls(4, float(r.nfe.max()))
    assert bool(budget.solver.isfinite().all())
    assert done == sorted(done)
    assert done[-1] == pytest.approx(1.0)
    d.count = 0
    few = replace(r, nfe=torch.full_like(r.nfe, 12))
    assert bool(error_budget(d, x, few, solver=solver).solver.isnan().all())
    assert d.count <= budget_calls(4, 12.0) + 2 * 2 * 4  # the first slope and the first step


# ---- the parts


def test_the_probes_width_is_student_s(mixture: Mixture) -> None:
    x, d = data(mixture, VP(), 6), mixture.denoiser(VP())
    for probes, quantile in ((2, 63.65674), (4, 5.840909), (24, 2.807336)):
        r, budget = scored(d, x, trace=Hutchinson(probes), solver=COARSE, rows=2)
        torch.testing.assert_close(budget.probes, quantile * r.standard_error, rtol=1e-5, atol=0.0)
        assert budget.dequantisation is None
        assert torch.equal(budget.total, budget.probes + budget.solver)
    _, budget = scored(d, x, trace=Hutchinson(1), solver=COARSE, rows=2)
    assert bool(budget.probes.isnan().all())
    assert bool(budget.total.isnan().all())
    for exact in (ExactTrace(), Orthogonal(2)):
        _, budget = scored(d, x, trace=exact, solver=COARSE, rows=2)
        assert budget.probes.tolist() == [0.0] * 6


def test_repeats_give_the_width_of_their_mean(mixture: Mixture) -> None:
    x, d = data(mixture, VP(), 5), mixture.denoiser(VP())
    repeats = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=DTYPE)
    _, budget = scored(d, x, solver=COARSE, rows=2, repeats=repeats)
    assert budget.dequantisation is not None
    torch.testing.assert_close(budget.dequantisation, 9.92484 * repeats.std(0) / math.sqrt(3.0), rtol=1e-5, atol=0.0)
    # One probe knows no error of its own, but draws with their own probes hold it.
    assert torch.equal(budget.total, budget.dequantisation + budget.solver)
    assert budget.mean.value == pytest.approx(float(repeats.mean()))


def test_the_second_solution_has_a_tenth_of_the_tolerance_and_the_same_everything(mixture: Mixture) -> None:
    x, d, end = data(mixture, VE(), 6), mixture.denoiser(VE()), mixture.at(VE(), 1.0)
    index, rows = torch.tensor([9, 4, 7, 1, 0, 2]), torch.tensor([4, 1])
    settings: dict[str, Any] = {"trace": Hutchinson(3), "seed": 5, "prior": end}
    r, budget = scored(d, x, index=index, solver=COARSE, atol=1e-2, rows=rows, **settings)
    assert torch.equal(budget.rows, rows)
    given = error_budget(d, x, r, index=index, solver=COARSE, atol=1e-2, rows=rows, finer=COARSE, **settings)
    for b, finer in ((budget, replace(COARSE, rtol=1e-4, atol=1e-4)), (given, COARSE)):
        fine = log_prob(d, x[rows], index=index[rows], solver=finer, atol=1e-3, **settings)
        error = (r.nats[rows] - fine.nats).abs() / 0.9
        pooled = 9.92484 * error.square().mean().sqrt()
        torch.testing.assert_close(b.solver, pooled.expand(6), rtol=1e-5, atol=0.0)


def test_float32_is_solved_again_in_float64(mixture: Mixture) -> None:
    """So that its rounding is in the width, which the tolerance alone would not show."""
    x, d, end = data(mixture, VP(), 8).float(), mixture.denoiser(VP()), mixture.at(VP(), 1.0)
    tolerance = RungeKutta(rtol=1e-5, atol=1e-5)
    r, budget = scored(d, x, trace=ExactTrace(), solver=tolerance, prior=end)
    error = (r.nats.double() - mixture.log_prob(x.double(), VP(), VP().t_min)).abs()
    assert budget.solver.dtype == DTYPE
    assert bool((error <= budget.solver).all())
    fine = log_prob(d, x.double(), trace=ExactTrace(), solver=RungeKutta(rtol=1e-6, atol=1e-6), prior=end).nats
    seen = (r.nats.double() - fine).abs() / 0.9
    wanted = seen.clamp(min=3.355387 * float(seen.square().mean().sqrt()))
    torch.testing.assert_close(budget.solver, wanted, rtol=1e-5, atol=0.0)


def test_rows_that_cannot_be_solved_again_tell_nothing(mixture: Mixture) -> None:
    """A tenth of the tolerance takes more steps than the solver may: the width is unknown, the rest is there."""
    x, d = data(mixture, VP(), 1), mixture.denoiser(VP())
    fine = RungeKutta(rtol=1e-6, atol=1e-6)
    most = -(-int(log_prob(d, x, solver=fine, trace=ExactTrace()).nfe.max() - 2) // 6)  # two calls find the first step
    r, budget = scored(d, x, solver=replace(fine, max_steps=most + 1), trace=ExactTrace())
    assert bool(r.nats.isfinite().all())
    assert bool(budget.solver.isnan().all())
    assert budget.probes.tolist() == [0.0]
    assert budget.truncation.n == 0


def test_the_default_rows_are_spread_over_the_finite_ones(mixture: Mixture) -> None:
    x, d = data(mixture, VP(), 9), mixture.denoiser(VP())
    r = log_prob(d, x, solver=COARSE, trace=Hutchinson(2))
    failed = r.nats.clone()
    failed[[0, 4]] = math.nan
    r = replace(r, nats=failed, standard_error=torch.where(failed.isnan(), math.nan, r.standard_error))
    budget = error_budget(d, x, r, solver=COARSE, trace=Hutchinson(2), rows=3)
    assert budget.rows.tolist() == [1, 3, 6]
    assert budget.total.isnan().tolist() == failed.isnan().tolist()
    assert budget.solver.isnan().tolist() == failed.isnan().tolist()
    assert budget.mean.n == 7
    assert budget.mean.value == pytest.approx(float(failed.nanmean()))
    everything = error_budget(d, x, r, solver=COARSE, trace=Hutchinson(2), rows=100)
    assert everything.rows.tolist() == [1, 2, 3, 5, 6, 7, 8]


# ---- per data set


def test_the_mean_and_its_standard_error(mixture: Mixture) -> None:
    x, d = data(mixture, VP(), 7), mixture.denoiser(VP())
    r, budget = scored(d, x, trace=ExactTrace(), solver=COARSE, rows=1)
    assert budget.mean.value == pytest.approx(float(r.nats.mean()))
    assert budget.mean.standard_error == pytest.approx(float(r.nats.std()) / math.sqrt(7.0))
    assert budget.mean.half_width == pytest.approx(3.70743 * budget.mean.standard_error, rel=1e-5)
    assert budget.truncation.n == 1
    assert math.isnan(budget.truncation.half_width)


@pytest.mark.parametrize("truth", [VP(), SubVP(), VE(sigma_max=5.0), VP(beta_max=3.0)], ids=repr)
def test_the_prior_s_mismatch_is_the_mean_divergence(truth: SDE, gaussian: Gaussian) -> None:
    """Against torch's, and as a bound on what the prior costs: KL(p_T || prior) for a Gaussian in closed form."""
    x = gaussian.sample(4000, generator=torch.Generator().manual_seed(2))
    r = LogProb(*(torch.zeros(4000, dtype=DTYPE) for _ in range(7)))
    budget = error_budget(gaussian.denoiser(truth), x, r, trace=ExactTrace(), solver=COARSE, rows=1)
    location, std = truth.marginal(x, torch.tensor(truth.t_max, dtype=DTYPE))
    scale = truth.prior_var(torch.tensor(truth.t_max, dtype=DTYPE)).sqrt()
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(location, std), normal(torch.zeros_like(x), scale)).sum(1).mean()
    assert budget.prior_mismatch == pytest.approx(float(wanted), rel=1e-6, abs=1e-12)
    z = gaussian.at(truth, truth.t_max).sample(100_000, generator=torch.Generator().manual_seed(3))
    cost = gaussian.log_prob(z, truth, truth.t_max) - truth.prior_log_prob(z)
    assert float(cost.mean()) < budget.prior_mismatch + 4.0 * float(cost.std()) / math.sqrt(100_000)
    other = gaussian.at(truth, truth.t_max)
    assert math.isnan(
        error_budget(
            gaussian.denoiser(truth), x, r, trace=ExactTrace(), solver=COARSE, rows=1, prior=other
        ).prior_mismatch
    )


@pytest.mark.parametrize("truth", [SubVP(t_min=0.1), VE(sigma_min=0.1, t_min=0.05)], ids=repr)
def test_the_truncation_is_the_change_of_the_density_in_data_space(truth: SDE, mixture: Mixture) -> None:
    """Of y = x / alpha, whose density at both times is known."""
    x, d = data(mixture, truth, 12), mixture.denoiser(truth)
    end = mixture.at(truth, truth.t_max)
    _, budget = scored(d, x, trace=ExactTrace(), solver=RungeKutta(rtol=1e-6, atol=1e-6), prior=end, rows=12)
    times = torch.tensor([truth.t_min, 3.0 * truth.t_min], dtype=DTYPE)
    first, later = truth.alpha(times)
    y = x / first
    densities = [
        mixture.log_prob(a * y, truth, float(t)) + 2.0 * a.log() for a, t in ((first, times[0]), (later, times[1]))
    ]
    change = densities[1] - densities[0]
    assert budget.truncation.value == pytest.approx(float(change.mean()), abs=1e-4)
    assert budget.truncation.standard_error == pytest.approx(float(change.std()) / math.sqrt(12.0), abs=1e-4)
    assert abs(budget.truncation.value) > 1e-3


def test_no_truncation_where_the_process_begins_at_0(gaussian: Gaussian) -> None:
    process = VE(sigma_min=0.1, t_min=0.0)
    _, budget = scored(gaussian.denoiser(process), data(gaussian, process, 3), trace=ExactTrace(), solver=COARSE)
    assert (budget.truncation.value, budget.truncation.standard_error) == (0.0, 0.0)


def test_conditions_go_along_with_their_rows() -> None:
    class Moved(Denoiser):
        process = VP(t_min=0.1)

        def forward(self, x_t: Tensor, t: Tensor, shift: Tensor, scale: Tensor | float) -> Tensor:
            return torch.tanh(x_t + shift[:, None]) * scale

    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(3), dtype=DTYPE)
    condition: dict[str, Any] = {"shift": torch.linspace(-1.0, 1.0, 6, dtype=DTYPE), "scale": 0.5}
    r, budget = scored(Moved(), x, trace=ExactTrace(), solver=COARSE, condition=condition, rows=torch.tensor([5, 2]))
    assert float(budget.solver.max()) < 0.02
    assert budget.total.shape == r.nats.shape


def test_half_width() -> None:
    error = torch.tensor([0.0, 1.0, math.nan], dtype=DTYPE)
    assert half_width(error, 1)[0] == 0.0
    assert bool(half_width(error, 1)[1:].isnan().all())
    assert float(half_width(error, 3)[1]) == pytest.approx(9.92484, rel=1e-5)


def test_a_budget_in_bits_per_dim() -> None:
    """All of it over D log 2; the mean and its change are those of bits/dim, which fall where the density rises."""
    widths, unit = torch.tensor([3.0, math.nan], dtype=DTYPE), 5.0 * math.log(2.0)
    mean, change = Mean(-10.0, 2.0, 2), Mean(0.5, 0.1, 2)
    nats = ErrorBudget(widths, 2.0 * widths, 3.0 * widths, torch.tensor([0]), mean, 0.7, change)
    bits = nats.in_bits(5)
    for name, factor in (("probes", 1.0), ("dequantisation", 2.0), ("solver", 3.0)):
        torch.testing.assert_close(getattr(bits, name), factor * widths / unit, equal_nan=True)
    torch.testing.assert_close(bits.total, nats.total / unit, equal_nan=True)
    assert (bits.mean.value, bits.mean.standard_error) == pytest.approx((10.0 / unit, 2.0 / unit))
    assert (bits.truncation.value, bits.truncation.half_width) == pytest.approx((-0.5 / unit, change.half_width / unit))
    assert bits.prior_mismatch == pytest.approx(0.7 / unit)
    assert (nats.unit, bits.unit, bits.rows.tolist()) == ("nats", "bits/dim", [0])
    assert "in bits/dim, from 1 samples" in str(bits)
    assert ErrorBudget(widths, None, widths, torch.tensor([0]), mean, 0.7, change).in_bits(5).dequantisation is None


# ---- refusals


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"repeats": torch.zeros(1, 4)}, r"\(R, 4\).*got \(1, 4\)"),
        ({"repeats": torch.zeros(2, 3)}, r"\(R, 4\).*got \(2, 3\)"),
        ({"rows": 0}, "rows=0"),
        ({"rows": torch.tensor([0, 4])}, r"0 to 3, got \[0, 4\]"),
        ({"rows": torch.tensor([0, -1])}, r"0 to 3, got \[0, -1\]"),
        ({"rows": torch.tensor([1, 1])}, r"rows.*\[1, 1\]"),
        ({"rows": torch.tensor([1.0])}, r"rows int64.*\[1\.\]"),
    ],
)
def test_refusals(mixture: Mixture, given: dict[str, Any], message: str) -> None:
    x, d = data(mixture, VP(), 4), mixture.denoiser(VP())
    r = LogProb(*(torch.zeros(4, dtype=DTYPE) for _ in range(7)))
    with pytest.raises(ValueError, match=message):
        error_budget(d, x, r, trace=ExactTrace(), solver=COARSE, **given)


def test_the_result_of_other_data_is_refused(mixture: Mixture) -> None:
    r = LogProb(*(torch.zeros(4, dtype=DTYPE) for _ in range(7)))
    with pytest.raises(ValueError, match=r"5 samples.*\(4,\)"):
        error_budget(mixture.denoiser(VP()), data(mixture, VP(), 5), r)
