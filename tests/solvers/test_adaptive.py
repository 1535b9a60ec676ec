"""Adaptive solvers: error against tolerance, independence of batch mates, calls spent, and how they give up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sde.denoisers import Conditioned, Denoiser
from sde.dynamics import Dynamics, Reverse, Semilinear, State, WithLogDensity
from sde.exact import Gaussian, Mixture
from sde.likelihood import log_prob
from sde.noise import Noise
from sde.processes import SDE, VE, VP, SubVP
from sde.sampling import sample
from sde.solvers import BOGACKI_SHAMPINE, DORMAND_PRINCE, RungeKutta, ScipyODE, Solver, Tableau
from sde.trace import ExactTrace

MEAN = torch.tensor([0.7, -0.3], dtype=torch.float64)
COV = torch.tensor([[0.6, 0.25], [0.25, 0.3]], dtype=torch.float64)

TABLEAUS = pytest.mark.parametrize("tableau", [BOGACKI_SHAMPINE, DORMAND_PRINCE], ids=["BS32", "DP54"])


def begin(mixture: Mixture, process: SDE, t: float, n: int) -> Tensor:
    return mixture.at(process, t).sample(n, generator=torch.Generator().manual_seed(4))


def carried(flow: Semilinear, x: Tensor, atol: float | None = None) -> tuple[WithLogDensity, State]:
    n = len(x)
    return WithLogDensity(flow, ExactTrace().bind(Noise(0), torch.arange(n), x), atol), (x, x.new_zeros(n, 1))


@dataclass(frozen=True)
class Clock(Dynamics):
    """dy/dt = the time itself to some power, for which a step's error is known; time runs from 1 down to 0."""

    power: int
    process: SDE = VP(t_min=0.0)

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def tolerances(self) -> tuple[float | None, ...]:
        return (None,)

    def drift(self, state: State, t: Tensor) -> State:
        (x,) = state
        rate = t**self.power
        return ((rate[:, None] if rate.ndim else rate).expand_as(x),)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def select(self, index: Tensor) -> Clock:
        return self


# ---- accuracy


@TABLEAUS
def test_error_falls_with_the_tolerance(mixture: Mixture, tableau: Tableau) -> None:
    """Error per unit tolerance stays within bounds over two decades, in x and in the log-density."""
    x = begin(mixture, VP(), VP().t_min, 4)
    dynamics, state = carried(Reverse(mixture.denoiser(VP()), 0.0), x)
    with torch.no_grad():
        truth = ScipyODE("DOP853", rtol=1e-12, atol=1e-12)(dynamics, state, None, VP().t_min, VP().t_max)
        tolerances = [1e-3, 1e-5]
        errors = []
        for tolerance in tolerances:
            got = RungeKutta(tableau, rtol=tolerance, atol=tolerance)(dynamics, state, None, VP().t_min, VP().t_max)
            errors.append([float((a - b).abs().max()) for a, b in zip(got, truth)])
    for entry in (0, 1):
        for tolerance, error in zip(tolerances, errors):
            assert error[entry] < 60.0 * tolerance, errors
        slope = math.log(errors[0][entry] / errors[-1][entry]) / math.log(tolerances[0] / tolerances[-1])
        assert 0.75 < slope < 1.25, errors


@TABLEAUS
def test_polynomials_up_to_the_order_are_exact(tableau: Tableau) -> None:
    """y' = t^(p-1) is integrated without error by a method of order p, and y' = t^(p+1) is not."""
    x = torch.zeros(2, 3, dtype=torch.float64)
    loose = RungeKutta(tableau, rtol=0.1, atol=0.1)
    for power in range(tableau.order):
        (y,) = loose(Clock(power), (x,))
        torch.testing.assert_close(y, torch.full_like(x, -1.0 / (power + 1)), rtol=1e-13, atol=0.0)
    (y,) = loose(Clock(tableau.order + 1), (x,))
    assert float((y + 1.0 / (tableau.order + 2)).abs().max()) > 1e-8


