r"""Designed solvers: a multistep method whose numbers are data.

In the coordinate :math:`u = x / \sigma` the flow of any process is :math:`du = x_0\, d(\alpha / \sigma)`. A method with
one call per step that is linear in the predictions of the network is, whatever coordinates it was derived in,

.. math::
    D_k = D(c_k\, x_k, \tau_k), \qquad
    x_{k+1} = \frac{\sigma_{k+1}}{\sigma_k} x_k
        + \Big(\alpha_{k+1} - \alpha_k \frac{\sigma_{k+1}}{\sigma_k}\Big) \sum_{j \le k} a_{kj} D_j,
    \qquad \sum_{j \le k} a_{kj} = 1,

with the denoised data D. The last condition makes it exact for a constant D, and, the method being linear, for a
constant noise in place of :math:`D` as well if it is one in the noise. The rows :math:`a_k` of Adams' methods, of
DPM-Solver++, DEIS and UniPC (their correctors included) are computed by :meth:`Designed.of`; those of
:func:`sde.tune_solver` are learned.

The network may be conditioned on another time :math:`\tau_k` than :math:`t_k`; the state is then scaled by :math:`c_k`.
The log-density follows the path with the same coefficients, or with a quadrature of its own,

.. math:: l_{k+1} = l_k - D \log \frac{\sigma_{k+1}}{\sigma_k} - q_k \nabla_{x} \cdot D(x, \tau_k)\big|_{x = c_k x_k} .

Non-stationary solvers: Shaul et al. 2024, https://arxiv.org/abs/2403.01329; decoupled times: Tong et al. 2024,
https://arxiv.org/abs/2405.15506; learned coefficients: Frankel et al. 2025, https://arxiv.org/abs/2502.17423.
"""

from __future__ import annotations

__all__ = ["Designed"]

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Denoiser, Prediction
from ..dynamics import Reverse, Semilinear, State, linear_combination
from ..noise import StepNoise
from ..processes import SDE
from ..shapes import float64
from .base import FixedRun, FixedStep, Run, Scalar, Solver, Step


