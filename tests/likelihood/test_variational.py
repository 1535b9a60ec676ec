"""The learned dequantiser: a density, uniform at first, that training fits to a model which stays as it is."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from sde.data import Scaling
from sde.denoisers import Denoiser
from sde.exact import Mixture
from sde.likelihood.dequantisation import UniformDequantiser, dequantise
from sde.likelihood.flow import log_prob
from sde.likelihood.variational import VariationalDequantiser, train_dequantiser
from sde.noise import Noise
from sde.processes import VP
from sde.solvers import Heun
from sde.trace import ExactTrace

F64 = torch.float64
SHAPES = [(3,), (1, 4), (2, 2, 3), (1, 2, 1, 2)]


def shuffled(shape: tuple[int, ...], **settings: int) -> VariationalDequantiser:
    """With parameters that are not those of the identity."""
    rule = VariationalDequantiser(shape, 8, width=8, **settings).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=F64))
    return rule


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_fresh_one_is_uniform_noise(shape: tuple[int, ...]) -> None:
    v = torch.randint(8, (4, *shape), generator=torch.Generator().manual_seed(0))
    index = torch.arange(4)
    u, log_q = VariationalDequantiser(shape, 8).draw(v, Noise(1), index, index)
    uniform, _ = UniformDequantiser().draw(v, Noise(1), index, index)
    torch.testing.assert_close(u, uniform, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(log_q, torch.zeros(4, dtype=F64), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_its_density_is_that_of_the_change_of_variables(shape: tuple[int, ...], layers: int) -> None:
    """log q = -log |det du/du_0| by automatic differentiation; every dimension is moved."""
    rule = shuffled(shape, layers=layers)
    v = torch.randint(8, (1, *shape), generator=torch.Generator().manual_seed(0))
    u0 = torch.rand(1, *shape, generator=torch.Generator().manual_seed(4), dtype=F64)
    u, log_q = rule(v, u0)
    jacobian = torch.autograd.functional.jacobian(lambda y: rule(v, y)[0].flatten(), u0).reshape(u0.numel(), -1)
    assert float(log_q.detach()[0]) == pytest.approx(-float(torch.linalg.slogdet(jacobian)[1]), abs=1e-9)
    assert bool(((u > 0.0) & (u < 1.0) & ((u - u0).abs() > 1e-4)).all())
    assert layers == 1 or bool((jacobian - jacobian.diag().diag()).abs().max() > 1e-4)


def test_it_depends_on_the_levels() -> None:
    rule, index = shuffled((3,), layers=2), torch.zeros(2, dtype=torch.int64)
    u, _ = rule.draw(torch.tensor([[0, 3, 7], [1, 3, 7]]), Noise(0), index, index)
    assert bool((u[0] != u[1]).all())


def target() -> Mixture:
    """Two correlated dimensions, with mass at the upper edge of one cell and the lower edge of another."""
    means = torch.tensor([[-0.05, 0.3], [0.3, -0.1]], dtype=F64)
    covs = torch.tensor([[[0.02, 0.012], [0.012, 0.02]], [[0.01, 0.0], [0.0, 0.02]]], dtype=F64)
    return Mixture(torch.tensor([0.5, 0.5], dtype=F64), means, covs)


def levels(scaling: Scaling, n: int) -> Tensor:
    return scaling.to_data(target().sample(n, generator=torch.Generator().manual_seed(8))).long()


def test_training_tightens_the_bound() -> None:
    """On data of its own kind: most of what uniform noise loses is won back, and the truth is not passed.

    The truth by quadrature; means of 4000 draws, against 5 standard errors."""
    torch.manual_seed(0)
    scaling = Scaling.interval(4, -1.0, 1.0)
    density = target()
    rule = VariationalDequantiser((2,), 4, layers=3, width=32)
    optimiser = torch.optim.Adam(rule.parameters(), lr=5e-3)
    v = levels(scaling, 4000)
    batches = itertools.cycle(v.split(500))
    run = train_dequantiser(rule, lambda x, step: density.log_prob(x), batches, scaling, optimiser, dtype=F64)
    losses = list(itertools.islice(run, 250))
    axis = (torch.arange(400, dtype=F64) + 0.5) / 100.0
    grid = scaling.scale * torch.cartesian_prod(axis, axis) + scaling.shift
    cells = density.log_prob(grid).reshape(4, 100, 4, 100).permute(0, 2, 1, 3).flatten(2).logsumexp(2)
    truth = (cells + 2.0 * torch.tensor(scaling.scale / 100.0, dtype=F64).log())[v[:, 0], v[:, 1]]

    def gap(rule: UniformDequantiser | VariationalDequantiser) -> tuple[float, float]:
        made = dequantise(rule, v, scaling, seed=1, dtype=F64)
        losing = (truth - density.log_prob(made.x) - made.log_weight).detach()
        return float(losing.mean()), float(losing.std()) / 4000**0.5

    (uniform, _), (learned, error) = gap(UniformDequantiser()), gap(rule)
    assert losses[0] - losses[-1] > 0.3 * uniform
    assert -5.0 * error < learned < 0.4 * uniform


class Network(Denoiser):
    """A denoiser with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.process = VP(t_min=1e-2)
        self.layer = nn.Linear(2, 2)

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return 0.3 * torch.tanh(self.layer(x_t.float())).to(x_t.dtype)


