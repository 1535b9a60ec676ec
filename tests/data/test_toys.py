"""Toys: the same points for the same seed, in the shapes that the docstrings state."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from sde.data import DataSet, checkerboard, gaussians, moons, rings, swissroll

TOYS = [moons, checkerboard, swissroll, rings, gaussians]


@pytest.mark.parametrize("toy", TOYS)
def test_contract(toy: Callable[..., DataSet]) -> None:
    data = toy(1000, 300)
    assert data.shape == (2,)
    assert (len(data.train), len(data.test)) == (1000, 300)
    assert data.train.values.dtype == torch.float32
    assert data.name == toy.__name__
    y = data.scaling.to_model(data.train.values, dtype=torch.float64)
    assert y.mean(0).abs().max() < 1e-12
    assert (y.std(0, correction=0) - 1.0).abs().max() < 1e-12


@pytest.mark.parametrize("toy", TOYS)
def test_seed_decides(toy: Callable[..., DataSet]) -> None:
    torch.manual_seed(1)
    data = toy(200, 100, seed=5)
    torch.manual_seed(2)
    assert toy(200, 100, seed=5).fingerprint == data.fingerprint
    other = toy(200, 100, seed=6)
    assert other.train.fingerprint != data.train.fingerprint
    assert other.test.fingerprint != data.test.fingerprint


@pytest.mark.parametrize("toy", TOYS)
def test_train_and_test_do_not_depend_on_each_other(toy: Callable[..., DataSet]) -> None:
    data = toy(200, 100)
    assert toy(300, 100).test.fingerprint == data.test.fingerprint
    assert toy(200, 150).train.fingerprint == data.train.fingerprint
    alike = toy(100, 100)
    assert not torch.equal(alike.train.values, alike.test.values)


@pytest.mark.parametrize("toy", TOYS)
def test_holdout(toy: Callable[..., DataSet]) -> None:
    data = toy(200, 100, holdout=0.25)
    assert (len(data.train), len(data.test), len(data.split("valid"))) == (150, 100, 50)
    assert data.test.fingerprint == toy(200, 100).test.fingerprint
    with pytest.raises(ValueError, match=r"n_train=10.*n_test=0"):
        toy(10, 0)


def labelled(data: DataSet) -> tuple[torch.Tensor, torch.Tensor]:
    assert data.train.labels is not None
    return data.train.values.to(torch.float64), data.train.labels


def assert_even(labels: torch.Tensor, classes: int) -> None:
    """All classes equally likely: counts within five standard deviations."""
    n = len(labels)
    counts = torch.bincount(labels, minlength=classes).to(torch.float64)
    assert counts.shape == (classes,)
    p = 1 / classes
    assert (counts - n * p).abs().max() < 5 * math.sqrt(n * p * (1 - p))


def test_moons() -> None:
    x, labels = labelled(moons(20_000, 1))
    assert_even(labels, 2)
    for label, centre, side in ((0, (0.0, 0.0), 1), (1, (1.0, 0.5), -1)):
        offset = x[labels == label] - torch.tensor(centre, dtype=torch.float64)
        # |c + 0.1 z|^2 = 1 + 0.2 c.z + 0.01 |z|^2 has mean 1 + 2 * 0.01; the half circle has mean height 2 / pi.
        assert abs(offset.square().sum(1).mean() - 1.02) < 0.01
        assert abs(side * offset[:, 1].mean() - 2 / math.pi) < 0.02
        assert abs(offset[:, 0].mean()) < 0.04


def test_checkerboard_density() -> None:
    x = checkerboard(20_000, 1).train.values.to(torch.float64)
    square = (x / 2).floor().to(torch.int64)
    assert square.min() >= -2
    assert square.max() <= 1
    assert (square.sum(1) % 2 == 0).all()
    column, row = square[:, 0] + 2, (square[:, 1] + 2) // 2
    assert_even(2 * column + row, 8)
    within = x / 2 - square
    assert (within.mean(0) - 0.5).abs().max() < 0.01
    assert (within.var(0) - 1 / 12).abs().max() < 0.002


def test_swissroll() -> None:
    x = 5 * swissroll(20_000, 1).train.values.to(torch.float64)
    # E|x|^2 = E a^2 + 2 with a uniform on [1.5 pi, 4.5 pi]: a^2 has mean (4.5^3 - 1.5^3) pi^2 / 9.
    expected = (4.5**3 - 1.5**3) * math.pi**2 / 9 + 2
    assert abs(x.square().sum(1).mean() - expected) / expected < 0.02
    # Away from the noise, radius and angle agree modulo a turn.
    radius = x.square().sum(1).sqrt()
    turn = torch.remainder(radius - torch.atan2(x[:, 1], x[:, 0]) + math.pi, 2 * math.pi) - math.pi
    assert abs(turn.mean()) < 0.15
    assert turn.std() < 1.2


def test_rings() -> None:
    x, labels = labelled(rings(20_000, 1))
    assert_even(labels, 4)
    for label in range(4):
        ring = x[labels == label]
        radius = 0.75 * (label + 1)
        assert abs(ring.square().sum(1).mean() - (radius**2 + 2 * 0.08**2)) < 0.02
        assert ring.mean(0).abs().max() < 5 * radius / math.sqrt(2 * len(ring))
        assert abs(ring.square().sum(1).sqrt().std() - 0.08) < 0.005


def test_gaussians() -> None:
    x, labels = labelled(gaussians(20_000, 1))
    assert_even(labels, 8)
    for label in range(8):
        blob = math.sqrt(2) * x[labels == label]
        angle = label * math.pi / 4
        centre = torch.tensor([4 * math.cos(angle), 4 * math.sin(angle)], dtype=torch.float64)
        assert (blob.mean(0) - centre).abs().max() < 0.06
        assert (blob.std(0) - 0.5).abs().max() < 0.05
        assert abs(torch.corrcoef(blob.T)[0, 1]) < 0.1
