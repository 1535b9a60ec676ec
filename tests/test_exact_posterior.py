"""Posteriors of linear measurements: Bayes' rule holds at every point, for every kind of noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from sde.exact import Empirical, Gaussian, Mixture
from sde.processes import VP

NOISES = {"number": 0.3, "factor": torch.tensor([[0.3, 0.1], [0.0, 0.2]], dtype=torch.float64)}
A = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.8, -1.0]], dtype=torch.float64)
Y = torch.tensor([0.4, -0.7], dtype=torch.float64)


def likelihood(x: Tensor, noise: float | Tensor) -> Tensor:
    factor = noise * torch.eye(2, dtype=torch.float64) if isinstance(noise, float) else noise
    return MultivariateNormal(x @ A.mT, factor @ factor.mT).log_prob(Y)


def three_dimensional(generator: torch.Generator) -> Mixture:
    roots = 0.5 * torch.randn(3, 3, 3, generator=generator, dtype=torch.float64)
    means = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    return Mixture(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), means, roots @ roots.mT)


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_the_posterior_of_a_mixture_obeys_bayes_rule(noise: float | Tensor, generator: torch.Generator) -> None:
    prior = three_dimensional(generator)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    posterior, evidence = prior.posterior(A=A, y=Y, noise=noise), prior.observed(A=A, noise=noise).log_prob(Y[None])
    torch.testing.assert_close(
        posterior.log_prob(x), prior.log_prob(x) + likelihood(x, noise) - evidence, rtol=1e-10, atol=1e-10
    )


def test_the_posterior_of_a_gaussian_is_a_gaussian(generator: torch.Generator) -> None:
    one = three_dimensional(generator).posterior(A=A, y=Y, noise=10.0)
    mean, cov = torch.zeros(3, dtype=torch.float64), torch.diag(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))
    posterior = Gaussian(mean, cov).posterior(A=A, y=Y, noise=0.0)
    assert isinstance(posterior, Gaussian)
    assert not isinstance(one, Gaussian)
    x = posterior.sample(5, generator=generator)
    torch.testing.assert_close(x @ A.mT, Y.expand(5, 2), rtol=0, atol=1e-7)  # without noise, every draw fits


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_the_posterior_of_an_empirical_distribution_weighs_its_points(
    noise: float | Tensor, generator: torch.Generator
) -> None:
    points = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    posterior = Empirical(points).posterior(A=A, y=Y, noise=noise)
    assert posterior.weights is not None
    torch.testing.assert_close(posterior.weights, likelihood(points, noise).softmax(0), rtol=1e-12, atol=1e-12)
    # The weights count in draws, densities and denoisers: a second measurement multiplies them.
    again = posterior.posterior(A=A, y=Y, noise=noise)
    assert again.weights is not None
    torch.testing.assert_close(again.weights, (2 * likelihood(points, noise)).softmax(0), rtol=1e-12, atol=1e-12)
    x, t = torch.randn(4, 3, generator=generator, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    kernel = Mixture(posterior.weights, points, 1e-12 * torch.eye(3, dtype=torch.float64).expand(7, 3, 3))
    torch.testing.assert_close(
        posterior.denoiser(VP()).score(x, t), kernel.denoiser(VP()).score(x, t), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(posterior.log_prob(x, VP(), t), kernel.log_prob(x, VP(), t), rtol=1e-9, atol=1e-9)
    # 4000 draws; a frequency is off by more than 5 standard errors with probability below 1e-6.
    draws = posterior.sample(4000, generator=generator)
    frequency = (draws[:, None] == points).all(2).double().mean(0)
    error = (posterior.weights * (1 - posterior.weights) / 4000).sqrt()
    assert bool(((frequency - posterior.weights).abs() <= 5 * error + 1e-12).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": A[:, :2]}, r"\(M, 3\)"),
        ({"y": Y[:1]}, r"shape \(2,\)"),
        ({"y": Y * math.nan}, "finite"),
        ({"noise": -1.0}, "noise >= 0"),
        ({"noise": torch.eye(3)}, r"\(2, 2\)"),
    ],
)
def test_a_measurement_that_does_not_fit_is_refused(change: dict, message: str, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match=message):
        three_dimensional(generator).posterior(**{"A": A, "y": Y, "noise": 0.1, **change})


def test_weights_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="weights"):
        Empirical(torch.zeros(2, 1), torch.zeros(2))
