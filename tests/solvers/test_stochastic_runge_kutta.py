"""Strong orders along one Brownian path, the weak order by exact moments, and the scheme itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sde.brownian import BrownianPath
from sde.denoisers import Denoiser
from sde.dynamics import Dynamics, Reverse, State
from sde.exact import Gaussian, Mixture
from sde.grids import LogSNR
from sde.noise import StepNoise, Stream
from sde.processes import SDE, VE, VP
from sde.sampling import sample
from sde.solvers import Ancestral, EulerMaruyama, ReverseDiffusion
from sde.solvers.base import GridSteps
from sde.solvers.stochastic_runge_kutta import StochasticRungeKutta

MEAN = torch.tensor([0.7, -0.3], dtype=torch.float64)
COV = torch.tensor([[0.6, 0.25], [0.25, 0.3]], dtype=torch.float64)
# Shallow enough to be quick; its leaves are shorter than the steps.
PATH = BrownianPath(0, levels=14)
START = torch.randn(200, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def along(d: Denoiser, solver: GridSteps, n: int = 200, eta: float | None = None) -> Tensor:
    """Samples from the exact marginal at `t_max`, along one path each."""
    x = math.sqrt(d.process.prior_var(torch.tensor(d.process.t_max, dtype=torch.float64)).item()) * START[:n]
    return sample(d, x_T=x, solver=solver, noise=PATH, eta=eta).x


# ---- strong order


@pytest.fixture
def overlapping() -> Mixture:
    """Two wide Gaussians: no path stands long between two modes, where all methods are far from their limit."""
    weights = torch.tensor([0.6, 0.4], dtype=torch.float64)
    means = torch.tensor([[-0.6, 0.3], [0.5, -0.2]], dtype=torch.float64)
    covs = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.25, -0.05], [-0.05, 0.35]]], dtype=torch.float64)
    return Mixture(weights, means, covs)


def measured(d: Denoiser, method: type[GridSteps], steps: tuple[int, int], limit: Tensor) -> tuple[float, list[float]]:
    """The order of the root mean square distance from the limit on the same path."""
    errors = [float((along(d, method(n)) - limit).square().mean().sqrt()) for n in steps]  # type: ignore[call-arg]
    return math.log(errors[0] / errors[1]) / math.log(steps[1] / steps[0]), errors


@pytest.mark.parametrize("process", [VP(), VE()], ids=["VP", "VE"])
def test_strong_order(process: SDE, overlapping: Mixture) -> None:
    """1 for Euler-Maruyama and at least 1.5 for SRA1, whose terms of order 2 are larger as long as steps are long."""
    d = overlapping.denoiser(process)
    limit = along(d, StochasticRungeKutta(400))
    order, errors = measured(d, EulerMaruyama, (25, 100), limit)
    assert abs(order - 1.0) < 0.1, errors
    order, errors = measured(d, StochasticRungeKutta, (25, 100), limit)
    assert 1.5 < order < 2.3, errors


@dataclass(frozen=True)
class Curved(Dynamics):
    """A dynamics of the user's own, sin(4 x) / 2 with constant noise; its curvature along the noise rules the error."""

    process: SDE
    stochastic: bool = True
    tolerances: tuple[float | None, ...] = (None,)

    def drift(self, state: State, t: Tensor) -> State:
        return (torch.sin(4.0 * state[0]) / 2.0,)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def select(self, index: Tensor) -> Curved:
        return self


def test_strong_order_on_a_curved_drift() -> None:
    """Where the terms of order 2 are small, the order is 1.5 and no more."""
    noise, x = PATH.batch(torch.arange(200), (2,), torch.float64), (START,)
    limit, *ends = (StochasticRungeKutta(n)(Curved(VP()), x, noise)[0] for n in (384, 24, 96))
    errors = [float((y - limit).square().mean().sqrt()) for y in ends]
    assert abs(math.log(errors[0] / errors[1]) / math.log(4.0) - 1.5) < 0.1, errors


def test_every_sampler_for_the_reverse_sde_has_the_same_limit(gaussian: Gaussian) -> None:
    """Along one path they meet as the steps get shorter, whatever the grid."""
    d = gaussian.denoiser(VP())
    limit = along(d, StochasticRungeKutta(200, LogSNR()), n=20)
    for method in (EulerMaruyama, Ancestral, ReverseDiffusion, StochasticRungeKutta):
        errors = [float((along(d, method(n, LogSNR()), n=20) - limit).abs().max()) for n in (20, 80)]
        assert errors[1] < 0.4 * errors[0], method
        assert errors[1] < 0.15, method


# ---- weak order


