"""Power-function averages against their definition, and averages after the training against those tracked in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

import sde
from sde.training import PowerEMA, posthoc_ema
from sde.training.ema import exponent
from sde.training.posthoc import Snapshots, coefficients


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.25])
def test_the_exponent_gives_the_relative_standard_deviation(std: float) -> None:
    """That of the density s^gamma (gamma + 1) on (0, 1]."""
    gamma = exponent(std)
    mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
    assert gamma > 0
    assert (square - mean**2) ** 0.5 == pytest.approx(std, rel=1e-9)


def test_published_exponents() -> None:
    """Karras et al. 2024, section 3.1: 0.05 and 0.10 are gamma = 16.97 and 6.94."""
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.3])
def test_a_deviation_that_no_exponent_has_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match=f"std={std}"):
        PowerEMA(nn.Linear(1, 1), std)


def test_the_average_weighs_each_step_by_the_integral_of_the_profile() -> None:
    r"""The weight of step s at step t is the integral of (gamma + 1) r^gamma / t^(gamma + 1) over (s - 1, s]."""
    net, values, std = nn.Linear(1, 1, bias=False).double(), torch.randn(9, dtype=torch.float64), 0.1
    average, gamma = PowerEMA(net, std), exponent(std)
    for step, value in enumerate(values.tolist(), start=1):
        nn.init.constant_(net.weight, value)
        average.update(net, step)
    s = torch.arange(1.0, 10.0, dtype=torch.float64)
    weights = (s ** (gamma + 1) - (s - 1) ** (gamma + 1)) / 9 ** (gamma + 1)
    assert weights.sum().item() == pytest.approx(1.0)
    assert average.weights["weight"].item() == pytest.approx((weights * values).sum().item(), rel=1e-12)


def test_inner_products_are_those_of_the_profiles() -> None:
    """Two stored averages: the normal equations with integrals by quadrature."""
    stored, target = [(0.05, 300), (0.1, 500)], (0.08, 400)

    def profile(std: float, end: int, s: float) -> float:
        gamma = exponent(std)
        return (gamma + 1) * (s / end) ** gamma / end if s <= end else 0.0

    def inner(a: tuple[float, int], b: tuple[float, int]) -> float:
        return quad(lambda s: profile(*a, s) * profile(*b, s), 0, min(a[1], b[1]), epsrel=1e-11)[0]

    matrix = np.array([[inner(a, b) for b in stored] for a in stored])
    expected = np.linalg.solve(matrix, [inner(a, target) for a in stored])
    x, error = coefficients(stored, target)
    np.testing.assert_allclose(x, expected, rtol=1e-8)
    left = inner(target, target) - expected @ [inner(a, target) for a in stored]
    assert error == pytest.approx((left / inner(target, target)) ** 0.5, rel=1e-6)


def test_averages_after_the_training_are_those_tracked_in_it(tmp_path: Path) -> None:
    """Weights that wander: two averages, stored 16 times, give others of several lengths, at the end and before it,
    within 2 % of how far the averages differ from each other, and the stored ones exactly."""
    torch.manual_seed(0)
    denoiser = sde.NetworkDenoiser(sde.networks.MLP(2, width=4, depth=1), sde.VP())
    model = sde.Model(denoiser, sde.data.Scaling.identity(), (2,))
    tracked = {std: PowerEMA(denoiser, std) for std in (0.05, 0.07, 0.1, 0.15)}
    snapshots, wanted, steps = Snapshots(tmp_path / "averages"), {}, 640
    sde.save(tmp_path / "model.pt", model)
    description = sde.storage.checkpoint.load_checkpoint(tmp_path / "model.pt")["model"]
    with torch.no_grad():
        for step in range(1, steps + 1):
            for parameter in denoiser.parameters():
                parameter += 0.1 * torch.randn_like(parameter) - 0.01 * parameter
            for average in tracked.values():
                average.update(denoiser, step)
            if step % 40 == 0:
                snapshots.save(step, description, {std: tracked[std].weights for std in (0.05, 0.1)})
            for std, at in ((0.05, 640), (0.07, 640), (0.15, 640), (0.07, 400)):
                if step == at:
                    wanted[std, at] = torch.cat([w.flatten() for w in tracked[std].weights.values()]).clone()
    spread = (wanted[0.05, 640] - wanted[0.15, 640]).norm()
    for (std, step), expected in wanted.items():
        found = posthoc_ema(tmp_path, std, step).denoiser.state_dict()
        error = (torch.cat([value.flatten() for value in found.values()]) - expected).norm() / spread
        assert error < (1e-5 if std == 0.05 else 0.02), (std, step, error)
    with pytest.raises(ValueError, match=r"std=0.002 .*\[0.05, 0.1\] at 16 steps from 40 to 640"):
        posthoc_ema(tmp_path, 0.002)
    with pytest.raises(ValueError, match=r"at step 620 "):
        posthoc_ema(tmp_path, 0.05, 620)
    with pytest.raises(ValueError, match=r"no averages in .*posthoc"):
        posthoc_ema(tmp_path / "averages", 0.1)
