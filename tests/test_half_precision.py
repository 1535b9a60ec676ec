"""Half precision: states, times, densities and predictions are those of float32, rounded where they go out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import sde
from sde.denoisers import NetworkDenoiser, Prediction
from sde.dynamics import Reverse
from sde.noise import Noise
from sde.objective import ChainTimes, DenoisingScoreMatching, UniformLogSNR, UniformTimes

DTYPES = [torch.float16, torch.bfloat16]
EACH = pytest.mark.parametrize("dtype", DTYPES)


class Linear(nn.Module):
    """A network that predicts a multiple of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.75))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.weight * x


def denoiser(dtype: torch.dtype = torch.float32) -> NetworkDenoiser:
    return NetworkDenoiser(Linear(), sde.VP()).to(dtype)


def gaussian(dtype: torch.dtype) -> sde.Denoiser:
    return sde.exact.Gaussian(torch.tensor([0.5, -1.0], dtype=dtype), torch.eye(2, dtype=dtype)).denoiser(sde.VP())


def data(dtype: torch.dtype) -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).to(dtype)


@EACH
def test_samples_of_a_halved_network_are_those_of_the_network(dtype: torch.dtype) -> None:
    halved, exact = (sde.sample(denoiser(d), (3, 4), seed=1).x for d in (dtype, torch.float32))
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved, exact, rtol=0.1, atol=0.1 * exact.std().item())


@EACH
@pytest.mark.parametrize("solver", [None, sde.solvers.EulerMaruyama(4), sde.solvers.RungeKutta()])
def test_samples_and_latents_are_rounded_once(dtype: torch.dtype, solver: sde.Solver | None) -> None:
    d, latent = gaussian(dtype), data(dtype)[:, :2]
    exact = sde.sample(d, (3, 2), solver=solver, seed=1).x
    assert exact.dtype == torch.float32
    assert torch.equal(sde.sample(d, (3, 2), solver=solver, seed=1, dtype=dtype).x, exact.to(dtype))
    flow = Reverse(d, eta=0.0)
    ode = sde.solvers.RungeKutta() if solver is None or solver.eta else solver
    (rounded,), (state,) = (ode(flow, (x,)) for x in (latent, latent.float()))
    assert torch.equal(rounded, state.to(dtype))
    assert torch.equal(sde.sample(d, x_T=latent, solver=ode).x, state)
    assert torch.equal(sde.encode(d, latent, solver=ode), sde.encode(d, latent.float(), solver=ode))


@EACH
@pytest.mark.parametrize(
    "trace",
    [sde.ExactTrace(), sde.Hutchinson(2, gaussian=True), sde.trace.Orthogonal(2), sde.trace.XTrace(2)],
    ids=lambda trace: type(trace).__name__,
)
def test_log_densities_are_those_of_float32(dtype: torch.dtype, trace: sde.Trace) -> None:
    d, x = denoiser(dtype), data(dtype)
    half, exact = (sde.log_prob(d, y, trace=trace, solver=sde.solvers.Heun(4)) for y in (x, x.float()))
    for name in ("nats", "prior", "divergence", "latent"):
        assert torch.equal(getattr(half, name), getattr(exact, name))
        assert getattr(half, name).dtype == torch.float32
    model = sde.Model(d, sde.data.Scaling.identity(), (4,))
    assert torch.equal(model.log_prob(x.float(), trace=trace, solver=sde.solvers.Heun(4)).nats, exact.nats)


@EACH
@pytest.mark.parametrize("trace", [sde.trace.Orthogonal(2), sde.trace.XTrace(2)], ids=lambda t: type(t).__name__)
def test_traces_of_a_field_in_half_precision(dtype: torch.dtype, trace: sde.Trace) -> None:
    """Both are exact for a multiple of the identity, up to the rounding of the products."""
    x = data(dtype)
    _, divergence = trace.bind(Noise(3), torch.arange(3), x)(lambda y: 0.5 * y, x)
    assert divergence.dtype == torch.float32
    rounding = 4.0 * torch.finfo(dtype).eps
    torch.testing.assert_close(divergence, torch.full((3, 2), 2.0), rtol=rounding, atol=0.0)


@EACH
def test_other_densities_are_those_of_float32(dtype: torch.dtype) -> None:
    d, x = gaussian(dtype), data(dtype)[:, :2]
    process, target = d.process, sde.exact.Gaussian(torch.zeros(2), torch.eye(2))
    assert torch.equal(process.prior_log_prob(300.0 * x), process.prior_log_prob((300.0 * x).float()))
    assert torch.equal(target.log_prob(x, process, 1e-3), target.log_prob(x.float(), process, 1e-3))
    bounds = [sde.likelihood.density_bound(d, y, draws=4).nats for y in (x, x.float())]
    assert torch.equal(*bounds)
    model = sde.Model(d, sde.data.Scaling.identity(), (2,))
    assert model.log_prob(x.float()).nats.dtype == torch.float32


@EACH
@pytest.mark.parametrize("what", list(Prediction))
def test_predictions_in_half_precision_are_rounded_once(dtype: torch.dtype, what: Prediction) -> None:
    """At t = 1e-4 the variance 1.05e-5 is not a float16."""
    t = torch.tensor(1e-4, dtype=torch.float64)
    x = data(dtype)[:, :2]
    for d in (gaussian(torch.float32), denoiser(), sde.Clip(denoiser())):
        prediction = d.predict(what, x, t)
        assert prediction.dtype == dtype
        assert torch.equal(prediction, d.predict(what, x.float(), t).to(dtype))


@EACH
def test_times_of_training_are_those_of_float32(dtype: torch.dtype) -> None:
    u = torch.tensor([0.1234, 0.5, 0.987], dtype=dtype)
    for times in (UniformTimes(), UniformLogSNR()):
        for half, exact in zip(times(sde.VP(), u), times(sde.VP(), u.float())):
            assert torch.equal(half, exact)
    steps = 1000.0 * ChainTimes(1000)(sde.DiscreteChain.linear(1000).sde(), u)[0]
    torch.testing.assert_close(steps, (1000.0 * u.float()).floor() + 1.0, rtol=0.0, atol=1e-3)


@EACH
def test_losses_in_half_precision_are_those_of_float32(dtype: torch.dtype) -> None:
    d, x, u = denoiser(dtype), data(dtype), torch.tensor([0.0, 0.5, 0.9])
    z = torch.full_like(x, 300.0)  # the square of 300 is not a float16
    loss = DenoisingScoreMatching()(d, x, u, z)
    assert torch.equal(loss, DenoisingScoreMatching()(d, x.float(), u, z.float()))


@EACH
def test_the_prior_in_half_precision_is_that_of_float32(dtype: torch.dtype) -> None:
    half, exact = (
        sde.VE().prior_sample((1000, 2), generator=torch.Generator().manual_seed(3), dtype=d)
        for d in (dtype, torch.float32)
    )
    assert torch.equal(half, exact.to(dtype))
    assert math.isclose(half.double().std().item(), 50.0, rel_tol=0.1)
