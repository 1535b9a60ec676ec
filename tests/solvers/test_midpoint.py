"""The midpoint method and the single-step DPM-Solvers: orders, the paper's steps, and what they are exact for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from sde.denoisers import Conditioned, Denoiser
from sde.dynamics import Dynamics, Reverse, State, WithLogDensity
from sde.exact import Gaussian, Mixture
from sde.grids import Explicit, Grid, LogSNR, Uniform
from sde.noise import Noise
from sde.processes import SDE, VE, VP, SubVP
from sde.sampling import encode, sample
from sde.solvers import GridSteps, ScipyODE
from sde.solvers.midpoint import DPMSolver2, DPMSolver3, Midpoint
from sde.trace import ExactTrace

METHODS: list[tuple[type[GridSteps], int]] = [(Midpoint, 2), (DPMSolver2, 2), (DPMSolver3, 3)]
EACH = pytest.mark.parametrize(("method", "order"), METHODS, ids=[m.__name__ for m, _ in METHODS])
DPM = pytest.mark.parametrize("method", [DPMSolver2, DPMSolver3])
MEAN = torch.tensor([0.7, -0.3], dtype=torch.float64)
COV = torch.tensor([[0.6, 0.25], [0.25, 0.3]], dtype=torch.float64)


def carried(flow: Reverse, x: Tensor) -> tuple[WithLogDensity, State]:
    dynamics = WithLogDensity(flow, ExactTrace().bind(Noise(0), torch.arange(len(x)), x))
    return dynamics, (x, x.new_zeros(len(x), 1))


def gaussian_flow(process: SDE, x: Tensor, start: float, stop: float) -> tuple[Tensor, Tensor]:
    """The closed form: in the eigenbasis of the covariance each coordinate is scaled by the ratio of the stds."""
    ends = torch.tensor([start, stop], dtype=torch.float64)
    alpha, var = process.alpha(ends), process.var(ends)
    values, basis = torch.linalg.eigh(COV)
    std = (alpha[:, None] ** 2 * values + var[:, None]).sqrt()
    ratio = std[1] / std[0]
    return alpha[1] * MEAN + ((x - alpha[0] * MEAN) @ basis * ratio) @ basis.T, -ratio.log().sum().expand(len(x), 1)


@EACH
@pytest.mark.parametrize(("process", "direction"), [(VP(), "up"), (VE(), "down")], ids=["VP-up", "VE-down"])
def test_order_on_a_gaussian(process: SDE, method: type[GridSteps], order: int, direction: str) -> None:
    """In x and in the log-density, sampling and encoding."""
    target = Gaussian(MEAN, COV)
    # Away from the last decades at the noise end, which put off the order to finer grids.
    ends = process.time(torch.tensor([-4.0, 8.0], dtype=torch.float64)).tolist()
    start, stop = ends if direction == "down" else ends[::-1]
    x = target.at(process, start).sample(6, generator=torch.Generator().manual_seed(3))
    truth = gaussian_flow(process, x, start, stop)
    dynamics, state = carried(Reverse(target.denoiser(process), 0.0), x)

    @cache
    def errors(n: int) -> list[float]:
        with torch.no_grad():
            y = method(n, LogSNR())(dynamics, state, None, start, stop)
        return [float((a - b).norm()) for a, b in zip(y, truth)]

    for coarse, fine in zip(errors(60), errors(120)):
        assert abs(math.log2(coarse / fine) - order) < 0.2, (errors(60), errors(120))


def test_orders_on_a_mixture(mixture: Mixture) -> None:
    process = SubVP()
    x = mixture.at(process, process.t_min).sample(6, generator=torch.Generator().manual_seed(3))
    start, stop = process.time(torch.tensor([4.0, -4.0], dtype=torch.float64)).tolist()
    dynamics, state = carried(Reverse(mixture.denoiser(process), 0.0), x)
    with torch.no_grad():
        truth = ScipyODE("DOP853", rtol=1e-11, atol=1e-11)(dynamics, state, None, start, stop)
    for method, order in METHODS:
        with torch.no_grad():
            runs = [method(n, LogSNR())(dynamics, state, None, start, stop) for n in (160, 320)]
        for entry, exact in enumerate(truth):
            coarse, fine = (float((run[entry] - exact).norm()) for run in runs)
            assert abs(math.log2(coarse / fine) - order) < 0.25, (method, coarse, fine)


class Curved(Denoiser):
    """A denoiser with some curvature in x and in t, in operations of one coordinate."""

    def __init__(self, process: SDE) -> None:
        super().__init__()
        self.process = process

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return torch.tanh(x_t) * (1.0 + 0.3 * t)


@pytest.mark.parametrize("process", [VP(), SubVP(), VE()], ids=repr)
@pytest.mark.parametrize(("start", "stop"), [(0.6, 0.35), (0.35, 0.6)])
def test_a_step_is_the_paper_s(process: SDE, start: float, stop: float) -> None:
    """Algorithms 1 and 2 of Lu et al. 2022 as they stand there, in x and the half log-SNR."""
    x = torch.tensor([[0.3, -1.2], [0.9, 2.0]], dtype=torch.float64)
    d = Curved(process)
    t, s = (torch.tensor(v, dtype=torch.float64) for v in (start, stop))
    ell = 0.5 * process.log_snr(t)
    h = 0.5 * process.log_snr(s) - ell

    def at(share: float) -> tuple[Tensor, Tensor, Tensor]:
        time = process.time(2.0 * (ell + share * h)) if share < 1.0 else s
        return time, process.alpha(time), process.sigma(time)

    def linear(share: float) -> Tensor:
        """What algorithms 1 and 2 begin each of their lines with."""
        _, alpha, sigma = at(share)
        return alpha / process.alpha(t) * x - sigma * torch.expm1(share * h) * first

    first = d.noise(x, t)
    middle = linear(0.5)
    two = linear(1.0) - at(1.0)[2] * torch.expm1(h) * (d.noise(middle, at(0.5)[0]) - first)
    r1, r2 = 1 / 3, 2 / 3
    d1 = d.noise(linear(r1), at(r1)[0]) - first
    u2 = linear(r2) - at(r2)[2] * r2 / r1 * (torch.expm1(r2 * h) / (r2 * h) - 1.0) * d1
    d2 = d.noise(u2, at(r2)[0]) - first
    three = linear(1.0) - at(1.0)[2] / r2 * (torch.expm1(h) / h - 1.0) * d2
    flow = Reverse(d, 0.0)
    for method, expected in ((DPMSolver2, two), (DPMSolver3, three)):
        (y,) = method(1)(flow, (x,), None, start, stop)
        torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)


@DPM
@pytest.mark.parametrize("grid", [Uniform(), LogSNR()], ids=repr)
def test_a_point_mass_is_exact_in_one_step(process: SDE, method: type[GridSteps], grid: Grid) -> None:
    """The noise along the flow of a single point is constant, whatever the linear part does."""
    point = Gaussian(MEAN, torch.zeros(2, 2, dtype=torch.float64))
    z = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    t = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
    start, stop = (a * MEAN + s * z for a, s in zip(process.alpha(t), process.sigma(t)))
    for n in (1, 3):
        y = sample(point.denoiser(process), x_T=start, solver=method(n, grid)).x
        # The step goes through 16 powers of ten of the signal-to-noise ratio, and u loses the digits of some of them.
        torch.testing.assert_close(y, stop, rtol=1e-6, atol=1e-6)


@dataclass(frozen=True)
class Clock(Dynamics):
    """dy/dt = t^power, a drift without parts."""

    power: int
    process: SDE = VP(t_min=0.0)

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def tolerances(self) -> tuple[float | None, ...]:
        return (None,)

    def drift(self, state: State, t: Tensor) -> State:
        return ((t**self.power).expand_as(state[0]),)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def select(self, index: Tensor) -> Clock:
        return self


def test_the_midpoint_serves_any_drift_and_is_exact_for_its_order() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64)
    grid = Explicit((1.0, 0.7, 0.1, 0.0))
    for power in (0, 1):
        (y,) = Midpoint(3, grid)(Clock(power), (x,))
        torch.testing.assert_close(y, torch.full_like(x, -1.0 / (power + 1)), rtol=1e-14, atol=0.0)
    (y,) = Midpoint(1)(Clock(2), (x,))
    torch.testing.assert_close(y, torch.full_like(x, -0.25), rtol=1e-14, atol=0.0)  # the square of a half


@pytest.mark.parametrize(("method", "per_step"), [(Midpoint, 2), (DPMSolver2, 2), (DPMSolver3, 3)])
def test_calls_are_counted(mixture: Mixture, method: type[GridSteps], per_step: int) -> None:
    r = sample(mixture.denoiser(VP()), (3, 2), solver=method(7))
    assert r.nfe.tolist() == [7 * per_step] * 3


@EACH
def test_a_latent_comes_back(mixture: Mixture, method: type[GridSteps], order: int) -> None:
    process = VP()
    x = mixture.at(process, process.t_min).sample(4, generator=torch.Generator().manual_seed(3))
    d, solver = mixture.denoiser(process), method(200, LogSNR())
    back = sample(d, x_T=encode(d, x, solver=solver), solver=solver).x
    torch.testing.assert_close(back, x, rtol=0.0, atol=1e-2)


@DPM
def test_ends_without_noise_are_refused_before_the_first_call(method: type[GridSteps]) -> None:
    nfe = torch.zeros(2, dtype=torch.int64)
    flow = Reverse(Conditioned(Curved(VP(t_min=0.0)), None, nfe), 0.0)
    with pytest.raises(ValueError, match=r"log-SNR.*t=0, .*Midpoint"):
        method(4).bind(flow)
    with pytest.raises(ValueError, match=f"{method.__name__}.*Semilinear.*Clock"):
        method(4).bind(Clock(1))
    assert nfe.tolist() == [0, 0]
    (y,) = Midpoint(4)(flow, (torch.ones(2, 2, dtype=torch.float64),), None, 1.0, 0.1)
    assert bool(y.isfinite().all())


@EACH
def test_noise_is_refused(method: type[GridSteps], order: int) -> None:
    with pytest.raises(ValueError, match=f"{method.__name__}.*noise.*eta=0"):
        method(4).bind(Reverse(Curved(VP()), 1.0))


@EACH
def test_float32_loses_no_more_than_its_digits(mixture: Mixture, method: type[GridSteps], order: int) -> None:
    x = mixture.at(VP(), 1.0).sample(4, generator=torch.Generator().manual_seed(3))
    d, solver = mixture.denoiser(VP()), method(100, LogSNR())
    a, b = sample(d, x_T=x, solver=solver).x, sample(d, x_T=x.float(), solver=solver).x
    assert b.dtype == torch.float32
    torch.testing.assert_close(b.double(), a, rtol=0.0, atol=3e-4)


@EACH
def test_gradients_flow_to_the_grid(method: type[GridSteps], order: int) -> None:
    """The derivative of the end in an inner time is that of its difference quotient."""
    flow, x = Reverse(Curved(VP()), 0.0), torch.tensor([[0.3, -1.2]], dtype=torch.float64)

    def end(times: Tensor) -> Tensor:
        step, state = method(3).method(flow, times), (x,)
        for k in range(3):
            state, _ = step(k, state, None, None)
        return state[0].sum()

    times = torch.tensor([0.9, 0.6, 0.4, 0.2], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(end(times), times)
    step = torch.tensor([0.0, 1e-6, 0.0, 0.0], dtype=torch.float64)
    difference = (end(times.detach() + step) - end(times.detach() - step)) / 2e-6
    torch.testing.assert_close(slope[1], difference, rtol=1e-6, atol=1e-8)
