r"""The common part of the multistep methods: their first steps, and Adams' step.

A method of order p replaces the prediction of the network by the polynomial through its last p values, in coordinates
without a linear part (see :mod:`sde.solvers.coordinates`). In the first p - 1 steps there are fewer values. `Ramp`
uses those there are, which leaves one step of order 1 and an error of order 2 in all; `RungeKuttaStart` spends calls
on these steps.

Bashforth and Adams 1883; Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I, 1993, section III.1.
"""

from __future__ import annotations

__all__ = ["Multistep", "Ramp", "RungeKuttaStart", "Start"]

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ..dynamics import State
from ..grids import Grid, LogSNR
from ..noise import StepNoise
from .base import GridSteps, Scalar, Step, scalars, step_normals
from .coordinates import Table

# (number of the step, state, its prediction) -> the state after the step, or None where the method takes over.
FirstSteps = Callable[[int, State, State], State | None]


class Start:
    """The first predictions of a multistep method: :class:`Ramp` or :class:`RungeKuttaStart`."""


@dataclass(frozen=True)
class Ramp(Start):
    """Orders 1, 2, ... in the first steps: no extra calls, and order 2 in all."""

    full_order: ClassVar[bool] = False


@dataclass(frozen=True)
class RungeKuttaStart(Start):
    """The classical Runge-Kutta method of order 4 in the first steps: three extra calls in each, and full order."""

    full_order: ClassVar[bool] = True


@dataclass(frozen=True)
class Multistep(GridSteps):
    """A method that interpolates its last predictions by a polynomial.

    Args:
        steps: the number of steps.
        order: the number of predictions it uses, 1 to 5.
        start: how the first ones are obtained.
        grid: the rule for the times.
    """

    order: int = 3
    start: Ramp | RungeKuttaStart = Ramp()
    grid: Grid = field(default=LogSNR(), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.order, bool) or self.order not in range(1, 6):
            raise ValueError(f"{type(self).__name__} has orders 1 to 5, got order={self.order!r}")

    def incompatibility(self, dynamics: Any) -> str | None:
        reason = super().incompatibility(dynamics)
        if reason is None and dynamics.stochastic and self.start.full_order:
            return "RungeKuttaStart solves ordinary differential equations, and this dynamics has noise; use Ramp()"
        return reason

    def adams(self, table: Table, weights: list[list[Scalar]], dynamics: Any) -> Step:
        """Adams' explicit step: the state moved by the last predictions with the weights of the step."""
        predict, first = table.coordinates.predictor(dynamics), self.first_steps(table, dynamics)
        points, normals = table.times.unbind(), step_normals(table.times)
        std = table.coordinates.variance(table.process, table.times, table.eta).sqrt().tolist()

        def step(k: int, state: State, memory: tuple[State, ...] | None, noise: StepNoise | None) -> tuple[State, Any]:
            predictions = (predict(state, points[k]), *(memory or ()))
            moved = first(k, state, predictions[0])
            if moved is None:
                moved = table.move(dynamics, state, k, weights[k], predictions, k)
            if std[k]:
                moved = (moved[0].add(normals(noise, k), alpha=std[k]),)
            return moved, predictions[: self.order - 1]

        return step

    def first_steps(self, table: Table, dynamics: Any) -> FirstSteps:
        """The steps that `start` takes in place of the method."""
        coordinates, process, times = table.coordinates, table.process, table.times
        count = min(self.order - 1, len(times) - 1) if self.start.full_order else 0
        if not count:
            return lambda k, state, prediction: None
        middles, change = coordinates.middle(process, times[:count], times[1 : count + 1])
        knots = torch.stack([times[:count], middles, times[1 : count + 1]], 1)
        scale = coordinates.log_scale(process, knots, 0.0)
        halves = scalars(0.5 * change * scale[:, 1].exp())
        wholes = scalars(change * scale[:, 2].exp())
        predict, move = coordinates.predictor(dynamics), coordinates.move

        def step(k: int, state: State, prediction: State) -> State | None:
            if k >= count:
                return None
            (_, middle, end), (a, b, c) = knots[k].unbind(), scalars(scale[k])
            second = predict(move(dynamics, state, b - a, [(halves[k], prediction, a - b)]), middle)
            third = predict(move(dynamics, state, b - a, [(halves[k], second, 0.0)]), middle)
            fourth = predict(move(dynamics, state, c - a, [(wholes[k], third, b - c)]), end)
            sixth = wholes[k] / 6.0
            terms = [
                (sixth, prediction, a - c),
                (2.0 * sixth, second, b - c),
                (2.0 * sixth, third, b - c),
                (sixth, fourth, 0.0),
            ]
            return move(dynamics, state, c - a, terms)

        return step