@dataclass(frozen=True)
class Designed(Solver):
    """A multistep method in one call per step, given by its numbers; see :mod:`sde.solvers.designed`.

    It is made for one pair of end points and one direction: from `t_max` to `t_min` for samples, from `t_min` to
    `t_max` for latents and likelihoods. It claims no order.

    Args:
        times: the N + 1 times, strictly decreasing or strictly increasing.
        coefficients: N rows; row k has the k + 1 coefficients of the predictions so far, the oldest first, whose sum
            is 1.
        conditioning: the N times on which the network is conditioned; the first N of `times` by default.
        scales: the N factors of the states that the network gets; 1 by default.
        density: the N weights q of the divergences; by default the log-density has the coefficients of the path.
        process: the `repr` of the process that it was designed for; another one is refused. Empty for any.
        origin: what it was designed for, in words.
        conditions: for each condition of whole numbers its name and the values that its pilot had; a run with others
            is warned about. Empty for any.

    Raises:
        ValueError: if the numbers are not finite, do not fit together, or a row does not sum to 1 to 1e-6.
    """

    times: Sequence[float]
    coefficients: Sequence[Sequence[float]]
    conditioning: Sequence[float] | None = None
    scales: Sequence[float] | None = None
    density: Sequence[float] | None = None
    process: str = ""
    origin: str = ""
    conditions: Sequence[tuple[str, Sequence[int]]] = ()

    needs = Semilinear
    fixed = True

    def __post_init__(self) -> None:
        rows = tuple(tuple(map(float, row)) for row in self.coefficients)
        object.__setattr__(self, "coefficients", rows)
        for name in ("times", "conditioning", "scales", "density"):
            values = getattr(self, name)
            object.__setattr__(self, name, None if values is None else tuple(map(float, values)))
        object.__setattr__(self, "conditions", tuple((name, tuple(values)) for name, values in self.conditions))
        n, up = len(rows), len(self.times) > 0 and self.times[-1] > self.times[0]
        pairs = list(zip(self.times, self.times[1:]))
        if not pairs or len(pairs) != n or not all(a < b if up else a > b for a, b in pairs):
            raise ValueError(
                "Designed: expected strictly monotonic times, one more than there are rows of coefficients, got "
                f"{n} rows and times={self.times}"
            )
        for k, row in enumerate(rows):
            if len(row) != k + 1 or not abs(sum(row) - 1.0) <= 1e-6:
                raise ValueError(
                    f"Designed: expected {k + 1} coefficients with the sum 1 in row {k}, got {len(row)} with the sum "
                    f"{sum(row)}"
                )
        for name in ("conditioning", "scales", "density"):
            values = getattr(self, name)
            if values is not None and (len(values) != n or not all(map(math.isfinite, values))):
                raise ValueError(f"Designed: expected {n} finite numbers {name}, got {values}")

    @classmethod
    def of(cls, method: FixedStep, process: SDE, start: float, stop: float, origin: str = "") -> Designed:
        """The designed solver that takes the same path as a plain one.

        Args:
            method: a deterministic exponential method with one call per step, such as :class:`UniPC`.
            process: the process.
            start, stop: the times at which a run starts and ends.
            origin: what it is for, in words.

        Raises:
            ValueError: if the method is of another kind.
        """
        times = method.times(Reverse(Symbols(process), eta=0.0), start, stop)
        rows = method_rows(method, process, times)
        coefficients = [row[: k + 1].tolist() for k, row in enumerate(rows)]
        return cls(times.tolist(), coefficients, process=repr(process), origin=origin)

    @property
    def steps(self) -> int:
        """The number of steps and of network calls."""
        return len(self.coefficients)

    def __str__(self) -> str:
        ends = f"{self.times[0]:.4g} to {self.times[-1]:.4g}"
        density = "" if self.density is None else " with a quadrature for the log-density"
        return f"a designed solver of {self.steps} calls from t={ends}{density}" + (
            f", for {self.origin}" if self.origin else ""
        )

    def incompatibility(self, dynamics: Any) -> str | None:
        if reason := super().incompatibility(dynamics):
            return reason
        if self.process and self.process != repr(dynamics.process):
            return (
                f"it was designed for {self.process}, and this process is {dynamics.process!r}; design another one by "
                "sde.tune_solver"
            )
        return None

    def prepare(self, dynamics: Semilinear, start: float, stop: float) -> Run:
        ends = (self.times[0], self.times[-1])
        if not all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(ends, (start, stop))):
            reverse = math.isclose(ends[0], stop, rel_tol=1e-6) and math.isclose(ends[1], start, rel_tol=1e-6)
            data = ", data=x" if start < stop else ", shape"
            raise ValueError(
                f"this solver was designed to run from t={ends[0]} to t={ends[1]}, and this run is from t={start} to "
                f"t={stop}" + (f": design one for this direction by sde.tune_solver(denoiser{data}, ...)" * reverse)
            )
        self._warn(dynamics.condition)
        times = float64([start, *self.times[1:-1], stop])
        return FixedRun(times, self.step(dynamics, times))

    def _warn(self, condition: Mapping[str, Tensor]) -> None:
        """Warns about whole numbers that the pilot did not have."""
        for name, known in self.conditions:
            values = set(condition[name].flatten().tolist()) if name in condition else {"none"}
            if other := sorted(values.difference(known)):
                warnings.warn(
                    f"this solver was designed for {self.origin}; this run has {name} {', '.join(map(str, other))}, "
                    "for which its error is not known: design one with these conditions by sde.tune_solver",
                    stacklevel=2,
                )

    def step(self, dynamics: Semilinear, times: Tensor) -> Step:
        """The function that takes one step."""
        change, weight, scale = (values.tolist() for values in step_numbers(dynamics.process, times))
        inputs = float64(self.times[:-1] if self.conditioning is None else self.conditioning).unbind()
        factors = [1.0] * self.steps if self.scales is None else self.scales
        weights = [[w * a for a in (*row[:-1], 1.0 - sum(row[:-1]))] for w, row in zip(weight, self.coefficients)]

        def step(
            k: int, state: State, memory: tuple[State, ...] | None, noise: StepNoise | None
        ) -> tuple[State, tuple[State, ...]]:
            newest = predict(dynamics, state, inputs[k], factors[k])
            predictions = (*(memory or ()), newest)
            if self.density is not None:
                return advance(dynamics, state, predictions, change[k], weights[k], self.density[k]), predictions
            # The divergence at t_j moves the log-density as that of u does: times c_j sigma_j / sigma_{k+1}.
            rates = [
                dynamics.rate(p, factors[j] * math.exp(scale[j] - scale[k + 1])) for j, p in enumerate(predictions)
            ]
            moved = dynamics.propagate(state, change[k])
            return linear_combination((1.0, moved), *zip(weights[k], rates)), predictions

        return step


