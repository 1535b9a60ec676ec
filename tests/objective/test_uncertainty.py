"""The learned uncertainty: it begins as the loss, and ends at the expected error of each noise level."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import sde
from sde.objective import DenoisingScoreMatching, EDMWeighting, LearnedUncertainty, LogNormalTimes, UniformTimes

F64 = torch.float64


def test_it_begins_as_the_loss() -> None:
    g = torch.Generator().manual_seed(0)
    x0, z = torch.randn(5, 1, 2, generator=g), torch.randn(5, 1, 2, generator=g)
    u = torch.rand(5, generator=g)
    denoiser = sde.exact.Gaussian(torch.zeros(2), torch.eye(2)).denoiser(sde.VP())
    for mean in (True, False):
        plain = DenoisingScoreMatching(EDMWeighting(), LogNormalTimes(), mean, "x0")
        loss = LearnedUncertainty(plain)(denoiser, x0.flatten(1), u, z.flatten(1))
        torch.testing.assert_close(loss, plain(denoiser, x0.flatten(1), u, z.flatten(1)))


def test_its_minimum_is_the_expected_error_of_each_level() -> None:
    """For the exact denoiser of a Gaussian the error of the noise is c r/(1 + c r) on average, with r the SNR. The
    expectation is over three nodes of Gauss and Hermite for x0 and z, which are exact for a quadratic."""
    process, c = sde.VP(t_min=0.02), 0.36
    denoiser = sde.exact.Gaussian(torch.zeros(1, dtype=F64), torch.full((1, 1), c, dtype=F64)).denoiser(process)
    u = (torch.arange(60, dtype=F64) + 0.5) / 60
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(3))
    i, j, k = (m.flatten() for m in torch.meshgrid(torch.arange(60), torch.arange(3), torch.arange(3), indexing="ij"))
    w = (weights[j] * weights[k] / (2.0 * torch.pi)).reshape(60, 9)
    t, _ = UniformTimes()(process, u)
    r = c * process.log_snr(t).exp()
    for mean in (True, False):  # one dimension: half the sum is half the mean, and so is what u is multiplied by
        objective = LearnedUncertainty(DenoisingScoreMatching(mean=mean), channels=64)
        optimizer = torch.optim.LBFGS(objective.parameters(), max_iter=200, line_search_fn="strong_wolfe")

        def closure(objective: LearnedUncertainty = objective, step: torch.optim.LBFGS = optimizer) -> Tensor:
            step.zero_grad()
            loss = objective(denoiser, c**0.5 * nodes[j, None], u[i], nodes[k, None]).reshape(60, 9)
            total = (w * loss).sum(1).mean()
            total.backward()
            return total

        optimizer.step(closure)
        found = objective.log_variance(process.log_snr(t)).exp()
        torch.testing.assert_close(found.detach(), r / (1.0 + r), rtol=0.05, atol=0)