@dataclass
class Probe(StepNoise):
    """Row 0 gets no noise, rows 3 and 4 the basis vectors in the first draw of a step, rows 5 and 6 in the second."""

    streams: list[Stream]

    def normal(self, stream: Stream, k: int, start: float, stop: float) -> Tensor:
        z = torch.zeros(7, 2, dtype=torch.float64)
        first = 3 + 2 * len(self.streams)
        z[first : first + 2] = torch.eye(2, dtype=torch.float64)
        self.streams.append(stream)
        return z

    def select(self, index: Tensor) -> StepNoise:
        raise AssertionError("a fixed-step solver keeps its batch")


def marginal(process: SDE, t: float) -> tuple[Tensor, Tensor]:
    at = torch.tensor(t, dtype=torch.float64)
    return process.alpha(at) * MEAN, process.alpha(at) ** 2 * COV + process.var(at) * torch.eye(2, dtype=torch.float64)


def bias(process: SDE, eta: float, n: int) -> Tensor:
    """How far mean and covariance, propagated exactly from step to step, end from the truth."""
    basis = torch.zeros(7, 2, dtype=torch.float64)
    basis[1:3] = torch.eye(2, dtype=torch.float64)
    noise = Probe([])
    with torch.no_grad():
        run = StochasticRungeKutta(n).bind(Reverse(Gaussian(MEAN, COV).denoiser(process), eta))
        progress = run.init((basis,), noise)
        mean, cov = marginal(process, process.t_max)
        while not run.finished(progress):
            noise.streams = []
            progress = run.step(replace(progress, x=(basis,)))
            assert noise.streams == ([Stream.STEP, Stream.AREA] if eta > 0.0 else [])
            (x,) = progress.x
            columns = (x[1:] - x[0]).T
            a, c = columns[:, :2], columns[:, 2:]
            mean, cov = a @ mean + x[0], a @ cov @ a.T + c @ c.T
    true_mean, true_cov = marginal(process, process.t_min)
    return torch.cat([mean - true_mean, (cov - true_cov)[[0, 0, 1], [0, 1, 1]]])


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_weak_order(process: SDE, eta: float) -> None:
    """The bias of mean and covariance falls at order 2, and Richardson's limit is the truth."""
    errors = [bias(process, eta, n) for n in (50, 100)]
    sizes = [float(e.norm()) for e in errors]
    assert abs(math.log2(sizes[0] / sizes[1]) - 2.0) < 0.2, sizes
    limit = (4.0 * errors[1] - errors[0]) / 3.0
    assert float(limit.norm()) < 0.15 * sizes[1], (limit, sizes)


# ---- the scheme


def test_a_step_is_roessler_s(mixture: Mixture) -> None:
    """His table for SRA1, with alpha, beta, A and B in the general form of the scheme, in a time that runs forwards."""
    process, eta, t, s = VE(), 0.7, 0.8, 0.65
    d = mixture.denoiser(process)
    dynamics = Reverse(d, eta)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = PATH.batch(torch.arange(3), (2,), torch.float64)
    h = t - s
    i_1 = math.sqrt(h) * noise.normal(Stream.STEP, 0, t, s)
    i_10 = h * (0.5 * i_1 + math.sqrt(h / 12.0) * noise.normal(Stream.AREA, 0, t, s))

    def a(u: float, y: Tensor) -> Tensor:
        return -dynamics.drift((y,), torch.tensor(t - u, dtype=torch.float64))[0]

    def b(u: float) -> Tensor:
        return dynamics.diffusion(torch.tensor(t - u, dtype=torch.float64))

    alpha, beta_1, beta_2, c_0, c_1 = (1 / 3, 2 / 3), (1.0, 0.0), (-1.0, 1.0), (0.0, 0.75), (1.0, 0.0)
    first = a(0.0, x)
    second = a(c_0[1] * h, x + 0.75 * first * h + 1.5 * b(c_1[0] * h) * i_10 / h)
    wanted = x + h * (alpha[0] * first + alpha[1] * second)
    wanted = wanted + sum((beta_1[i] * i_1 + beta_2[i] * i_10 / h) * b(c_1[i] * h) for i in (0, 1))
    (y,) = StochasticRungeKutta(1)(dynamics, (x,), noise, t, s)
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)


def test_two_calls_a_step_and_no_share_of_the_batch(mixture: Mixture) -> None:
    d, solver = mixture.denoiser(VP()), StochasticRungeKutta(12)
    whole = sample(d, (64, 2), solver=solver, dtype=torch.float64)
    assert whole.nfe.tolist() == [24] * 64
    for first, n in ((0, 7), (63, 1)):
        part = sample(d, (n, 2), solver=solver, first=first, dtype=torch.float64)
        torch.testing.assert_close(part.x, whole.x[first : first + n], rtol=1e-10, atol=1e-10)
