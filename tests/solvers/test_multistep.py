r"""The multistep methods: their coefficients against integrals, against published formulas, and their noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from sde.denoisers import Denoiser
from sde.dynamics import Reverse, WithLogDensity
from sde.exact import Gaussian, Mixture
from sde.grids import Explicit, Grid, Karras, LogSNR, Uniform
from sde.noise import Noise, StepNoise, Stream
from sde.processes import SDE, VE, VP, SubVP
from sde.sampling import sample
from sde.solvers import (
    DDIM,
    DEIS,
    AdamsBashforth,
    Ancestral,
    Arcsinh,
    DPMSolver2,
    DPMSolver3,
    DPMSolverPP,
    DPMSolverPP2S,
    Euler,
    Heun,
    LogNoise,
    Midpoint,
    Multistep,
    Ramp,
    RungeKuttaStart,
    Solver,
    UniPC,
)
from sde.solvers.coordinates import Coordinates, DataCoordinates, DriftCoordinates, NoiseCoordinates, Table
from sde.trace import ExactTrace

SMOOTH = [VP(), SubVP(), VE()]
IRREGULAR = torch.tensor([1.0, 0.83, 0.8, 0.55, 0.3, 0.26, 0.1], dtype=torch.float64)


def at(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


# ---- the coefficients


DERIVATIVES: dict[str, tuple[Coordinates, Callable[[float, float], float]]] = {
    "drift": (DriftCoordinates(), lambda parameter, eta: 1.0),
    "noise": (NoiseCoordinates(), lambda parameter, eta: -(1.0 + eta**2) * math.exp(-parameter)),
    "data": (DataCoordinates(), lambda parameter, eta: (1.0 + eta**2) * math.exp((1.0 + eta**2) * parameter)),
}


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("variable", [LogNoise(), Arcsinh(0.3)], ids=repr)
@pytest.mark.parametrize(
    ("name", "eta"), [("drift", 0.0), ("noise", 0.0), ("noise", 0.7), ("data", 0.0), ("data", 1.0)]
)
@pytest.mark.parametrize("process", [VP(), VE()], ids=repr)
def test_weights_integrate_polynomials(
    process: SDE, name: str, eta: float, variable: LogNoise | Arcsinh, ahead: bool
) -> None:
    """A polynomial in the variable, of a degree below the number of values, is integrated exactly."""
    coordinates, derivative = DERIVATIVES[name]
    of = (lambda t: t) if name == "drift" else variable.of
    table = Table(coordinates, of, process, IRREGULAR, eta)
    parameter = table.parameter
    scale = coordinates.log_scale(process, IRREGULAR, eta).exp()

    def w(p: float) -> float:
        return float(of(at(p)))

    for k, row in enumerate(table.weights(3, ahead=ahead)):
        newest = k + 1 if ahead else k
        assert len(row) == min(3, k + 1) + ahead
        for degree in range(len(row)):
            total = sum(weight * w(float(parameter[newest - j])) ** degree for j, weight in enumerate(row))
            a, b = float(parameter[k]), float(parameter[k + 1])
            integral = quad(lambda p, m=degree: w(p) ** m * derivative(p, eta), a, b, epsabs=0.0, epsrel=1e-12)[0]
            assert total == pytest.approx(float(scale[k + 1]) * integral, rel=1e-9, abs=1e-12)


def test_adams_coefficients_on_an_even_grid_are_the_classical_ones() -> None:
    """Hairer, Nørsett and Wanner 1993, section III.1, (1.5)."""
    times = torch.linspace(1.0, 0.2, 9, dtype=torch.float64)
    table = Table(DriftCoordinates(), lambda t: t, VP(), times)
    classical = {
        1: [1.0],
        2: [3 / 2, -1 / 2],
        3: [23 / 12, -16 / 12, 5 / 12],
        4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
        5: [1901 / 720, -2774 / 720, 2616 / 720, -1274 / 720, 251 / 720],
    }
    for order, expected in classical.items():
        assert table.weights(order)[-1] == pytest.approx([-0.1 * c for c in expected], rel=1e-11)
    moulton = [9 / 24, 19 / 24, -5 / 24, 1 / 24]
    assert table.weights(3, ahead=True)[-1] == pytest.approx([-0.1 * c for c in moulton], rel=1e-11)


@pytest.mark.parametrize("process", SMOOTH, ids=repr)
@pytest.mark.parametrize("coordinates", [NoiseCoordinates(), DataCoordinates()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_coordinates_have_no_linear_part(process: SDE, coordinates: Coordinates, eta: float) -> None:
    """d log s / dt is the coefficient of x in the drift once the score is a prediction; dc / dt is the rest."""
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    ones = torch.ones_like(t)
    slope = torch.func.jvp(lambda u: coordinates.log_scale(process, u, eta), (t,), (ones,))[1]
    parameter, moving = torch.func.jvp(lambda u: coordinates.parameter(process, u), (t,), (ones,))
    integral = coordinates.derivative(parameter, eta) * moving
    c = 0.5 * (1.0 + eta**2) * process.g2(t)
    alpha, sigma = process.alpha(t), process.sigma(t)
    if isinstance(coordinates, NoiseCoordinates):  # score = -noise / sigma
        linear, rate = process.f(t), c / sigma
    else:  # score = (alpha x0 - x) / sigma^2
        linear, rate = process.f(t) + c / sigma.square(), -c * alpha / sigma.square()
    torch.testing.assert_close(slope, linear, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(coordinates.log_scale(process, t, eta).exp() * integral, rate, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("process", SMOOTH, ids=repr)
@pytest.mark.parametrize("coordinates", [NoiseCoordinates(), DataCoordinates()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_noise_of_a_step_is_an_integral(process: SDE, coordinates: Coordinates, eta: float) -> None:
    """The linear equation du = (eta g / s) dw of the coordinates, by quadrature."""
    variance = coordinates.variance(process, IRREGULAR, eta)
    for k in range(len(IRREGULAR) - 1):
        start, stop = float(IRREGULAR[k]), float(IRREGULAR[k + 1])

        def density(t: float) -> float:
            return eta**2 * float(process.g2(at(t)) * (-2.0 * coordinates.log_scale(process, at(t), eta)).exp())

        integral = quad(density, stop, start, epsabs=0.0, epsrel=1e-10)[0]
        scale = float((2.0 * coordinates.log_scale(process, at(stop), eta)).exp())
        assert float(variance[k]) == pytest.approx(scale * integral, rel=1e-6)


@pytest.mark.parametrize(
    ("coordinates", "variable"),
    [
        (DriftCoordinates(), lambda t: t),
        (NoiseCoordinates(), lambda t: (-0.5 * VP().log_snr(t)).exp()),
        (DataCoordinates(), lambda t: (0.5 * VP().log_snr(t)).exp()),
    ],
    ids=["drift", "noise", "data"],
)
def test_the_middle_halves_the_integration_variable(
    coordinates: Coordinates, variable: Callable[[Tensor], Tensor]
) -> None:
    before, after = torch.tensor([0.9, 0.5]).double(), torch.tensor([0.6, 0.1]).double()
    middle, change = coordinates.middle(VP(), before, after)
    torch.testing.assert_close(variable(middle), 0.5 * (variable(before) + variable(after)), rtol=1e-9, atol=0.0)
    torch.testing.assert_close(change, variable(after) - variable(before), rtol=1e-12, atol=0.0)


# ---- published formulas, written down once more


def steps_of(process: SDE, times: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    half = 0.5 * process.log_snr(times)
    return process.alpha(times), process.sigma(times), half, half.diff()


def dpm_solver_pp_2m(denoiser: Denoiser, x: Tensor, times: Tensor) -> Tensor:
    """Algorithm 2 of Lu et al. 2022 (arXiv:2211.01095)."""
    alpha, sigma, _, h = steps_of(denoiser.process, times)
    old = denoiser(x, times[0])
    x = sigma[1] / sigma[0] * x - alpha[1] * torch.expm1(-h[0]) * old
    for i in range(2, len(times)):
        new = denoiser(x, times[i - 1])
        r = h[i - 2] / h[i - 1]
        d = (1.0 + 0.5 / r) * new - 0.5 / r * old
        x, old = sigma[i] / sigma[i - 1] * x - alpha[i] * torch.expm1(-h[i - 1]) * d, new
    return x


def sde_dpm_solver_pp_2m(denoiser: Denoiser, x: Tensor, times: Tensor, z: list[Tensor]) -> Tensor:
    """SDE-DPM-Solver++(2M), equation 18 of Lu et al. 2022."""
    alpha, sigma, _, h = steps_of(denoiser.process, times)
    old = None
    for i in range(1, len(times)):
        new = denoiser(x, times[i - 1])
        d = new if old is None else new + 0.5 * h[i - 1] / h[i - 2] * (new - old)
        fade, k = (-h[i - 1]).exp(), i - 1
        x = sigma[i] / sigma[k] * fade * x + alpha[i] * (1.0 - fade**2) * d + sigma[i] * (1 - fade**2).sqrt() * z[k]
        old = new
    return x


def unipc_1(denoiser: Denoiser, x: Tensor, times: Tensor) -> Tensor:
    """DDIM, corrected by the exact exponential trapezium."""
    alpha, sigma, _, h = steps_of(denoiser.process, times)
    state, base, old = x, x, None
    for i in range(len(times) - 1):
        new = denoiser(state, times[i])
        if old is not None:
            u = h[i - 1]
            slope = (new - old) / u
            base = sigma[i] / sigma[i - 1] * base + alpha[i] * (-torch.expm1(-u) * old + slope * (u + torch.expm1(-u)))
        state = sigma[i + 1] / sigma[i] * base - alpha[i + 1] * torch.expm1(-h[i]) * new
        old = new
    return state


@dataclass
class Listed(StepNoise):
    """Normals from a list."""

    draws: list[Tensor]

    def normal(self, stream: Stream, k: int, start: float, stop: float) -> Tensor:
        return self.draws[k]

    def select(self, index: Tensor) -> StepNoise:
        raise AssertionError("a fixed-step solver keeps its batch")


@pytest.mark.parametrize("process", SMOOTH, ids=repr)
@pytest.mark.parametrize("grid", [Uniform(), LogSNR(), Karras()], ids=repr)
def test_published_formulas(process: SDE, grid: Grid, mixture: Mixture) -> None:
    d, generator = mixture.denoiser(process), torch.Generator().manual_seed(0)
    x = process.sigma(at(process.t_max)) * torch.randn(5, 2, generator=generator, dtype=torch.float64)
    z = [torch.randn(5, 2, generator=generator, dtype=torch.float64) for _ in range(7)]
    times = grid.times(process, 7, process.t_max, process.t_min)
    pairs = [
        (DPMSolverPP(7, 2, grid=grid), dpm_solver_pp_2m(d, x, times)),
        (UniPC(7, 1, grid=grid), unipc_1(d, x, times)),
    ]
    for solver, expected in pairs:
        torch.testing.assert_close(solver(Reverse(d, 0.0), (x,))[0], expected, rtol=1e-9, atol=1e-9)
    (got,) = DPMSolverPP(7, 2, grid=grid)(Reverse(d, 1.0), (x,), Listed(z))
    torch.testing.assert_close(got, sde_dpm_solver_pp_2m(d, x, times, z), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("grid", [Uniform(), LogSNR()], ids=repr)
def test_first_order_is_ddim(process: SDE, mixture: Mixture, grid: Grid) -> None:
    d = mixture.denoiser(process)
    x = sample(d, (4, 2), solver=DDIM(9, grid)).x
    for other in (DEIS(9, 1, grid=grid), DPMSolverPP(9, 1, grid=grid)):
        torch.testing.assert_close(sample(d, (4, 2), solver=other).x, x, rtol=1e-8, atol=1e-8)


def test_ddim_with_all_of_the_noise_is_ancestral(process: SDE, mixture: Mixture) -> None:
    d = mixture.denoiser(process)
    ancestral = sample(d, (4, 2), solver=Ancestral(20))
    torch.testing.assert_close(sample(d, (4, 2), solver=DDIM(20, eta=1.0)).x, ancestral.x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_by_its_equation(process: SDE, mixture: Mixture, eta: float) -> None:
    """Equation 12 of Song, Meng and Ermon 2021, with the posterior's variance."""
    d, times = mixture.denoiser(process), Uniform().times(process, 4, process.t_max, process.t_min)
    x = expected = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = [torch.full((4, 2), 0.3 + k, dtype=torch.float64) for k in range(4)]
    for k, (t, s) in enumerate(itertools.pairwise(times)):
        kept = process.transition(s, t)[1] * process.var(s) / process.var(t) * eta**2
        x0, noise = d(expected, t), d.noise(expected, t)
        expected = process.alpha(s) * x0 + (process.var(s) - kept).sqrt() * noise + kept.sqrt() * z[k]
    (got,) = DDIM(4)(Reverse(d, eta), (x,), Listed(z))
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


