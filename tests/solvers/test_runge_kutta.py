"""Adaptive Runge-Kutta methods: the calls of a run, the control of its steps, and samples that fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import scipy.integrate
import torch
from torch import Tensor

from sde.denoisers import Denoiser
from sde.dynamics import Dynamics, Reverse, State, WithLogDensity
from sde.exact import Mixture
from sde.likelihood import log_prob
from sde.noise import Noise
from sde.processes import VP
from sde.sampling import encode, sample
from sde.shapes import expand
from sde.solvers import RungeKutta, ScipyODE
from sde.solvers.tableaus import BOGACKI_SHAMPINE, DORMAND_PRINCE, DORMAND_PRINCE_8, TSITOURAS, Tableau
from sde.trace import ExactTrace

ALL = [BOGACKI_SHAMPINE, DORMAND_PRINCE, TSITOURAS, DORMAND_PRINCE_8]
EACH = pytest.mark.parametrize("tableau", ALL, ids=lambda t: t.name)
NEW = pytest.mark.parametrize("tableau", [TSITOURAS, DORMAND_PRINCE_8], ids=lambda t: t.name)


@dataclass(frozen=True)
class Field(Dynamics):
    """dy/dt = function(y, t), over times from 1 down to 0."""

    function: Callable[[Tensor, Tensor], Tensor]
    process: VP = VP(t_min=0.0)

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def tolerances(self) -> tuple[float | None, ...]:
        return (None,)

    def drift(self, state: State, t: Tensor) -> State:
        return (self.function(state[0], t[:, None]),)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def select(self, index: Tensor) -> Field:
        return self


@dataclass(frozen=True)
class Rates(Field):
    """dy/dt = rate y, with a rate of its own, of shape (B, 1), for every sample."""

    rate: Tensor = torch.ones(1, 1)

    def drift(self, state: State, t: Tensor) -> State:
        return (self.rate * state[0],)

    def select(self, index: Tensor) -> Rates:
        return Rates(self.function, self.process, self.rate[index])


class Broken(Denoiser):
    """Exact for centred Gaussians, one coordinate at a time; some samples turn into `value` between two times.

    It counts the calls for each sample.
    """

    def __init__(self, rows: list[int], value: float = math.nan, below: float = 0.5, above: float = -1.0) -> None:
        super().__init__()
        self.process, self.value, self.below, self.above = VP(), value, below, above
        self.bad = torch.zeros(8, dtype=torch.bool)
        self.bad[rows] = True
        self.seen = torch.zeros(8, dtype=torch.int64)

    def forward(self, x_t: Tensor, t: Tensor, *, row: Tensor) -> Tensor:
        self.seen += torch.bincount(row, minlength=8)
        alpha, var = expand(self.process.alpha(t), x_t), expand(self.process.var(t), x_t)
        x0 = alpha * x_t / (alpha * alpha + 4.0 * var)
        bad = self.bad[row] & (t < self.below) & (t > self.above)
        return torch.where(bad[:, None], self.value, x0)


ROWS = {"row": torch.arange(8)}
X = torch.linspace(-2.0, 2.0, 16, dtype=torch.float64).reshape(8, 2)


def begin(mixture: Mixture, t: float, n: int) -> Tensor:
    return mixture.at(VP(), t).sample(n, generator=torch.Generator().manual_seed(4))


# ---- accuracy


@NEW
def test_error_falls_with_the_tolerance(mixture: Mixture, tableau: Tableau) -> None:
    """In x and in the log-density, at least in proportion over three decades."""
    x = begin(mixture, VP().t_min, 8)
    dynamics = WithLogDensity(Reverse(mixture.denoiser(VP()), 0.0), ExactTrace().bind(Noise(0), torch.arange(8), x))
    state = (x, x.new_zeros(8, 1))

    def error(solver: RungeKutta) -> list[float]:
        got = solver(dynamics, state, None, VP().t_min, VP().t_max)
        return [float((a - b).abs().max()) for a, b in zip(got, truth)]

    with torch.no_grad():
        truth = ScipyODE("DOP853", rtol=1e-12, atol=1e-12)(dynamics, state, None, VP().t_min, VP().t_max)
        tolerances = [1e-3, 1e-4, 1e-6]
        errors = [error(RungeKutta(tableau, tolerance, tolerance)) for tolerance in tolerances]
    for entry in (0, 1):
        assert all(e[entry] < 60.0 * tolerance for e, tolerance in zip(errors, tolerances)), errors
        slope = math.log(errors[0][entry] / errors[-1][entry]) / math.log(tolerances[0] / tolerances[-1])
        assert slope > 0.75, errors


@NEW
def test_polynomials_up_to_the_order_are_exact(tableau: Tableau) -> None:
    loose, x = RungeKutta(tableau, rtol=0.1, atol=0.1), torch.zeros(2, 3, dtype=torch.float64)
    for power in range(tableau.order):
        (y,) = loose(Field(lambda y, t, power=power: (t**power).expand_as(y)), (x,))
        torch.testing.assert_close(y, torch.full_like(x, -1.0 / (power + 1)), rtol=1e-13, atol=0.0)
    (y,) = loose(Field(lambda y, t: (t**12).expand_as(y)), (x,))
    assert float((y + 1.0 / 13).abs().max()) > 1e-9


def test_the_two_estimates_of_order_8_are_joined_as_in_scipy() -> None:
    """From the same first step the same steps as DOP853, whose rule for the next one is the same."""

    def slope(t: Any, y: Any) -> Any:
        return -y * (1.0 + 3.0 * t * t)

    x = torch.tensor([[1.0, 0.3]], dtype=torch.float64)
    solver = RungeKutta(DORMAND_PRINCE_8, rtol=1e-6, atol=1e-6)
    ours = [float(t) for t, _ in solver.trajectory(Field(lambda y, t: slope(t, y)), (x,))]
    theirs = scipy.integrate.solve_ivp(
        slope, (1.0, 0.0), x[0].numpy(), "DOP853", rtol=1e-6, atol=1e-6, first_step=1.0 - ours[1]
    )
    assert len(ours) > 3
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs.t.tolist()), rtol=0.0, atol=1e-12)


# ---- calls and steps


@EACH
def test_no_call_is_wasted(mixture: Mixture, tableau: Tableau) -> None:
    """Two to begin with, then one per stage but the first, which the step before has left behind or could not use.

    Where the error does not ask for the last slope, a step that is rejected or arrives does not either.
    """
    x = begin(mixture, 1.0, 6)
    solver = RungeKutta(tableau, 1e-4, 1e-4)
    times = torch.stack([t for t, _ in solver.trajectory(Reverse(mixture.denoiser(VP()), 0.0), (x,))])
    tried = (times[:-1] > VP().t_min).sum(0)
    accepted = (times.diff(dim=0) < 0.0).sum(0)
    assert int((tried - accepted).sum()) > 0
    expected = 2 + tried * len(tableau.a)
    if tableau is DORMAND_PRINCE_8:
        expected = 2 + tried * 11 + accepted - 1
    assert torch.equal(sample(mixture.denoiser(VP()), x_T=x, solver=solver).nfe, expected)


@EACH
def test_a_step_after_a_rejected_one_is_no_longer(mixture: Mixture, tableau: Tableau) -> None:
    x = begin(mixture, 1.0, 40)
    times = torch.stack(
        [t for t, _ in RungeKutta(tableau, 1e-5, 1e-5).trajectory(Reverse(mixture.denoiser(VP()), 0.0), (x,))]
    )
    steps = -times.diff(dim=0)
    seen = 0
    for before, now, then in zip(steps, steps[1:], steps[2:]):
        after = (before == 0.0) & (now > 0.0) & (then > 0.0)
        seen += int(after.sum())
        assert bool((then[after] <= now[after] * (1.0 + 1e-12)).all())
    assert seen > 0
    assert bool((steps[1:] > steps[:-1] * 1.01).any())  # elsewhere they do grow


def test_every_sample_has_a_first_step_of_its_own() -> None:
    """A hundred times the rate is 10^4 times the curvature, from whose fifth root the step is guessed."""
    rates = torch.tensor([[1.0], [100.0]], dtype=torch.float64)

    x = torch.ones(2, 3, dtype=torch.float64)
    run = RungeKutta().bind(Rates(lambda y, t: y, rate=rates))
    h = run.init((x,), None).memory.h
    assert float(h[0] / h[1]) == pytest.approx(10.0**0.8, rel=1e-6)
    assert bool((h < 0.0).all())
    torch.testing.assert_close(run((x,))[0], x * torch.exp(-rates), rtol=1e-3, atol=1e-5)


def test_a_step_into_the_undefined_is_tried_again_shorter() -> None:
    """dy/dt = sqrt(y) towards y = 0.0005 at t = 0: stages of a long step fall below 0, where there is no root."""
    y = torch.tensor([[(0.5 + math.sqrt(0.0005)) ** 2]], dtype=torch.float64)
    seen = []

    def root(y: Tensor, t: Tensor) -> Tensor:
        seen.append(bool(y.sqrt().isfinite().all()))
        return y.sqrt()

    for tableau in ALL:
        (end,) = RungeKutta(tableau, rtol=0.3, atol=0.3)(Field(root), (y,))
        assert 0.0 <= float(end) < 0.1
    assert not all(seen)


def test_a_first_probe_into_the_undefined_is_not_the_end() -> None:
    """A rotation whose field ends just outside the circle: the probe, along the tangent, is outside."""

    def turn(y: Tensor, t: Tensor) -> Tensor:
        inside = y.square().sum(1, keepdim=True) < 1.0 + 5e-5
        return torch.where(inside, torch.stack([-y[:, 1], y[:, 0]], 1), math.nan)

    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    (y,) = RungeKutta(rtol=1e-6, atol=1e-6)(Field(turn), (x,))
    torch.testing.assert_close(y, torch.tensor([[math.cos(1.0), -math.sin(1.0)]]).double(), rtol=0.0, atol=1e-5)


# ---- samples that fail


@EACH
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_marked_sample_becomes_nan_and_leaves_the_others_alone(tableau: Tableau, value: float) -> None:
    """In sampling and in likelihoods; what is counted is what reached the network."""
    solver = RungeKutta(tableau, on_failure="mark")
    healthy, ill = Broken([]), Broken([2, 5], value)
    good = torch.tensor([True, True, False, True, True, False, True, True])
    for run in (
        lambda d: sample(d, x_T=X, solver=solver, condition=ROWS),
        lambda d: log_prob(d, X, solver=solver, condition=ROWS, trace=ExactTrace()),
    ):
        healthy.seen, ill.seen = torch.zeros_like(healthy.seen), torch.zeros_like(ill.seen)
        a, b = run(healthy), run(ill)
        assert torch.equal(b.nfe, ill.seen)
        assert torch.equal(a.nfe[good], b.nfe[good])
        assert 0 < int(b.nfe[~good].min()) <= int(b.nfe[~good].max()) < 450
        for name, before in vars(a).items():
            after = getattr(b, name)
            if before is not None and name not in ("nfe", "vjps", "standard_error", "log_weight"):
                # A sample's place in the batch decides which of a processor's kernels computes it: rounding may differ.
                torch.testing.assert_close(after[good], before[good], rtol=1e-10, atol=1e-10)
                assert bool(after[~good].isnan().all()), name


def test_encoding_is_marked_too() -> None:
    z = encode(Broken([3], above=0.4, below=2.0), X, solver=RungeKutta(on_failure="mark"), condition=ROWS)
    assert z.isnan().all(1).tolist() == [i == 3 for i in range(8)]


def test_a_marked_sample_keeps_the_time_where_it_stopped() -> None:
    flow = Reverse(_Rowed(Broken([2], below=0.5), torch.arange(8)), 0.0)
    path = list(RungeKutta(on_failure="mark").trajectory(flow, (X,)))
    t = path[-1][0]
    assert float(t[2]) == pytest.approx(0.5, abs=1e-6)
    assert float(t[2]) >= 0.5
    assert sorted({*t.tolist()} - {float(t[2])}) == [VP().t_min]
    marked = [bool(y.isnan().any(1)[2]) for _, (y,) in path]
    assert marked == sorted(marked)
    assert [bool(y[[0, 1, 3, 4, 5, 6, 7]].isfinite().all()) for _, (y,) in path] == [True] * len(path)
    assert len({float(s[2]) for (s, _), gone in zip(path, marked) if gone}) == 1


class _Rowed(Denoiser):
    def __init__(self, inner: Denoiser, rows: Tensor) -> None:
        super().__init__()
        self.process, self.inner, self.rows = inner.process, inner, rows

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.inner(x_t, t, row=self.rows)

    def select(self, index: Tensor) -> _Rowed:
        return _Rowed(self.inner, self.rows[index])


@EACH
def test_a_spent_budget_is_marked(mixture: Mixture, tableau: Tableau) -> None:
    x = begin(mixture, 1.0, 8)
    d = mixture.denoiser(VP())
    free = sample(d, x_T=x, solver=RungeKutta(tableau))
    flow = Reverse(d, 0.0)
    times = torch.stack([t for t, _ in RungeKutta(tableau).trajectory(flow, (x,))])
    tried = (times[:-1] > VP().t_min).sum(0)
    budget = int(tried.min())
    assert budget < int(tried.max())
    r = sample(d, x_T=x, solver=RungeKutta(tableau, max_steps=budget, on_failure="mark"))
    over = tried > budget
    assert bool(r.x[over].isnan().all())
    torch.testing.assert_close(r.x[~over], free.x[~over], rtol=1e-7, atol=1e-7)
    assert torch.equal(r.nfe[~over], free.nfe[~over])
    per_step = 12 if tableau is DORMAND_PRINCE_8 else len(tableau.a)
    assert bool((r.nfe[over] <= 2 + budget * per_step).all())
    assert bool((r.nfe[over] < free.nfe[over]).all())
    first = int(over.nonzero()[0])
    with pytest.raises(FloatingPointError, match=f"sample {first} .*t=.*max_steps={budget} "):
        sample(d, x_T=x, solver=RungeKutta(tableau, max_steps=budget))


@EACH
def test_what_never_was_finite_ends_at_once(tableau: Tableau) -> None:
    x = X.clone()
    x[4] = math.nan
    r = sample(Broken([1], below=2.0), x_T=x, solver=RungeKutta(tableau, on_failure="mark"), condition=ROWS)
    assert r.x.isnan().all(1).nonzero()[:, 0].tolist() == [1, 4]
    assert r.nfe[[1, 4]].tolist() == [2, 2]
    with pytest.raises(FloatingPointError, match=r"sample 1 .*t=1: the drift is not finite"):
        sample(Broken([1], below=2.0), x_T=x, solver=RungeKutta(tableau), condition=ROWS)


@EACH
def test_a_wall_ends_with_sample_and_time(tableau: Tableau) -> None:
    with pytest.raises(FloatingPointError, match=rf"{tableau.name[:5]}.*sample 5 .*t=0\.5: no step"):
        sample(Broken([5]), x_T=X, solver=RungeKutta(tableau), condition=ROWS)


@EACH
@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_wall_right_ahead_takes_few_calls(tableau: Tableau, start: float, stop: float) -> None:
    """Also from t = 0, where no step is small against t."""
    calls = []

    def only_at_the_start(y: Tensor, t: Tensor) -> Tensor:
        calls.append(1)
        return torch.where(t == start, 1.0, math.nan).expand_as(y)

    (y,) = RungeKutta(tableau, on_failure="mark")(Field(only_at_the_start), (X,), None, start, stop)
    assert bool(y.isnan().all())
    assert len(calls) < 200


def test_a_slope_that_is_not_finite_where_a_step_arrived_is_the_end() -> None:
    """Order 8 asks for it after the step is accepted: after slope, probe and 11 stages, it is the 14th call."""
    calls = []

    def thirteen(y: Tensor, t: Tensor) -> Tensor:
        calls.append(1)
        return -y if len(calls) < 14 else torch.full_like(y, math.nan)

    (y,) = RungeKutta(DORMAND_PRINCE_8, on_failure="mark")(Field(thirteen), (X,))
    assert bool(y.isnan().all())
    assert len(calls) == 14


def test_an_overflow_is_not_an_arrival() -> None:
    """A state that leaves the range of float32 while its error does not."""

    def leap(y: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(y, -3e38)

    x = torch.full((1, 2), 2e38)
    (y,) = RungeKutta(on_failure="mark")(Field(leap), (x,))
    assert bool(y.isnan().all())


def test_all_samples_may_fail() -> None:
    r = sample(Broken(list(range(8))), x_T=X, solver=RungeKutta(on_failure="mark"), condition=ROWS)
    assert bool(r.x.isnan().all())


@pytest.mark.parametrize("make", [RungeKutta, ScipyODE])
def test_on_failure_is_one_of_two(make: type) -> None:
    with pytest.raises(ValueError, match=f"{make.__name__}.*on_failure.*'ignore'"):
        make(on_failure="ignore")
