"""The decoder: its probabilities sum to 1, are integrals of the normal density, and hold in the tails."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate
from torch import Tensor
from torch.distributions import Normal

from sde.data import Scaling
from sde.likelihood.decoder import log_bin_mass, log_decoder

F64 = torch.float64
SCALINGS = [Scaling.interval(2, 0.0, 1.0), Scaling.interval(5, -1.0, 1.0), Scaling(2 / 255, -1.0 - 1 / 255, 256)]
SCALINGS += [Scaling.interval(256, -1.7, 1.9), Scaling(3.0, 100.0, 17)]


def every_level(scaling: Scaling) -> Tensor:
    return torch.arange(scaling.levels or 0)[:, None]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("std", [1e-3, 0.3, 2.0, 1e4])
def test_the_probabilities_of_the_levels_sum_to_one(scaling: Scaling, std: float) -> None:
    """In cells, for means within the range, on an edge and far outside."""
    levels = float(scaling.levels or 0)
    for cell in (0.0, 0.5, 1.0, 0.37 * levels, levels, -30.0, levels + 500.0):
        mean = torch.full((scaling.levels or 0, 1), scaling.scale * cell + scaling.shift, dtype=F64)
        log_mass = log_bin_mass(scaling, every_level(scaling), mean, torch.tensor(std * scaling.scale))
        assert abs(float(log_mass.logsumexp(0))) < 1e-9
        assert bool((log_mass <= 0.0).all())


def test_it_is_the_integral_over_the_cell() -> None:
    """The cells of 5 levels on [-1, 1] have the width 0.4; the outer two reach to infinity."""
    scaling, normal = Scaling.interval(5, -1.0, 1.0), Normal(torch.tensor(0.13, dtype=F64), 0.25)
    edges = torch.tensor([-math.inf, -0.6, -0.2, 0.2, 0.6, math.inf], dtype=F64)
    cdf = torch.tensor([0.0, *(float(normal.cdf(e)) for e in edges[1:-1]), 1.0], dtype=F64)
    mean, std = torch.full((5, 1), 0.13, dtype=F64), torch.tensor(0.25, dtype=F64)
    log_mass = log_bin_mass(scaling, every_level(scaling), mean, std)
    torch.testing.assert_close(log_mass.exp()[:, 0], cdf.diff(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("mean", [-60.0, 70.0])
def test_the_tails_hold(mean: float) -> None:
    """60 standard deviations away, where the probabilities themselves are 0 in float64."""
    scaling = Scaling(1.0, 0.0, 9)
    for v in (3, 5):
        near = v if mean < 0 else v + 1
        log_peak = -0.5 * (near - mean) ** 2 - 0.5 * math.log(2.0 * math.pi)
        rest, _ = integrate.quad(lambda y: math.exp(-0.5 * (y - mean) ** 2 + 0.5 * (near - mean) ** 2), v, v + 1)  # noqa: B023
        value = log_bin_mass(
            scaling, torch.tensor([[v]]), torch.tensor([[mean]], dtype=F64), torch.tensor(1.0, dtype=F64)
        )
        assert abs(value.item() - (log_peak + math.log(rest))) < 1e-9


def test_an_affine_map_of_everything_changes_nothing() -> None:
    a, b = Scaling(1.0, 0.0, 16), Scaling(0.03, -4.0, 16)
    mean = torch.linspace(-3.0, 20.0, 16, dtype=F64)[:, None]
    std = torch.linspace(0.1, 2.0, 16, dtype=F64)[:, None]
    torch.testing.assert_close(
        log_bin_mass(a, every_level(a), mean, std),
        log_bin_mass(b, every_level(a), 0.03 * mean - 4.0, 0.03 * std),
        rtol=1e-9,
        atol=1e-9,
    )


def test_gradients_are_those_of_the_function_at_every_level() -> None:
    scaling = Scaling.interval(4, -1.0, 1.0)
    mean = torch.tensor([[0.1], [-0.4], [0.3], [2.0]], dtype=F64, requires_grad=True)
    std = torch.tensor([[0.3], [0.2], [1.0], [0.1]], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, s: log_bin_mass(scaling, every_level(scaling), m, s), (mean, std))


def test_the_decoder_sums_over_the_event() -> None:
    scaling = Scaling.interval(4, -1.0, 1.0)
    v = torch.tensor([[[0, 1], [2, 3]], [[3, 3], [0, 2]]])
    mean, std = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64), torch.tensor(0.4)
    total = log_decoder(scaling, v, mean, std)
    torch.testing.assert_close(total, log_bin_mass(scaling, v, mean, std).sum((1, 2)))
    assert total.dtype == F64


@pytest.mark.parametrize("std", [torch.tensor(0.7), torch.full((3, 2), 0.7)], ids=["one", "each"])
def test_continuous_data_have_the_density_in_the_model_s_range(std: Tensor) -> None:
    scaling, v = Scaling(0.5, 2.0), torch.tensor([[1.0, -2.0], [0.3, 0.0], [9.0, 1.0]], dtype=F64)
    mean = torch.zeros(3, 2, dtype=F64)
    expected = Normal(mean, std.double()).log_prob(0.5 * v + 2.0).sum(1)
    torch.testing.assert_close(log_decoder(scaling, v, mean, std), expected)
    with pytest.raises(ValueError, match="scaling with levels"):
        log_bin_mass(scaling, v, mean, std)
