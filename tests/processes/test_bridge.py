"""Bridges against conditioned Gaussians: the kernel, the coefficients, and the paired conditional by every solver."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sde
from sde.denoisers import Denoiser, Prediction
from sde.exact import Gaussian, Mixture
from sde.processes import SDE, Bridge, Brownian
from sde.solvers import (
    DDIM,
    DEIS,
    AdamsBashforth,
    Ancestral,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Heun,
    ReverseDiffusion,
    RungeKutta,
    ScipyODE,
    Solver,
    UniPC,
)

BASES: dict[str, SDE] = {"vp": sde.VP(0.1, 2.0), "ve": sde.KarrasVE(0.002, 3.0), "brownian": Brownian(0.7)}
BRIDGES = {name: Bridge(base) for name, base in BASES.items()}
each = pytest.mark.parametrize("name", BRIDGES)


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def times(bridge: Bridge) -> Tensor:
    return torch.linspace(bridge.t_min, bridge.t_max, 13, dtype=torch.float64)


@each
def test_the_kernel_is_that_of_the_base_given_its_end(name: str) -> None:
    """q(x_t | x_0, x_T) by the conditioning of two Gaussians with the base's own transition."""
    bridge, base = BRIDGES[name], BASES[name]
    t, last = times(bridge), f64(base.t_max)
    log_alpha, _ = base.transition(t, last)
    gain = log_alpha.exp() * base.var(t) / base.var(last)
    assert torch.allclose(bridge.source_scale(t), gain, rtol=1e-9)
    assert torch.allclose(bridge.alpha(t), base.alpha(t) - gain * base.alpha(last), rtol=1e-7)
    assert torch.allclose(bridge.var(t), base.var(t) - gain * log_alpha.exp() * base.var(t), rtol=1e-7)


@each
def test_its_coefficients_are_those_of_its_definition(name: str) -> None:
    bridge, t = BRIDGES[name], times(BRIDGES[name])[1:-1]
    assert torch.allclose(bridge.f(t), SDE.f(bridge, t), rtol=1e-6)
    assert torch.allclose(bridge.g2(t), SDE.g2(bridge, t), rtol=1e-5)
    assert torch.allclose(bridge.log_snr(t), SDE.log_snr(bridge, t), atol=1e-8)
    assert torch.allclose(bridge.time(bridge.log_snr(t)), t, rtol=1e-8)
    assert torch.allclose(bridge.time(bridge.log_snr(t)), SDE.time(bridge, bridge.log_snr(t)), rtol=1e-8)
    bridge.check_schedule()


def test_brownian_motion() -> None:
    """The pinned Brownian motion of the textbooks: 1 - t, t, and t (1 - t)."""
    bridge, t = Bridge(Brownian()), f64([0.1, 0.5, 0.9])
    for value, expected in (
        (bridge.alpha(t), 1 - t),
        (bridge.source_scale(t), t),
        (bridge.var(t), t * (1 - t)),
        (bridge.f(t), -1 / (1 - t)),
        (bridge.g2(t), torch.ones_like(t)),
    ):
        assert torch.allclose(value, expected, rtol=1e-12)


class Pair(Denoiser):
    """The exact denoiser of x0 ~ N(A x1 + b, C) given x1, or of a mixture around it, with x1 as `image`."""

    def __init__(self, process: SDE, residual: Mixture, slope: float) -> None:
        super().__init__()
        self.process, self.slope, self.inner = process, slope, residual.denoiser(process)

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.predict(Prediction.X0, x_t, t, **condition)

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        shift = self.slope * condition["image"]
        alpha = sde.expand(self.process.alpha(t), x_t)
        value = self.inner.predict(what, x_t - alpha * shift, t)
        if what is Prediction.X0:
            return value + shift
        return value - sde.expand(self.process.sigma(t), x_t) * shift if what is Prediction.VELOCITY else value


# Euler's step has to follow the linear part, which the exponential methods solve exactly.
GRID = sde.grids.LogSNR()
SOLVERS: list[Solver] = [Heun(500, grid=GRID), DDIM(1000, eta=0.0), DPMSolverPP(120)]
SOLVERS += [UniPC(60), DEIS(120), AdamsBashforth(400, grid=GRID), RungeKutta(rtol=1e-6, atol=1e-6)]
SOLVERS += [ScipyODE(rtol=1e-6, atol=1e-6)]
NOISY: list[Solver] = [EulerMaruyama(2000, grid=GRID), Ancestral(1000, grid=GRID), ReverseDiffusion(2000, grid=GRID)]
NOISY += [DDIM(1000, eta=1.0)]


CASES = [(solver, "brownian") for solver in SOLVERS] + [(UniPC(60), name) for name in ("vp", "ve")]
SLOW = pytest.param(Euler(16000, grid=GRID), "brownian", marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("solver", "name"), [*CASES, SLOW], ids=lambda v: v if isinstance(v, str) else type(v).__name__
)
def test_the_flow_reaches_the_conditional_of_a_joint_gaussian(solver: Solver, name: str) -> None:
    """The flow of a Gaussian is affine: two latents, one prior deviation up and down, give its mean and deviation."""
    bridge = BRIDGES[name]
    d = Pair(bridge, Gaussian(f64([0.4]), f64([[0.09]])), 0.8)
    latent = math.sqrt(bridge.prior_var(f64(bridge.t_max)).item()) * f64([[-1.0], [1.0]])
    low, high = sde.sample(d, x_T=latent, solver=solver, condition={"image": f64([[1.5], [1.5]])}).x[:, 0].tolist()
    t = f64(bridge.t_min)
    alpha, var = bridge.alpha(t).item(), bridge.var(t).item()
    assert abs((low + high) / 2.0 - alpha * (0.8 * 1.5 + 0.4)) < 1e-3
    assert abs(((high - low) / 2.0) ** 2 / (alpha**2 * 0.09 + var) - 1.0) < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp"])
