"""Augmentation: the drawn changes have their distribution, images change as the matrices say, and zero is no change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sde
from sde import Batches, Training
from sde.data import Augmentation, Geometric, HorizontalFlip, Scaling, Split
from sde.noise import Noise
from sde.training.batches import to_model

INDEX = torch.arange(20_000)


def changes(**parameters: float) -> Tensor:
    """One change: flips, size, angle, stretching, its direction, shift."""
    names = ("mirror", "down", "size", "angle", "stretching", "direction", "x", "y")
    return torch.tensor([[parameters.get(name, 0.0) for name in names]], dtype=torch.float64)


def smooth(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Coordinates of the pixels about the middle, with shape (H, W)."""
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    return x.double(), y.double()


def blob(x: Tensor, y: Tensor) -> Tensor:
    """A smooth image without a symmetry, which fades out towards the edges."""
    return torch.exp(-((x - 3.0) ** 2) / 24.0 - (y + 2.0) ** 2 / 15.0) * (1.0 + 0.2 * torch.sin(0.4 * x))


def test_the_draws_have_their_distribution() -> None:
    """Means within 4.5 standard errors: a false alarm in 14 comparisons has probability 1e-4."""
    rule = Geometric(probability=0.3)
    drawn = rule.draw(Noise(1), INDEX, torch.zeros_like(INDEX))
    assert torch.equal(drawn[7:9], rule.draw(Noise(1), INDEX[7:9], torch.zeros(2, dtype=torch.int64)))
    assert not torch.equal(drawn, rule.draw(Noise(1), INDEX, torch.ones_like(INDEX)))
    mirror, down, size, angle, n, direction, x, y = drawn.unbind(1)
    count = len(INDEX)

    def close(values: Tensor, mean: float) -> None:
        assert abs(float(values.mean()) - mean) < 4.5 * float(values.std()) / math.sqrt(len(values))

    close(mirror, 0.5)
    close(down, 0.15)
    for applied in (size, angle, n, x):
        close((applied != 0.0).double(), 0.3)
    assert torch.equal(x != 0.0, y != 0.0)
    for normal in (size, n, x, y):
        close(normal[normal != 0.0] ** 2, 1.0)
        close(normal[normal != 0.0], 0.0)
    close(angle[angle != 0.0] ** 2, math.pi**2 / 3.0)
    close((direction[n != 0.0] != 0.0).double(), 0.5)
    assert abs(float((size * x).sum())) < 4.5 * math.sqrt(count * 0.09)  # independent of each other
    vector = rule.vector(drawn)
    assert vector.shape == (count, rule.length)
    unchanged = (drawn[:, 2:] == 0.0).all(1) & (drawn[:, :2] == 0.0).all(1)
    close(unchanged.double(), 0.5 * 0.85 * 0.7**4)
    assert torch.equal((vector == 0.0).all(1), unchanged)
    flips = HorizontalFlip().draw(Noise(1), INDEX, torch.zeros_like(INDEX))
    close(flips[:, 0], 0.5)


@pytest.mark.parametrize(
    ("change", "back"),
    [
        ({"mirror": 1.0}, lambda x, y: (-x, y)),
        ({"down": 1.0}, lambda x, y: (x, -y)),
        ({"size": 1.5}, lambda x, y: (x / 2**0.3, y / 2**0.3)),
        ({"angle": 0.5}, lambda x, y: (x * math.cos(0.5) + y * math.sin(0.5), y * math.cos(0.5) - x * math.sin(0.5))),
        ({"stretching": -1.5}, lambda x, y: (x * 2**0.3, y / 2**0.3)),
        ({"stretching": 1.5, "direction": math.pi / 2}, lambda x, y: (x * 2**0.3, y / 2**0.3)),
        ({"x": 0.5, "y": -0.25}, lambda x, y: (x - 0.0625 * 48, y + 0.03125 * 40)),
        ({"mirror": 1.0, "angle": math.pi / 2, "x": 0.5}, lambda x, y: (-y, 3.0 - x)),
        ({"size": -1.0, "x": 1.0}, lambda x, y: ((x - 6.0) * 2**0.2, y * 2**0.2)),
        ({"stretching": 1.0, "x": 1.0, "y": -0.6}, lambda x, y: ((x - 6.0) / 2**0.2, (y + 3.0) * 2**0.2)),
    ],
)
def test_images_change_as_the_coordinates_do(change: dict[str, float], back: Any) -> None:
    """The value at a place of the result is that of the image where the place comes from."""
    x, y = smooth(40, 48)
    image = blob(x, y).expand(1, 2, 40, 48)
    changed = Geometric().apply(image, changes(**change))
    torch.testing.assert_close(changed[0, 1], blob(*back(x, y)), atol=5e-4, rtol=0.0)


