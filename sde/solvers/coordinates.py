r"""Coordinates without a linear part, and Adams' coefficients in them for any grid.

In suitable coordinates :math:`u = x / s(t)` the dynamics has no linear part: a prediction r moves u along an
integration variable c,

.. math:: du = r\, dc, \qquad u_{k+1} = u_k + \int_{c_k}^{c_{k+1}} r\, dc,

and a multistep method replaces r by the polynomial through its last p values. With :math:`\lambda = \log(\alpha /
\sigma)`, half the log-SNR, and the stochasticity :math:`\eta`, there are three such coordinates:

=================  ==================================  =========================================  =====================
prediction         s                                   c                                          variance of the noise
=================  ==================================  =========================================  =====================
drift              1                                   t                                          none (:math:`\eta=0`)
noise              :math:`\alpha`                      :math:`(1+\eta^2)\, e^{-\lambda}`          see below
:math:`x_0`        :math:`\sigma e^{-\eta^2\lambda}`   :math:`e^{(1+\eta^2)\lambda}`              see below
=================  ==================================  =========================================  =====================

Over a step with :math:`h = \lambda_{k+1} - \lambda_k` the reverse SDE adds to x a noise of variance :math:`\eta^2
\sigma_{k+1}^2 (e^{2h} - 1)` in the coordinates of the noise, and :math:`\sigma_{k+1}^2 (1 - e^{-2\eta^2 h})` in those
of :math:`x_0`. The log-density follows, see :mod:`sde.dynamics`.

The variable of the polynomial is free: :class:`sde.solvers.LogNoise` or :class:`sde.solvers.Arcsinh`. The weights of
the values are integrals of Lagrange's polynomials over the integration variable, taken by Gauss's quadrature in
:math:`\lambda`; they are exact to rounding for every grid, and all of a grid are computed at once.

Bashforth and Adams 1883; Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I, 1993, section III.5;
Zhang and Chen 2023, https://arxiv.org/abs/2204.13902; Lu et al. 2022, https://arxiv.org/abs/2211.01095.
"""

from __future__ import annotations

__all__ = [
    "Variable",
    "Arcsinh",
    "LogNoise",
    "Coordinates",
    "DataCoordinates",
    "DriftCoordinates",
    "NoiseCoordinates",
    "Table",
    "exponential",
]

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..denoisers import Prediction
from ..dynamics import Dynamics, Semilinear, State
from ..processes import SDE
from .base import Scalar, linear_combination, scalars

# With 24 nodes the integral of a polynomial times e^lambda over a step of 10 is exact to 1e-14.
_NODES, _MASSES = (torch.from_numpy(0.5 * values) for values in np.polynomial.legendre.leggauss(24))


class Variable:
    """The variable of the interpolating polynomials: :class:`LogNoise` or :class:`Arcsinh`."""


@dataclass(frozen=True)
class LogNoise(Variable):
    r"""The logarithm of the noise level as the variable of interpolation, :math:`w = -\lambda` (Lu et al. 2022)."""

    def of(self, half_log_snr: Tensor) -> Tensor:
        r"""The variable at :math:`\lambda`, in its shape."""
        return -half_log_snr


@dataclass(frozen=True)
class Arcsinh(Variable):
    r"""The variable of interpolation :math:`w = \operatorname{arcsinh}(e^{-\lambda} / \mathrm{data\_std})`.

    It is the logarithm of the noise level above the standard deviation of the data and the noise level itself below:
    there :math:`x_0` has a limit, which it approaches smoothly in the noise level and not in its logarithm.

    Args:
        data_std: where one turns into the other; the standard deviation of the data is a good choice.
    """

    data_std: float = 0.5

    def __post_init__(self) -> None:
        if not self.data_std > 0.0:
            raise ValueError(f"Arcsinh needs data_std > 0, got data_std={self.data_std}")

    def of(self, half_log_snr: Tensor) -> Tensor:
        r"""The variable at :math:`\lambda`, in its shape."""
        return torch.asinh((-half_log_snr).exp() / self.data_std)


# The predictions that move a state, each with its weight and its scale: see Coordinates.move.
Terms = Sequence[tuple[Scalar, State, Scalar]]


