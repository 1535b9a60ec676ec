"""Dynamics: the split, the marginals and the log-density, against autograd of their definitions and the exact flow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sde.denoisers import Conditioned, Denoiser, Prediction
from sde.dynamics import Reverse, Semilinear, State, WithLogDensity
from sde.exact import Gaussian, Mixture
from sde.noise import Noise
from sde.processes import SDE, VP
from sde.shapes import expand
from sde.trace import ExactTrace, Hutchinson

B = 5
ETAS = [0.0, 0.5, 1.0]


@dataclass(frozen=True)
class Flow:
    """The exact flow of a Gaussian: in its eigenbasis each coordinate is scaled by the ratio of the stds."""

    process: SDE
    mean: Tensor
    cov: Tensor

    def marginal(self, t: float) -> tuple[Tensor, Tensor]:
        at = torch.tensor(t, dtype=torch.float64)
        eye = torch.eye(len(self.mean), dtype=torch.float64)
        return self.process.alpha(at) * self.mean, self.process.alpha(at) ** 2 * self.cov + self.process.var(at) * eye

    def log_prob(self, x: Tensor, t: float) -> Tensor:
        return torch.distributions.MultivariateNormal(*self.marginal(t)).log_prob(x)

    def __call__(self, x: Tensor, start: float, stop: float) -> tuple[Tensor, Tensor]:
        """The state at `stop`, and the change of its log-density."""
        (before, cov), (after, wider) = self.marginal(start), self.marginal(stop)
        basis = torch.linalg.eigh(self.cov)[1]
        ratio = ((basis.T @ wider @ basis).diagonal() / (basis.T @ cov @ basis).diagonal()).sqrt()
        y = after + ((x - before) @ basis * ratio) @ basis.T
        return y, self.log_prob(y, stop) - self.log_prob(x, start)


MEAN = torch.tensor([0.7, -0.3], dtype=torch.float64)
COV = torch.tensor([[0.6, 0.25], [0.25, 0.3]], dtype=torch.float64)


def points(generator: torch.Generator) -> Tensor:
    return torch.randn(B, 2, generator=generator, dtype=torch.float64)


def times() -> Tensor:
    return torch.tensor([0.02, 0.2, 0.5, 0.8, 1.0], dtype=torch.float64)


def carried(flow: Semilinear, x: Tensor) -> WithLogDensity:
    return WithLogDensity(flow, ExactTrace().bind(Noise(0), torch.arange(len(x)), x))


def divergence(field: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
    """The trace of the full Jacobian of each sample."""
    jacobian = torch.func.jacrev(lambda y, s: field(y[None], s[None])[0])
    return torch.stack([jacobian(y, s).trace() for y, s in zip(x, t)])


@pytest.mark.parametrize("eta", ETAS)
def test_drift_and_diffusion_are_anderson_s(
    process: SDE, mixture: Mixture, eta: float, generator: torch.Generator
) -> None:
    d, x, t = mixture.denoiser(process), points(generator), times()
    dynamics = Reverse(d, eta)
    (drift,) = dynamics.drift((x,), t)
    truth = process.drift(x, t) - 0.5 * (1.0 + eta**2) * (process.g2(t)[:, None] * d.score(x, t))
    torch.testing.assert_close(drift, truth, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dynamics.diffusion(t), eta * process.g2(t).sqrt(), rtol=1e-14, atol=0.0)
    assert dynamics.stochastic == (eta > 0.0)
    assert dynamics.process is process
    assert dynamics.tolerances == (None,)


@pytest.mark.parametrize(("eta", "log_density"), [*((eta, False) for eta in ETAS), (0.0, True)])
def test_drift_is_its_parts(
    process: SDE, mixture: Mixture, eta: float, log_density: bool, generator: torch.Generator
) -> None:
    """drift = linear x + score_coefficient score, and d/dt of propagate is the linear part, for every entry."""
    x, t = points(generator), times()
    dynamics: Semilinear = Reverse(mixture.denoiser(process), eta)
    state: State = (x,)
    if log_density:
        dynamics, state = carried(dynamics, x), (x, torch.randn(B, 1, generator=generator, dtype=torch.float64))
    linear = torch.func.jvp(lambda u: dynamics.propagate(state, u), (torch.zeros_like(t),), (dynamics.linear(t),))[1]
    for whole, a, score in zip(dynamics.drift(state, t), linear, dynamics.predict(Prediction.SCORE, state, t)):
        torch.testing.assert_close(
            whole, a + expand(dynamics.score_coefficient(t), score) * score, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.7])
def test_every_eta_has_the_same_marginals(process: SDE, eta: float) -> None:
    """For x ~ N(m, S) and a drift A x + a, dm/dt = A m + a, and dS/dt = A S + S A' - (eta g)^2 1 as time runs down."""
    flow = Flow(process, MEAN, COV)
    dynamics = Reverse(Gaussian(MEAN, COV).denoiser(process), eta)
    h = 1e-6
    for t in times()[:-1]:
        (m0, s0), (m, s), (m1, s1) = (flow.marginal(float(t) + shift) for shift in (-h, 0.0, h))
        basis = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()
        (out,) = dynamics.drift((basis,), t)
        a, shift = (out[1:] - out[:1]).T, out[0]
        torch.testing.assert_close(a @ m + shift, (m1 - m0) / (2 * h), rtol=1e-6, atol=1e-6)
        change = a @ s + s @ a.T - dynamics.diffusion(t) ** 2 * torch.eye(2, dtype=torch.float64)
        torch.testing.assert_close(change, (s1 - s0) / (2 * h), rtol=1e-5, atol=1e-6)


