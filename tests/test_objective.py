"""Denoising score matching against its definition, closed forms for a Gaussian, and the discrete chain."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import sde
from sde.denoisers import Prediction, from_score
from sde.objective import (
    ChainTimes,
    DenoisingScoreMatching,
    Likelihood,
    Simple,
    Times,
    UniformLogSNR,
    UniformTimes,
    Weighting,
)
from sde.shapes import expand

PROCESSES = [
    sde.VP(t_min=0.02),
    sde.SubVP(t_min=0.02),
    sde.VE(t_min=0.02),
    sde.DiscreteChain.linear(50).sde(),
]


class Wavy(sde.Denoiser):
    """A smooth function of state and time, with a condition."""

    def __init__(self, process: sde.SDE) -> None:
        super().__init__()
        self.process = process

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return torch.tanh(1.3 * x_t + expand(t, x_t)) + condition.get("push", torch.zeros(()))


class Off(sde.Denoiser):
    """A denoiser whose noise is off by `error` times the state."""

    def __init__(self, denoiser: sde.Denoiser, error: float) -> None:
        super().__init__()
        self.process, self.denoiser, self.error = denoiser.process, denoiser, error

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        raise NotImplementedError

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        score = self.denoiser.score(x_t, t) - expand(self.error / self.process.sigma(t), x_t) * x_t
        return from_score(what, self.process, score, x_t, t)


def draws(n: int = 6, shape: tuple[int, ...] = (2, 3)) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(n, *shape, generator=g, dtype=torch.float64)
    z = torch.randn(n, *shape, generator=g, dtype=torch.float64)
    return x0, torch.rand(n, generator=g, dtype=torch.float64), z


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("weighting", [Simple(), Likelihood()], ids=["simple", "likelihood"])
@pytest.mark.parametrize("times", [UniformTimes(), UniformLogSNR()], ids=["uniform", "log_snr"])
@pytest.mark.parametrize("mean", [True, False])
def test_the_loss_is_its_definition(process: sde.SDE, weighting: Weighting, times: Times, mean: bool) -> None:
    r"""w(t) sigma^2 || s(x_t) - grad log q(x_t | x_0) ||^2, where w is 1 or g^2 / sigma^2; q by autograd."""
    x0, u, z = draws()
    denoiser = Wavy(process)
    push = torch.tensor(0.3, dtype=torch.float64)
    loss = DenoisingScoreMatching(weighting, times, mean)(denoiser, x0, u, z, push=push)

    t, factor = times(process, u)
    alpha, sigma = (expand(value, x0) for value in (process.alpha(t), process.sigma(t)))
    x_t = (alpha * x0 + sigma * z).requires_grad_()
    log_q = torch.distributions.Normal(alpha * x0, sigma).log_prob(x_t).sum()
    (truth,) = torch.autograd.grad(log_q, x_t)
    square = (denoiser.score(x_t.detach(), t, push=push) - truth).square().flatten(1)
    # The two weightings, written out: sigma^2 and g^2.
    g2 = process.diffusion(t).square()
    weight = {"Simple": process.var(t), "Likelihood": g2}[type(weighting).__name__]
    expected = weight * factor * (square.mean(1) if mean else 0.5 * square.sum(1))
    assert loss.shape == (len(x0),)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)


# The normal's moments up to the fifth are exact under three nodes of Gauss and Hermite, and the loss is a quadratic.
_NODES, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(3))
_WEIGHTS = _WEIGHTS / math.sqrt(2 * math.pi)


def expected_loss(
    objective: DenoisingScoreMatching, denoiser: sde.Denoiser, u: Tensor, mean: float, std: float
) -> Tensor:
    """E over x0 ~ N(mean, std^2) and z of the loss at each u, exactly."""
    i, j, k = torch.meshgrid(torch.arange(len(u)), torch.arange(3), torch.arange(3), indexing="ij")
    i, j, k = i.flatten(), j.flatten(), k.flatten()
    x0, z = (mean + std * _NODES[j])[:, None], _NODES[k][:, None]
    loss = objective(denoiser, x0, u[i], z) * _WEIGHTS[j] * _WEIGHTS[k]
    return loss.reshape(len(u), 9).sum(1)


def gaussian(process: sde.SDE, mean: float, std: float) -> sde.Denoiser:
    one = torch.ones(1, dtype=torch.float64)
    return sde.exact.Gaussian(mean * one, std**2 * one[None]).denoiser(process)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("weighting", [Simple(), Likelihood()], ids=["simple", "likelihood"])
def test_the_exact_denoiser_attains_the_closed_form_minimum(process: sde.SDE, weighting: Weighting) -> None:
    """Var(z | x_t) = alpha^2 c / (alpha^2 c + sigma^2) is the least; an error e x_t adds e^2 E[x_t^2] to it."""
    mean, std = 0.7, 0.6
    u = torch.linspace(0.01, 0.99, 23, dtype=torch.float64)
    objective = DenoisingScoreMatching(weighting, UniformTimes())
    t = process.t_min + (process.t_max - process.t_min) * u
    w = torch.ones_like(t) if isinstance(weighting, Simple) else process.diffusion(t).square() / process.var(t)
    signal, var = process.alpha(t).square() * std**2, process.var(t)
    least = w * signal / (signal + var)
    exact = gaussian(process, mean, std)
    torch.testing.assert_close(expected_loss(objective, exact, u, mean, std), least, rtol=1e-9, atol=0)
    second_moment = process.alpha(t).square() * mean**2 + signal + var
    for error in (0.1, -0.1):
        worse = expected_loss(objective, Off(exact, error), u, mean, std)
        torch.testing.assert_close(worse, least + w * error**2 * second_moment, rtol=1e-9, atol=0)


@pytest.mark.parametrize("process", PROCESSES[:3], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("weighting", [Simple(), Likelihood()], ids=["simple", "likelihood"])
def test_importance_sampling_keeps_the_expectation(process: sde.SDE, weighting: Weighting) -> None:
    """By Gauss-Legendre quadrature over u, for a denoiser that is off, both ways of drawing times agree."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(200))
    u, weights = (nodes + 1) / 2, weights / 2
    denoiser = Off(gaussian(process, 0.7, 0.6), 0.2)
    uniform, by_log_snr = (
        (weights * expected_loss(DenoisingScoreMatching(weighting, times), denoiser, u, 0.7, 0.6)).sum()
        for times in (UniformTimes(), UniformLogSNR())
    )
    torch.testing.assert_close(by_log_snr, uniform, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    "process", [*PROCESSES, sde.VP(), sde.SubVP()], ids=lambda p: f"{type(p).__name__}-{p.t_min:g}"
)
def test_under_likelihood_weighting_every_time_by_log_snr_weighs_the_same(process: sde.SDE) -> None:
    u = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    t, factor = UniformLogSNR()(process, u)
    assert float(t[0]) == pytest.approx(process.t_min, rel=1e-6)
    assert float(t[-1]) == pytest.approx(process.t_max, rel=1e-6)
    ends = process.log_snr(torch.tensor([process.t_min, process.t_max], dtype=torch.float64))
    torch.testing.assert_close(process.log_snr(t), ends[0] + (ends[1] - ends[0]) * u, rtol=1e-7, atol=1e-7)
    constant = (ends[0] - ends[1]) / (process.t_max - process.t_min)
    weight = Likelihood()(process, t) * factor
    torch.testing.assert_close(weight, constant.expand_as(weight), rtol=1e-9, atol=0)