class Coordinates(ABC):
    """Coordinates without a linear part; their functions of time are functions of a parameter."""

    @abstractmethod
    def parameter(self, process: SDE, t: Tensor) -> Tensor:
        """The parameter at time t."""

    @abstractmethod
    def derivative(self, parameter: Tensor, eta: float) -> Tensor:
        """The derivative of the integration variable with respect to the parameter."""

    @abstractmethod
    def log_scale(self, process: SDE, t: Tensor, eta: float) -> Tensor:
        """log s(t)."""

    @abstractmethod
    def middle(self, process: SDE, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """The times half-way between two others in the integration variable of the flow (eta = 0), and the change of
        that variable from `before` to `after`."""

    @abstractmethod
    def predictor(self, dynamics: Any) -> Callable[[State, Tensor], State]:
        """The function (state, t) -> prediction, in the layout of the state."""

    @abstractmethod
    def move(self, dynamics: Any, state: State, log_scale: Scalar, terms: Terms) -> State:
        """The state at the end of a step.

        Args:
            dynamics: the dynamics.
            state: the state at the beginning.
            log_scale: log s at the end less log s at the beginning.
            terms: for each prediction its weight, a part of the change of the integration variable times s at the end;
                the prediction; and log s at its time less log s at the end.
        """

    def variance(self, process: SDE, times: Tensor, eta: float) -> Tensor:
        """For every step the variance of the noise that it adds to x; none by default."""
        return torch.zeros_like(times[1:])


class DriftCoordinates(Coordinates):
    """The state itself, moved by its drift along t."""

    def parameter(self, process: SDE, t: Tensor) -> Tensor:
        return t

    def derivative(self, parameter: Tensor, eta: float) -> Tensor:
        return torch.ones_like(parameter)

    def log_scale(self, process: SDE, t: Tensor, eta: float) -> Tensor:
        return torch.zeros_like(t)

    def middle(self, process: SDE, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * (before + after), after - before

    def predictor(self, dynamics: Dynamics) -> Callable[[State, Tensor], State]:
        return dynamics.drift

    def move(self, dynamics: Dynamics, state: State, log_scale: Scalar, terms: Terms) -> State:
        return linear_combination((1.0, state), *((weight, prediction) for weight, prediction, _ in terms))


class _SemilinearCoordinates(Coordinates):
    """The common part of the two exponential coordinates; the parameter is lambda.

    Attributes:
        what: the prediction.
        sign: the integration variable of the flow is exp(sign lambda).
    """

    what: ClassVar[Prediction]
    sign: ClassVar[float]

    def parameter(self, process: SDE, t: Tensor) -> Tensor:
        return 0.5 * process.log_snr(t)

    def middle(self, process: SDE, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        start, end = ((0.5 * self.sign * process.log_snr(t)).exp() for t in (before, after))
        return process.time(2.0 * self.sign * (0.5 * (start + end)).log()), end - start

    def predictor(self, dynamics: Semilinear) -> Callable[[State, Tensor], State]:
        return partial(dynamics.predict, self.what)

    def move(self, dynamics: Semilinear, state: State, log_scale: Scalar, terms: Terms) -> State:
        rates = ((weight, dynamics.rate(value, exponential(log_ratio))) for weight, value, log_ratio in terms)
        return linear_combination((1.0, dynamics.propagate(state, log_scale)), *rates)


class NoiseCoordinates(_SemilinearCoordinates):
    r"""u = x / alpha, moved by the noise."""

    what = Prediction.NOISE
    sign = -1.0

    def derivative(self, parameter: Tensor, eta: float) -> Tensor:
        return -(1.0 + eta**2) * (-parameter).exp()

    def log_scale(self, process: SDE, t: Tensor, eta: float) -> Tensor:
        return process.log_alpha(t)

    def variance(self, process: SDE, times: Tensor, eta: float) -> Tensor:
        return eta**2 * process.var(times[1:]) * torch.expm1(process.log_snr(times).diff())


class DataCoordinates(_SemilinearCoordinates):
    r"""u = x / (sigma exp(-eta^2 lambda)), moved by x0."""

    what = Prediction.X0
    sign = 1.0

    def derivative(self, parameter: Tensor, eta: float) -> Tensor:
        return (1.0 + eta**2) * ((1.0 + eta**2) * parameter).exp()

    def log_scale(self, process: SDE, t: Tensor, eta: float) -> Tensor:
        return 0.5 * process.var(t).log() - 0.5 * eta**2 * process.log_snr(t)

    def variance(self, process: SDE, times: Tensor, eta: float) -> Tensor:
        return -process.var(times[1:]) * torch.expm1(-(eta**2) * process.log_snr(times).diff())


class Table:
    """The coefficients of a multistep method on one grid, computed at once.

    Args:
        coordinates: the coordinates.
        variable: the variable of the polynomials as a function of the parameter, smooth and strictly monotonic.
        process: the process.
        times: the grid, float64 with shape (N + 1,); gradients flow from the coefficients to it.
        eta: the stochasticity.
    """

    def __init__(
        self,
        coordinates: Coordinates,
        variable: Callable[[Tensor], Tensor],
        process: SDE,
        times: Tensor,
        eta: float = 0.0,
    ) -> None:
        self.coordinates, self.process, self.times, self.eta = coordinates, process, times, eta
        self.parameter = coordinates.parameter(process, times)
        if not bool(self.parameter.isfinite().all()):
            raise ValueError(
                "this method works in the logarithm of the noise level, which is not finite at a time without noise "
                f"(or without signal): the grid runs from {times[0].item()} to {times[-1].item()}; leave out that time"
            )
        self.scale = coordinates.log_scale(process, times, eta)
        h = self.parameter.diff()[:, None]
        inner = self.parameter[:-1, None] + h * (0.5 + _NODES)
        self.measure = h * _MASSES * coordinates.derivative(inner, eta) * self.scale[1:, None].exp()
        self.points, self.inner = variable(self.parameter), variable(inner)
        self.log_scales = scalars(self.scale)

    def weights(self, order: int, *, ahead: bool = False) -> list[list[Scalar]]:
        """For every step the weights of the last values, the newest first: min(order, k + 1) of them in step k.

        With `ahead` the value at the end of the step stands before them.
        """
        rows: list[list[Scalar]] = []
        steps = len(self.measure)
        for p in range(1, min(order, steps) + 1):
            k = torch.arange(p - 1, steps if p == order else p, device="cpu")
            newest = 1 if ahead else 0
            index = k[:, None] + torch.arange(newest, -p, -1, device="cpu")
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

    def move(
        self, dynamics: Any, state: State, k: int, weights: Sequence[Scalar], predictions: Sequence[State], newest: int
    ) -> State:
        """The state after step k.

        Args:
            dynamics: the dynamics.
            state: the state before the step.
            k: the number of the step.
            weights: those of the step.
            predictions: the predictions, the newest first.
            newest: the position on the grid of the newest prediction.
        """
        scale = self.log_scales
        terms = [(w, p, scale[newest - j] - scale[k + 1]) for j, (w, p) in enumerate(zip(weights, predictions))]
        return self.coordinates.move(dynamics, state, scale[k + 1] - scale[k], terms)


def exponential(x: Scalar) -> Scalar:
    """e^x of a number or a tensor."""
    return x.exp() if isinstance(x, Tensor) else math.exp(x)
