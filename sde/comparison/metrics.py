r"""How far samples are from where they should be, each number with its confidence band.

All lengths are root mean squares per coordinate in units of the data's standard deviation :math:`s`, so that they can
be laid side by side.

**Strong error**, of a deterministic solver against the exact flow from the same noise:

.. math:: e^2 = \frac1n \sum_i e_i^2, \qquad e_i^2 = \frac{1}{D s^2} \|\hat x_i - x_i\|^2 .

Where data has separate modes, a few samples near the border between two of them end in the wrong one and make up most
of this mean. The **median error**, that of the :math:`e_i`, says how the others fare, and shows an order sooner.

**Sliced Wasserstein distance** of order 2, between n samples and n samples of the truth, over fixed random directions
:math:`\theta` (Bonneel et al. 2015, https://doi.org/10.1007/s10851-014-0506-3); in one dimension the best coupling
sorts both sides:

.. math:: W^2 = \frac{1}{s^2}\, E_\theta\, \frac1n \sum_i \big(\theta\cdot\hat x - \theta\cdot x\big)_{(i)}^2 .

A solver's result is coupled to the truth by its starting noise, and the best coupling is no worse: up to the noise of
finite samples :math:`W \le e`, and the strong error of a deterministic solver bounds what is reported of a stochastic
one.

**Moments**: :math:`\|\hat\mu - \mu\| / (\sqrt D s)` and :math:`\|\hat C - C\|_F / \|C\|_F`.

The distances do not vanish for exact samples, of which there are finitely many either. Their level for a second
set of exact samples says where they stop to mean anything.

The bands of the first two are the bootstrap's over samples. Distances are another matter: a resample is as far from
the samples as these are from the truth, so that the bootstrap counts the noise twice. Their bands come from the
jackknife over groups of samples (Shao and Wu 1989, https://doi.org/10.1214/aos/1176347263), on the squares, and hold
for the distance at this number of samples, level included.
"""

from __future__ import annotations

__all__ = ["GROUPS", "Estimate", "moments", "sliced_wasserstein", "strong"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

GROUPS = 20
# Of Student's distribution with GROUPS - 1 degrees of freedom, for two sides of 95 %.
_QUANTILE = 2.093
_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % confidence band.

    Attributes:
        value: the number.
        low: the lower end of the band.
        high: the upper end.
    """

    value: float
    low: float
    high: float


def strong(x: Tensor, exact: Tensor, scale: float) -> tuple[Estimate, Estimate]:
    r"""The strong error and the median error.

    Args:
        x: the results, with shape (n, \*).
        exact: where the exact flow arrives from the same noise, likewise.
        scale: the standard deviation s of the data.
    """
    if x.shape != exact.shape:
        raise ValueError(f"strong: expected results and exact ends of one shape, got {x.shape} and {exact.shape}")
    squares = (x.double() - exact.double()).flatten(1).square().mean(1) / scale**2
    draws = torch.Generator().manual_seed(0)
    index = torch.randint(len(squares), (_RESAMPLES, len(squares)), generator=draws)
    resampled = squares[index]
    return _bootstrap(squares.mean(), resampled.mean(1)), _bootstrap(squares.median(), resampled.median(1).values)


def sliced_wasserstein(x: Tensor, y: Tensor, scale: float, directions: int = 128) -> Estimate:
    r"""The sliced Wasserstein distance of order 2 between two sets of as many samples.

    Args:
        x: samples, with shape (n, \*), n >= 40.
        y: samples of the truth, likewise.
        scale: the standard deviation s of the data.
        directions: how many random directions; they are the same in every call.
    """
    _check(x, y)
    x, y = x.double().flatten(1), y.double().flatten(1)
    draws = torch.Generator().manual_seed(0)
    theta = torch.randn(x.shape[1], directions, generator=draws, dtype=torch.float64)
    theta = theta / theta.norm(dim=0)
    sides = [(side @ theta).T.sort(dim=1) for side in (x, y)]
    whole = _mean_square(sides[0].values, sides[1].values)
    # A group is left out on both sides: its samples are found in the sorted rows by their indices.
    left = []
    for group in range(GROUPS):
        kept = [values[order % GROUPS != group].reshape(directions, -1) for values, order in sides]
        left.append(_mean_square(*kept))
    return _jackknife(whole / scale**2, torch.stack(left) / scale**2)


def moments(x: Tensor, mean: Tensor, cov: Tensor, scale: float) -> tuple[Estimate, Estimate]:
    r"""The errors of mean and covariance.

    Args:
        x: samples, with shape (n, \*), n >= 40.
        mean: the true mean, with shape (D,).
        cov: the true covariance, with shape (D, D).
        scale: the standard deviation s of the data.
    """
    _check(x, x)
    # About the true mean, so that no digits are lost to a large one.
    centred = x.double().flatten(1) - mean
    groups = [centred[group::GROUPS] for group in range(GROUPS)]
    first = torch.stack([g.sum(0) for g in groups])
    second = centred.T @ centred
    whole = _moment_squares(len(x), first.sum(0), second, cov, scale)
    left = torch.stack(
        [
            _moment_squares(len(x) - len(g), first.sum(0) - own, second - g.T @ g, cov, scale)
            for g, own in zip(groups, first)
        ]
    )
    return _jackknife(whole[0], left[:, 0]), _jackknife(whole[1], left[:, 1])


def _bootstrap(square: Tensor, resampled: Tensor) -> Estimate:
    """The root of a square with the band that its values on resamples give."""
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=resampled.dtype)).sqrt().tolist()
    return Estimate(square.sqrt().item(), low, high)


def _moment_squares(n: int, first: Tensor, second: Tensor, cov: Tensor, scale: float) -> Tensor:
    """The squares of both errors from n samples' sums of x - mean and of its products, with shape (2,)."""
    shift = first / n
    found = (second - n * torch.outer(shift, shift)) / (n - 1)
    return torch.stack([shift.square().mean() / scale**2, (found - cov).square().sum() / cov.square().sum()])


def _mean_square(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().mean()


def _jackknife(square: Tensor, left_out: Tensor) -> Estimate:
    """The root of a square with the band that its values without one group each give."""
    spread = (left_out - left_out.mean()).square().sum()
    half = _QUANTILE * math.sqrt((GROUPS - 1) / GROUPS * spread.item())
    value = square.item()
    return Estimate(math.sqrt(value), math.sqrt(max(0.0, value - half)), math.sqrt(value + half))


def _check(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or len(x) < 2 * GROUPS:
        raise ValueError(
            f"expected two sets of the same shape with at least {2 * GROUPS} samples, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
