"""SciPy's solvers: samples that fail, and gradients that cannot pass."""

from __future__ import annotations

import math

import pytest
import torch
from test_runge_kutta import ROWS, Broken, X

from sde.dynamics import Reverse, WithLogDensity
from sde.exact import Gaussian, Mixture
from sde.likelihood import log_prob
from sde.noise import Noise
from sde.processes import VP
from sde.sampling import sample
from sde.solvers import ScipyODE
from sde.trace import ExactTrace

METHODS = ("RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA")
GOOD = torch.tensor([True, True, False, True, True, False, True, True])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_marked_sample_becomes_nan_and_leaves_the_others_alone(method: str, value: float) -> None:
    """Alone in its system, a sample that fails changes no bit of the others; what is counted reached the network."""
    solver = ScipyODE(method, 1e-3, 1e-3, per_sample=True, on_failure="mark")
    healthy, ill = Broken([]), Broken([2, 5], value)
    a, b = (sample(d, x_T=X, solver=solver, condition=ROWS) for d in (healthy, ill))
    assert torch.equal(b.x[GOOD], a.x[GOOD])
    assert bool(b.x[~GOOD].isnan().all())
    assert torch.equal(b.nfe, ill.seen)
    assert torch.equal(a.nfe[GOOD], b.nfe[GOOD])
    assert bool((b.nfe[~GOOD] > 0).all())


def test_a_marked_sample_has_no_log_density() -> None:
    solver = ScipyODE(per_sample=True, on_failure="mark")
    healthy, ill = Broken([]), Broken([2, 5])
    a, b = (log_prob(d, X, solver=solver, condition=ROWS, trace=ExactTrace()) for d in (healthy, ill))
    for name in ("nats", "prior", "divergence", "latent"):
        assert torch.equal(getattr(b, name)[GOOD], getattr(a, name)[GOOD]), name
        assert bool(getattr(b, name)[~GOOD].isnan().all()), name
    assert torch.equal(b.nfe, ill.seen)


@pytest.mark.parametrize("on_failure", ["raise", "mark"])
def test_a_spent_budget(mixture: Mixture, on_failure: str) -> None:
    x = mixture.at(VP(), 1.0).sample(6, generator=torch.Generator().manual_seed(4))
    d, flow = mixture.denoiser(VP()), Reverse(mixture.denoiser(VP()), 0.0)
    steps = torch.tensor([sum(1 for _ in ScipyODE().trajectory(flow, (x[i : i + 1],))) - 1 for i in range(6)])
    budget = int(steps.min())
    solver = ScipyODE(per_sample=True, max_steps=budget, on_failure=on_failure)  # type: ignore[arg-type]
    over = steps > budget
    assert bool(over.any())
    if on_failure == "raise":
        first = int(over.nonzero()[0])
        with pytest.raises(FloatingPointError, match=rf"t=.*sample {first}\b.*max_steps={budget} "):
            sample(d, x_T=x, solver=solver)
        return
    r = sample(d, x_T=x, solver=solver)
    assert torch.equal(r.x.isnan().all(1), over)
    assert torch.equal(r.x[~over], sample(d, x_T=x, solver=ScipyODE(per_sample=True)).x[~over])


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_failure_names_the_sample_and_the_time(per_sample: bool) -> None:
    with pytest.raises(FloatingPointError, match=r"drift.*t=\S+ \(sample 5\)"):
        sample(Broken([5]), x_T=X, solver=ScipyODE(per_sample=per_sample), condition=ROWS)
    x = X.clone()
    x[3, 1] = math.inf
    with pytest.raises(FloatingPointError, match=r"state.*t=1 \(sample 3\)"):
        sample(Broken([]), x_T=x, solver=ScipyODE(per_sample=per_sample), condition=ROWS)


def test_a_start_that_is_not_finite_is_marked_without_a_call() -> None:
    x = X.clone()
    x[0, 1] = math.nan
    r = sample(Broken([]), x_T=x, solver=ScipyODE(per_sample=True, on_failure="mark"), condition=ROWS)
    assert r.x.isnan().all(1).tolist() == [True] + 7 * [False]
    assert r.nfe[0].item() == 0


def test_a_marked_sample_keeps_the_time_where_it_stopped(gaussian: Gaussian) -> None:
    solver = ScipyODE(per_sample=True, max_steps=3, on_failure="mark")
    path = list(solver.trajectory(Reverse(gaussian.denoiser(VP()), 0.0), (torch.ones(2, 2, dtype=torch.float64),)))
    t, (x,) = path[-1]
    assert bool(x.isnan().all())
    assert bool(((t > VP().t_min) & (t < 1.0)).all())


def test_the_whole_batch_cannot_be_marked() -> None:
    with pytest.raises(ValueError, match=r"ScipyODE.*'mark'.*per_sample=True"):
        ScipyODE(on_failure="mark")


def test_what_goes_wrong_in_a_denoiser_is_not_a_failed_sample() -> None:
    class Faulty(Broken):
        def forward(self, *args: object, **condition: object) -> torch.Tensor:
            raise FloatingPointError("a fault of its own")

    with pytest.raises(FloatingPointError, match="a fault of its own"):
        sample(Faulty([]), x_T=X, solver=ScipyODE(per_sample=True, on_failure="mark"), condition=ROWS)


def test_a_state_that_asks_for_gradients_is_refused_before_the_first_call() -> None:
    d = Broken([])
    x = X.clone().requires_grad_()
    for run in (
        lambda: sample(d, x_T=x, solver=ScipyODE(), condition=ROWS, differentiable=True),
        lambda: log_prob(d, x, solver=ScipyODE(), condition=ROWS, differentiable=True),
    ):
        with pytest.raises(ValueError, match=r"ScipyODE.*gradients.*RungeKutta"):
            run()
    assert int(d.seen.sum()) == 0
    assert bool(sample(d, x_T=x, solver=ScipyODE(), condition=ROWS).x.isfinite().all())


def test_a_drift_that_asks_for_gradients_is_refused(gaussian: Gaussian) -> None:
    """With the log-density it always does while gradients are on, as its divergence is differentiable in x."""
    x = torch.ones(2, 2, dtype=torch.float64)
    dynamics = WithLogDensity(Reverse(gaussian.denoiser(VP()), 0.0), ExactTrace().bind(Noise(0), torch.arange(2), x))
    state = (x, x.new_zeros(2, 1))
    with pytest.raises(ValueError, match=r"ScipyODE.*gradients.*no_grad"):
        ScipyODE()(dynamics, state)
    with torch.no_grad():
        assert all(bool(entry.isfinite().all()) for entry in ScipyODE()(dynamics, state))
