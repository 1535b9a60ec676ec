"""The adaptive method for SDEs: its limit, its law, its cost, and what becomes of samples that fail."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from sde.brownian import BrownianPath
from sde.denoisers import Conditioned, Denoiser
from sde.dynamics import Dynamics, Reverse, State
from sde.exact import Gaussian, Mixture
from sde.noise import Noise, StepNoise, Stream
from sde.processes import SDE, VE, VP
from sde.sampling import encode, sample
from sde.shapes import expand
from sde.solvers.adaptive_sde import AdaptiveSDE
from sde.solvers.stochastic_runge_kutta import StochasticRungeKutta

PATH = BrownianPath(0, levels=13)
MEAN = torch.tensor([0.7, -0.3], dtype=torch.float64)
COV = torch.tensor([[0.6, 0.25], [0.25, 0.3]], dtype=torch.float64)


class Rational(Denoiser):
    """Denoised values by additions, products and quotients of single numbers, which round alike in any batch."""

    def __init__(self, process: SDE) -> None:
        super().__init__()
        self.process = process

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        alpha, var = expand(self.process.alpha(t), x_t), expand(self.process.var(t), x_t)
        y = alpha * x_t / (alpha * alpha + var)
        return y * (1.0 - 0.5 / (1.0 + y * y))


# ---- where it goes


@pytest.mark.parametrize("process", [VP(), VE()], ids=["VP", "VE"])
def test_it_converges_along_the_path(process: SDE, gaussian: Gaussian) -> None:
    """To what a fixed-step method of higher order finds on the same path; the error falls with the tolerance."""
    d = gaussian.denoiser(process)
    limit = sample(d, (9, 2), solver=StochasticRungeKutta(150), noise=PATH, dtype=torch.float64).x
    errors, calls = [], []
    for tolerance in (0.2, 0.02):
        r = sample(d, (9, 2), solver=AdaptiveSDE(tolerance, tolerance), noise=PATH, dtype=torch.float64)
        errors.append(float((r.x - limit).square().mean().sqrt()))
        calls.append(float(r.nfe.double().mean()))
    assert errors[1] < 0.4 * errors[0], errors
    assert errors[1] < 0.05, errors
    assert calls[1] > 2.0 * calls[0], calls


def test_one_step_is_the_improved_euler_method(mixture: Mixture) -> None:
    """Algorithm 1 with its extrapolation; a tolerance that accepts everything takes the whole way in one step."""
    process = VP()
    dynamics = Reverse(mixture.denoiser(process), 0.8)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise, t, s = PATH.batch(torch.arange(3), (2,), torch.float64), 0.6, 0.5
    before, after = torch.tensor(t, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)
    w = math.sqrt(t - s) * noise.normal(Stream.STEP, 0, t, s)
    (slope,) = dynamics.drift((x,), before)
    euler = x + (s - t) * slope + dynamics.diffusion(before) * w
    other = x + (s - t) * dynamics.drift((euler,), after)[0] + dynamics.diffusion(after) * w
    (y,) = AdaptiveSDE(1e9, 1e9, first_step=1.0)(dynamics, (x,), noise, t, s)
    torch.testing.assert_close(y, 0.5 * (euler + other), rtol=1e-12, atol=1e-12)


def test_a_step_is_accepted_at_the_tolerance(mixture: Mixture) -> None:
    """The root mean square over the sample of (x' - x'') / max(atol, rtol max(|x'|, |x'_prev|)) decides."""
    dynamics, t, s = Reverse(mixture.denoiser(VP()), 1.0), 0.6, 0.5
    x = torch.tensor([[1.5, -0.02]], dtype=torch.float64)
    noise = PATH.batch(torch.arange(1), (2,), torch.float64)
    before = torch.tensor(t, dtype=torch.float64)
    w = math.sqrt(t - s) * noise.normal(Stream.STEP, 0, t, s)
    euler = x + (s - t) * dynamics.drift((x,), before)[0] + dynamics.diffusion(before) * w
    (y,) = AdaptiveSDE(1e9, 1e9, first_step=1.0)(dynamics, (x,), noise, t, s)
    size = torch.maximum(x.abs(), euler.abs())
    for rtol, atol in ((1.0, 0.1), (0.01, 1.0)):
        ratio = float(((euler - y) / (rtol * size).clamp(min=atol)).square().mean().sqrt())
        for factor, steps in ((1.001, 1), (0.999, None)):
            solver = AdaptiveSDE(rtol * ratio * factor, atol * ratio * factor, first_step=1.0)
            taken = sum(1 for _ in solver.trajectory(dynamics, (x,), noise, t, s)) - 1
            assert (taken == 1) == (steps == 1)


def algorithm_1(
    dynamics: Reverse, x: Tensor, noise: StepNoise, solver: AdaptiveSDE, t: float, s: float
) -> tuple[list[float], Tensor]:
    """One sample by the paper's loop, in plain numbers: the times after each attempt, and the end."""
    h, previous, times = solver.first_step * (t - s), x, [t]
    while t > s:
        h, last = (t - s, True) if 1.01 * h >= t - s else (h, False)
        end = s if last else t - h
        before, after = (torch.tensor(u, dtype=torch.float64) for u in (t, end))
        w = math.sqrt(h) * noise.normal(Stream.STEP, 0, t, end)
        first = x - h * dynamics.drift((x,), before)[0] + dynamics.diffusion(before) * w
        other = x - h * dynamics.drift((first,), after)[0] + dynamics.diffusion(after) * w
        better = 0.5 * (first + other)
        delta = (solver.rtol * torch.maximum(first.abs(), previous.abs())).clamp(min=solver.atol)
        error = math.sqrt(float(((first - better) / delta).square().mean()))
        if error <= 1.0:
            x, t, previous = better, end, first
        times.append(t)
        h *= min(max(0.9 * error**-0.9, 0.2), 10.0)
        mantissa, exponent = math.frexp(h)
        h = math.ldexp(math.trunc(32.0 * mantissa), exponent - 5)
    return times, x


@pytest.mark.parametrize("process", [VP(), VE()], ids=["VP", "VE"])
def test_it_is_the_paper_s_algorithm(process: SDE) -> None:
    dynamics, solver = Reverse(Rational(process), 1.0), AdaptiveSDE(0.1, 0.03, first_step=0.5)
    x = torch.tensor([[1.5, -0.2, 0.4]], dtype=torch.float64)
    path = list(solver.trajectory(dynamics, (x,), PATH.batch(torch.arange(1), (3,), torch.float64), 0.7, 0.1))
    times, end = algorithm_1(dynamics, x, PATH.batch(torch.arange(1), (3,), torch.float64), solver, 0.7, 0.1)
    assert [t.item() for t, _ in path] == times
    assert sum(a == b for a, b in itertools.pairwise(times)) > 1  # rejected ones
    torch.testing.assert_close(path[-1][1][0], end, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("first_step", [0.01, 1.0])
def test_rejections_do_not_bias(gaussian: Gaussian, first_step: float) -> None:
    """Means and variances of 1000 samples at a family-wise error of 1e-3; a first step of everything is rejected.

    What the tolerance adds is below 0.02.
    """
    n, process = 1000, VP()
    solver = AdaptiveSDE(0.05, 0.05, first_step=first_step)
    x = gaussian.at(process, 1.0).sample(n, generator=torch.Generator().manual_seed(0))
    x = sample(gaussian.denoiser(process), x_T=x, solver=solver, noise=BrownianPath(1, 12)).x
    variance = COV.diagonal()
    for deviation, spread in (
        (x.mean(0) - MEAN, variance.sqrt()),
        (x.var(0) - variance, math.sqrt(2.0) * variance),
    ):
        assert bool((deviation.abs() < 3.66 * spread / math.sqrt(n) + 0.02).all()), deviation


@dataclass(frozen=True)
class Noisy(Dynamics):
    """Noise that grows fast in time and nothing else: the end is the start plus a stochastic integral."""

    process: SDE
    stochastic: bool = True
    tolerances: tuple[float | None, ...] = (None,)

    def drift(self, state: State, t: Tensor) -> State:
        return (torch.zeros_like(state[0]),)

    def diffusion(self, t: Tensor) -> Tensor:
        return (3.0 * t).exp()

    def select(self, index: Tensor) -> Noisy:
        return self


@dataclass(frozen=True)
class Fresh(StepNoise):
    """New noise for every attempt, as if a path were never asked about."""

    inner: StepNoise
    one_path: ClassVar[bool] = True

    def normal(self, stream: Stream, k: int | Tensor, start: float | Tensor, stop: float | Tensor) -> Tensor:
        return self.inner.normal(stream, torch.as_tensor(stop).view(torch.int64), start, stop)

    def select(self, index: Tensor) -> StepNoise:
        return Fresh(self.inner.select(index))


def test_why_a_path_is_needed() -> None:
    """With fresh noise for every attempt large increments are thrown away: the variance comes out far too small."""
    n, dynamics = 2000, Noisy(VP())
    x = (torch.zeros(n, 1, dtype=torch.float64),)
    solver = AdaptiveSDE(1e-9, 0.3, first_step=1.0)
    truth = (math.exp(6.0) - 1.0) / 6.0
    keyed = Noise(5).batch(torch.arange(n), (1,), torch.float64)
    (y,), (biased,) = solver(dynamics, x, keyed), solver(dynamics, x, Fresh(keyed))
    assert abs(float(y.var()) / truth - 1.0) < 4.5 * math.sqrt(2.0 / n) + 0.02
    assert float(biased.var()) / truth < 0.85


def test_the_flow_needs_no_noise(gaussian: Gaussian) -> None:
    """Along the flow it is adaptive Heun: there and back again."""
    d = gaussian.denoiser(VP())
    x = gaussian.at(d.process, d.process.t_min).sample(5, generator=torch.Generator().manual_seed(0))
    solver = AdaptiveSDE(1e-3, 1e-3)
    back = sample(d, x_T=encode(d, x, solver=solver), solver=solver, eta=0.0)
    torch.testing.assert_close(back.x, x, rtol=0.0, atol=0.02)


# ---- one sample, one batch


def test_a_sample_does_not_depend_on_its_batch() -> None:
    d = Rational(VE())

    def run(first: int, n: int) -> tuple[Tensor, Tensor]:
        r = sample(d, (n, 3), solver=AdaptiveSDE(0.1, 0.1), first=first, dtype=torch.float64)
        return r.x, r.nfe

    x, nfe = run(0, 16)
    assert len(set(nfe.tolist())) > 1
    for first, n in [(0, 7), (15, 1)]:
        part, calls = run(first, n)
        torch.testing.assert_close(part, x[first : first + n], rtol=1e-10, atol=1e-10)
        assert torch.equal(calls, nfe[first : first + n])


def test_keyed_noise_serves_as_the_path_of_its_seed() -> None:
    d, solver = Rational(VP()), AdaptiveSDE(0.1, 0.1)
    keyed, path, other = (
        sample(d, (2, 2), solver=solver, seed=3, noise=noise).x for noise in (None, BrownianPath(3), BrownianPath(4))
    )
    assert torch.equal(keyed, path)
    assert not torch.equal(keyed, other)


class Counted(Denoiser):
    """Counts the rows that really reach it, by the sample that the condition says they are."""

    def __init__(self, inner: Denoiser, n: int) -> None:
        super().__init__()
        self.process, self.inner = inner.process, inner
        self.rows = torch.zeros(n, dtype=torch.int64)

    def forward(self, x_t: Tensor, t: Tensor, *, row: Tensor) -> Tensor:
        assert len(row) > 0
        self.rows += torch.bincount(row, minlength=len(self.rows))
        return self.inner(x_t, t)


def test_calls_are_counted_by_sample(mixture: Mixture) -> None:
    """One to begin with, one for every attempt, one for every step from which a sample goes on."""
    seen, solver = Counted(mixture.denoiser(VP()), 3), AdaptiveSDE(0.2, 0.2, first_step=0.5)
    r = sample(seen, (3, 2), solver=solver, condition={"row": torch.arange(3)}, dtype=torch.float64)
    assert torch.equal(r.nfe, seen.rows)
    for i in range(3):
        dynamics = Reverse(mixture.denoiser(VP()), 1.0)
        keyed = Noise(0)
        x = math.sqrt(dynamics.process.prior_var(torch.tensor(1.0, dtype=torch.float64)).item()) * keyed.normal(
            Stream.PRIOR, torch.tensor([i]), torch.tensor([0]), (2,), torch.float64
        )
        times = [
            t.item() for t, _ in solver.trajectory(dynamics, (x,), keyed.batch(torch.tensor([i]), (2,), torch.float64))
        ]
        accepted = sum(a != b for a, b in itertools.pairwise(times))
        assert accepted < len(times) - 1  # the first step was rejected
        assert r.nfe[i].item() == 1 + (len(times) - 1) + (accepted - 1)


# ---- giving up


class Broken(Denoiser):
    """Exact for a Gaussian, but not finite for one sample below some time."""

    def __init__(self, gaussian: Gaussian, value: float, row: int, below: float) -> None:
        super().__init__()
        self.process = VP()
        self.inner = gaussian.denoiser(self.process)
        self.value, self.row, self.below = value, row, below

    def forward(self, x_t: Tensor, t: Tensor, *, row: Tensor) -> Tensor:
        bad = (row == self.row) & (t < self.below)
        return torch.where(bad[:, None], self.value, self.inner(x_t, t))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("below", "where"), [(0.5, r"t=0\.5"), (2.0, r"t=1: the drift is not finite there")])
def test_a_failure_names_sample_and_time(gaussian: Gaussian, value: float, below: float, where: str) -> None:
    d = Broken(gaussian, value, row=2, below=below)
    with pytest.raises(FloatingPointError, match=f"AdaptiveSDE.*sample 2 .*{where}"):
        sample(d, (4, 2), solver=AdaptiveSDE(0.1, 0.1), condition={"row": torch.arange(4)}, dtype=torch.float64)


@pytest.mark.parametrize("below", [0.5, 2.0])
def test_a_marked_failure_leaves_the_others_alone(gaussian: Gaussian, below: float) -> None:
    condition = {"row": torch.arange(4)}
    d = Broken(gaussian, math.nan, row=2, below=below)
    solver = AdaptiveSDE(0.1, 0.1, on_failure="mark")
    whole = sample(d, (4, 2), solver=solver, condition=condition, dtype=torch.float64).x
    sound = sample(d.inner, (4, 2), solver=AdaptiveSDE(0.1, 0.1), dtype=torch.float64).x
    assert bool(whole[2].isnan().all())
    torch.testing.assert_close(whole[[0, 1, 3]], sound[[0, 1, 3]], rtol=1e-8, atol=1e-8)


def test_the_budget_may_be_spent_to_the_last_step(mixture: Mixture) -> None:
    """A run that takes n steps goes through with max_steps=n and fails with n - 1."""
    nfe = torch.zeros(6, dtype=torch.int64)
    dynamics = Reverse(Conditioned(mixture.denoiser(VP()), None, nfe), 1.0)
    x = (torch.ones(6, 2, dtype=torch.float64),)
    noise = PATH.batch(torch.arange(6), (2,), torch.float64)
    n = sum(1 for _ in AdaptiveSDE(0.2, 0.2).trajectory(dynamics, x, noise)) - 1
    assert bool(AdaptiveSDE(0.2, 0.2, max_steps=n)(dynamics, x, noise)[0].isfinite().all())
    with pytest.raises(FloatingPointError, match=rf"sample \d .*t=.*max_steps={n - 1} "):
        AdaptiveSDE(0.2, 0.2, max_steps=n - 1)(dynamics, x, noise)
    (marked,) = AdaptiveSDE(0.2, 0.2, max_steps=n - 1, on_failure="mark")(dynamics, x, noise)
    assert bool(marked.isnan().any())
    assert not bool(marked.isnan().all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rtol": 0.0}, "rtol=0.0"),
        ({"atol": math.nan}, "atol=nan"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"first_step": 0.0}, "first_step=0.0"),
        ({"first_step": 1.5}, "first_step=1.5"),
        ({"on_failure": "ignore"}, "on_failure.*'ignore'"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"AdaptiveSDE.*{message}"):
        AdaptiveSDE(**settings)  # type: ignore[arg-type]


def test_gradients_follow_the_steps_that_were_taken(gaussian: Gaussian) -> None:
    """Against differences along the same path, where every step is accepted, so that the times do not depend on x."""
    dynamics, noise = Reverse(gaussian.denoiser(VP()), 1.0), PATH.batch(torch.arange(1), (2,), torch.float64)
    solver = AdaptiveSDE(1e9, 1e9, first_step=0.05)

    def end(x: Tensor) -> Tensor:
        return solver(dynamics, (x,), noise, 0.6, 0.3)[0][0, 0]

    x = torch.tensor([[0.3, -0.8]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(end(x), x)
    shift = torch.tensor([[1e-5, 0.0]], dtype=torch.float64)
    with torch.no_grad():
        difference = (end(x + shift) - end(x - shift)) / 2e-5
    torch.testing.assert_close(gradient[0, 0], difference, rtol=1e-6, atol=1e-8)
    tight = AdaptiveSDE(0.1, 0.1)
    assert not any(t.requires_grad for t, _ in tight.trajectory(dynamics, (x,), noise, 0.6, 0.5))