def test_training_through_the_flow_leaves_the_model_alone() -> None:
    torch.manual_seed(0)
    denoiser, scaling, rule = Network(), Scaling.interval(4, -1.0, 1.0), VariationalDequantiser((2,), 4, width=8)
    before = [parameter.clone() for parameter in denoiser.parameters()]
    calls, states = [], []

    def log_density(x: Tensor, step: int) -> Tensor:
        calls.append(step)
        states.append(x.detach())
        return log_prob(denoiser, x, solver=Heun(8), trace=ExactTrace(), seed=step, differentiable=True).nats

    optimiser = torch.optim.Adam(rule.parameters(), lr=1e-2)
    v = levels(scaling, 64)
    run = train_dequantiser(rule, log_density, itertools.repeat(v), scaling, optimiser, seed=3)
    first = next(run)
    made = dequantise(UniformDequantiser(), v, scaling, seed=3)
    nats = log_prob(denoiser, made.x, solver=Heun(8), trace=ExactTrace()).nats
    assert first == pytest.approx(-float((nats + made.log_weight).mean()), rel=1e-5)
    assert next(run) != first
    assert calls == [0, 1]
    assert float((states[1] - states[0]).abs().mean()) > 0.1  # new noise, on the same levels
    assert all(parameter.grad is None for parameter in denoiser.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, denoiser.parameters()))
    assert any(bool(parameter.abs().sum() > 0) for parameter in rule.networks[0][-1].parameters())


def test_refusals() -> None:
    for shape, settings in (((), {}), ((1, 2, 3, 4, 5), {}), ((2,), {"layers": 0}), ((2,), {"width": 0})):
        with pytest.raises(ValueError, match=r"layers=\d+, width=\d+"):
            VariationalDequantiser(shape, 4, **settings)
    rule, index = VariationalDequantiser((2,), 4), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"of shape \(B, 2\), got \(1, 3\)"):
        rule.draw(torch.zeros(1, 3), Noise(0), index, index)


def test_its_name_is_one_line_of_its_settings() -> None:
    rule = VariationalDequantiser((2, 3), 8, layers=3, width=5, alpha=0.5)
    assert repr(rule) == "VariationalDequantiser(shape=(2, 3), levels=8, layers=3, width=5, alpha=0.5)"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_values_may_be_on_another_device_than_the_networks() -> None:
    rule, index = shuffled((2, 3, 3), layers=3), torch.arange(4)
    v = torch.randint(8, (4, 2, 3, 3), generator=torch.Generator().manual_seed(0))
    expected = rule.draw(v, Noise(1), index, index)
    for found, there in zip(rule.cuda().draw(v, Noise(1), index, index), expected):
        torch.testing.assert_close(found, there, rtol=1e-9, atol=1e-9)
