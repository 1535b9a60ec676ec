"""A pilot run, which a design of a grid may try grids on."""

from __future__ import annotations

__all__ = ["Pilot", "Tuning", "within"]

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..dynamics import Semilinear, State
from ..solvers import GridSteps


@dataclass(frozen=True)
class Pilot:
    """A pilot run: where it starts, where it should end, and how far off an end is.

    Attributes:
        dynamics: the flow.
        solver: the solver to be tuned.
        begin: the state at `start`.
        start: the time of the beginning.
        stop: the time of the end.
        loss: the mean square error of a final state.
        deadline: when to stop, by `time.monotonic`.
    """

    dynamics: Semilinear
    solver: GridSteps
    begin: State
    start: float
    stop: float
    loss: Callable[[State], Tensor]
    deadline: float

    def run(self, times: Tensor) -> Tensor:
        """The mean square error on a grid of decreasing times; gradients flow to it."""
        points = times if self.start > self.stop else times.flip(0)
        step = self.solver.method(self.dynamics, points)
        state, memory = self.begin, None
        for k in range(len(points) - 1):
            if times.requires_grad:
                state, memory = checkpoint(step, k, state, memory, None, use_reentrant=False)
            else:
                state, memory = step(k, state, memory, None)
        return self.loss(state)


class Tuning(ABC):
    """A way to design a grid."""

    @abstractmethod
    def times(self, pilot: Pilot) -> Tensor:
        """The designed times, decreasing, float64."""


def within(times: Tensor, high: float, low: float) -> Tensor:
    """The same times with the ends exact."""
    ends = times.new_tensor([high, low])
    return torch.cat([ends[:1], times[1:-1], ends[1:]])
