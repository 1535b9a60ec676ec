"""A solver of the user's own: one step of a few lines, and the recipe of version 0.1.0."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import sde
from sde.brownian import BrownianPath
from sde.denoisers import Denoiser
from sde.dynamics import Dynamics, Reverse, State
from sde.exact import Gaussian, Mixture
from sde.noise import Noise, StepNoise
from sde.processes import SDE, VP
from sde.sampling import encode, sample
from sde.solvers import EulerMaruyama, GridSteps, Langevin, Midpoint, OneStep, PredictorCorrector, linear_combination
from sde.solvers.base import Step, combine
from sde.trace import ExactTrace


class Half(OneStep):
    """The explicit midpoint rule."""

    def step(self, dynamics: Dynamics, x: State, t: Tensor, s: Tensor, noise: Callable[[], Tensor]) -> State:
        half = linear_combination((1.0, x), (0.5 * (s - t), dynamics.drift(x, t)))
        return linear_combination((1.0, x), (s - t, dynamics.drift(half, 0.5 * (t + s))))


class Noisy(OneStep):
    """Euler and Maruyama's method."""

    eta = 1.0
    serves_noise = True
    serves_log_density = False

    def step(self, dynamics: Dynamics, x: State, t: Tensor, s: Tensor, noise: Callable[[], Tensor]) -> State:
        (x_t,), (drift,) = x, dynamics.drift(x, t)
        return (x_t + (s - t) * drift + dynamics.diffusion(t) * (t - s).sqrt() * noise(),)


@dataclass(frozen=True)
class Old(GridSteps):
    """Written by the recipe of version 0.1.0."""

    eta: ClassVar[float] = 0.0  # type: ignore[misc]

    def refusal(self, dynamics: Any) -> str | None:
        return "it follows the flow" if dynamics.stochastic else None

    def method(self, dynamics: sde.Dynamics, times: Tensor) -> Step:
        h = times.diff().tolist()
        points, middles = times.unbind(), (times[:-1] + 0.5 * times.diff()).unbind()

        def step(k: int, x: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
            half = combine((1.0, x), (0.5 * h[k], dynamics.drift(x, points[k])))
            return combine((1.0, x), (h[k], dynamics.drift(half, middles[k]))), None

        return step


@dataclass(frozen=True)
class OldSampler(GridSteps):
    """A sampler of version 0.1.0, whose refusal names nothing but the log-density."""

    eta: ClassVar[float] = 1.0  # type: ignore[misc]

    def refusal(self, dynamics: Any) -> str | None:
        return "it moves x alone" if len(dynamics.tolerances) > 1 else None

    def method(self, dynamics: sde.Dynamics, times: Tensor) -> Step:
        return EulerMaruyama(self.steps, self.grid).method(dynamics, times)


class Untouched(Denoiser):
    """No network call may reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.process = VP()

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        raise AssertionError("a network call was made")


@pytest.mark.parametrize("solver", [Half(40), Old(40)], ids=["OneStep", "0.1.0"])
def test_it_is_the_library_s_own_method(process: SDE, mixture: Mixture, solver: GridSteps) -> None:
    """Samples, latents and log-densities are those of `Midpoint`."""
    d, same = mixture.denoiser(process), Midpoint(40)
    torch.testing.assert_close(
        sample(d, (3, 2), solver=solver).x, sample(d, (3, 2), solver=same).x, rtol=1e-12, atol=1e-12
    )
    x = mixture.sample(3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encode(d, x, solver=solver), encode(d, x, solver=same), rtol=1e-12, atol=1e-12)
    nats = [sde.log_prob(d, x, solver=s, trace=ExactTrace()).nats for s in (solver, same)]
    torch.testing.assert_close(*nats, rtol=1e-12, atol=1e-12)


def test_the_order_of_a_step(gaussian: Gaussian) -> None:
    d, x_T = gaussian.denoiser(VP()), torch.ones(1, 2, dtype=torch.float64)
    exact = sample(d, x_T=x_T, solver=sde.solvers.RungeKutta(rtol=1e-10, atol=1e-10)).x
    errors = [float((sample(d, x_T=x_T, solver=Half(n)).x - exact).norm()) for n in (200, 400)]
    assert abs(math.log2(errors[0] / errors[1]) - 2.0) < 0.15, errors


@pytest.mark.parametrize("solver", [Noisy(7), OldSampler(7)], ids=["OneStep", "0.1.0"])
def test_it_draws_what_the_others_draw(process: SDE, mixture: Mixture, solver: GridSteps) -> None:
    d = mixture.denoiser(process)
    for noise in (None, BrownianPath(2)):  # the one goes by the number of the step, the other by its times
        drawn, same = (sample(d, (3, 2), solver=s, seed=3, first=5, noise=noise).x for s in (solver, EulerMaruyama(7)))
        torch.testing.assert_close(drawn, same, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("solver", "eta", "message"),
    [(Half(5), 1.0, r"Half.*noise.*eta=0"), (Old(5), 1.0, "Old.*it follows the flow")],
)
def test_noise_that_it_does_not_serve_is_refused(solver: GridSteps, eta: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(Untouched(), (3, 2), solver=solver, eta=eta)


@pytest.mark.parametrize(
    ("solver", "message"), [(Noisy(5), r"Noisy.*log-density"), (OldSampler(5), "OldSampler.*it moves x alone")]
)
def test_a_log_density_that_it_does_not_serve_is_refused(solver: GridSteps, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sde.log_prob(Untouched(), torch.zeros(3, 2), solver=solver)


def test_it_corrects_and_is_tuned(gaussian: Gaussian) -> None:
    """It is a predictor, and gradients flow through its step to its grid."""
    d = gaussian.denoiser(VP())
    assert sample(d, (3, 2), solver=PredictorCorrector(Noisy(5), Langevin(0.1))).nfe.tolist() == [10] * 3
    tuned = replace(Half(6), grid=sde.tune_grid(d, (8, 2), Half(6)))
    x_T = torch.randn(8, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact = sample(d, x_T=x_T, solver=sde.solvers.RungeKutta(rtol=1e-8, atol=1e-8)).x
    plain, better = (float((sample(d, x_T=x_T, solver=s).x - exact).norm()) for s in (Half(6), tuned))
    assert better < 0.5 * plain


def test_a_step_that_draws_needs_noise(gaussian: Gaussian) -> None:
    run = Noisy(3).bind(Reverse(gaussian.denoiser(VP()), 1.0))
    x = (torch.zeros(2, 2, dtype=torch.float64),)
    with pytest.raises(ValueError, match="noise=None"):
        run(x)
    assert run(x, Noise(0).batch(torch.arange(2), (2,), torch.float64))[0].isfinite().all()