# ---- the reverse SDE


class Point(Denoiser):
    """All data is one point."""

    def __init__(self, process: SDE, value: float) -> None:
        super().__init__()
        self.process, self.value = process, value

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return torch.full_like(x_t, self.value)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_data_coordinates_are_exact_for_a_point(process: SDE, eta: float, order: int) -> None:
    """x0 is constant: after any steps x is alpha times the point plus noise of variance sigma^2."""
    solver, steps = DPMSolverPP(6, order), 6
    d = Point(process, 0.7)
    rows = 2 + steps  # no noise at all; the noise at the start; that of each step

    class Units(StepNoise):
        def normal(self, stream: Stream, k: int, start: float, stop: float) -> Tensor:
            z = torch.zeros(rows, 1, dtype=torch.float64)
            z[2 + k] = 1.0
            return z

        def select(self, index: Tensor) -> StepNoise:
            raise AssertionError("a fixed-step solver keeps its batch")

    start, stop = at(process.t_max), at(process.t_min)
    x = torch.full((rows, 1), 0.7, dtype=torch.float64) * process.alpha(start)
    x[1] += process.sigma(start)
    (y,) = solver(Reverse(d, eta), (x,), Units())
    assert float(y[0]) == pytest.approx(0.7 * float(process.alpha(stop)), rel=1e-7)
    assert float((y[1:] - y[0]).square().sum()) == pytest.approx(float(process.var(stop)), rel=1e-7)


