r"""What the multistep methods share: how they start, and Adams' step.

A method of order p replaces the reading of the network by the polynomial through its last p values, in coordinates
without a linear part (see :mod:`sde.solvers.coordinates`). The first p - 1 steps have fewer values to go by. `Ramp`
takes what there is, which leaves one step of order 1 and an error of order 2 in all; `RungeKuttaStart` spends calls
on them.

Bashforth and Adams 1883; Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I, 1993, section III.1.
"""

from __future__ import annotations

__all__ = ["Multistep", "Ramp", "RungeKuttaStart", "Start", "adams"]

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..dynamics import Dynamics, State
from ..grids import Grid, LogSNR
from ..noise import StepNoise, Stream
from .base import GridSteps, Scalar, Step, drawn, scalars
from .coordinates import Coordinates, Table
from .euler_maruyama import one_entry

# (number of the step, state, its reading) -> the state after the step, or None where the method takes over.
FirstSteps = Callable[[int, State, State], State | None]


class Start(ABC):
    """How a multistep method gets its first values."""

    @abstractmethod
    def refusal(self, dynamics: Dynamics) -> str | None:
        """Why it cannot serve a dynamics, or None."""

    @abstractmethod
    def first(self, coordinates: Coordinates, dynamics: Any, times: Tensor, order: int) -> FirstSteps:
        """The steps that stand in for those of the method."""


@dataclass(frozen=True)
class Ramp(Start):
    """Orders 1, 2, ... in the first steps: no extra calls, and order 2 in all."""

    def refusal(self, dynamics: Dynamics) -> str | None:
        return None

    def first(self, coordinates: Coordinates, dynamics: Any, times: Tensor, order: int) -> FirstSteps:
        return lambda k, state, reading: None


@dataclass(frozen=True)
class RungeKuttaStart(Start):
    """The classical Runge-Kutta method of order 4 in the first steps: three extra calls in each, and full order."""

    def refusal(self, dynamics: Dynamics) -> str | None:
        if dynamics.stochastic:
            return "RungeKuttaStart solves ordinary differential equations, and this dynamics has noise; use Ramp()"
        return None

    def first(self, coordinates: Coordinates, dynamics: Any, times: Tensor, order: int) -> FirstSteps:
        process, count = dynamics.process, min(order - 1, len(times) - 1)
        middles = coordinates.middle(process, times[:count], times[1 : count + 1])
        knots = torch.stack([times[:count], middles, times[1 : count + 1]], 1)
        scale = coordinates.log_scale(process, knots, 0.0)
        clock = coordinates.clock(process, knots)
        change = clock[:, 2] - clock[:, 0]
        halves = scalars(0.5 * change * scale[:, 1].exp())
        wholes = scalars(change * scale[:, 2].exp())

        def step(k: int, state: State, reading: State) -> State | None:
            if k >= count:
                return None
            (_, middle, end), (a, b, c) = knots[k].unbind(), scalars(scale[k])
            second = coordinates.read(
                dynamics, coordinates.move(dynamics, state, b - a, [(halves[k], reading, a - b)]), middle
            )
            third = coordinates.read(
                dynamics, coordinates.move(dynamics, state, b - a, [(halves[k], second, 0.0)]), middle
            )
            fourth = coordinates.read(
                dynamics, coordinates.move(dynamics, state, c - a, [(wholes[k], third, b - c)]), end
            )
            sixth = wholes[k] / 6.0
            terms = [
                (sixth, reading, a - c),
                (2.0 * sixth, second, b - c),
                (2.0 * sixth, third, b - c),
                (sixth, fourth, 0.0),
            ]
            return coordinates.move(dynamics, state, c - a, terms)

        return step


def adams(
    coordinates: Coordinates,
    table: Table,
    weights: list[list[Scalar]],
    order: int,
    start: Start,
    dynamics: Any,
    times: Tensor,
) -> Step:
    """Adams' explicit step: the state moved by the last readings with the weights of the step."""
    first = start.first(coordinates, dynamics, times, order)
    points, before, scale = times.unbind(), times.tolist(), table.log_scales
    spread = coordinates.variance(dynamics.process, times, coordinates.eta(dynamics)).sqrt().tolist()

    def step(k: int, state: State, memory: tuple[State, ...] | None, noise: StepNoise | None) -> tuple[State, Any]:
        readings = (coordinates.read(dynamics, state, points[k]), *(memory or ()))
        moved = first(k, state, readings[0])
        if moved is None:
            terms = [(w, r, scale[k - j] - scale[k + 1]) for j, (w, r) in enumerate(zip(weights[k], readings))]
            moved = coordinates.move(dynamics, state, scale[k + 1] - scale[k], terms)
        if spread[k]:
            z = drawn(noise).normal(Stream.STEP, k, before[k], before[k + 1])
            moved = (moved[0].add(z, alpha=spread[k]),)
        return moved, readings[: order - 1]

    return step


@dataclass(frozen=True)
class Multistep(GridSteps):
    """A method that interpolates its last readings by a polynomial.

    Args:
        steps: the number of steps.
        order: how many readings it uses, 1 to 5.
        start: where the first ones come from.
        grid: the rule for the times.
    """

    order: int = 3
    start: Start = Ramp()
    grid: Grid = field(default=LogSNR(), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.order, bool) or self.order not in range(1, 6):
            raise ValueError(f"{type(self).__name__} has orders 1 to 5, got order={self.order!r}")

    def refusal(self, dynamics: Any) -> str | None:
        if dynamics.stochastic:
            return one_entry(dynamics) or self.start.refusal(dynamics)
        return None
