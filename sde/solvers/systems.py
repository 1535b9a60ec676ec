"""The loop of other libraries' adaptive methods, which solve the batch as one system or its samples one by one."""

from __future__ import annotations

__all__ = ["SystemsRun", "advanced", "sample_in"]

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..dynamics import Dynamics, State
from ..noise import StepNoise
from .base import Progress, Run


@dataclass(frozen=True)
class SystemsRun(Run):
    """A run over systems; its memory is the system that is being solved, or None, and the samples of those that wait.

    Args:
        solver: the solver; its `per_sample` says whether every sample is a system.
        dynamics: the dynamics.
        start: the time at the beginning.
        stop: the time at the end.
    """

    solver: Any
    dynamics: Dynamics
    start: float
    stop: float

    def init(self, x: State, noise: StepNoise | None) -> Progress:
        index = torch.arange(len(x[0]), device=x[0].device)
        systems = list(index.split(1)) if self.solver.per_sample else [index]
        return Progress(
            torch.full((len(index),), self.start, dtype=torch.float64, device="cpu"), x, 0, (None, systems), noise
        )

    def finished(self, progress: Progress) -> bool:
        current, waiting = progress.memory
        return current is None and not waiting


def advanced(progress: Progress, index: Tensor, t: float, x: State, memory: Any) -> Progress:
    """The progress with the samples `index` in the state `x` at the time `t`."""
    times = progress.t.index_fill(0, index.cpu(), t)
    state = tuple(a.index_copy(0, index, b) for a, b in zip(progress.x, x))
    return Progress(times, state, progress.k + 1, memory, progress.noise)


def sample_in(index: Tensor) -> str:
    """The sample in a message about the system of the samples `index`, empty for more than one."""
    return f" (sample {int(index)})" if len(index) == 1 else ""
