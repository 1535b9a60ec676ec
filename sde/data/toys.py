r"""Toys: distributions in the plane, sampled with a seed and standardised.

The shapes and units are those of W. Grathwohl et al., "FFJORD" (ICLR 2019). u is uniform on [0, 1], and z is standard
normal in the plane.

| toy | distribution of a point |
|---|---|
| `moons` | (cos a, sin a) or (1 - cos a, 1/2 - sin a) with a = pi u, plus 0.1 z |
| `checkerboard` | uniform on the squares of side 2 in [-4, 4]^2 whose column plus row is even |
| `swissroll` | (a cos a, a sin a) / 5 with a = 3 pi (1 + 2 u) / 2, plus 0.2 z |
| `rings` | a circle of radius 0.75, 1.5, 2.25 or 3, plus 0.08 z |
| `gaussians` | one of 8 points on a circle of radius 4, plus 0.5 z, divided by sqrt 2 |

Training and test set use separate random streams, so that neither depends on the size of the other. Points are
computed in float64 and stored in float32, which hides the last digits, in which mathematical libraries differ. Like the
columns of any (N, D) data, both coordinates are standardised, each by its own mean and standard deviation.
"""

from __future__ import annotations

__all__ = ["checkerboard", "gaussians", "moons", "rings", "swissroll"]

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray

from .dataset import DataSet, Split, hold_out, standardise

Array = NDArray[np.floating[Any]]
Points = tuple[Array, "NDArray[np.int64] | None"]  # points (N, 2); labels (N,) if the toy has components


def _polar(radius: Array | float, angle: Array) -> Array:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _moons(n: int, random: RandomState) -> Points:
    label = random.randint(2, size=n, dtype=np.int64)
    angle = math.pi * random.uniform(size=n)
    upper = _polar(1.0, angle)
    points = np.where(label[:, None] == 0, upper, np.array([1.0, 0.5]) - upper)
    return points + 0.1 * random.normal(size=(n, 2)), label


def _checkerboard(n: int, random: RandomState) -> Points:
    column = random.randint(4, size=n, dtype=np.int64)
    row = 2 * random.randint(2, size=n, dtype=np.int64) + column % 2
    corner = np.stack([column, row], axis=1) - 2.0
    return 2.0 * (corner + random.uniform(size=(n, 2))), None


def _swissroll(n: int, random: RandomState) -> Points:
    angle = 1.5 * math.pi * (1.0 + 2.0 * random.uniform(size=n))
    return (_polar(angle, angle) + random.normal(size=(n, 2))) / 5.0, None


def _rings(n: int, random: RandomState) -> Points:
    label = random.randint(4, size=n, dtype=np.int64)
    angle = 2.0 * math.pi * random.uniform(size=n)
    return _polar(0.75 * (label + 1), angle) + 0.08 * random.normal(size=(n, 2)), label


def _gaussians(n: int, random: RandomState) -> Points:
    label = random.randint(8, size=n, dtype=np.int64)
    centre = _polar(4.0, math.pi / 4.0 * label)
    return (centre + 0.5 * random.normal(size=(n, 2))) / math.sqrt(2.0), label


def _data_set(
    name: str, sample: Callable[[int, RandomState], Points], n_train: int, n_test: int, seed: int, holdout: float
) -> DataSet:
    def split(n: int, stream: int) -> Split:
        if n < 1:
            raise ValueError(f"{name}: expected at least one point each, got n_train={n_train}, n_test={n_test}")
        # RandomState, because its streams are frozen (NEP 19), whereas those of default_rng may change with NumPy.
        points, label = sample(n, RandomState([seed, stream]))
        values = torch.from_numpy(points.astype(np.float32))
        return Split(values, None if label is None else torch.from_numpy(label.astype(np.int64)))

    train, valid = hold_out(split(n_train, 0), holdout, seed=seed)
    return DataSet(name, standardise(train), train, split(n_test, 1), valid)


def moons(n_train: int = 10_000, n_test: int = 2_000, *, seed: int = 0, holdout: float = 0) -> DataSet:
    """Two interleaved half circles, labelled 0 and 1.

    Args:
        n_train: number of training points.
        n_test: number of test points.
        seed: seed of the points, from 0 to 2^32 - 1.
        holdout: part of the training set to hold out as `valid`, as in `hold_out`.
    """
    return _data_set("moons", _moons, n_train, n_test, seed, holdout)


def checkerboard(n_train: int = 10_000, n_test: int = 2_000, *, seed: int = 0, holdout: float = 0) -> DataSet:
    """Uniform distribution on the black squares of a 4x4 board: density 1/32.

    Arguments as for `moons`.
    """
    return _data_set("checkerboard", _checkerboard, n_train, n_test, seed, holdout)


def swissroll(n_train: int = 10_000, n_test: int = 2_000, *, seed: int = 0, holdout: float = 0) -> DataSet:
    """A spiral of one and a half turns. Arguments as for `moons`."""
    return _data_set("swissroll", _swissroll, n_train, n_test, seed, holdout)


def rings(n_train: int = 10_000, n_test: int = 2_000, *, seed: int = 0, holdout: float = 0) -> DataSet:
    """Four concentric, equally likely circles, labelled 0 to 3 from the inside. Arguments as for `moons`."""
    return _data_set("rings", _rings, n_train, n_test, seed, holdout)


def gaussians(n_train: int = 10_000, n_test: int = 2_000, *, seed: int = 0, holdout: float = 0) -> DataSet:
    """Eight equally likely Gaussians on a circle, labelled 0 to 7 counter-clockwise. Arguments as for `moons`."""
    return _data_set("gaussians", _gaussians, n_train, n_test, seed, holdout)
