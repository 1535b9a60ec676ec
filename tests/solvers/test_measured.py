"""Solvers that impose a measurement on the prior: the exact posterior where their Gaussians are right."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sde
from sde import Measurement, Prediction
from sde.exact import Gaussian, Mixture
from sde.grids import Karras, LogSNR
from sde.measurement import (
    Compose,
    Downsample,
    Fourier,
    Linear,
    Mask,
    Matrix,
    NormalVariance,
    Operator,
    PiGDM,
    Unguided,
)
from sde.processes import VE, VP
from sde.solvers import (
    Ancestral,
    Decoupled,
    Euler,
    FixedStep,
    Langevin,
    Polish,
    PredictorCorrector,
    Replacement,
    Solver,
)

A = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
Y = torch.tensor([[0.4]], dtype=torch.float64)
PROCESS = VE(sigma_min=0.002, sigma_max=30.0)
FINE = Ancestral(60, grid=Karras())
SOLVERS: dict[str, FixedStep] = {
    "Replacement": Replacement(Ancestral(3, grid=Karras()), 2),
    "Decoupled": Decoupled(4),
    "Decoupled, flow": Decoupled(3, inner=Euler(2, grid=LogSNR())),
    "Decoupled, draws": Decoupled(3, inner=Ancestral(2, grid=LogSNR())),
}


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(0), x.T.cov()


def covered(x: Tensor, exact: Gaussian, bias: float) -> None:
    """Mean and covariance, within 5 standard errors and a bias of the method in standard deviations."""
    n, cov = len(x), exact._covs()[0]
    std = cov.diagonal().sqrt()
    mean, got = moments(x)
    assert bool(((mean - exact.means[0]).abs() < (5 / math.sqrt(n) + bias) * std).all())
    error = 5 * math.sqrt(2 / n) + 2 * bias
    assert bool(((got - cov).abs() < error * std[:, None] * std).all())


def test_a_draw_is_turned_into_one_given_y(generator: torch.Generator) -> None:
    """Its map is affine: the covariance of what it makes of normals is that of the posterior, to rounding."""
    measurement, v, mean = Measurement(Matrix(A), Y, 0.3), 0.7, torch.tensor([0.2, -1.0], dtype=torch.float64)
    exact = Gaussian(mean, v * torch.eye(2, dtype=torch.float64)).posterior(A=A, y=Y[0], noise=0.3)
    units = torch.eye(3, dtype=torch.float64)
    zero = measurement.conditioned(mean[None], v, torch.zeros(1, 1, dtype=torch.float64))
    ends = measurement.conditioned(mean + math.sqrt(v) * units[:, :2], v, units[:, 2:]) - zero
    torch.testing.assert_close(zero[0], exact.means[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ends.T @ ends, exact._covs()[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spread", [0.1, 0.6], ids=["y is a measurement of u", "u is y with noise"])
def test_noise_is_coupled(spread: float) -> None:
    """y = A u + e with the rest of its noise, or u = y with what is missing: both in closed form, to rounding."""
    measurement, v, mean = Measurement(Matrix(A), Y, 0.3), 0.7, torch.tensor([0.2, -1.0], dtype=torch.float64)
    norm = float(A.square().sum())
    free = 0.3**2 - spread**2 * norm
    prior = Gaussian(mean, v * torch.eye(2, dtype=torch.float64))
    exact = prior.posterior(A=A, y=Y[0], noise=math.sqrt(max(free, 0.0)))
    along = A.T @ A / norm
    cov = exact._covs()[0] + (max(-free, 0.0) / norm) * along
    units, none = torch.eye(2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    zero = measurement.coupled(mean[None], spread, v, none)
    torch.testing.assert_close(zero[0], exact.means[0], rtol=1e-10, atol=1e-10)
    drawn = measurement.coupled(mean + math.sqrt(v) * units, spread, v, none) - zero
    added = measurement.coupled(mean[None], spread, v, units) - zero
    torch.testing.assert_close(drawn.T @ drawn + added.T @ added, cov, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("t", [0.05, 0.2])
def test_the_coupled_noise_is_an_identity(t: float, gaussian: Gaussian, generator: torch.Generator) -> None:
    """u given y has the score that the polish follows, and x_0 given u, without y, has the posterior's moments."""
    process, noise, time = VE(sigma_min=0.01, sigma_max=10.0), 0.3, torch.tensor(t, dtype=torch.float64)
    measurement, s, eye = Measurement(Matrix(A), Y, noise), float(process.sigma(time)), torch.eye(2).double()
    assert s < float(measurement.coupling())
    cov = gaussian._covs()[0]
    rest = torch.linalg.cholesky(noise**2 * torch.eye(1, dtype=torch.float64) - s**2 * A @ A.T)
    exact = Gaussian(gaussian.means[0], cov + s**2 * eye).posterior(A=A, y=Y[0], noise=rest)
    u = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    residual = measurement.residual(u)
    pulled = measurement.operator.adjoint(measurement.operator.solve(residual, -(s**2), noise))
    score = gaussian.denoiser(process).predict(Prediction.SCORE, u, time) + pulled
    expected = torch.linalg.solve(exact._covs()[0], (exact.means - u).T).T
    torch.testing.assert_close(score, expected, rtol=1e-10, atol=1e-10)
    gain = torch.linalg.solve(cov + s**2 * eye, cov).T
    posterior = gaussian.posterior(A=A, y=Y[0], noise=noise)
    mean = gaussian.means[0] + gain @ (exact.means[0] - gaussian.means[0])
    torch.testing.assert_close(mean, posterior.means[0], rtol=1e-10, atol=1e-10)
    whole = cov - gain @ cov + gain @ exact._covs()[0] @ gain.T
    torch.testing.assert_close(whole, posterior._covs()[0], rtol=1e-10, atol=1e-10)