def test_times_by_log_snr_in_float32_are_those_in_float64() -> None:
    u = torch.linspace(0.0, 1.0, 101)
    for process in (sde.VP(), sde.SubVP(), sde.VE()):
        single, double = UniformLogSNR()(process, u), UniformLogSNR()(process, u.double())
        for a, b in zip(single, double):
            assert a.dtype == torch.float32
            torch.testing.assert_close(a.double(), b, rtol=2e-4, atol=0)


def test_uniform_times_are_uniform() -> None:
    process = sde.VP(t_min=0.1, t_max=0.9)
    t, factor = UniformTimes()(process, torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64))
    torch.testing.assert_close(t, torch.tensor([0.1, 0.3, 0.5], dtype=torch.float64))
    assert factor.tolist() == [1.0, 1.0, 1.0]


# The chain


@pytest.mark.parametrize("n", [2, 7, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chain_times_hit_every_step_equally(n: int, dtype: torch.dtype) -> None:
    per_step = 4
    u = ((torch.arange(n * per_step, dtype=torch.float64) + 0.5) / (n * per_step)).to(dtype)
    t, factor = ChainTimes(n)(sde.DiscreteChain.cosine(n).sde(), u)
    assert t.dtype == dtype
    steps, counts = t.unique(return_counts=True)
    torch.testing.assert_close(steps.double(), torch.arange(1, n + 1) / n, rtol=1e-6, atol=0, check_dtype=False)
    assert counts.tolist() == [per_step] * n
    assert factor.unique().tolist() == [1.0]
    edges = ChainTimes(n)(sde.DiscreteChain.cosine(n).sde(), torch.tensor([0.0, 1.0 - 2**-24], dtype=dtype))[0]
    torch.testing.assert_close(edges, torch.tensor([1 / n, 1.0], dtype=dtype))


def test_on_the_chain_it_is_the_ddpm_loss() -> None:
    """|| eps(sqrt(abar_i) x0 + sqrt(1 - abar_i) z, i) - z ||^2 (Ho et al. 2020, equation 14)."""
    chain = sde.DiscreteChain.linear(50)
    process = chain.sde()
    denoiser = Wavy(process)
    x0, _, z = draws(50)
    u = (torch.arange(50, dtype=torch.float64) + 0.5) / 50
    loss = DenoisingScoreMatching(Simple(), ChainTimes(50))(denoiser, x0, u, z)
    for i in range(1, 51):
        abar = torch.prod(1.0 - chain.betas[:i])
        x_i = abar.sqrt() * x0[i - 1] + (1 - abar).sqrt() * z[i - 1]
        guess = torch.tanh(1.3 * x_i + i / 50)
        noise = (x_i - abar.sqrt() * guess) / (1 - abar).sqrt()
        torch.testing.assert_close(loss[i - 1], (noise - z[i - 1]).square().mean(), rtol=1e-9, atol=0)


def test_the_chain_of_another_length_is_refused() -> None:
    u = torch.zeros(1)
    for process in (sde.DiscreteChain.linear(100).sde(), sde.VP()):
        with pytest.raises(ValueError, match=r"ChainTimes\(n=50\).*t_min="):
            ChainTimes(50)(process, u)
    with pytest.raises(ValueError, match="n=0"):
        ChainTimes(0)


def test_half_the_sum_is_the_mean_times_half_the_dimensions() -> None:
    x0, u, z = draws(4, (1, 3, 5))
    denoiser = Wavy(sde.VP())
    mean, total = (DenoisingScoreMatching(mean=mean)(denoiser, x0, u, z) for mean in (True, False))
    torch.testing.assert_close(total, mean * 15 / 2, rtol=1e-12, atol=0)