def test_zero_is_no_change_bit_for_bit_and_rows_do_not_depend_on_each_other() -> None:
    x = torch.randn(5, 3, 8, 7, generator=torch.Generator().manual_seed(0))
    rule, drawn = Geometric(probability=0.9), torch.zeros(5, 8, dtype=torch.float64)
    assert torch.equal(rule.apply(x, drawn), x)
    drawn[2:] = rule.draw(Noise(0), INDEX[:3], INDEX[:3])
    whole = rule.apply(x, drawn)
    assert torch.equal(whole[:2], x[:2])
    for row in range(5):
        torch.testing.assert_close(rule.apply(x[row : row + 1], drawn[row : row + 1]), whole[row : row + 1])
    assert rule.apply(x.half(), drawn).dtype == torch.float16
    # A shift by whole pixels moves them, and the edge is continued by its reflection.
    shifted = Geometric(shift=1 / 7).apply(x, changes(x=1.0).expand(5, 8))
    torch.testing.assert_close(shifted[..., 1:], x[..., :-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shifted[..., 0], x[..., 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 8, 7), (2, 1, 4, 5, 6)])
def test_flips_reverse_the_last_axis(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    flipped = HorizontalFlip().apply(x, torch.tensor([[0.0], [1.0]]))
    assert torch.equal(flipped[0], x[0])
    assert torch.equal(flipped[1], x[1].flip(-1))


@pytest.mark.parametrize("rule", [HorizontalFlip(), HorizontalFlip(conditional=True), Geometric(probability=0.5)])
def test_batches_are_changed_by_their_keys(rule: Augmentation) -> None:
    """The same for any workers and batch size, fresh in every epoch, and not at all in passes for validation."""
    values = torch.randint(9, (12, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    scaling, results = Scaling.interval(9), []
    for size, workers in ((4, 0), (12, 0), (4, 1)):
        batches = Batches(values, size, seed=3, augmentation=rule, workers=workers)
        drawn = [batches[i] for i in range(24 // size)]
        x = torch.cat([to_model(b, scaling, batches.noise, torch.float32) for b in drawn])
        results.append((x, torch.cat([b.condition.get("augment", torch.zeros(size, 0)) for b in drawn])))
    for x, vectors in results[1:]:
        torch.testing.assert_close(x, results[0][0])
        assert torch.equal(vectors, results[0][1])
    plain = Batches(values, 12, seed=3)
    expected = to_model(plain[0], scaling, plain.noise, torch.float32)
    order = rule.draw(plain.noise, plain[0].index, plain[0].counter)
    torch.testing.assert_close(results[0][0][:12], rule.apply(expected, order))
    assert results[0][1].shape == (24, rule.length)
    if rule.length:
        assert torch.equal(results[0][1][:12], rule.vector(order))
        assert not torch.equal(results[0][1][:12], results[0][1][12:])
    (one,) = Batches(values, 12, seed=3, augmentation=rule).epoch()
    (other,) = plain.epoch()
    assert torch.equal(
        to_model(one, scaling, plain.noise, torch.float32), to_model(other, scaling, plain.noise, torch.float32)
    )
    assert not one.condition.get("augment", torch.zeros(0)).any()


def test_a_network_is_told_of_the_changes() -> None:
    """Without being told, it refuses before the first step."""
    split = Split(torch.zeros(8, 1, 8, 8))
    for augment in (9, 0):
        network = sde.networks.UNet(1, width=8, multipliers=(1,), blocks=1, attention=(), augment=augment)
        denoiser = sde.NetworkDenoiser(network, sde.VP(), level=sde.LogSNRLevel(50.0))
        training = Training(denoiser, Batches(split, 4, augmentation=Geometric()))
        if augment:
            training.check()
            assert training.advance().loss > 0.0
        else:
            with pytest.raises(ValueError, match="augment="):
                training.check()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Geometric(probability=1.5), "probability <= 1, got probability=1.5"),
        (lambda: Geometric(rotation=2.0), "rotation=2"),
        (lambda: Geometric(shift=-1.0), "shift=-1"),
        (lambda: Geometric().apply(torch.zeros(2, 3, 4), torch.zeros(2, 8)), r"\(B, C, H, W\), got \(2, 3, 4\)"),
        (lambda: HorizontalFlip().apply(torch.zeros(2, 3), torch.zeros(2, 1)), r"spatial\), got \(2, 3\)"),
    ],
)
def test_what_is_no_change_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