@pytest.mark.parametrize(
    ("process", "direction"), [(VP(), "down"), (VE(), "up"), (SubVP(), "down")], ids=["VP-down", "VE-up", "SubVP-down"]
)
def test_runge_kutta_and_scipy_agree(process: SDE, mixture: Mixture, direction: str) -> None:
    start, stop = process.t_max, process.t_min
    if direction == "up":
        start, stop = stop, start
    x = begin(mixture, process, start, 4)
    dynamics, state = carried(Reverse(mixture.denoiser(process), 0.0), x)
    with torch.no_grad():
        a = RungeKutta(rtol=1e-7, atol=1e-7)(dynamics, state, None, start, stop)
        b = ScipyODE(rtol=1e-7, atol=1e-7)(dynamics, state, None, start, stop)
    for left, right in zip(a, b):
        torch.testing.assert_close(left, right, rtol=2e-5, atol=2e-5)


def test_the_first_step_overlooks_nothing(mixture: Mixture) -> None:
    """At this point the slope at t_min tells nothing of what comes soon: the plain starting step passes over it, and
    no later step makes up for that."""
    x = torch.tensor([[1.0637628280908467, -0.11368178778033089]], dtype=torch.float64)
    target, prior = mixture.log_prob(x, VP(), VP().t_min), mixture.at(VP(), 1.0)
    errors = []
    for first_ratio in (2.0, None):
        solver = RungeKutta(rtol=1e-3, atol=1e-3, first_ratio=first_ratio)
        r = log_prob(mixture.denoiser(VP()), x, solver=solver, trace=ExactTrace(), prior=prior)
        errors.append(float((r.nats - target).abs()))
    assert errors[0] < 1e-3 < 5e-3 < errors[1]


@pytest.mark.parametrize(("process", "start", "stop"), [(VP(), 1e-5, 1.0), (SubVP(), 1e-5, 1.0), (VE(), 0.0, 1.0)])
def test_the_first_step_raises_the_noise_level_by_a_bounded_factor(process: SDE, start: float, stop: float) -> None:
    """Where the state is so large that any step would do."""
    x, t = (torch.full((1, 2), 1e6, dtype=torch.float64),), torch.tensor([start], dtype=torch.float64)
    dynamics = Clock(0, process)
    h, _ = RungeKutta(first_ratio=3.0).begin(dynamics, t, x, dynamics.drift(x, t), stop - start)
    ratio = (0.5 * (process.log_snr(t) - process.log_snr(t + h))).exp()
    assert math.isclose(abs(math.log(float(ratio))), math.log(3.0), rel_tol=1e-6)


def test_a_first_ratio_of_at_most_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"first_ratio=1\.0"):
        RungeKutta(first_ratio=1.0)


# An entry that demands more than the solver's own tolerance gets it, at the cost of more calls, and only then.
@pytest.mark.parametrize("solver", [RungeKutta(rtol=1e-2, atol=1e-2), ScipyODE(rtol=1e-2, atol=1e-2, per_sample=True)])
def test_the_log_density_has_a_tolerance_of_its_own(mixture: Mixture, solver: Solver) -> None:
    p = VP()
    x = begin(mixture, p, p.t_min, 4)
    d, end = mixture.denoiser(p), mixture.at(p, p.t_max)
    exact = mixture.log_prob(x, p, p.t_min)
    errors, calls = [], []
    for atol in (1e-2, 1e-6):
        r = log_prob(d, x, solver=solver, trace=ExactTrace(), prior=end, atol=atol)
        errors.append(float((r.nats - exact).abs().max()))
        calls.append(int(r.nfe.sum()))
    assert errors[0] > 1e-3
    assert errors[1] < errors[0] / 20.0
    assert calls[1] > calls[0]


# ---- samples on their own


PER_SAMPLE = pytest.mark.parametrize(
    "solver",
    [RungeKutta(), RungeKutta(BOGACKI_SHAMPINE), ScipyODE(per_sample=True)],
    ids=["DP54", "BS32", "ScipyODE"],
)