@pytest.mark.parametrize("solver", NOISY, ids=lambda s: type(s).__name__)
def test_the_sde_reaches_the_conditional_of_a_joint_gaussian(name: str, solver: Solver) -> None:
    """Mean to 1e-3 and variance to 1 % beside 5 standard errors of 100,000 samples."""
    bridge, n = BRIDGES[name], 100_000
    d = Pair(bridge, Gaussian(f64([0.4]), f64([[0.09]])), 0.8)
    x = sde.sample(d, (n, 1), solver=solver, condition={"image": f64([[1.5]]).expand(n, 1)}, dtype=torch.float64).x
    t = f64(bridge.t_min)
    alpha, var = bridge.alpha(t).item(), alpha_var(bridge, t)
    assert abs(x.mean().item() - alpha * 1.6) < 1e-3 + 5.0 * math.sqrt(var / n)
    assert abs(x.var().item() / var - 1.0) < 1e-2 + 5.0 * math.sqrt(2.0 / n)


def alpha_var(bridge: Bridge, t: Tensor) -> float:
    return (bridge.alpha(t) ** 2 * 0.09 + bridge.var(t)).item()


@pytest.mark.parametrize("name", ["vp"])
def test_the_flow_and_the_sde_reach_the_conditional_of_a_mixture(name: str) -> None:
    """The probability of each mode to 5 standard errors and its mean and deviation to 2 %."""
    bridge, n = BRIDGES[name], 4000
    residual = Mixture(f64([0.3, 0.7]), f64([[-1.0], [1.0]]), f64([[[0.04]], [[0.09]]]))
    d, image = Pair(bridge, residual, 0.5), f64([[2.0]]).expand(n, 1)
    for solver in (UniPC(40), DDIM(200, eta=1.0)):
        call: dict[str, Any] = {"condition": {"image": image}, "dtype": torch.float64}
        x = sde.sample(d, (n, 1), solver=solver, **call).x[:, 0] - 1.0
        upper = x > 0.0
        assert abs(upper.double().mean() - 0.7) < 5.0 * math.sqrt(0.21 / n) + 0.01
        for mode, mean, std in ((x[~upper], -1.0, 0.2), (x[upper], 1.0, 0.3)):
            assert abs(mode.mean() - mean) < 5.0 * std / len(mode) ** 0.5 + 0.01
            assert abs(mode.std() / std - 1.0) < 5.0 / (2.0 * len(mode)) ** 0.5 + 0.02


@pytest.mark.parametrize("name", ["ve"])
def test_the_likelihood_is_that_of_the_pair(name: str) -> None:
    bridge, residual = BRIDGES[name], Gaussian(f64([0.4]), f64([[0.09]]))
    x, image = f64([[1.3], [1.9]]), f64([[1.5], [1.2]])
    solver = RungeKutta(rtol=1e-7, atol=1e-7)
    r = sde.log_prob(Pair(bridge, residual, 0.8), x, trace=sde.ExactTrace(), solver=solver, condition={"image": image})
    t = f64(bridge.t_min)
    shifted = x - bridge.alpha(t) * 0.8 * image
    assert torch.allclose(r.nats, residual.log_prob(shifted, bridge, t), atol=2e-3)


def test_a_network_of_pairs_is_trained_as_any_other() -> None:
    """x0 = 2 x1 exactly: the network learns to read it off the image."""
    torch.manual_seed(0)
    net = sde.networks.MLP(1, width=16, depth=1, conditions=sde.networks.Conditions(image=1))
    d = sde.NetworkDenoiser(net, Bridge(), sde.EDM(1.0), sde.LogSNRLevel())
    x1 = torch.randn(256, 1)
    training = sde.Training(d, [(2.0 * x1, {"image": x1})], optimizer=torch.optim.Adam(d.parameters(), 1e-2), ema=0.9)
    losses = [report.loss for report in training.run(150)]
    assert losses[-1] < 0.2 * losses[0]
    model = training.model()
    x = sde.sample(
        model.denoiser, (2, 1), solver=UniPC(20), condition={"image": torch.tensor([[-1.0], [1.0]])}, denoise=True
    ).x
    assert (x - torch.tensor([[-2.0], [2.0]])).abs().max() < 0.5


def test_a_bridge_is_trained_and_drawn_from_by_its_ends() -> None:
    net = sde.networks.MLP(1, width=8, depth=1, conditions=sde.networks.Conditions(image=1))
    d, x = sde.NetworkDenoiser(net, Bridge(), sde.EDM(1.0), sde.LogSNRLevel()), torch.zeros(4, 1)
    with pytest.raises(ValueError, match=r"Bridge needs the condition 'image'.*got batches with no condition"):
        sde.Training(d, sde.Batches(x, 2))
    with pytest.raises(ValueError, match=r"Bridge needs the condition 'image'.*got batches with image, .* none"):
        sde.Training(d, sde.Batches(x, 2, condition={"image": x}), conditions=[])
    with pytest.raises(ValueError, match=r"Bridge needs the condition 'image'.*pairs \(x0, \{'image'"):
        sde.Training(d, [x]).advance()
    model = sde.Model(d, sde.data.Scaling.identity(), (1,))
    with pytest.raises(ValueError, match=r"a model of Bridge draws given the condition 'image', got none"):
        model.sample(4)


def test_what_cannot_be_a_bridge_is_refused() -> None:
    for make, word in (
        (lambda: Bridge(end=0.0), r"end in \(0, 1\)"),
        (lambda: Brownian(std=0.0), "std > 0"),
    ):
        with pytest.raises(ValueError, match=word):
            make()