def affine_moments(solver: Solver, process: SDE, eta: float, steps: int) -> Tensor:
    """The bias of mean and covariance on a Gaussian, exactly: the run is affine in its start and its normals."""
    mean = torch.tensor([0.7, -0.3], dtype=torch.float64)
    cov = torch.tensor([[0.6, 0.25], [0.25, 0.3]], dtype=torch.float64)
    eye, rows = torch.eye(2, dtype=torch.float64), 3 + 2 * steps

    class Units(StepNoise):
        def normal(self, stream: Stream, k: int, start: float, stop: float) -> Tensor:
            z = torch.zeros(rows, 2, dtype=torch.float64)
            z[3 + 2 * k : 5 + 2 * k] = eye
            return z

        def select(self, index: Tensor) -> StepNoise:
            raise AssertionError("a fixed-step solver keeps its batch")

    def marginal(t: float) -> tuple[Tensor, Tensor]:
        alpha = process.alpha(at(t))
        return alpha * mean, alpha**2 * cov + process.var(at(t)) * eye

    x = torch.zeros(rows, 2, dtype=torch.float64)
    x[1:3] = eye
    (y,) = solver(Reverse(Gaussian(mean, cov).denoiser(process), eta), (x,), Units())
    columns = (y[1:] - y[0]).T
    a, c = columns[:, :2], columns[:, 2:]
    (before, spread), (after, wider) = marginal(process.t_max), marginal(process.t_min)
    return torch.cat([(a @ before + y[0] - after), (a @ spread @ a.T + c @ c.T - wider)[[0, 0, 1], [0, 1, 1]]])


