r"""The loop of the methods that choose the steps of every sample on its own.

The step of a sample follows from its own error alone, so that its result does not depend on its batch. A sample that
has arrived leaves the batch: no network call is spent on it while others go on. A method says how it attempts a step
and how long the next one is; what is shared is here: the last step, which ends at the end exactly, the selection of
the samples that are still on their way, and what happens to those that fail.
"""

from __future__ import annotations

__all__ = ["Adaptive", "Attempt", "Memory", "check_tolerances"]

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..brownian import along_path
from ..dynamics import Dynamics, State
from ..noise import StepNoise
from .base import Progress, Run, Solver, finite, require_noise, rows


@dataclass(frozen=True)
class Memory:
    """The memory of an adaptive run, for the samples that are still on their way.

    Attributes:
        active: which samples they are, int64.
        dynamics: the dynamics of these samples.
        path: their Brownian paths, or None along the flow.
        h: their next steps, signed.
        slope: the drift at their states.
        rejected: whether their last step was rejected.
        previous: what else the method keeps of their last accepted step, laid out as a state.
    """

    active: Tensor
    dynamics: Dynamics
    path: StepNoise | None
    h: Tensor
    slope: State
    rejected: Tensor
    previous: State

    def select(self, mask: Tensor) -> Memory:
        """The memory of some of these samples."""
        if bool(mask.all()):
            return self
        index = mask.nonzero()[:, 0]
        return Memory(
            self.active[index],
            self.dynamics.select(index) if len(index) else self.dynamics,
            None if self.path is None else self.path.select(index),
            self.h[index],
            rows(self.slope, index),
            self.rejected[index],
            rows(self.previous, index),
        )

    def refreshed(self, x: State, t: Tensor) -> Memory:
        """The memory with the slopes at `x` and `t` of the samples whose last step was accepted."""
        new = (~self.rejected).nonzero()[:, 0]
        if not len(new):
            return self
        dynamics = self.dynamics if len(new) == len(t) else self.dynamics.select(new)
        slope = dynamics.drift(rows(x, new), t[new])
        return replace(self, slope=tuple(a.index_copy(0, new, b) for a, b in zip(self.slope, slope)))


# What Adaptive.attempt returns.
Attempt = tuple[State, Tensor, State | None, State]


class Adaptive(Solver):
    """A method with error control for every sample.

    Attributes:
        rtol: the relative tolerance of a step.
        atol: the absolute tolerance of a step.
        max_steps: the largest number of steps, rejected ones included, that any sample may take.
        on_failure: what happens to a sample that fails: "raise" or "mark".
    """

    rtol: float
    atol: float
    max_steps: int
    on_failure: Literal["raise", "mark"]

    def __post_init__(self) -> None:
        check_tolerances(type(self).__name__, self.rtol, self.atol, self.max_steps, self.on_failure)

    @property
    def name(self) -> str:
        """The method's name in messages."""
        return type(self).__name__

    @abstractmethod
    def begin(self, dynamics: Dynamics, t: Tensor, x: State, slope: State, span: float) -> tuple[Tensor, State]:
        """The first steps, signed with shape (B,), and the memory's `previous` before them.

        Args:
            dynamics: the dynamics.
            t: the time at the start, float64 with shape (B,).
            x: the state there.
            slope: the drift there.
            span: the time from start to end, signed.
        """

    @abstractmethod
    def attempt(self, m: Memory, x: State, t: Tensor, h: Tensor, end: Tensor) -> Attempt:
        """Attempts a step.

        Args:
            m: the memory of the samples that are still on their way.
            x: their states.
            t: their times, float64 with shape (B,).
            h: the steps, signed.
            end: t + h, or the end of the run itself.

        Returns:
            The new state; its error over the tolerance, with shape (B,), which is accepted up to 1; the drift at the
            new state, or None where it is computed for accepted steps alone; and the memory's `previous` after an
            accepted step.
        """

    @abstractmethod
    def next_step(self, m: Memory, t: Tensor, h: Tensor, ratio: Tensor, span: float) -> Tensor:
        """The steps after an attempt, signed; a sample whose step is 0 fails.

        Args:
            m: the memory at the attempt.
            t: the times before it.
            h: its steps.
            ratio: its errors over the tolerance, NaN where the new state is not finite.
            span: as in :meth:`begin`.
        """

    def prepare(self, dynamics: Dynamics, start: float, stop: float) -> Run:
        return _AdaptiveRun(self, dynamics, start, stop)