def test_decoupled_draws_the_posterior_of_normal_data() -> None:
    """Where v I is the covariance of the data given the state, to the noise that is left."""
    prior = Gaussian(torch.tensor([0.5, -0.2], dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    exact = prior.posterior(A=A, y=Y[0], noise=0.3)
    denoiser = Unguided(prior.denoiser(PROCESS), Measurement(Matrix(A), Y, 0.3))
    for steps, inner in ((12, None), (12, Ancestral(12, grid=LogSNR())), (1, Ancestral(60, grid=LogSNR()))):
        solver = Decoupled(steps, inner=inner)
        r = sde.sample(denoiser, (2000, 2), solver=solver, dtype=torch.float64, denoise=True)
        covered(r.x, exact, 0.0 if inner is None else 0.1)
        assert r.nfe.tolist() == [steps * (1 if inner is None else inner.steps) + 1] * 2000


@pytest.mark.parametrize("noise", [0.3, 0.0])
def test_replacement_draws_the_posterior_of_independent_directions(noise: float) -> None:
    """What is measured tells nothing of the rest of white data, which replacement misses: here it is exact, up to the
    steps, which are those of the predictor."""
    prior = Gaussian(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    denoiser = Unguided(prior.denoiser(PROCESS), Measurement(Matrix(A), Y, noise))
    r = sde.sample(denoiser, (2000, 2), solver=Replacement(FINE, 2), dtype=torch.float64, denoise=True)
    assert r.nfe.tolist() == [121] * 2000
    exact = prior.posterior(A=A, y=Y[0], noise=max(noise, 0.003))
    covered(r.x, exact, 0.1)
    if noise == 0.0:
        torch.testing.assert_close(r.x @ A.T, Y.expand(2000, 1), rtol=0, atol=0.02)
    else:  # another scale of the state
        denoiser = Unguided(prior.denoiser(VP()), Measurement(Matrix(A), Y, 2.0))
        exact = prior.posterior(A=A, y=Y[0], noise=2.0)
        solver = Replacement(Ancestral(60, grid=LogSNR()), 2)
        covered(sde.sample(denoiser, (2000, 2), solver=solver, dtype=torch.float64, denoise=True).x, exact, 0.1)


def test_repeats_leave_the_prior_as_it_is() -> None:
    """Where nothing is measured, going back and down again changes no distribution, up to the predictor's steps."""
    cov = torch.tensor([[0.8, 0.4], [0.4, 0.5]], dtype=torch.float64)
    prior = Gaussian(torch.tensor([1.0, -0.5], dtype=torch.float64), cov)
    nothing = Measurement(Mask(torch.zeros(2, dtype=torch.bool)), torch.zeros(1, 2, dtype=torch.float64), 0.1)
    for process in (PROCESS, VP()):
        denoiser, solver = Unguided(prior.denoiser(process), nothing), Replacement(Ancestral(40, grid=LogSNR()), 3)
        covered(sde.sample(denoiser, (1000, 2), solver=solver, dtype=torch.float64, denoise=True).x, prior, 0.1)


def test_a_polish_leads_to_the_posterior() -> None:
    """Draws with too little spread within their modes are mended; a mode's weight is that of the draws. 1000 draws."""
    prior = Gaussian(torch.zeros(2, dtype=torch.float64), torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64))
    measurement = Measurement(Matrix(A), Y, 0.5)
    exact = prior.posterior(A=A, y=Y[0], noise=0.5)
    bad = exact.means.expand(1000, -1)
    denoiser = prior.denoiser(PROCESS)
    solver = Polish(Ancestral(12, grid=LogSNR()), steps=40, size=0.5)
    r = sde.polish(denoiser, measurement, bad, solver=solver, seed=1)
    assert r.acceptance is not None
    assert 0.8 < float(r.acceptance.mean()) < 1.0
    assert r.nfe.tolist() == [1 + 2 * 40 + 12 + 1] * 1000
    covered(r.x, exact, 0.1)
    # A sample that is alone, and one whose measurement has another noise, do not know each other.
    two = Measurement(Matrix(A), Y.expand(3, 1), torch.tensor([0.5, 0.2, 0.5], dtype=torch.float64))
    short = replace(solver, steps=3)
    together = sde.polish(denoiser, two, bad[:3], solver=short)
    for i in range(3):
        row = torch.tensor([i])
        alone = sde.polish(denoiser, two.select(row), bad[row], solver=short, index=row)
        torch.testing.assert_close(alone.x, together.x[row], rtol=0, atol=1e-10)


def test_acceptance_leaves_the_noisy_posterior_as_it_is() -> None:
    """Steps far too long are refused rather than biased: the variance of 2000 draws of u, within 5 standard errors."""
    prior, s = Gaussian(torch.zeros(1, dtype=torch.float64), torch.full((1, 1), 0.01, dtype=torch.float64)), 0.25
    one, y = torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), 0.2, dtype=torch.float64)
    time = PROCESS.time(torch.tensor(-2.0 * math.log(s), dtype=torch.float64))
    exact = Gaussian(prior.means[0], prior._covs()[0] + s**2).posterior(A=one, y=y[0], noise=math.sqrt(0.25 - s**2))
    start, path = exact.sample(2000, generator=torch.Generator().manual_seed(0)), list[tuple[Tensor, Tensor]]()
    denoiser = Unguided(prior.denoiser(PROCESS), Measurement(Matrix(one), y, 0.5))
    solver = Polish(Ancestral(2), steps=20, size=1.0)
    r = sde.sample(denoiser, start=time.item(), x_start=start, solver=solver, trajectory=path.append)
    assert r.acceptance is not None
    assert float(r.acceptance.mean()) < 0.95
    covered(path[20][1], exact, 0.0)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_a_sample_does_not_depend_on_its_batch(solver: Solver, mixture: Mixture) -> None:
    generator = torch.Generator().manual_seed(5)
    y = torch.randn(64, 2, generator=generator, dtype=torch.float64)
    masks = torch.rand(64, 2, generator=generator) < 0.6

    def drawn(first: int, n: int) -> Tensor:
        rows = slice(first, first + n)
        denoiser = Unguided(mixture.denoiser(VP()), Measurement(Mask(masks[rows]), y[rows], 0.2))
        return sde.sample(denoiser, (n, 2), first=first, solver=solver, dtype=torch.float64).x

    whole = drawn(0, 64)
    for first, n in ((21, 1), (21, 7)):
        torch.testing.assert_close(drawn(first, n), whole[first : first + n], rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_any_event_shape_and_measurements_longer_than_the_data(solver: Solver) -> None:
    prior = Gaussian(torch.zeros(16, dtype=torch.float64), torch.eye(16, dtype=torch.float64))
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    for operator in (Downsample(2), Fourier(mask)):
        y = operator(torch.ones(2, 1, 4, 4, dtype=torch.float64))
        denoiser = Unguided(prior.denoiser(VP()), Measurement(operator, y, 0.3))
        r = sde.sample(denoiser, (2, 1, 4, 4), solver=solver, dtype=torch.float64)
        assert r.x.shape == (2, 1, 4, 4)
        assert bool(r.x.isfinite().all())


def test_draws_of_one_run_are_all_different() -> None:
    """No normal is used twice: repeats, inner solvers and the noise of y have numbers of their own."""

    class Listening(sde.noise.StepNoise):
        def __init__(self, inner: sde.noise.StepNoise) -> None:
            self.inner, self.seen = inner, []  # type: ignore[var-annotated]

        def normal(self, stream, k, start, stop):  # type: ignore[no-untyped-def]
            self.seen += [(stream, n) for n in torch.as_tensor(k).flatten().tolist()]
            return self.inner.normal(stream, k, start, stop)

        def select(self, index: Tensor) -> sde.noise.StepNoise:
            return self

    denoiser = Unguided(
        Gaussian(torch.zeros(2), torch.eye(2)).denoiser(PROCESS), Measurement(Matrix(A.float()), Y.float(), 0.3)
    )
    polish = Polish(Ancestral(3), steps=3)
    for solver, start in [*((s, None) for s in SOLVERS.values()), (polish, 0.01)]:
        noise = Listening(sde.Noise(0).batch(torch.arange(2), (2,), torch.float32))
        solver(sde.Reverse(denoiser), (torch.zeros(2, 2),), noise, start=start)
        assert len(noise.seen) == len(set(noise.seen)) > 5


class Cut(Operator):
    def __call__(self, x: Tensor) -> Tensor:
        return x.clamp(max=0.5)[:, :1]


def test_what_cannot_be_imposed_is_refused_in_bind(mixture: Mixture) -> None:
    class Never(sde.Denoiser):
        process = PROCESS

        def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            raise AssertionError("a network call")

    plain, y = Never(), Measurement(Matrix(A), Y, 0.3)
    general = Measurement(Compose(Matrix(A), Linear(lambda y: y, lambda y: y)), Y, 0.3)
    polish = Polish(Ancestral(3), steps=2)
    for solver in (*SOLVERS.values(), polish):
        for dynamics, message in (
            (sde.Reverse(plain), "Unguided"),
            (sde.Reverse(PiGDM(plain, y)), "Unguided"),
            (sde.Reverse(Unguided(plain, y), eta=0.0), "eta=1"),
            (sde.Reverse(Unguided(plain, Measurement(Cut(), Y, 0.3))), "linear"),
        ):
            with pytest.raises(ValueError, match=message):
                solver.bind(dynamics)
    for solver in (SOLVERS["Replacement"], polish):
        with pytest.raises(ValueError, match=r"singular value.*Compose.*Matrix\.of"):
            solver.bind(sde.Reverse(Unguided(plain, general)))
    Decoupled(3).bind(sde.Reverse(Unguided(plain, general)))
    with pytest.raises(ValueError, match=r"0\.2683"):  # 0.3 over the norm of A
        polish.bind(sde.Reverse(Unguided(plain, y)), start=0.9)
    with pytest.raises(ValueError, match="too accurate"):
        sde.polish(plain, Measurement(Matrix(A), Y, 1e-3), Y.new_zeros(1, 2))
    with pytest.raises(ValueError, match=r"flow|noise"):
        Replacement(Euler(3)).bind(sde.Reverse(Unguided(plain, y)))
    for bad, message in (
        (lambda: Replacement(Ancestral(3), 0), "repeats=0"),
        (lambda: Replacement(PredictorCorrector(Ancestral(3), Langevin(0.1))), "PredictorCorrector"),
        (lambda: Polish(Ancestral(3), steps=0), "steps=0"),
        (lambda: Polish(Ancestral(3), size=2.0), "size=2.0"),
        (lambda: Decoupled(0), "steps=0"),
        (lambda: sde.polish(plain, y, Y, fraction=1.0), "fraction"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()


def test_unguided_predicts_the_prior_and_is_weighed(mixture: Mixture, generator: torch.Generator) -> None:
    x, t = torch.randn(3, 2, generator=generator, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    inner, y = mixture.denoiser(VP()), Measurement(Matrix(A), Y, 0.3)
    denoiser = Unguided(inner, y, NormalVariance())
    assert torch.equal(denoiser.score(x, t), inner.score(x, t))
    steering = denoiser.steer(x, t)
    assert torch.equal(steering.guided, steering.x0)
    assert torch.equal(steering.log_potential, PiGDM(inner, y).log_potential(x, t))
    wrapped = sde.Conditioned(denoiser, None, torch.zeros(3, dtype=torch.int64))
    assert wrapped.measured() is y
    assert PiGDM(inner, y).measured() is None