@pytest.mark.parametrize("process", SMOOTH, ids=repr)
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("method", [DDIM, DPMSolverPP, DEIS])
def test_weak_order_of_the_sde_forms(process: SDE, method: type[DDIM | Multistep], eta: float) -> None:
    """At least 1, by exact moments; the exponential multistep forms are exact in their noise."""

    def solver(n: int) -> Solver:
        return DDIM(n, LogSNR()) if method is DDIM else method(n, 2)

    sizes = [float(affine_moments(solver(n), process, eta, n).norm()) for n in (60, 120)]
    assert math.log2(sizes[0] / sizes[1]) > 0.85, sizes
    assert sizes[1] < 0.15


# ---- starts, grids and settings


@pytest.mark.parametrize("method", [AdamsBashforth, DEIS, DPMSolverPP, UniPC])
def test_calls(mixture: Mixture, method: type[Multistep]) -> None:
    for process in (VP(), VE()):
        d = mixture.denoiser(process)
        assert sample(d, (2, 2), solver=method(9, 4, Ramp())).nfe.tolist() == [9, 9]
        assert sample(d, (2, 2), solver=method(9, 4, RungeKuttaStart())).nfe.tolist() == [9 + 3 * 3] * 2
        assert sample(d, (2, 2), solver=method(2, 4, RungeKuttaStart())).nfe.tolist() == [2 + 3 * 2] * 2