@dataclass(frozen=True)
class Rational(Clock):
    """A drift of sums, products and quotients of single numbers, which round alike in any batch."""

    def drift(self, state: State, t: Tensor) -> State:
        (x,) = state
        time = t[:, None] if t.ndim else t
        return (x * (2.0 - x * x) / (1.0 + x * x) / (0.1 + time),)

    def select(self, index: Tensor) -> Rational:
        return self


@PER_SAMPLE
def test_a_sample_is_the_same_alone_and_among_64(solver: Solver) -> None:
    x = 3.0 * torch.randn(64, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (whole,) = solver(Rational(0), (x,))
    for first, n in ((0, 7), (13, 1), (60, 4)):
        (part,) = solver(Rational(0), (x[first : first + n],))
        torch.testing.assert_close(part, whole[first : first + n], rtol=1e-12, atol=1e-12)


@PER_SAMPLE
def test_a_sample_does_not_depend_on_its_batch(mixture: Mixture, solver: Solver) -> None:
    """On a mixture, with the log-density: below the tolerance of 1e-5, by the rounding of matrix products."""
    x = begin(mixture, VP(), VP().t_min, 20)

    def run(rows: slice) -> State:
        dynamics, state = carried(Reverse(mixture.denoiser(VP()), 0.0), x[rows])
        with torch.no_grad():
            return solver(dynamics, state, None, VP().t_min, VP().t_max)

    whole = run(slice(0, 20 if isinstance(solver, RungeKutta) else 8))
    for rows in (slice(0, 7), slice(5, 6)):
        for part, entry in zip(run(rows), whole):
            torch.testing.assert_close(part, entry[rows], rtol=1e-6, atol=1e-6)


def test_scipy_on_a_whole_batch_is_one_system(mixture: Mixture) -> None:
    """What `per_sample` is for: without it one step size serves all, so that batch mates matter."""
    x = begin(mixture, VP(), VP().t_max, 8)
    flow = Reverse(mixture.denoiser(VP()), 0.0)
    (whole,), (part,) = (ScipyODE(rtol=1e-3, atol=1e-3)(flow, (y,)) for y in (x, x[:1]))
    assert float((whole[:1] - part).abs().max()) > 1e-6


class Counted(Denoiser):
    """Counts the rows that really reach it, by the sample that the condition says they are."""

    def __init__(self, inner: Denoiser, n: int) -> None:
        super().__init__()
        self.process, self.inner = inner.process, inner
        self.rows = torch.zeros(n, dtype=torch.int64)
        self.sizes: list[int] = []

    def forward(self, x_t: Tensor, t: Tensor, *, row: Tensor) -> Tensor:
        self.rows += torch.bincount(row, minlength=len(self.rows))
        self.sizes.append(len(row))
        return self.inner(x_t, t)


@pytest.mark.parametrize("solver", [RungeKutta(), ScipyODE(per_sample=True)], ids=["RungeKutta", "ScipyODE"])
def test_samples_that_have_arrived_cost_nothing(mixture: Mixture, solver: Solver) -> None:
    x = begin(mixture, VP(), VP().t_min, 6)
    for call in (
        lambda d, condition: log_prob(d, x, solver=solver, condition=condition),
        lambda d, condition: sample(d, x_T=x, solver=solver, condition=condition),
    ):
        seen = Counted(mixture.denoiser(VP()), 6)
        r = call(seen, {"row": torch.arange(6)})
        assert torch.equal(r.nfe, seen.rows)
        assert len(set(r.nfe.tolist())) > 1
        assert sum(seen.sizes) == int(r.nfe.sum())
        assert min(seen.sizes) < 6
    alone = sample(mixture.denoiser(VP()), x_T=x[2:3], solver=solver)
    assert alone.nfe.item() == r.nfe[2].item()


@TABLEAUS
def test_first_same_as_last(mixture: Mixture, tableau: Tableau) -> None:
    """Two calls to begin with, then one per stage but the first, which the step before has left behind."""
    x = begin(mixture, VP(), VP().t_max, 1)
    r = sample(mixture.denoiser(VP()), x_T=x, solver=RungeKutta(tableau))
    flow = Reverse(mixture.denoiser(VP()), 0.0)
    steps = sum(1 for _ in RungeKutta(tableau).trajectory(flow, (x,))) - 1
    assert r.nfe.item() == 2 + steps * len(tableau.a)


def test_finished_samples_are_frozen(mixture: Mixture) -> None:
    x = begin(mixture, VP(), VP().t_max, 5)
    flow = Reverse(mixture.denoiser(VP()), 0.0)
    path = list(RungeKutta().trajectory(flow, (x,)))
    last = path[-1][1][0]
    early = 0
    for t, (y,) in path:
        arrived = t == VP().t_min
        early += int(arrived.any() and not arrived.all())
        assert torch.equal(y[arrived], last[arrived])
    assert early > 0


# ---- giving up


class Broken(Denoiser):
    """Exact for a Gaussian, but not finite for one sample below some time."""

    def __init__(self, value: float, row: int, below: float) -> None:
        super().__init__()
        self.process = VP()
        self.inner = Gaussian(MEAN, COV).denoiser(self.process)
        self.value, self.row, self.below = value, row, below

    def forward(self, x_t: Tensor, t: Tensor, *, row: Tensor) -> Tensor:
        bad = (row == self.row) & (t < self.below)
        return torch.where(bad[:, None], self.value, self.inner(x_t, t))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_drift_that_is_not_finite_ends_with_sample_and_time(value: float) -> None:
    d = Broken(value, row=2, below=0.5)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(FloatingPointError, match=r"sample 2 .*t=0\.5.*not finite") as error:
        sample(d, x_T=x, solver=RungeKutta(), condition={"row": torch.arange(4)})
    assert "Dormand-Prince" in str(error.value)
    with pytest.raises(FloatingPointError, match=r"not finite.*t=0\.[45]"):
        sample(d, x_T=x, solver=ScipyODE(), condition={"row": torch.arange(4)})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_drift_that_is_never_finite_ends_at_once(value: float) -> None:
    """From the first call on: no budget is spent on a step size that is not a number."""
    d = Broken(value, row=1, below=2.0)
    nfe = torch.zeros(3, dtype=torch.int64)
    condition = {"row": torch.arange(3)}
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(FloatingPointError, match=r"sample 1 .*t=1.*not finite"):
        RungeKutta(max_steps=400)(Reverse(Conditioned(d, condition, nfe), 0.0), (x,))
    assert int(nfe.max()) < 300


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (RungeKutta(max_steps=5), r"sample \d .*t=.*max_steps=5 "),
        (ScipyODE(max_steps=5), "RK45 .*t=.*max_steps=5 "),
        (ScipyODE(max_steps=5, per_sample=True), "RK45 .*t=.*sample 0.*max_steps=5 "),
    ],
)
def test_the_budget_ends_with_an_error(mixture: Mixture, solver: Solver, message: str) -> None:
    with pytest.raises(FloatingPointError, match=message):
        solver(Reverse(mixture.denoiser(VE()), 0.0), (begin(mixture, VE(), 1.0, 3),))


@pytest.mark.parametrize("make", [RungeKutta, ScipyODE])
def test_the_budget_may_be_spent_to_the_last_step(mixture: Mixture, make: Callable[..., Solver]) -> None:
    """A run that takes n steps goes through with max_steps=n and fails with n - 1."""
    flow, x = Reverse(mixture.denoiser(VP()), 0.0), begin(mixture, VP(), 1.0, 3)
    n = sum(1 for _ in make().trajectory(flow, (x,))) - 1
    assert bool(make(max_steps=n)(flow, (x,))[0].isfinite().all())
    with pytest.raises(FloatingPointError, match=f"max_steps={n - 1}"):
        make(max_steps=n - 1)(flow, (x,))


def test_gradients_do_not_pass_through_scipy(gaussian: Gaussian) -> None:
    x = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    d = gaussian.denoiser(VP())
    with pytest.raises(ValueError, match=r"ScipyODE.*gradients.*RungeKutta"):
        log_prob(d, x, solver=ScipyODE(), differentiable=True)
