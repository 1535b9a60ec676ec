r"""The variance of :math:`x_0` given :math:`x_t`, in the mean over coordinates and states, as a function of the time.

.. math:: v_t = \tfrac1D\, E \|x_0 - E[x_0 | x_t]\|^2

The likelihood of a measurement given a noisy state needs it. :func:`sde.tune_particles` measures it for a model;
without a measurement it is that of normal data.
"""

from __future__ import annotations

__all__ = ["NormalVariance", "PilotCovariance", "PilotVariance", "Variance", "VarianceGrid"]

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..grids import Grid
from ..processes import SDE
from ..shapes import float64


class Variance(ABC):
    """The variance of the data given the state, as a function of the time."""

    @abstractmethod
    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        """The variance :math:`v_t`, in the shape of `t`."""

    def covariance(self, process: SDE, t: Tensor) -> Tensor | None:
        """The covariance of the data given the state, in the mean over states, where it is known: float64 of shape (1,
        D, D) or (B, D, D)."""
        return None


@dataclass(frozen=True)
class NormalVariance(Variance):
    r"""That of independent normal data, :math:`v_t = \sigma_t^2 / (\alpha_t^2 + \sigma_t^2 / s^2)`: the rule of PiGDM.

    Args:
        data_std: the standard deviation s of the data.
    """

    data_std: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.data_std < math.inf:
            raise ValueError(f"NormalVariance needs a finite data_std > 0, got {self.data_std}")

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        var = process.var(t)
        return var / (process.alpha(t).square() + var / self.data_std**2)


@dataclass(frozen=True)
class PilotVariance(Variance):
    r"""Measured values at some :math:`\lambda_t`, between which the logarithm of the ratio to the rule for unit normal
    data is linear; beyond the ends the ratio is that of the end.

    Args:
        log_snr: the places, increasing.
        values: the variances there, above 0.
    """

    log_snr: Sequence[float]
    values: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("log_snr", "values"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        places, values = self.log_snr, self.values
        if not (
            len(places) == len(values) >= 2
            and all(a < b for a, b in itertools.pairwise(places))
            and all(0.0 < value < math.inf for value in values)
        ):
            raise ValueError(
                f"PilotVariance: expected as many variances > 0 as increasing places, two at least, got {places} and "
                f"{values}"
            )

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        here = process.log_snr(t)
        places, values = here.new_tensor(self.log_snr), here.new_tensor(self.values)
        ratio = values.log() + torch.log1p(places.exp())  # of v to 1 / (1 + alpha^2 / sigma^2)
        k = torch.searchsorted(places, here.contiguous()).clamp(1, len(places) - 1)
        share = ((here - places[k - 1]) / (places[k] - places[k - 1])).clamp(0.0, 1.0)
        between = ratio[k - 1] + share * (ratio[k] - ratio[k - 1])
        return (between - torch.log1p(here.exp())).exp()


@dataclass(frozen=True, eq=False)
class PilotCovariance(Variance):
    r"""Measured covariances at some :math:`\lambda_t`, between which their ratio to the variance of unit normal data is
    linear; beyond the ends the ratio is that of the end.

    Args:
        log_snr: the places, increasing.
        values: the covariances there, with shape (n, D, D), positive definite.
    """

    log_snr: Sequence[float]
    values: Tensor

    def __post_init__(self) -> None:
        places, values = tuple(float(place) for place in self.log_snr), self.values.detach().to("cpu", torch.float64)
        object.__setattr__(self, "log_snr", places)
        object.__setattr__(self, "values", values)
        square = values.ndim == 3 and values.shape[1] == values.shape[2] and len(values) == len(places) >= 2
        if not square or not all(a < b for a, b in itertools.pairwise(places)):
            raise ValueError(
                "PilotCovariance: expected as many covariances (D, D) as increasing places, two at least, got "
                f"{tuple(values.shape)} and {places}"
            )
        if not bool((torch.linalg.cholesky_ex(values)[1] == 0).all()):
            raise ValueError("PilotCovariance: expected positive definite covariances")
        object.__setattr__(self, "_means", values.diagonal(dim1=1, dim2=2).mean(1))

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        means: Tensor = vars(self)["_means"]
        return self._between(means, process.log_snr(t)).to(t.device)

    def covariance(self, process: SDE, t: Tensor) -> Tensor:
        return self._between(self.values, process.log_snr(t).reshape(-1))

    def _between(self, values: Tensor, here: Tensor) -> Tensor:
        places, here = values.new_tensor(self.log_snr), here.to("cpu", torch.float64)
        k = torch.searchsorted(places, here.contiguous()).clamp(1, len(places) - 1)
        share = ((here - places[k - 1]) / (places[k] - places[k - 1])).clamp(0.0, 1.0)
        scale = (1.0 + places.exp(), 1.0 / (1.0 + here.exp()))
        shape = (*here.shape, *(1,) * (values.ndim - 1))
        low, high = ((w * scale[0][i] * scale[1]).reshape(shape) for w, i in ((1.0 - share, k - 1), (share, k)))
        return low * values[k - 1] + high * values[k]


@dataclass(frozen=True)
class VarianceGrid(Grid):
    r"""Times that are dense where the state decides about the data, for particles.

    With :math:`\tilde\sigma = \sigma_t/\alpha_t` and :math:`r = v_t / \tilde\sigma^2`, the density of times in
    :math:`\log \tilde\sigma` is :math:`r (1 - r)`, and a ten-thousandth at least. Where r is near 0 the state says
    nothing yet, and where it is near 1 the data is known up to noise that is normal: both cost particles hardly any
    steps.

    Args:
        variance: :math:`v_t`.
    """

    variance: Variance = NormalVariance()

    def decreasing(self, process: SDE, steps: int, high: float, low: float) -> Tensor:
        noisy = bool(process.var(float64(low)) > 0.0)
        ends = process.log_snr(float64([high, low if noisy else low + 1e-6 * (high - low)]))
        places = torch.linspace(ends[0], ends[1], 4097, dtype=torch.float64, device="cpu")
        share = (self.variance(process, process.time(places)) * places.exp()).clamp(0.0, 1.0)
        density = (share * (1.0 - share)).clamp(min=1e-4)
        passed = torch.cat([places.new_zeros(1), (0.5 * (density[1:] + density[:-1])).cumsum(0)])
        wanted = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64, device="cpu") * passed[-1]
        k = torch.searchsorted(passed, wanted).clamp(1, len(places) - 1)
        between = (wanted - passed[k - 1]) / (passed[k] - passed[k - 1])
        return process.time(places[k - 1] + between * (places[k] - places[k - 1]))
