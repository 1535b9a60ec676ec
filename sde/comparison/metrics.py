r"""Error metrics of samples, with confidence bands.

All lengths are root mean squares per coordinate, in units of the standard deviation :math:`s` of the data, so that they
can be compared with each other.

**Strong error** of a deterministic solver, relative to the exact flow from the same noise:

.. math:: e^2 = \frac1n \sum_i e_i^2, \qquad e_i^2 = \frac{1}{D s^2} \|\hat x_i - x_i\|^2 .

If the data has separate modes, a few samples near the border between two modes end in the wrong mode and contribute
most of this mean. The **median error**, the median of the :math:`e_i`, describes the other samples, and shows the order
of a method with fewer steps.

**Sliced Wasserstein distance** of order 2 between n samples and n exact samples, over fixed random directions
:math:`\theta` (Bonneel et al. 2015, https://doi.org/10.1007/s10851-014-0506-3). In one dimension the optimal coupling
pairs the sorted values:

.. math:: W^2 = \frac{1}{s^2}\, E_\theta\, \frac1n \sum_i \big(\theta\cdot\hat x - \theta\cdot x\big)_{(i)}^2 .

The common initial noise couples the result of a solver to the exact result, and the optimal coupling gives a distance
that is at most as large. So :math:`W \le e` up to Monte-Carlo error, and the strong error of a deterministic solver is
an upper bound that is comparable with the distances of stochastic solvers.

**Moments**: :math:`\|\hat\mu - \mu\| / (\sqrt D s)` and :math:`\|\hat C - C\|_F / \|C\|_F`.

For a finite number of samples, these distances are above 0 even for exact samples. Their value for a second set of
exact samples is the Monte-Carlo floor, below which solvers cannot be distinguished.

The bands of the strong and the median error come from the bootstrap over samples. For distances the bootstrap would
count the Monte-Carlo error twice, because a resample is as far from the samples as these are from the exact
distribution. Their bands come from the jackknife over groups of samples (Shao and Wu 1989,
https://doi.org/10.1214/aos/1176347263), applied to the squares. They hold for the distance at this number of samples,
which includes the Monte-Carlo floor.
"""

from __future__ import annotations

__all__ = ["GROUPS", "Estimate", "moments", "sliced_wasserstein", "strong"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

GROUPS = 20
# The two-sided 95 % quantile of Student's t distribution with GROUPS - 1 degrees of freedom.
_QUANTILE = 2.093
_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % confidence band.

    Attributes:
        value: the number.
        low: the lower end of the band.
        high: the upper end of the band.
    """

    value: float
    low: float
    high: float


def strong(x: Tensor, exact: Tensor, scale: float) -> tuple[Estimate, Estimate]:
    r"""The strong error and the median error.

    Args:
        x: the samples, with shape (n, \*).
        exact: the samples of the exact flow from the same noise, with the same shape.
        scale: the standard deviation s of the data.
    """
    if x.shape != exact.shape:
        raise ValueError(f"strong: expected samples of the same shape, got {tuple(x.shape)} and {tuple(exact.shape)}")
    squares = (x.double() - exact.double()).flatten(1).square().mean(1) / scale**2
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(squares), (_RESAMPLES, len(squares)), generator=generator, device="cpu")
    resampled = squares[index]
    return _bootstrap(squares.mean(), resampled.mean(1)), _bootstrap(squares.median(), resampled.median(1).values)


def sliced_wasserstein(x: Tensor, y: Tensor, scale: float, directions: int = 128) -> Estimate:
    r"""The sliced Wasserstein distance of order 2 between two sets with the same number of samples.

    Args:
        x: samples, with shape (n, \*), n >= 40.
        y: exact samples, with the same shape.
        scale: the standard deviation s of the data.
        directions: the number of random directions, which are the same in every call.
    """
    _check(x, y)
    x, y = x.double().flatten(1), y.double().flatten(1)
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(x.shape[1], directions, generator=generator, dtype=torch.float64, device="cpu")
    theta = theta / theta.norm(dim=0)
    sides = [(side @ theta).T.sort(dim=1) for side in (x, y)]
    # The jackknife omits a group on both sides. The indices of the sort give the group of each sorted value.
    omitted = []
    for group in range(GROUPS):
        others = [values[order % GROUPS != group].reshape(directions, -1) for values, order in sides]
        omitted.append(mse_loss(*others))
    square = mse_loss(sides[0].values, sides[1].values)
    return _jackknife(square / scale**2, torch.stack(omitted) / scale**2)


def moments(x: Tensor, mean: Tensor, cov: Tensor, scale: float) -> tuple[Estimate, Estimate]:
    r"""The errors of the mean and of the covariance.

    Args:
        x: samples, with shape (n, \*), n >= 40.
        mean: the exact mean, with shape (D,).
        cov: the exact covariance, with shape (D, D).
        scale: the standard deviation s of the data.
    """
    _check(x, x)
    # Centred at the exact mean, because a large mean would cancel digits of the covariance.
    centred = x.double().flatten(1) - mean
    groups = [centred[group::GROUPS] for group in range(GROUPS)]
    sums = torch.stack([g.sum(0) for g in groups])
    n, first, second = len(x), sums.sum(0), centred.T @ centred
    squares = _moment_squares(n, first, second, cov, scale)
    others = [(n - len(g), first - group_sum, second - g.T @ g) for g, group_sum in zip(groups, sums)]
    omitted = torch.stack([_moment_squares(*rest, cov, scale) for rest in others])
    return _jackknife(squares[0], omitted[:, 0]), _jackknife(squares[1], omitted[:, 1])


def _bootstrap(square: Tensor, resampled: Tensor) -> Estimate:
    """The square root of a number, with a band from its values on bootstrap resamples."""
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=resampled.dtype, device="cpu")).sqrt().tolist()
    return Estimate(square.sqrt().item(), low, high)


def _moment_squares(n: int, first: Tensor, second: Tensor, cov: Tensor, scale: float) -> Tensor:
    """The squares of both errors, with shape (2,), from the sums of x - mean and of its outer products."""
    shift = first / n
    sample_cov = (second - n * torch.outer(shift, shift)) / (n - 1)
    return torch.stack([shift.square().mean() / scale**2, (sample_cov - cov).square().sum() / cov.square().sum()])


def _jackknife(square: Tensor, omitted: Tensor) -> Estimate:
    """The square root of a number, with a band from its values without one group each."""
    spread = (omitted - omitted.mean()).square().sum()
    half = _QUANTILE * math.sqrt((GROUPS - 1) / GROUPS * spread.item())
    value = square.item()
    return Estimate(math.sqrt(value), math.sqrt(max(0.0, value - half)), math.sqrt(value + half))


def _check(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or len(x) < 2 * GROUPS:
        raise ValueError(
            f"expected two sets of samples of the same shape, with at least {2 * GROUPS} samples each, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
