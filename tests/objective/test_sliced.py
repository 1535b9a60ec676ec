"""Sliced score matching against its definition by autograd, and the quantity it stands for by quadrature."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import sde
from sde.denoisers import Denoiser
from sde.objective import Likelihood, MinSNR, SlicedScoreMatching, UniformLogSNR
from sde.shapes import expand

F64 = torch.float64


class Wavy(Denoiser):
    def __init__(self, process: sde.SDE, weight: float) -> None:
        super().__init__()
        self.process, self.weight = process, nn.Parameter(torch.tensor(weight, dtype=F64))

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.weight * torch.tanh(x_t.flip(1) + 0.5 * x_t + expand(t, x_t))


def test_it_is_its_definition() -> None:
    """The score's square and the quadratic form of its Jacobian, which comes from jacrev, for signs that are equally
    frequent. Gradients in the parameters are those of the definition, and the value needs no gradients."""
    g, n, process = torch.Generator().manual_seed(0), 3000, sde.VP(t_min=0.02)
    x0, z = (torch.randn(1, 2, generator=g, dtype=F64).expand(n, 2) for _ in range(2))
    u = 0.3 + 1e-13 * torch.arange(n, dtype=F64)  # one time, with different digits
    d, objective = Wavy(process, 0.8), SlicedScoreMatching(Likelihood(), UniformLogSNR(), mean=False)
    loss = objective(d, x0, u, z)
    t, factor = UniformLogSNR()(process, u[:1])
    x_t = process.alpha(t) * x0[:1] + process.sigma(t) * z[:1]
    score, jacobian = d.score(x_t, t)[0], torch.func.jacrev(lambda x: d.score(x[None], t)[0])(x_t[0])
    weight = 0.5 * factor * process.g2(t)  # (g^2 / sigma^2) sigma^2
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=F64)
    values = torch.stack([weight[0] * (score.square().sum() + 2.0 * v @ jacobian @ v) for v in signs])
    first = (loss - values[0]).abs() < (loss - values[1]).abs()
    torch.testing.assert_close(torch.where(first, values[0], values[1]), loss, rtol=1e-6, atol=1e-6)
    assert abs(int(first.sum()) - n / 2) < 4.5 * (n / 4) ** 0.5  # a false alarm in 1e5 seeds
    (found,) = torch.autograd.grad(loss.sum(), d.weight)
    (expected,) = torch.autograd.grad(torch.where(first, values[0], values[1]).sum(), d.weight)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    with torch.no_grad():
        assert torch.equal(objective(d, x0, u, z), loss)


def test_it_stands_for_the_distance_from_the_exact_noise() -> None:
    """On a Gaussian: w E||e - E[z|x]||^2 - w E||E[z|x]||^2 for a linear denoiser e = k x_t, in one dimension, where the
    signs do not matter. Three nodes of Gauss and Hermite for x0 and z are exact for a quadratic."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(3))
    j, k = (m.flatten() for m in torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"))
    w, std = weights[j] * weights[k] / (2.0 * torch.pi), 0.6

    class Linear(Denoiser):
        def __init__(self, process: sde.SDE) -> None:
            super().__init__()
            self.process = process

        def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            return 0.4 * x_t

    for process in (sde.VP(t_min=0.02), sde.VE(t_min=0.02), sde.SubVP(t_min=0.02)):
        for u in (0.05, 0.4, 0.9):
            time = torch.full((9,), u, dtype=F64)
            loss = (
                w * SlicedScoreMatching(MinSNR())(Linear(process), std * nodes[j, None], time, nodes[k, None])
            ).sum()
            t = process.t_min + (process.t_max - process.t_min) * time[0]
            alpha, sigma = process.alpha(t), process.sigma(t)
            second = (alpha * std).square() + sigma.square()  # E[x_t^2]
            guess, exact = (1.0 - 0.4 * alpha) / sigma, sigma / second
            weight = (alpha / sigma).square().clamp(max=5.0) * (sigma / alpha).square()
            expected = weight * ((guess - exact).square() - exact.square()) * second
            torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
