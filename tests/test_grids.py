"""Grids: exact end points, decreasing times, and even spacing in the coordinate of each grid."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from sde.grids import Explicit, Grid, Karras, LogSNR, Quadratic, Uniform
from sde.processes import SDE, VP

GRIDS: dict[str, Grid] = {
    "uniform": Uniform(),
    "quadratic": Quadratic(),
    "log_snr": LogSNR(),
    "karras": Karras(),
    "karras3": Karras(rho=3.0),
}


def even(values: Tensor) -> Tensor:
    """As many evenly spaced values between the same ends."""
    return torch.linspace(values[0].item(), values[-1].item(), len(values), dtype=torch.float64)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 17, 500])
def test_contract(grid: Grid, process: SDE, steps: int) -> None:
    times = grid.times(process, steps, process.t_max, process.t_min)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert times[0].item() == process.t_max
    assert times[-1].item() == process.t_min
    assert bool((times.diff() < 0).all())


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_encoding_runs_the_same_times_backwards(grid: Grid, process: SDE) -> None:
    high, low = 0.9, 0.0123
    down = grid.times(process, 12, high, low)
    up = grid.times(process, 12, low, high)
    assert (down[0].item(), down[-1].item()) == (high, low)
    assert torch.equal(up, down.flip(0))


def test_uniform_is_even_in_time(process: SDE) -> None:
    times = Uniform().times(process, 7, 0.8, 0.1)
    torch.testing.assert_close(times, torch.tensor([0.8 - 0.1 * i for i in range(8)], dtype=torch.float64))


def test_quadratic_is_even_in_the_root_of_time(process: SDE) -> None:
    times = Quadratic().times(process, 4, 1.0, 0.04)
    torch.testing.assert_close(times, torch.tensor([1.0, 0.64, 0.36, 0.16, 0.04], dtype=torch.float64))


def test_log_snr_is_even_in_log_snr(process: SDE) -> None:
    times = LogSNR().times(process, 25, process.t_max, process.t_min)
    log_snr = process.log_snr(times)
    torch.testing.assert_close(log_snr, even(log_snr), rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("rho", [3.0, 7.0])
def test_karras_is_even_in_the_root_of_sigma(process: SDE, rho: float) -> None:
    # Karras et al. 2022, equation 5, in sigma/alpha.
    times = Karras(rho).times(process, 25, process.t_max, process.t_min)
    roots = (process.sigma(times) / process.alpha(times)) ** (1.0 / rho)
    torch.testing.assert_close(roots, even(roots), rtol=1e-8, atol=0.0)


def test_explicit(process: SDE) -> None:
    points = [1.0, 0.5, 0.2, 0.01]
    grid = Explicit(points)
    assert grid.points == tuple(points)
    assert grid.times(process, 3, 1.0, 0.01).tolist() == points
    assert grid.times(process, 3, 0.01, 1.0).tolist() == points[::-1]
    # Times rounded to float32 still match the end points, which are then exact.
    rounded = Explicit(torch.tensor(points).tolist())
    assert rounded.times(process, 3, 1.0, 0.01)[-1].item() == 0.01
    assert hash(grid) == hash(Explicit(tuple(points)))


@pytest.mark.parametrize("points", [[], [1.0], [1.0, 1.0], [0.5, 0.7], [1.0, 0.3, 0.4]])
def test_explicit_refuses_times_that_do_not_decrease(points: list[float]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"points={tuple(points)}")):
        Explicit(points)


def test_explicit_refuses_other_steps_and_other_ends() -> None:
    grid = Explicit([1.0, 0.5, 0.1])
    with pytest.raises(ValueError, match=r"\b2\b.*steps=3"):
        grid.times(VP(), 3, 1.0, 0.1)
    with pytest.raises(ValueError, match=r"\b1\.0\b.*\b0\.1\b.*\b1\.0\b.*\b0\.05\b"):
        grid.times(VP(), 2, 1.0, 0.05)
    with pytest.raises(ValueError, match=r"\b1\.0\b.*\b0\.1\b.*\b0\.9\b.*\b0\.1\b"):
        grid.times(VP(), 2, 0.9, 0.1)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_refusals(grid: Grid) -> None:
    with pytest.raises(ValueError, match="steps=0"):
        grid.times(VP(), 0, 1.0, 0.1)
    with pytest.raises(ValueError, match=rf"{re.escape(repr(grid))}.*\b0\.5\b.*\b3\b"):
        grid.times(VP(), 3, 0.5, 0.5)


@pytest.mark.parametrize("grid", [LogSNR(), Karras()], ids=["log_snr", "karras"])
def test_no_log_snr_without_noise(grid: Grid) -> None:
    with pytest.raises(ValueError, match=r"t=0\.0.*t_min"):
        grid.times(VP(t_min=0.0), 5, 1.0, 0.0)


@pytest.mark.parametrize("rho", [0.0, -1.0, math.nan])
def test_karras_refuses(rho: float) -> None:
    with pytest.raises(ValueError, match=f"rho={rho}"):
        Karras(rho)


def test_explicit_refuses_times_that_are_not_numbers() -> None:
    with pytest.raises(ValueError, match=r"points=\(1\.0, nan, 0\.1\)"):
        Explicit([1.0, float("nan"), 0.1])