def predict(dynamics: Semilinear, state: State, t: Tensor, factor: Scalar) -> State:
    """The prediction of x0 at the state times a factor; the divergence is that with respect to the scaled state."""
    return dynamics.predict(Prediction.X0, (factor * state[0], *state[1:]), t)


def advance(
    dynamics: Semilinear,
    state: State,
    predictions: Sequence[State],
    change: Scalar,
    weights: Sequence[Scalar],
    density: Scalar,
) -> State:
    """The state after a step: x by weights of the predictions, and the log-density by the newest divergence alone.

    Args:
        dynamics: the dynamics.
        state: the state before the step.
        predictions: all predictions so far.
        change: log sigma after the step less log sigma before it.
        weights: the weights of the predictions of x0.
        density: the weight of the newest divergence.
    """
    still = [dynamics.rate(p, 0.0) for p in predictions]
    alone = linear_combination((1.0, dynamics.rate(predictions[-1], density)), (-1.0, still[-1]))
    return linear_combination((1.0, dynamics.propagate(state, change)), (1.0, alone), *zip(weights, still))


def step_numbers(process: SDE, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Of every step :math:`\log(\sigma_{k+1} / \sigma_k)` and the weight :math:`\alpha_{k+1} - \alpha_k \sigma_{k+1} /
    \sigma_k`, and of every time :math:`\log \sigma`."""
    log_sigma, alpha = 0.5 * process.var(times).log(), process.alpha(times)
    change = log_sigma.diff()
    if not bool(change.isfinite().all()):
        raise ValueError(
            "this method works in units of the noise, which is not finite at a time without noise: the times run from "
            f"{times[0].item()} to {times[-1].item()}; leave out that time"
        )
    return change, alpha[1:] - alpha[:-1] * change.exp(), log_sigma


def method_rows(method: FixedStep, process: SDE, times: Tensor) -> Tensor:
    """The rows of coefficients of a linear method on a grid, with shape (N, N), lower triangular.

    The method runs on vectors of coefficients: the state is a combination of the first state and of the predictions so
    far, and call k returns the unit vector of number k. Gradients flow to `times` where they require them.

    Raises:
        ValueError: if the method has not one call per step, or is not exact for a constant prediction.
    """
    symbols, n = Symbols(process), len(times) - 1
    state: State = (torch.eye(n + 1, dtype=torch.float64, device="cpu")[:1],)
    symbols.units = torch.eye(n + 1, dtype=torch.float64, device="cpu")[1:]
    step, memory = method.method(Reverse(symbols, eta=0.0), times), None
    for k in range(n):
        state, memory = step(k, state, memory, None)
    points = torch.cat([*symbols.states, state[0]])
    if len(points) != n + 1 or not torch.equal(torch.stack(symbols.times), times[:-1]):
        raise ValueError(f"expected a method with one call per step, at its beginning, got {method}")
    change, weight, _ = step_numbers(process, times)
    rows = (points[1:] - change.exp()[:, None] * points[:-1]) / weight[:, None]
    sums = rows[:, 1:].detach().sum(1) - 1.0
    if not bool((sums.abs() < 1e-6).all() and (rows[:, 0].detach() * weight.detach()).abs().max() < 1e-6):
        raise ValueError(f"expected a method that is exact for constant data, such as UniPC or DEIS, got {method}")
    return rows[:, 1:].tril()


class Symbols(Denoiser):
    """A denoiser of vectors of coefficients: call k returns the unit vector of number k, whatever the state."""

    units: Tensor

    def __init__(self, process: SDE) -> None:
        super().__init__()
        self.process, self.states, self.times = process, list[Tensor](), list[Tensor]()

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.states.append(x_t)
        self.times.append(t.detach())
        return self.units[len(self.states) - 1 : len(self.states)]
