"""Bounds as losses: what they are on Gaussian data, against the estimates of sde.likelihood, and their gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sde
from sde.data import Scaling
from sde.denoisers import Denoiser, LearnedVarianceDenoiser
from sde.likelihood import chain_bound
from sde.objective import ChainBound, ChainTimes, ContinuousBound, DenoisingScoreMatching, Hybrid
from sde.shapes import expand
from sde.solvers import Ancestral

F64 = torch.float64


@pytest.mark.parametrize("mean", [True, False])
def test_the_continuous_bound_of_an_exact_gaussian(mean: bool) -> None:
    """With c the variance of the data and r = c SNR: half the integral of r/(1 + r) over the log-SNR is half the
    difference of log(1 + r). Two dimensions; quadrature over u, and three exact nodes for x0 and z."""
    c, nodes, weights = 0.3, *(torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(3))
    points, over_u = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(80))
    i, j, k = (m.flatten() for m in torch.meshgrid(torch.arange(80), torch.arange(3), torch.arange(3), indexing="ij"))
    w = 0.5 * over_u[i] * weights[j] * weights[k] / (2.0 * math.pi)
    x0, z = (c**0.5 * nodes[j])[:, None].expand(-1, 2), nodes[k][:, None].expand(-1, 2)
    target = sde.exact.Gaussian(torch.zeros(2, dtype=F64), c * torch.eye(2, dtype=F64))
    for process in (sde.VP(), sde.SubVP(), sde.RectifiedFlow(), sde.LearnedVP(learn_ends=True)):
        high, low = process.log_snr(torch.tensor([process.t_min, process.t_max], dtype=F64))
        v = process.prior_var(torch.tensor(process.t_max, dtype=F64))
        ratio = process.var(torch.tensor(process.t_max, dtype=F64)) / v
        signal = c * process.alpha(torch.tensor(process.t_max, dtype=F64)).square() / v
        path = 0.5 * (torch.log1p(c * high.exp()) - torch.log1p(c * low.exp()))
        expected = path + 0.5 * (signal + ratio - 1.0 - ratio.log() + 1.0 + math.log(2.0 * math.pi) - high)
        loss = ContinuousBound(mean=mean)(target.denoiser(process), x0, (points[i] + 1.0) / 2.0, z)
        torch.testing.assert_close((w * loss).sum(), expected * (1.0 if mean else 2.0), rtol=1e-7, atol=1e-9)
        entropy = 0.5 * math.log(2.0 * math.pi * math.e * c)
        assert entropy < expected.item() < entropy + 0.01


class Knowing(Denoiser):
    """Knows the data, which is the same in all samples, but for an error of the noise that grows with the time."""

    def __init__(self, process: sde.SDE, x0: Tensor, v: float | None) -> None:
        super().__init__()
        self.process, self.x0, self.v = process, x0, v
        self.register_buffer("reference", x0.new_empty(0), persistent=False)

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        scale = expand(0.3 * (1.0 + t) * self.process.sigma(t) / self.process.alpha(t), x_t)
        return self.x0 - scale

    def score_and_variance(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.score(x_t, t), None if self.v is None else torch.full_like(x_t, self.v)


@pytest.mark.parametrize("v", [None, 0.3])
def test_the_chain_s_bound_is_that_of_the_likelihood(v: float | None) -> None:
    """The mean over the steps of a denoiser whose errors are no random numbers, against the sum over the chain."""
    n, x0 = 20, torch.tensor([[0.4, -0.7, 0.1]], dtype=F64)
    for chain in (sde.DiscreteChain.linear(2 * n), sde.DiscreteChain.cosine(2 * n)):
        process = chain.sde()
        d = Knowing(process, x0, v)
        u = (torch.arange(2 * n, dtype=F64) + 0.5) / (2 * n)
        z = torch.randn(2 * n, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
        bound = chain_bound(d, x0, Scaling.identity(), solver=Ancestral(2 * n - 1)).nats
        for mean in (True, False):
            loss = ChainBound(2 * n, mean)(d, x0.expand(2 * n, 3), u, z).mean()
            torch.testing.assert_close(loss, -bound[0] / (3 if mean else 1), rtol=1e-8, atol=0)


class Halves(nn.Module):
    """A prediction and a variance with a parameter each."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.var = nn.Parameter(torch.tensor(0.5, dtype=F64)), nn.Parameter(torch.tensor(-0.2, dtype=F64))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return torch.cat([torch.tanh(self.mean * x), self.var + 0.1 * x], 1)


def test_the_hybrid_loss_trains_the_mean_by_the_simple_loss_and_the_variance_by_the_bound() -> None:
    n, g = 30, torch.Generator().manual_seed(0)
    net = Halves()
    d = LearnedVarianceDenoiser(net, sde.DiscreteChain.cosine(n).sde())
    x0, z = (torch.randn(n, 2, 3, generator=g, dtype=F64) for _ in range(2))
    u = (torch.arange(n, dtype=F64) + 0.5) / n

    def gradients(loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss.mean(), [net.mean, net.var], allow_unused=True)

    simple, bound = DenoisingScoreMatching(times=ChainTimes(n))(d, x0, u, z), ChainBound(n)(d, x0, u, z)
    hybrid = Hybrid(n, weight=0.02)(d, x0, u, z)
    prior = d.process.prior_divergence(x0) / 6
    torch.testing.assert_close(hybrid, simple + 0.02 * (bound - prior) / math.log(2.0), rtol=1e-9, atol=1e-12)
    (by_simple, none), (by_bound, of_var), found = gradients(simple), gradients(bound), gradients(hybrid)
    assert float(none) == 0.0
    assert by_bound.abs() > 1e-3
    torch.testing.assert_close(found[0], by_simple, rtol=1e-9, atol=0)
    torch.testing.assert_close(found[1], 0.02 / math.log(2.0) * of_var, rtol=1e-9, atol=0)


def test_the_chain_s_losses_in_float32() -> None:
    """Steps of a thousandth, whose divergences float32 alone would not have."""
    n, g = 1000, torch.Generator().manual_seed(0)
    target = sde.exact.Gaussian(torch.zeros(2), torch.eye(2))
    x0, z = (torch.randn(n, 2, generator=g) for _ in range(2))
    u = (torch.arange(n, dtype=F64) + 0.5) / n
    process = sde.DiscreteChain.linear(n).sde()
    single = ChainBound(n)(target.denoiser(process), x0, u.float(), z)
    wide = sde.exact.Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64)).denoiser(process)
    double = ChainBound(n)(wide, x0.double(), u, z.double())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)


def test_chains_without_steps_are_refused() -> None:
    for objective in (ChainBound, Hybrid):
        with pytest.raises(ValueError, match="n >= 2"):
            objective(1)
    with pytest.raises(ValueError, match="weight=-1"):
        Hybrid(10, weight=-1.0)
    with pytest.raises(ValueError, match=r"ChainTimes\(n=10\)"):
        ChainBound(10)(Knowing(sde.VP(), torch.zeros(1, 2), None), torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 2))
