r"""Coordinates without a linear part, and Adams' coefficients in them for any grid.

In suitable coordinates :math:`u = x / s(t)` the dynamics has no linear part: a reading r of the network moves u along a
clock c,

.. math:: du = r\, dc, \qquad u_{k+1} = u_k + \int_{c_k}^{c_{k+1}} r\, dc,

and a multistep method replaces r by the polynomial through its last p values. With :math:`\lambda = \log(\alpha /
\sigma)`, half the log-SNR, and a share of noise :math:`\eta`, there are three such coordinates:

=================  ==================================  =========================================  =====================
reading            s                                   c                                          variance of the noise
=================  ==================================  =========================================  =====================
drift              1                                   t                                          none (:math:`\eta=0`)
noise              :math:`\alpha`                      :math:`(1+\eta^2)\, e^{-\lambda}`          see below
:math:`x_0`        :math:`\sigma e^{-\eta^2\lambda}`   :math:`e^{(1+\eta^2)\lambda}`              see below
=================  ==================================  =========================================  =====================

Over a step with :math:`h = \lambda_{k+1} - \lambda_k` the reverse SDE adds to x a noise of variance :math:`\eta^2
\sigma_{k+1}^2 (e^{2h} - 1)` in the coordinates of the noise, and :math:`\sigma_{k+1}^2 (1 - e^{-2\eta^2 h})` in those
of :math:`x_0`. The log-density goes along, see :mod:`sde.dynamics`.

The variable of the polynomial is free: :class:`sde.solvers.LogNoise` or :class:`sde.solvers.Arcsinh`. The weights of
the values are integrals of Lagrange's polynomials over the clock, taken by Gauss's quadrature in :math:`\lambda`; they
are exact to rounding for every grid, and all of a grid are computed at once.

Bashforth and Adams 1883; Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I, 1993, section III.5;
Zhang and Chen 2023, https://arxiv.org/abs/2204.13902; Lu et al. 2022, https://arxiv.org/abs/2211.01095.
"""

from __future__ import annotations

__all__ = [
    "Arcsinh",
    "LogNoise",
    "Variable",
    "Coordinates",
    "DataCoordinates",
    "DriftCoordinates",
    "NoiseCoordinates",
    "Table",
    "exponential",
]

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..denoisers import Prediction
from ..dynamics import Dynamics, Semilinear, State
from ..processes import SDE
from .base import Scalar, combine, scalars

# With 24 nodes the integral of a polynomial times e^lambda over a step of 10 is exact to 1e-14.
_NODES, _MASSES = (torch.from_numpy(0.5 * values) for values in np.polynomial.legendre.leggauss(24))


class Variable(ABC):
    """The variable in which the readings are interpolated by polynomials."""

    @abstractmethod
    def of(self, half_log_snr: Tensor) -> Tensor:
        r"""The variable at :math:`\lambda`, in its shape: a smooth and strictly monotonic function."""


@dataclass(frozen=True)
class LogNoise(Variable):
    r"""The logarithm of the noise level, :math:`w = -\lambda` (Lu et al. 2022)."""

    def of(self, half_log_snr: Tensor) -> Tensor:
        return -half_log_snr


@dataclass(frozen=True)
class Arcsinh(Variable):
    r"""The variable :math:`w = \operatorname{arcsinh}(e^{-\lambda} / \mathrm{data\_std})`.

    It is the logarithm of the noise level above the spread of the data and the noise level itself below: there
    :math:`x_0` has a limit, which it approaches smoothly in the noise level and not in its logarithm.

    Args:
        data_std: where one turns into the other; the standard deviation of the data is a good choice.
    """

    data_std: float = 0.5

    def __post_init__(self) -> None:
        if not self.data_std > 0.0:
            raise ValueError(f"Arcsinh needs data_std > 0, got data_std={self.data_std}")

    def of(self, half_log_snr: Tensor) -> Tensor:
        return torch.asinh((-half_log_snr).exp() / self.data_std)


