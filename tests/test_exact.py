"""The exact oracle: against autograd of the log-density, quadrature of the posterior, and torch.distributions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal
from torch.distributions import Uniform as Flat

from sde.exact import Empirical, Gaussian, Mixture, Target, Uniform
from sde.processes import SDE, VE, VP, SubVP


def f64(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


MIXTURE = (
    f64([0.5, 0.3, 0.2]),
    f64([[-1.2, 0.4], [1.0, 1.1], [0.3, -1.4]]),
    f64([[[0.12, 0.05], [0.05, 0.08]], [[0.05, -0.02], [-0.02, 0.15]], [[0.2, 0.0], [0.0, 0.03]]]),
)
GAUSSIAN = f64([0.7, -0.3]), f64([[0.6, 0.25], [0.25, 0.3]])
POINTS = f64([[0.0, 1.0], [-1.0, 0.5], [2.0, -1.0], [0.3, 0.2], [-0.6, -1.7]])
LOW, HIGH = f64([-1.0, 0.2]), f64([0.5, 0.9])

TARGETS: dict[str, Target] = {
    "gaussian1": Gaussian(GAUSSIAN[0][:1], GAUSSIAN[1][:1, :1]),
    "gaussian2": Gaussian(*GAUSSIAN),
    "mixture1": Mixture(MIXTURE[0], MIXTURE[1][:, :1], MIXTURE[2][:, :1, :1]),
    "mixture2": Mixture(*MIXTURE),
    "uniform1": Uniform(LOW[:1], HIGH[:1]),
    "uniform2": Uniform(LOW, HIGH),
    "empirical1": Empirical(POINTS[:, :1]),
    "empirical2": Empirical(POINTS),
}

# The clean log-densities by torch.distributions, and boxes outside of which the densities are below 1e-40.
CLEAN: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, Tensor]] = {
    "gaussian1": (Normal(GAUSSIAN[0][0], GAUSSIAN[1][0, 0].sqrt()).log_prob, f64([-10.0]), f64([11.0])),
    "gaussian2": (MultivariateNormal(*GAUSSIAN).log_prob, f64([-10.0, -8.0]), f64([11.0, 7.5])),
    "mixture1": (
        MixtureSameFamily(Categorical(MIXTURE[0]), Normal(MIXTURE[1][:, 0], MIXTURE[2][:, 0, 0].sqrt())).log_prob,
        f64([-6.0]),
        f64([6.5]),
    ),
    "mixture2": (
        MixtureSameFamily(Categorical(MIXTURE[0]), MultivariateNormal(*MIXTURE[1:])).log_prob,
        f64([-6.0, -5.0]),
        f64([6.5, 6.5]),
    ),
    "uniform1": (lambda x: torch.zeros_like(x) - math.log(1.5), LOW[:1], HIGH[:1]),
    "uniform2": (lambda x: torch.zeros_like(x[..., 0]) - math.log(1.5 * 0.7), LOW, HIGH),
}


@pytest.fixture(params=list(TARGETS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def states(target: Target, process: SDE, t: float, n: int = 6) -> Tensor:
    return target.at(process, t).sample(n, generator=torch.Generator().manual_seed(3))


def states_at(target: Target, process: SDE, times: list[float], n: int) -> tuple[Tensor, Tensor]:
    """n states of the marginal at each time, and the time of each."""
    x = torch.cat([states(target, process, t, n) for t in times])
    return x, f64(times).repeat_interleave(n)


@functools.cache
def gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights)


def quadrature(name: str, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x), E[x0|x] and E[(alpha x0 - x)/sigma^2 | x] of one x of shape (D,), by brute force over x0."""
    if name.startswith("empirical"):
        x0 = POINTS[:, : len(x)]
        log_weight = torch.full((len(x0),), -math.log(len(x0)), dtype=torch.float64)
    else:
        log_prob, low, high = CLEAN[name]
        # Gauss-Legendre over the intersection of the box of the prior and 14 standard deviations of the likelihood.
        low = torch.maximum(low, (x - 14.0 * sigma) / alpha)
        high = torch.minimum(high, (x + 14.0 * sigma) / alpha)
        nodes, weights = gauss_legendre(128)
        axes = [0.5 * (b - a) * (nodes + 1.0) + a for a, b in zip(low, high)]
        logs = [(0.5 * (b - a) * weights).log() for a, b in zip(low, high)]
        x0 = torch.cartesian_prod(*axes).reshape(-1, len(x))
        log_weight = torch.cartesian_prod(*logs).reshape(-1, len(x)).sum(1)
        log_weight = log_weight + log_prob(x0 if len(x) > 1 else x0[:, 0])
    residual = x - alpha * x0
    log_joint = log_weight + Normal(0.0, f64([sigma])).log_prob(residual).sum(1)
    posterior = log_joint.softmax(0)
    return log_joint.logsumexp(0), posterior @ x0, posterior @ (-residual / sigma**2)