@pytest.mark.parametrize("method", [DEIS, DPMSolverPP])
def test_a_runge_kutta_start_has_no_noise(method: type[Multistep]) -> None:
    with pytest.raises(ValueError, match=r"RungeKuttaStart.*noise.*Ramp"):
        method(5, 2, RungeKuttaStart()).bind(Reverse(Point(VP(), 0.0), 1.0))


@pytest.mark.parametrize("method", [AdamsBashforth, DEIS, DPMSolverPP, UniPC])
@pytest.mark.parametrize("order", [0, -1, 6, 2.5, True])
def test_orders_are_checked(method: type[Multistep], order: int) -> None:
    with pytest.raises(ValueError, match=rf"{method.__name__}.*1 to 5.*order={order!r}"):
        method(5, order)


def test_unipc_has_four_orders() -> None:
    with pytest.raises(ValueError, match=r"UniPC.*1 to 4.*order=5"):
        UniPC(5, 5)


@pytest.mark.parametrize("eta", [-0.1, 1.5, math.nan])
def test_ddim_has_no_more_noise_than_the_ancestor(eta: float) -> None:
    with pytest.raises(ValueError, match=rf"DDIM.*\[0, 1\].*eta={eta}"):
        DDIM(5, eta=eta)


def test_ddim_refuses_a_dynamics_of_more_noise() -> None:
    with pytest.raises(ValueError, match=r"DDIM.*eta=1, got eta=1\.2"):
        DDIM(5).bind(Reverse(Point(VP(), 0.0), 1.2))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_arcsinh_needs_a_scale(scale: float) -> None:
    with pytest.raises(ValueError, match=f"Arcsinh.*data_std={scale}"):
        Arcsinh(scale)