class Coordinates(ABC):
    """Coordinates without a linear part. `pace` and `clock` are functions of a parameter that the time determines."""

    needs: ClassVar[type]

    @abstractmethod
    def eta(self, dynamics: Any) -> float:
        """The share of noise of a dynamics."""

    @abstractmethod
    def parameter(self, process: SDE, t: Tensor) -> Tensor:
        """The parameter at time t."""

    @abstractmethod
    def variable(self, variable: Variable, parameter: Tensor) -> Tensor:
        """The variable of the polynomials at a parameter."""

    @abstractmethod
    def pace(self, parameter: Tensor, eta: float) -> Tensor:
        """The derivative of the clock with respect to the parameter."""

    @abstractmethod
    def log_scale(self, process: SDE, t: Tensor, eta: float) -> Tensor:
        """log s(t)."""

    @abstractmethod
    def variance(self, process: SDE, times: Tensor, eta: float) -> Tensor:
        """For every step the variance of the noise that it adds to x."""

    @abstractmethod
    def clock(self, process: SDE, t: Tensor) -> Tensor:
        """The clock of the flow, for which eta is 0."""

    @abstractmethod
    def middle(self, process: SDE, before: Tensor, after: Tensor) -> Tensor:
        """The times at which the clock of the flow is half-way between those of two others."""

    @abstractmethod
    def read(self, dynamics: Any, state: State, t: Tensor) -> State:
        """The reading, in the layout of the state."""

    @abstractmethod
    def move(
        self, dynamics: Any, state: State, log_scale: Scalar, terms: Sequence[tuple[Scalar, State, Scalar]]
    ) -> State:
        """The state at the end of a step, moved by readings.

        Args:
            dynamics: the dynamics.
            state: the state at the beginning.
            log_scale: log s at the end less log s at the beginning.
            terms: for each reading its weight, which is the change of the clock that it stands for times s at the end,
                the reading itself, and log s where it was taken less log s at the end.
        """


class DriftCoordinates(Coordinates):
    """The state as it is, moved by its drift along t."""

    needs: ClassVar[type] = Dynamics

    def eta(self, dynamics: Dynamics) -> float:
        return 0.0

    def parameter(self, process: SDE, t: Tensor) -> Tensor:
        return t

    def variable(self, variable: Variable, parameter: Tensor) -> Tensor:
        return parameter

    def pace(self, parameter: Tensor, eta: float) -> Tensor:
        return torch.ones_like(parameter)

    def log_scale(self, process: SDE, t: Tensor, eta: float) -> Tensor:
        return torch.zeros_like(t)

    def variance(self, process: SDE, times: Tensor, eta: float) -> Tensor:
        return torch.zeros_like(times[1:])

    def clock(self, process: SDE, t: Tensor) -> Tensor:
        return t

    def middle(self, process: SDE, before: Tensor, after: Tensor) -> Tensor:
        return 0.5 * (before + after)

    def read(self, dynamics: Dynamics, state: State, t: Tensor) -> State:
        return dynamics.drift(state, t)

    def move(
        self, dynamics: Dynamics, state: State, log_scale: Scalar, terms: Sequence[tuple[Scalar, State, Scalar]]
    ) -> State:
        return combine((1.0, state), *((weight, reading) for weight, reading, _ in terms))


class _SemilinearCoordinates(Coordinates):
    """What the two exponential coordinates share; the parameter is lambda."""

    needs: ClassVar[type] = Semilinear

    def eta(self, dynamics: Semilinear) -> float:
        return dynamics.eta

    def parameter(self, process: SDE, t: Tensor) -> Tensor:
        return 0.5 * process.log_snr(t)

    def variable(self, variable: Variable, parameter: Tensor) -> Tensor:
        return variable.of(parameter)

    def move(
        self, dynamics: Semilinear, state: State, log_scale: Scalar, terms: Sequence[tuple[Scalar, State, Scalar]]
    ) -> State:
        rates = ((weight, dynamics.rate(reading, exponential(log_ratio))) for weight, reading, log_ratio in terms)
        return combine((1.0, dynamics.propagate(state, log_scale)), *rates)