def test_against_quadrature(name: str, process: SDE) -> None:
    target = TARGETS[name]
    x, t = states_at(target, process, [1e-3, 0.05, 0.3, 1.0], 2)
    d = target.denoiser(process)
    log_prob, x0, score = target.log_prob(x, process, t), d(x, t), d.score(x, t)
    for i in range(len(x)):
        expected = quadrature(name, x[i], process.alpha(t[i]).item(), process.sigma(t[i]).item())
        torch.testing.assert_close(log_prob[i], expected[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(x0[i], expected[1], rtol=1e-9, atol=1e-9)
        # The quadrature's own score loses the digits of 1/sigma: sub-VP has sigma = 1e-4 at t = 1e-3.
        torch.testing.assert_close(score[i], expected[2], rtol=1e-6, atol=1e-6)


def test_score_and_denoiser_are_the_gradient_of_log_prob(name: str, process: SDE) -> None:
    # Tweedie: x0 = (x + sigma^2 grad log p) / alpha, the gradient by autograd.
    target = TARGETS[name]
    x, t = states_at(target, process, [process.t_min, 0.02, 0.5, process.t_max], 20)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(target.log_prob(x, process, t).sum(), x)
    x, d, sigma = x.detach(), target.denoiser(process), process.sigma(t)[:, None]
    torch.testing.assert_close(sigma * d.score(x, t), sigma * gradient, rtol=1e-8, atol=1e-9)
    x0 = (x + sigma.square() * gradient) / process.alpha(t)[:, None]
    torch.testing.assert_close(d(x, t), x0, rtol=1e-8, atol=1e-8)


def test_noise_and_velocity_follow(process: SDE) -> None:
    target, time = TARGETS["mixture2"], f64([0.2])[0]
    d, x = target.denoiser(process), states(target, process, 0.2)
    alpha, sigma = process.alpha(time), process.sigma(time)
    noise = (x - alpha * d(x, time)) / sigma
    torch.testing.assert_close(d.noise(x, time), noise)
    torch.testing.assert_close(d.velocity(x, time), alpha * noise - sigma * d(x, time))
    assert d.process is process


@pytest.mark.parametrize("name", list(CLEAN))
def test_clean_log_prob(name: str) -> None:
    target = TARGETS[name]
    x = target.sample(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(target.log_prob(x), CLEAN[name][0](x if x.shape[1] > 1 else x[:, 0]))


def test_clean_log_prob_of_the_uniform_outside() -> None:
    x = f64([[0.0, 0.5], [0.0, 1.0], [-1.1, 0.5]])
    assert TARGETS["uniform2"].log_prob(x).tolist() == [pytest.approx(-math.log(1.5 * 0.7)), -math.inf, -math.inf]
    reference = Independent(Flat(LOW, HIGH, validate_args=False), 1).log_prob(x)
    torch.testing.assert_close(TARGETS["uniform2"].log_prob(x), reference)


@pytest.mark.parametrize("name", ["gaussian2", "mixture2", "uniform2", "empirical2"])
def test_sample_moments(name: str) -> None:
    # Five standard errors for two means and three second moments: 3e-6 for each target.
    n = 100_000
    x = TARGETS[name].sample(n, generator=torch.Generator().manual_seed(1))
    assert x.shape == (n, 2)
    if name == "gaussian2":
        mean, cov = GAUSSIAN
    elif name == "mixture2":
        mean = (MIXTURE[0][:, None] * MIXTURE[1]).sum(0)
        spread = MIXTURE[1] - mean
        cov = torch.einsum("k,kij->ij", MIXTURE[0], MIXTURE[2] + spread[:, :, None] * spread[:, None, :])
    elif name == "uniform2":
        mean, cov = 0.5 * (LOW + HIGH), torch.diag((HIGH - LOW).square() / 12.0)
    else:
        mean, cov = POINTS.mean(0), torch.cov(POINTS.T, correction=0)
    second = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert bool(((x.mean(0) - mean).abs() < 5.0 * (cov.diagonal() / n).sqrt()).all())
    assert bool(((second.mean(0) - cov).abs() < 5.0 * second.std(0) / math.sqrt(n)).all())


def test_sample_frequencies() -> None:
    # Chi-square at 1e-4: five points alike, and three components by weight.
    x = TARGETS["empirical2"].sample(10_000, generator=torch.Generator().manual_seed(2))
    counts = (x[:, None] == POINTS).all(2).sum(0)
    assert counts.sum() == 10_000
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-4
    weights, means = f64([2.0, 6.0, 12.0]), f64([[-50.0], [0.0], [50.0]])
    x = Mixture(weights, means, torch.ones(3, 1, 1, dtype=torch.float64)).sample(
        10_000, generator=torch.Generator().manual_seed(2)
    )
    counts = ((x - means.T).abs() < 20.0).sum(0)
    assert scipy.stats.chisquare(counts.numpy(), [1000.0, 3000.0, 6000.0]).pvalue > 1e-4


def test_uniform_fills_its_box() -> None:
    # Kolmogorov-Smirnov at 1e-4 for each of two coordinates.
    x = TARGETS["uniform2"].sample(10_000, generator=torch.Generator().manual_seed(2))
    for i in range(2):
        assert scipy.stats.kstest(((x - LOW) / (HIGH - LOW))[:, i].numpy(), "uniform").pvalue > 1e-4


def test_samples_are_the_generators(name: str) -> None:
    draws = [TARGETS[name].sample(5, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("name", ["mixture1", "uniform1"])
@pytest.mark.parametrize("process", [VP(), SubVP(), VE()], ids=["VP", "SubVP", "VE"])
def test_marginal_samples_have_its_density(name: str, process: SDE) -> None:
    # Kolmogorov-Smirnov at 1e-4 against the integral of the density.
    marginal = TARGETS[name].at(process, 0.5)
    x = marginal.sample(4000, generator=torch.Generator().manual_seed(5))[:, 0].numpy()
    grid = torch.linspace(-8.0, 8.0, 16001, dtype=torch.float64)
    density = marginal.log_prob(grid[:, None]).exp()
    cdf = torch.cumulative_trapezoid(density, grid).numpy()
    assert cdf[-1] == pytest.approx(1.0, abs=1e-6)
    assert scipy.stats.kstest(x, lambda y: np.interp(y, grid[1:].numpy(), cdf)).pvalue > 1e-4


def test_marginal_is_log_prob_at_its_time(process: SDE) -> None:
    target = TARGETS["mixture2"]
    x = states(target, process, 0.4)
    assert torch.equal(target.at(process, 0.4).log_prob(x), target.log_prob(x, process, 0.4))


def test_far_tails_are_finite(name: str, process: SDE) -> None:
    target = TARGETS[name]
    t = f64([process.t_min, 0.1, process.t_max]).repeat(2)
    sign = f64([1.0, -1.0]).repeat_interleave(3)
    far = sign * (process.alpha(t) * 3.0 + 100.0 * process.sigma(t))
    x = far[:, None].expand(-1, target.reference.shape[-1])
    d = target.denoiser(process)
    x0, score = d(x, t), d.score(x, t)
    assert bool(target.log_prob(x, process, t).isfinite().all())
    assert bool(score.isfinite().all())
    # The score points home.
    assert bool(((score * x).sum(1) < 0).all())
    if name.startswith("empirical"):
        assert bool((x0.abs() <= 2.0).all())
    if name.startswith("uniform"):
        dims = x.shape[1]
        torch.testing.assert_close(x0, x0.clamp(LOW[:dims], HIGH[:dims]), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("process", [VP(), VE()], ids=["VP", "VE"])
@pytest.mark.parametrize("t", [1e-3, 0.3, 1.0])
def test_uniform_in_its_tails(process: SDE, t: float) -> None:
    # The formulas of the docstring in 60 digits.
    time = f64([t])[0]
    alpha, sigma = process.alpha(time).item(), process.sigma(time).item()
    target = TARGETS["uniform1"]
    for sigmas in (0.0, 3.0, 10.0, 40.0, -40.0, 300.0):
        x = alpha * (HIGH[0] if sigmas > 0 else LOW[0]).item() + sigmas * sigma
        with mpmath.workdps(60):
            u, v = (mpmath.mpf(x) - alpha * LOW[0].item()) / sigma, (mpmath.mpf(x) - alpha * HIGH[0].item()) / sigma
            # Reflected into the upper tail, where erfc keeps its digits.
            near, far = (v, u) if sigmas > 0 else (-u, -v)
            mass = (mpmath.erfc(near / mpmath.sqrt(2)) - mpmath.erfc(far / mpmath.sqrt(2))) / 2
            log_prob, score = mpmath.log(mass / (alpha * 1.5)), (mpmath.npdf(u) - mpmath.npdf(v)) / (sigma * mass)
        point = f64([[x]])
        assert target.log_prob(point, process, time).item() == pytest.approx(float(log_prob), rel=1e-10)
        got = target.denoiser(process).score(point, time).item()
        assert got == pytest.approx(float(score), rel=1e-8, abs=1e-10 / sigma)


def dense(d: int) -> tuple[Tensor, Tensor]:
    """A mean and a covariance without special structure; in two dimensions a transposed basis may go unnoticed."""
    generator = torch.Generator().manual_seed(7)
    root = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(d, generator=generator, dtype=torch.float64), root @ root.T


@pytest.mark.parametrize("d", [2, 4])
def test_gaussian_closed_form(process: SDE, d: int) -> None:
    # x0 = mu + alpha C (alpha^2 C + sigma^2)^-1 (x - alpha mu), with a linear solve instead of an eigenbasis.
    (mean, cov), time = dense(d), f64([0.15])[0]
    target = Gaussian(mean, cov)
    alpha, var = process.alpha(time), process.var(time)
    x = states(target, process, 0.15)
    total = alpha.square() * cov + var * torch.eye(d, dtype=torch.float64)
    whitened = torch.linalg.solve(total, (x - alpha * mean).T).T
    denoiser = target.denoiser(process)
    torch.testing.assert_close(denoiser.score(x, time), -whitened)
    torch.testing.assert_close(denoiser(x, time), mean + alpha * whitened @ cov)
    expected = MultivariateNormal(alpha * mean, total).log_prob(x)
    torch.testing.assert_close(target.log_prob(x, process, time), expected)


def test_gaussian_samples_have_its_covariance() -> None:
    # Five standard errors for four means and sixteen second moments: 1e-5.
    n, (mean, cov) = 100_000, dense(4)
    x = Gaussian(mean, cov).sample(n, generator=torch.Generator().manual_seed(1))
    second = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert bool(((x.mean(0) - mean).abs() < 5.0 * (cov.diagonal() / n).sqrt()).all())
    assert bool(((second.mean(0) - cov).abs() < 5.0 * second.std(0) / math.sqrt(n)).all())


def test_a_point_mass_is_a_gaussian_of_no_width(process: SDE) -> None:
    point = f64([0.4, -0.2])
    flat, empirical = Gaussian(point, torch.zeros(2, 2, dtype=torch.float64)), Empirical(point[None])
    x, time = f64([[0.0, 0.3], [1.0, -1.0]]), f64([0.3])[0]
    torch.testing.assert_close(flat.log_prob(x, process, time), empirical.log_prob(x, process, time))
    for d in (flat.denoiser(process), empirical.denoiser(process)):
        torch.testing.assert_close(d(x, time), point.expand(2, 2))
        torch.testing.assert_close(d.score(x, time), (process.alpha(time) * point - x) / process.var(time))


def test_weights_are_normalised() -> None:
    x = f64([[0.1, 0.2]])
    scaled = Mixture(7.0 * MIXTURE[0], *MIXTURE[1:])
    torch.testing.assert_close(scaled.log_prob(x), TARGETS["mixture2"].log_prob(x))


def test_event_shapes(process: SDE, generator: torch.Generator) -> None:
    # An event of shape (2, 3) is six dimensions in its own order.
    time = f64([0.2])[0]
    points = torch.randn(4, 2, 3, generator=generator, dtype=torch.float64)
    x = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    low, high = -torch.rand(2, 3, generator=generator, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    root = torch.randn(1, 6, 6, generator=generator, dtype=torch.float64)
    mixture = Mixture(f64([1.0]), points[:1].flatten(1), root @ root.mT)
    pairs = [
        (Empirical(points), Empirical(points.flatten(1))),
        (Uniform(low, high), Uniform(low.flatten(), high.flatten())),
        (mixture, mixture),
    ]
    for target, flat in pairs:
        d, e = target.denoiser(process), flat.denoiser(process)
        assert d(x, time).shape == d.score(x, time).shape == (5, 2, 3)
        torch.testing.assert_close(d(x, time), e(x.flatten(1), time).reshape(x.shape))
        torch.testing.assert_close(d.score(x, time), e.score(x.flatten(1), time).reshape(x.shape))
        log_prob = target.log_prob(x, process, time)
        assert log_prob.shape == (5,)
        torch.testing.assert_close(log_prob, flat.log_prob(x.flatten(1), process, time))
    assert Empirical(points).sample(7, generator=generator).shape == (7, 2, 3)
    assert Uniform(low, high).sample(7, generator=generator).shape == (7, 2, 3)


def test_each_sample_has_its_time(name: str, process: SDE) -> None:
    target = TARGETS[name]
    x, t = states(target, process, 0.3, 3), f64([0.01, 0.3, 0.9])
    d = target.denoiser(process)
    x0, score, log_prob = d(x, t), d.score(x, t), target.log_prob(x, process, t)
    for i in range(3):
        torch.testing.assert_close(x0[i : i + 1], d(x[i : i + 1], t[i]))
        torch.testing.assert_close(score[i : i + 1], d.score(x[i : i + 1], t[i]))
        torch.testing.assert_close(log_prob[i : i + 1], target.log_prob(x[i : i + 1], process, t[i]))


def test_the_state_keeps_its_dtype(name: str, process: SDE) -> None:
    target = TARGETS[name]
    x, t = states_at(target, process, [0.05, 0.6], 6)
    x = x.float()
    d = target.denoiser(process)
    exact = target.log_prob(x.double(), process, t), d(x.double(), t), d.score(x.double(), t)
    for value, double in zip((target.log_prob(x, process, t), d(x, t), d.score(x, t)), exact):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), double, rtol=2e-3, atol=2e-3)
    for each in (target.log_prob(x, process, t[0]), d(x, t[0]), d.score(x, t[0])):
        assert each.dtype == torch.float32


def test_an_exact_denoiser_is_a_module_without_weights(name: str) -> None:
    d = TARGETS[name].denoiser(VP())
    assert list(d.parameters()) == []
    assert d.state_dict() == {}
    assert [b.dtype for b in d.buffers()] == [torch.float64]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture(MIXTURE[0], MIXTURE[1][0], MIXTURE[2]), r"Mixture.*\(3,\), \(2,\), \(3, 2, 2\)"),
        (lambda: Mixture(MIXTURE[0][:2], *MIXTURE[1:]), r"Mixture.*\(2,\), \(3, 2\), \(3, 2, 2\)"),
        (lambda: Mixture(*MIXTURE[:2], MIXTURE[2][:, :1]), r"Mixture.*\(3, 1, 2\)"),
        (lambda: Mixture(f64([0.5, 0.5, 0.0]), *MIXTURE[1:]), r"weights.*0\.0\]"),
        (lambda: Mixture(f64([0.5, 1.0, -0.5]), *MIXTURE[1:]), r"weights.*-0\.5\]"),
        (lambda: Mixture(*MIXTURE[:2], -MIXTURE[2]), r"covs.* -0\.\d+$"),
        (lambda: Gaussian(GAUSSIAN[0], f64([[1.0, 2.0], [2.0, 1.0]])), r"covs.* -1$"),
        (lambda: Empirical(POINTS[:0]), r"Empirical.*\(0, 2\)"),
        (lambda: Empirical(POINTS[:, 0]), r"Empirical.*\(5,\)"),
        (lambda: Empirical(POINTS).log_prob(POINTS), r"Empirical.*var=0"),
        (lambda: Uniform(HIGH, LOW), r"Uniform.*low < high"),
        (lambda: Uniform(LOW, HIGH[:1]), r"Uniform.*\(2,\).*\(1,\)"),
        (lambda: Uniform(LOW, LOW), r"Uniform.*low < high"),
        (lambda: Gaussian(*GAUSSIAN).log_prob(torch.zeros(4, 3)), r"\b2\b.*\(3,\)"),
        (lambda: Gaussian(*GAUSSIAN).log_prob(POINTS, VP()), r"process=VP\(.*t=None"),
        (lambda: Gaussian(*GAUSSIAN).log_prob(POINTS, t=0.5), r"process=None.*t=0\.5"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_no_condition() -> None:
    d = TARGETS["gaussian2"].denoiser(VP())
    with pytest.raises(TypeError, match="label"):
        d(POINTS, f64([0.5])[0], label=torch.tensor(1))