@pytest.mark.parametrize("method", [DEIS, DPMSolverPP, UniPC, DPMSolverPP2S])
def test_a_time_without_noise_is_refused(method: type) -> None:
    process = VP(t_min=0.0)
    with pytest.raises(ValueError, match=r"without noise.*0\.0|t=0"):
        method(5, grid=Uniform()).bind(Reverse(Point(process, 0.0), 0.0))


def test_arcsinh_turns_from_the_logarithm_to_the_noise_level() -> None:
    half = torch.linspace(-12.0, 12.0, 50, dtype=torch.float64)
    w = Arcsinh(0.5).of(half)
    assert bool((w.diff() < 0).all())
    assert float(w[0]) == pytest.approx(12.0 - math.log(0.25), abs=1e-9)
    assert float(w[-1]) == pytest.approx(math.exp(-12.0) / 0.5, rel=1e-9)


@pytest.mark.parametrize("process", [VP(), VE()], ids=repr)
@pytest.mark.parametrize(
    "solver",
    [
        DDIM(5),
        DEIS(5),
        DPMSolverPP(5, 2),
        DPMSolverPP(5, 3),
        DPMSolverPP2S(5),
        UniPC(5, variable=Arcsinh()),
        AdamsBashforth(5),
        DEIS(5, 3, RungeKuttaStart()),
        Euler(5),
        Heun(5),
        Midpoint(5),
        DPMSolver2(5),
        DPMSolver3(5),
    ],
    ids=repr,
)
@pytest.mark.parametrize("log_density", [False, True])
def test_gradients_flow_to_the_grid(process: SDE, mixture: Mixture, solver: Solver, log_density: bool) -> None:
    """By finite differences: what tuning a grid rests on."""
    x = torch.tensor([[0.4, -0.2], [1.1, 0.3]], dtype=torch.float64)
    dynamics = Reverse(mixture.denoiser(process), 0.0)
    state: tuple[Tensor, ...] = (x,)
    if log_density:
        dynamics = WithLogDensity(dynamics, ExactTrace())  # type: ignore[assignment]
        state = (x, torch.zeros(2, 1, dtype=torch.float64))
    times = torch.tensor([0.9, 0.7, 0.6, 0.45, 0.4, 0.3], dtype=torch.float64)

    def end(times: Tensor) -> Tensor:
        step, now, memory = solver.method(dynamics, times), state, None  # type: ignore[attr-defined]
        for k in range(5):
            now, memory = step(k, now, memory, None)
        return sum((entry.sin().sum() for entry in now), torch.zeros(()))

    free = times.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(end(free), free)
    for i in range(1, 5):
        shift = torch.zeros(6, dtype=torch.float64)
        shift[i] = 1e-5
        with torch.no_grad():
            difference = float(end(times + shift) - end(times - shift)) / 2e-5
        assert float(gradient[i]) == pytest.approx(difference, rel=2e-5, abs=1e-7)


def test_an_explicit_grid_of_any_length(mixture: Mixture) -> None:
    """A multistep method on an irregular grid goes where it goes on a fine one."""
    d = mixture.denoiser(VP())
    points = np.concatenate([np.linspace(1.0, 0.1, 150)[:-1], np.geomspace(0.1, 1e-5, 250)])
    coarse = sample(d, (4, 2), solver=DEIS(len(points) - 1, 3, grid=Explicit(points)), dtype=torch.float64).x
    fine = sample(d, (4, 2), solver=DEIS(2000, 3), dtype=torch.float64).x
    torch.testing.assert_close(coarse, fine, rtol=2e-3, atol=2e-3)


def test_solvers_are_their_settings() -> None:
    assert UniPC(5) == replace(UniPC(6), steps=5)
    assert DEIS(5, 3, Ramp()) == DEIS(5)
    assert DEIS(5, variable=Arcsinh(0.5)) != DEIS(5)
    assert Noise(0) == Noise(0)
