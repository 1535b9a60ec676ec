"""Predicted levels: the closed form against mixtures of boxes, in both precisions and far from the data."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sde
from sde.data import Scaling
from sde.exact import Uniform
from sde.processes import SDE

F64 = torch.float64
P = torch.tensor([[0.5, 0.1, 0.4], [0.05, 0.05, 0.9]], dtype=F64)  # of each level, for each of two channels


class Constant(nn.Module):
    """The logits of independent values: the level of none tells anything of the others."""

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return P.log().T.reshape(1, 6, 1).expand(len(x), 6, x.shape[2])


def log_density(process: SDE, x: Tensor, t: Tensor) -> Tensor:
    """Of a value of each channel, a mixture of boxes, with shape (B, 2, N)."""
    columns = []
    for channel, p in enumerate(P):
        values = x[:, channel].reshape(-1, 1)
        edges = torch.linspace(-1.0, 2.0, 4, dtype=F64)
        boxes = [Uniform(low[None], high[None]).log_prob(values, process, t) for low, high in itertools.pairwise(edges)]
        columns.append(torch.logsumexp(p.log()[:, None] + torch.stack(boxes), 0).reshape(len(x), -1))
    return torch.stack(columns, 1)


@pytest.mark.parametrize(
    "process", [sde.VP(), sde.VE(0.001, 50.0), sde.RectifiedFlow()], ids=lambda p: type(p).__name__
)
def test_independent_values_have_the_exact_score(process: SDE) -> None:
    d, g = sde.QuantisedDenoiser(Constant(), process, 3, -1.0, 2.0), torch.Generator().manual_seed(0)
    for time in (process.t_min, 1e-3, 0.1, 0.9):
        t = torch.tensor(time, dtype=F64)
        x0, z = 3.0 * torch.rand(20, 2, 4, generator=g, dtype=F64) - 1.0, torch.randn(20, 2, 4, generator=g, dtype=F64)
        x = (process.alpha(t) * x0 + process.sigma(t) * z).requires_grad_()
        (score,) = torch.autograd.grad(log_density(process, x, t).sum(), x)
        torch.testing.assert_close(process.sigma(t) * d.score(x, t), process.sigma(t) * score, rtol=1e-9, atol=1e-11)
        x0_hat = (x + process.var(t) * score) / process.alpha(t)
        torch.testing.assert_close(d(x, t.expand(20)), x0_hat, rtol=1e-9, atol=1e-9)
        with torch.no_grad():
            noise = d.noise(x.float(), t)
        assert noise.dtype == torch.float32
        # The position in a bin, in units of the noise, has the rounding of the state: 2^-24 over sigma.
        assert (noise - d.noise(x.detach(), t)).abs().max() < 1e-6 + 2.0**-23 / process.sigma(t)


def test_far_from_the_data_it_stays_finite() -> None:
    d, t = sde.QuantisedDenoiser(Constant(), sde.VP(), 3, -1.0, 2.0), torch.tensor(1e-5)
    x = torch.tensor([[-40.0, 60.0]]).reshape(1, 2, 1).requires_grad_()
    torch.testing.assert_close(d(x, t).detach().flatten(), torch.tensor([-1.0, 2.0]), rtol=1e-4, atol=1e-4)
    (slope,) = torch.autograd.grad(d.noise(x, t).sum(), x)
    assert bool(slope.isfinite().all())


def test_it_learns_and_is_loaded(tmp_path: Path) -> None:
    """A network of no levels' number is refused; training lowers the loss; a file has the levels and the edges."""
    data = torch.randint(0, 2, (64, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8) * 2
    torch.manual_seed(0)
    net = sde.networks.UNet(1, width=8, multipliers=(1,), blocks=1, attention=(), out_channels=3)
    d = sde.QuantisedDenoiser(net, sde.VP(), 3, level=sde.LogSNRLevel())
    training = sde.Training(
        d, sde.Batches(data, 32), Scaling.interval(3), optimizer=torch.optim.Adam(net.parameters(), 1e-2)
    )
    losses = [report.loss for report in training.run(12)]
    assert losses[-1] < 0.9 * losses[0]
    model = training.model()
    sde.save(tmp_path / "a.pt", model)
    loaded = sde.load(tmp_path / "a.pt")
    assert torch.equal(loaded.sample(2), model.sample(2))
    other = sde.QuantisedDenoiser(net, sde.VP(), 4)
    with pytest.raises(ValueError, match=r"4 levels.*out_channels"):
        other(torch.zeros(1, 1, 4, 4), torch.tensor(0.5))
    for settings in ({"levels": 1}, {"levels": 3, "low": 1.0}):
        with pytest.raises(ValueError, match="QuantisedDenoiser"):
            sde.QuantisedDenoiser(net, sde.VP(), **settings)