class NoiseCoordinates(_SemilinearCoordinates):
    r"""u = x / alpha, moved by the noise."""

    def pace(self, parameter: Tensor, eta: float) -> Tensor:
        return -(1.0 + eta**2) * (-parameter).exp()

    def log_scale(self, process: SDE, t: Tensor, eta: float) -> Tensor:
        return process.log_alpha(t)

    def variance(self, process: SDE, times: Tensor, eta: float) -> Tensor:
        return eta**2 * process.var(times[1:]) * torch.expm1(process.log_snr(times).diff())

    def clock(self, process: SDE, t: Tensor) -> Tensor:
        return (-0.5 * process.log_snr(t)).exp()

    def middle(self, process: SDE, before: Tensor, after: Tensor) -> Tensor:
        return process.time(-2.0 * (0.5 * (self.clock(process, before) + self.clock(process, after))).log())

    def read(self, dynamics: Semilinear, state: State, t: Tensor) -> State:
        return dynamics.predict(Prediction.NOISE, state, t)


class DataCoordinates(_SemilinearCoordinates):
    r"""u = x / (sigma exp(-eta^2 lambda)), moved by x0."""

    def pace(self, parameter: Tensor, eta: float) -> Tensor:
        return (1.0 + eta**2) * ((1.0 + eta**2) * parameter).exp()

    def log_scale(self, process: SDE, t: Tensor, eta: float) -> Tensor:
        return 0.5 * process.var(t).log() - 0.5 * eta**2 * process.log_snr(t)

    def variance(self, process: SDE, times: Tensor, eta: float) -> Tensor:
        return -process.var(times[1:]) * torch.expm1(-(eta**2) * process.log_snr(times).diff())

    def clock(self, process: SDE, t: Tensor) -> Tensor:
        return (0.5 * process.log_snr(t)).exp()

    def middle(self, process: SDE, before: Tensor, after: Tensor) -> Tensor:
        return process.time(2.0 * (0.5 * (self.clock(process, before) + self.clock(process, after))).log())

    def read(self, dynamics: Semilinear, state: State, t: Tensor) -> State:
        return dynamics.predict(Prediction.X0, state, t)


class Table:
    """The coefficients of a multistep method on one grid, computed at once.

    Args:
        coordinates: where the method is Adams'.
        variable: the variable of its polynomials.
        process: the process.
        times: the grid, float64 with shape (N + 1,); gradients flow from the coefficients to it.
        eta: the share of noise.
    """

    def __init__(
        self, coordinates: Coordinates, variable: Variable, process: SDE, times: Tensor, eta: float = 0.0
    ) -> None:
        self.parameter = coordinates.parameter(process, times)
        if not bool(self.parameter.isfinite().all()):
            raise ValueError(
                "this method works in the logarithm of the noise level, which has no value where the process has no "
                f"noise (or no signal): the grid runs from {times[0].item()} to {times[-1].item()}; stay clear of it"
            )
        self.scale = coordinates.log_scale(process, times, eta)
        h = self.parameter.diff()[:, None]
        inner = self.parameter[:-1, None] + h * (0.5 + _NODES)
        self.measure = h * _MASSES * coordinates.pace(inner, eta) * self.scale[1:, None].exp()
        self.points, self.inner = coordinates.variable(variable, self.parameter), coordinates.variable(variable, inner)
        self.log_scales = scalars(self.scale)

    def weights(self, order: int, *, ahead: bool = False) -> list[list[Scalar]]:
        """For every step the weights of the last values, the newest first: min(order, k + 1) of them in step k.

        With `ahead` the value at the end of the step stands before them.
        """
        rows: list[list[Scalar]] = []
        steps = len(self.measure)
        for p in range(1, min(order, steps) + 1):
            k = torch.arange(p - 1, steps if p == order else p)
            newest = 1 if ahead else 0
            index = k[:, None] + torch.arange(newest, -p, -1)
            points, inner = self.points[index], self.inner[k]
            columns = []
            for j in range(index.shape[1]):
                basis = self.measure[k]
                for i in range(index.shape[1]):
                    if i != j:
                        basis = basis * (inner - points[:, i, None]) / (points[:, j, None] - points[:, i, None])
                columns.append(basis.sum(1))
            rows += [list(row) for row in zip(*map(scalars, columns))]
        return rows


def exponential(x: Scalar) -> Scalar:
    """e^x of a number or a tensor."""
    return x.exp() if isinstance(x, Tensor) else math.exp(x)
