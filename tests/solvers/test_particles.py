"""Particles: unbiased evidence, the exact posterior in the limit, and systems that know nothing of each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sde
from sde import Denoiser, Measurement, Prediction, Wrapper
from sde.exact import Gaussian, Mixture
from sde.measurement import DPS, Compose, DiffPIR, Identity, Linear, Mask, Matrix, PiGDM, PilotVariance
from sde.processes import VE, VP
from sde.solvers import Particles

A = torch.tensor([[1.0, -0.6]], dtype=torch.float64)
PROCESS = VE(sigma_min=0.01, sigma_max=20.0)


def prior() -> Mixture:
    """Two modes that a measurement of one coordinate leaves open, of unequal weights."""
    means = torch.tensor([[-1.0, -1.0], [0.9, 1.2]], dtype=torch.float64)
    covs = torch.tensor([[[0.1, 0.04], [0.04, 0.2]], [[0.2, 0.0], [0.0, 0.05]]], dtype=torch.float64)
    return Mixture(torch.tensor([0.65, 0.35], dtype=torch.float64), means, covs)


def pilot(denoiser: Denoiser) -> PilotVariance:
    data = prior().sample(256, generator=torch.Generator().manual_seed(11))
    return sde.tune_particles(denoiser, data=data, levels=16)


def test_the_pilot_measures_the_variance_of_the_data_given_the_state(process: sde.SDE) -> None:
    """That of a Gaussian is known; 1000 samples miss it by more than 6 standard errors with probability below 1e-8."""
    variances = torch.tensor([0.5, 2.0], dtype=torch.float64)
    target = Gaussian(torch.zeros(2, dtype=torch.float64), torch.diag(variances))
    x = target.sample(1000, generator=torch.Generator().manual_seed(0))
    measured = sde.tune_particles(target.denoiser(process), data=x, levels=4)
    ends = process.log_snr(torch.tensor([process.t_max, process.t_min], dtype=torch.float64))
    t = process.time(torch.linspace(ends[0], ends[1], 4, dtype=torch.float64))
    var, alpha = process.var(t)[:, None], process.alpha(t)[:, None]
    exact = (variances * var / (alpha.square() * variances + var)).mean(1)
    torch.testing.assert_close(measured(process, t), exact, rtol=6 * math.sqrt(1 / 1000), atol=0)
    drawn = sde.tune_particles(
        target.denoiser(process), (100, 2), levels=4, solver=sde.solvers.Heun(20, grid=sde.grids.LogSNR())
    )
    torch.testing.assert_close(drawn(process, t[2:3]), exact[2:3], rtol=6 * math.sqrt(1 / 100), atol=0)
    with pytest.raises(ValueError, match="neither"):
        sde.tune_particles(target.denoiser(process))
    full = sde.tune_particles(target.denoiser(process), data=x, levels=4, covariance=True)
    torch.testing.assert_close(full(process, t), measured(process, t), rtol=1e-9, atol=1e-12)
    expected = torch.diag_embed(variances * var / (alpha.square() * variances + var))
    torch.testing.assert_close(
        full.covariance(process, t),
        expected,
        rtol=6 * math.sqrt(2 / 1000),
        atol=6 * float(exact.max()) / math.sqrt(1000),
    )


@pytest.mark.parametrize(("guide", "n"), [(DiffPIR, 400), (PiGDM, 40)])
def test_the_evidence_is_unbiased_and_draws_are_from_the_posterior(guide: type, n: int) -> None:
    """The mean of n estimates of p(y), within 4 of their standard errors, and the weight of a mode within 4.5."""
    target, y, noise = prior(), torch.tensor([[0.3]], dtype=torch.float64), 0.2
    denoiser = target.denoiser(PROCESS)
    posterior = guide(denoiser, Measurement(Matrix(A), y, noise), pilot(denoiser))
    r = sde.sample(posterior, (n, 2), solver=Particles(20, 16), seed=3, dtype=torch.float64)
    evidence = target.observed(A=A, noise=noise).log_prob(y)
    assert r.log_evidence is not None
    ratio = (r.log_evidence - evidence).exp()
    assert abs(ratio.mean() - 1.0) < 4.0 * ratio.std() / math.sqrt(n)
    exact = target.posterior(A=A, y=y[0], noise=noise)
    share = (r.x[:, 1] > 0.1).double().mean()
    truth = (exact.sample(20000, generator=torch.Generator().manual_seed(1))[:, 1] > 0.1).double().mean()
    assert 0.2 < truth < 0.8
    assert abs(share - truth) < 4.5 * math.sqrt(0.25 / n)
    assert r.nfe.tolist() == [21 * 16] * n
    assert r.vjps.tolist() == [21 * 16 * posterior.vjps] * n
    assert r.ess is not None
    assert bool(((r.ess >= 1.0) & (r.ess <= 16.0)).all())


def draws(rows: slice, first: int, particles: int = 4, **kwargs: object) -> sde.Samples:
    generator = torch.Generator().manual_seed(5)
    y = torch.randn(64, 2, generator=generator, dtype=torch.float64)
    masks = torch.rand(64, 2, generator=generator) < 0.6
    denoiser = prior().denoiser(VP())
    posterior = DiffPIR(denoiser, Measurement(Mask(masks[rows]), y[rows], 0.2))
    solver = Particles(6, particles, **kwargs)  # type: ignore[arg-type]
    return sde.sample(posterior, (len(y[rows]), 2), first=first, solver=solver, dtype=torch.float64)


def test_systems_know_nothing_of_each_other() -> None:
    """Batches of 1, 7 and 64, with a mask for each sample."""
    together = draws(slice(0, 64), 0)
    for size in (1, 7):
        part = draws(slice(21, 21 + size), 21)
        for name in ("x", "log_evidence", "ess"):
            expected = getattr(together, name)[21 : 21 + size]
            torch.testing.assert_close(getattr(part, name), expected, rtol=0, atol=1e-10)


def test_several_draws_of_one_population_have_an_axis_and_no_order() -> None:
    one, many = draws(slice(0, 64), 0), draws(slice(0, 64), 0, draws=4)
    assert many.x.shape == (64, 4, 2)
    assert torch.equal(one.log_evidence, many.log_evidence)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="draws <= particles"):
        Particles(6, 4, draws=5)
    # Every place is a draw by the weights: the mean over places is that of the first one, within 5 standard errors.
    firsts, means = many.x[:, 0], many.x.mean(1)
    assert bool(((firsts - means).mean(0).abs() < 5 * (firsts - means).std(0) / 8).all())
    posterior = DiffPIR(prior().denoiser(VP()), Measurement(Identity(), torch.zeros(3, 2, dtype=torch.float64), 0.2))
    end = sde.sample(posterior, (3, 2), solver=Particles(3, 4, draws=2), denoise=True, dtype=torch.float64)
    assert end.x.shape == (3, 2, 2)
    assert end.nfe.tolist() == [18] * 3


class Reward(Wrapper):
    """Data is wanted in proportion to exp(b x)."""

    def __init__(self, inner: Denoiser, b: float) -> None:
        super().__init__(inner)
        self.b, self.weighed = b, True

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.inner.predict(what, x_t, t, **condition)

    def log_potential(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.b * self.inner.predict(Prediction.X0, x_t, t, **condition).sum(1)


def test_a_reward_tilts_the_distribution() -> None:
    """A normal distribution weighed by exp(b x) is one with the mean b; 600 draws, within 5 standard errors."""
    target = Gaussian(torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    denoiser = target.denoiser(PROCESS)
    solver = Particles(20, 16, variance=sde.measurement.NormalVariance())
    r = sde.sample(Reward(denoiser, 1.0), (600, 1), solver=solver, dtype=torch.float64)
    assert abs(r.x.mean() - 1.0) < 5 / math.sqrt(600)
    assert abs(r.x.var() - 1.0) < 5 * math.sqrt(2 / 600)
    assert r.nfe.tolist() == [21 * 16] * 600
    assert r.log_evidence is not None
    ratio = (r.log_evidence - 0.5).exp()  # E exp(b x) = exp(b^2 / 2)
    assert abs(ratio.mean() - 1.0) < 5 * ratio.std() / math.sqrt(600)


class Cut(sde.measurement.Operator):
    def __call__(self, x: Tensor) -> Tensor:
        return x.clamp(max=0.5)[:, :1]


@pytest.mark.parametrize(
    "guide",
    [
        lambda d: DiffPIR(d, Measurement(Compose(Linear(lambda x: 2 * x, lambda y: 2 * y), Identity()), ZEROS, 0.2)),
        lambda d: DPS(d, Measurement(Cut(), ZEROS[:, :1], 0.2), scale=0.01),
    ],
    ids=["no decomposition", "nonlinear"],
)
def test_operators_without_a_decomposition_are_served(guide) -> None:
    r = sde.sample(guide(prior().denoiser(PROCESS)), (2, 2), solver=Particles(10, 8), dtype=torch.float64)
    assert bool(r.x.isfinite().all())
    assert r.log_evidence is not None
    assert bool(r.log_evidence.isfinite().all())


ZEROS = torch.zeros(2, 2, dtype=torch.float64)


def test_what_particles_cannot_serve_is_refused_in_bind() -> None:
    denoiser = prior().denoiser(PROCESS)
    posterior = DiffPIR(denoiser, Measurement(Identity(), ZEROS, 0.2))
    for bad, message in (
        (sde.Reverse(denoiser), "log_potential"),
        (sde.Reverse(posterior, eta=0.0), "eta=1"),
        (sde.Reverse(posterior, eta=0.5), "eta=1"),
    ):
        with pytest.raises(ValueError, match=message):
            Particles(5).bind(bad)
    with pytest.raises(ValueError, match="steps"):
        Particles(0)
    with pytest.raises(ValueError, match="threshold"):
        Particles(5, threshold=1.5)
    with pytest.raises(ValueError, match="16 states"):
        Particles(5)(sde.Reverse(posterior), (ZEROS,), sde.Noise(0).batch(torch.arange(2), (2,), torch.float64))


def test_particles_start_where_they_are_told() -> None:
    """From a state at a later time all particles start together, and prior= draws each of them."""
    posterior = DiffPIR(prior().denoiser(PROCESS), Measurement(Identity(), ZEROS, 0.2))
    start = torch.full((2, 2), 0.3, dtype=torch.float64)
    path: list = []
    sde.sample(posterior, start=0.3, x_start=start, solver=Particles(3, 4), trajectory=path.append)
    assert torch.equal(path[0][1], start[:, None].expand(-1, 4, -1))
    assert path[-1][1].shape == (2, 2)
    path.clear()
    prior_at = prior().at(PROCESS, PROCESS.t_max)
    sde.sample(posterior, (2, 2), prior=prior_at, solver=Particles(3, 4), trajectory=path.append)
    assert len(path[0][1].reshape(8, 2).unique(dim=0)) == 8