@dataclass(frozen=True)
class _AdaptiveRun(Run):
    solver: Adaptive
    dynamics: Dynamics
    start: float
    stop: float

    def init(self, x: State, noise: StepNoise | None) -> Progress:
        t = torch.full((len(x[0]),), self.start, dtype=torch.float64, device=x[0].device)
        path = along_path(require_noise(noise)) if self.dynamics.stochastic else None
        slope = self.dynamics.drift(x, t)
        h, previous = self.solver.begin(self.dynamics, t, x, slope, self.stop - self.start)
        active, none = torch.arange(len(t), device=t.device), torch.zeros_like(t, dtype=torch.bool)
        return self._drop_failed(
            Progress(t, x, 0, Memory(active, self.dynamics, path, h, slope, none, previous), noise)
        )

    def finished(self, progress: Progress) -> bool:
        return len(progress.memory.active) == 0

    def step(self, progress: Progress) -> Progress:
        m: Memory = progress.memory
        t, x = progress.t[m.active], rows(progress.x, m.active)
        remaining = self.stop - t
        # A step that would leave less than a hundredth of itself goes to the end.
        last = m.h.abs() * 1.01 >= remaining.abs()
        h = torch.where(last, remaining, m.h)
        end = torch.where(last, self.stop, t + h)
        y, ratio, slope, previous = self.solver.attempt(m, x, t, h, end)
        ratio = torch.where(finite(y), ratio, math.nan)
        accepted = ratio <= 1.0
        h = self.solver.next_step(m, t, h, ratio, self.stop - self.start)
        x, t = _where(accepted, y, x), torch.where(accepted, end, t)
        new_t = progress.t.index_copy(0, m.active, t)
        new_x = tuple(a.index_copy(0, m.active, b) for a, b in zip(progress.x, x))
        m = replace(
            m,
            h=h,
            slope=m.slope if slope is None else _where(accepted, slope, m.slope),
            rejected=~accepted,
            previous=_where(accepted, previous, m.previous),
        ).select(t != self.stop)
        if slope is None:
            m = m.refreshed(rows(new_x, m.active), new_t[m.active])
        return self._drop_failed(Progress(new_t, new_x, progress.k + 1, m, progress.noise))

    def _drop_failed(self, progress: Progress) -> Progress:
        """The progress without the samples that failed: they are marked by NaN, or the first one raises an error."""
        m: Memory = progress.memory
        t = progress.t[m.active]
        unsound = ~(finite(m.slope) & m.h.isfinite())
        stuck = unsound | (t + 0.01 * m.h == t)
        failed = stuck | (progress.k >= self.solver.max_steps)
        which = failed.nonzero()[:, 0]
        if not len(which):
            return progress
        if self.solver.on_failure == "mark":
            x = tuple(entry.index_fill(0, m.active[which], math.nan) for entry in progress.x)
            return replace(progress, x=x, memory=m.select(~failed))
        i = int(which[0])
        sample, when = f"{self.solver.name}: sample {int(m.active[i])} is", f"t={t[i].item():.6g}"
        if bool(stuck[i]):
            why = "no step is small enough for the tolerance, or the drift is not finite just ahead"
            raise FloatingPointError(
                f"{sample} stuck at {when}: {'the drift is not finite there' if bool(unsound[i]) else why}; check the "
                "denoiser at this time, or raise rtol and atol"
            )
        raise FloatingPointError(
            f"{sample} still near {when} after max_steps={self.solver.max_steps} steps; raise max_steps, or rtol and "
            "atol"
        )


def _where(mask: Tensor, yes: State, no: State) -> State:
    return tuple(torch.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b) for a, b in zip(yes, no))


def check_tolerances(name: str, rtol: float, atol: float, max_steps: int, on_failure: str = "raise") -> None:
    """Refuses settings of the adaptive method `name` with which no step could be accepted."""
    if not (rtol > 0.0 and atol > 0.0):
        raise ValueError(f"{name} needs rtol > 0 and atol > 0, got rtol={rtol}, atol={atol}")
    if max_steps < 1:
        raise ValueError(f"{name} needs max_steps >= 1, got max_steps={max_steps}")
    if on_failure not in ("raise", "mark"):
        raise ValueError(f"{name}: on_failure is 'raise' or 'mark', got {on_failure!r}")