def test_log_density_falls_by_the_divergence_of_the_drift(
    process: SDE, mixture: Mixture, generator: torch.Generator
) -> None:
    x, t = points(generator), times()
    flow = Reverse(mixture.denoiser(process), 0.0)
    dynamics = carried(flow, x)
    drift, change = dynamics.drift((x, torch.zeros(B, 1, dtype=torch.float64)), t)
    truth = -divergence(lambda y, s: flow.drift((y,), s)[0], x, t)
    torch.testing.assert_close(change, truth[:, None], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(drift, flow.drift((x,), t)[0], rtol=1e-12, atol=1e-12)
    assert not dynamics.stochastic
    assert float(dynamics.diffusion(t).abs().sum()) == 0.0


@pytest.mark.parametrize("what", ["score", "noise", "x0"])
def test_predictions_come_with_their_divergence(
    process: SDE, mixture: Mixture, what: str, generator: torch.Generator
) -> None:
    x, t = points(generator), times()
    d = mixture.denoiser(process)
    plain = {"score": d.score, "noise": d.noise, "x0": d.forward}[what]
    flow = Reverse(d, 0.0)
    dynamics = carried(flow, x)
    value, minus = getattr(dynamics, what)((x, torch.zeros(B, 1, dtype=torch.float64)), t)
    torch.testing.assert_close(value, plain(x, t), rtol=1e-12, atol=1e-12)
    assert torch.equal(getattr(flow, what)((x,), t)[0], plain(x, t))
    torch.testing.assert_close(minus, -divergence(plain, x, t)[:, None], rtol=1e-9, atol=1e-9)


def exponential_euler(dynamics: Semilinear, state: State, grid: Tensor, by_noise: bool) -> State:
    """DDIM: x / alpha moves by the noise over sigma / alpha; x / sigma by x0 over alpha / sigma."""
    log_alpha, log_sigma = dynamics.process.log_alpha(grid), 0.5 * dynamics.process.var(grid).log()
    log_scale = log_alpha if by_noise else log_sigma
    integral = (log_sigma - log_alpha).exp() if by_noise else (log_alpha - log_sigma).exp()
    predict = dynamics.noise if by_noise else dynamics.x0
    for k, t in enumerate(grid[:-1]):
        rate = dynamics.rate(predict(state, t), log_scale[k].exp())
        scaled = dynamics.propagate(state, -log_scale[k])
        moved = tuple(u + (integral[k + 1] - integral[k]) * du for u, du in zip(scaled, rate))
        state = dynamics.propagate(moved, log_scale[k + 1])
    return state


@pytest.mark.parametrize(("by_noise", "direction"), [(True, "up"), (False, "down")], ids=["noise-up", "x0-down"])
def test_exponential_methods_need_only_the_parts(
    process: SDE, by_noise: bool, direction: str, generator: torch.Generator
) -> None:
    """An exponential Euler method made of propagate, rate and a prediction has order 1, in x and in the log-density."""
    flow = Flow(process, MEAN, COV)
    start, stop = (0.9, 0.1) if direction == "down" else (0.1, 0.9)
    mean, cov = flow.marginal(start)
    x = mean + points(generator) @ torch.linalg.cholesky(cov).T
    y, change = flow(x, start, stop)
    dynamics = carried(Reverse(Gaussian(MEAN, COV).denoiser(process), 0.0), x)
    errors = []
    for n in (50, 100):
        grid = torch.linspace(start, stop, n + 1, dtype=torch.float64)
        with torch.no_grad():
            got, density = exponential_euler(dynamics, (x, torch.zeros(B, 1, dtype=torch.float64)), grid, by_noise)
        errors.append((float((got - y).norm()), float((density[:, 0] - change).norm())))
    for coarse, fine in itertools.pairwise(errors):
        for a, b in zip(coarse, fine):
            assert abs(math.log2(a / b) - 1.0) < 0.15, errors


def test_propagate_scales_x_and_moves_the_log_density(generator: torch.Generator) -> None:
    """Scaling x by c takes D log c from its log-density, to the last digits of float64, for numbers and tensors."""
    x, density = points(generator), torch.randn(B, 3, generator=generator, dtype=torch.float64)
    flow = Reverse(Gaussian(MEAN, COV).denoiser(VP()), 0.0)
    per_sample = torch.linspace(-0.7, 0.9, B, dtype=torch.float64)
    for log_scale in (per_sample, per_sample[1]):
        y, moved = carried(flow, x).propagate((x, density), log_scale)
        torch.testing.assert_close(y, per_sample.exp()[:, None] * x if log_scale.ndim else log_scale.exp() * x)
        torch.testing.assert_close(moved, density - 2.0 * (log_scale[:, None] if log_scale.ndim else log_scale))


def test_propagate_by_a_number_keeps_float64(generator: torch.Generator) -> None:
    x = points(generator)
    flow = Reverse(Gaussian(MEAN, COV).denoiser(VP()), 0.0)
    y, moved = carried(flow, x).propagate((x, torch.zeros(B, 1, dtype=torch.float64)), 0.1)
    torch.testing.assert_close(y, math.exp(0.1) * x, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(moved, torch.full((B, 1), -0.2, dtype=torch.float64), rtol=1e-14, atol=0.0)


def test_rate_is_the_prediction_and_the_scaled_divergence(generator: torch.Generator) -> None:
    x, minus = points(generator), torch.randn(B, 1, generator=generator, dtype=torch.float64)
    flow = Reverse(Gaussian(MEAN, COV).denoiser(VP()), 0.0)
    per_sample = torch.linspace(0.1, 0.7, B, dtype=torch.float64)
    for scale, column in ((0.3, 0.3), (per_sample[2], per_sample[2]), (per_sample, per_sample[:, None])):
        assert torch.equal(flow.rate((x,), scale)[0], x)
        value, moved = carried(flow, x).rate((x, minus), scale)
        assert torch.equal(value, x)
        torch.testing.assert_close(moved, column * minus, rtol=1e-15, atol=0.0)


class Shifted(Denoiser):
    """Its answer holds the condition, so that a wrong row shows."""

    def __init__(self) -> None:
        super().__init__()
        self.process = VP()

    def forward(self, x_t: Tensor, t: Tensor, *, shift: Tensor, factor: Tensor) -> Tensor:
        return torch.tanh(x_t @ torch.tensor([[1.0, 0.4], [-0.2, 0.5]], dtype=x_t.dtype)) * shift[:, None] * factor


def test_select_restricts_conditions_and_probes(generator: torch.Generator) -> None:
    x, t = points(generator), times()
    nfe = torch.zeros(B, dtype=torch.int64)
    condition = {"shift": torch.linspace(1.0, 2.0, B, dtype=torch.float64), "factor": torch.tensor(0.7)}
    flow = Reverse(Conditioned(Shifted(), condition, nfe), 0.0)
    trace = Hutchinson(3).bind(Noise(3), torch.arange(B), x)
    dynamics = WithLogDensity(flow, trace, atol=1e-3)
    state = (x, torch.zeros(B, 3, dtype=torch.float64))
    whole = dynamics.drift(state, t)
    some = torch.tensor([4, 1])
    again = torch.tensor([1])
    for part, rows in ((dynamics.select(some), some), (dynamics.select(some).select(again), some[again])):
        for a, b in zip(part.drift((x[rows], state[1][rows]), t[rows]), whole):
            torch.testing.assert_close(a, b[rows], rtol=1e-13, atol=1e-13)
        assert part.tolerances == (None, 1e-3)
    assert nfe.tolist() == [1, 3, 1, 1, 2]


@pytest.mark.parametrize("eta", [-0.1, math.nan])
def test_a_negative_eta_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match=f"Reverse.*eta >= 0.*eta={eta}"):
        Reverse(Shifted(), eta)


def test_a_log_density_along_an_sde_is_refused() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"log-density.*eta=0, got eta=1\.0"):
        carried(Reverse(Shifted(), 1.0), x)
