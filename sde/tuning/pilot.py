"""Pilot runs, on which grids are tuned."""

from __future__ import annotations

__all__ = ["OutOfTime", "Pilot", "Tuning", "check_pilot", "within"]

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..dynamics import Semilinear, State
from ..shapes import described
from ..solvers import GridSteps


def check_pilot(owner: str, shape: object, seconds: float | None) -> None:
    """Refuses a shape (B, *) or a time that is none."""
    if shape is not None and (not isinstance(shape, Sequence) or isinstance(shape, str) or not shape):
        raise ValueError(f"{owner}: expected a shape (B, *) of the pilot, such as (64, 2), got {described(shape)}")
    if seconds is not None and not (isinstance(seconds, Real) and 0.0 < seconds < math.inf):
        raise ValueError(f"{owner}: expected seconds > 0, or None for no limit, got seconds={described(seconds)}")


class OutOfTime(Exception):
    """The time for tuning is used up."""


@dataclass(frozen=True)
class Pilot:
    """A pilot run: the solver, its initial state, and the error of its final state.

    Attributes:
        dynamics: the flow.
        solver: the solver whose grid is tuned.
        begin: the state at the time `start`.
        start: the initial time.
        stop: the final time.
        loss: maps a final state to its mean square error.
        deadline: the time at which tuning stops, by the clock `time.monotonic`.
        progress: called with the fraction of the tuning that is done.
    """

    dynamics: Semilinear
    solver: GridSteps
    begin: State
    start: float
    stop: float
    loss: Callable[[State], Tensor]
    deadline: float
    progress: Callable[[float], object] = lambda done: None

    def run(self, times: Tensor) -> Tensor:
        """The mean square error on a grid of decreasing times, differentiable in these times.

        Raises:
            OutOfTime: after the deadline.
        """
        points = times if self.start > self.stop else times.flip(0)
        step = self.solver.method(self.dynamics, points)
        state, memory = self.begin, None
        for k in range(len(points) - 1):
            self.check_time()
            if times.requires_grad:
                state, memory = checkpoint(step, k, state, memory, None, use_reentrant=False)
            else:
                state, memory = step(k, state, memory, None)
        return self.loss(state)

    def check_time(self) -> None:
        """Raises :class:`OutOfTime` after the deadline."""
        if time.monotonic() > self.deadline:
            raise OutOfTime


class Tuning(ABC):
    """A method of tuning a grid."""

    @abstractmethod
    def times(self, pilot: Pilot) -> Tensor:
        """The tuned times, decreasing, float64."""


def within(times: Tensor, high: float, low: float) -> Tensor:
    """The same times with exact end points."""
    ends = times.new_tensor([high, low])
    return torch.cat([ends[:1], times[1:-1], ends[1:]])
