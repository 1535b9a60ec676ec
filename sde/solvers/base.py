r"""The one interface of all solvers.

A solver is a frozen description of a method. It meets a dynamics in :meth:`Solver.bind`, which refuses what does not
fit before the first network call and computes everything that depends on time alone. The result, a :class:`Run`, has
`init` and `step`; what a multistep method remembers is part of the :class:`Progress` that `step` passes on. Solvers
know no network, no likelihood and no image, count nothing and never touch the grad mode.
"""

from __future__ import annotations

__all__ = ["FixedStep", "GridSteps", "Progress", "Run", "Scalar", "Solver", "Step", "combine", "scalars"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..dynamics import Dynamics, State
from ..grids import Grid, Uniform
from ..noise import StepNoise


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        t: the time of each sample, float64 with shape (B,).
        x: the state, a tuple of tensors of leading size B.
        k: the number of steps taken.
        memory: what the method remembers; its own business.
        noise: where the run draws from, or None for a deterministic one.
    """

    t: Tensor
    x: State
    k: int
    memory: Any
    noise: StepNoise | None


class Run(ABC):
    """A solver bound to a dynamics and two ends of time."""

    @abstractmethod
    def init(self, x: State, noise: StepNoise | None) -> Progress:
        """The beginning of a run at the state `x`."""

    @abstractmethod
    def step(self, progress: Progress) -> Progress:
        """The run one step further; samples that have arrived stay as they are."""

    @abstractmethod
    def finished(self, progress: Progress) -> bool:
        """Whether every sample has arrived."""

    def trajectory(self, x: State, noise: StepNoise | None = None) -> Iterator[tuple[Tensor, State]]:
        """Yields (t, x) at the beginning and after every step, with t of shape (B,)."""
        progress = self.init(x, noise)
        yield progress.t, progress.x
        while not self.finished(progress):
            progress = self.step(progress)
            yield progress.t, progress.x

    def __call__(self, x: State, noise: StepNoise | None = None) -> State:
        """The state at the end."""
        progress = self.init(x, noise)
        while not self.finished(progress):
            progress = self.step(progress)
        return progress.x


class Solver(ABC):
    """A method that moves a state along time through a dynamics.

    Attributes:
        needs: the kind of dynamics it asks for.
        draws: whether it draws noise even where the dynamics has none.
    """

    needs: ClassVar[type] = Dynamics
    draws: ClassVar[bool] = False

    @property
    @abstractmethod
    def eta(self) -> float:
        """The share of noise of the dynamics it is made for, 1 for the reverse SDE, 0 for the flow; `sample` asks."""

    @abstractmethod
    def refusal(self, dynamics: Dynamics) -> str | None:
        """Why this method cannot serve a dynamics of the kind it asks for, or None."""

    @abstractmethod
    def prepare(self, dynamics: Any, start: float, stop: float) -> Run:
        """The run between two times; called by :meth:`bind`."""

    def bind(self, dynamics: Dynamics, start: float | None = None, stop: float | None = None) -> Run:
        """The place where solver and dynamics meet.

        Args:
            dynamics: what to integrate.
            start: the time to begin at, `t_max` by default.
            stop: the time to end at, `t_min` by default; larger than `start` for encoding.

        Raises:
            ValueError: if this method cannot serve this dynamics, or the times are not inside the process's.
        """
        process, name = dynamics.process, type(self).__name__
        process.check_schedule()
        start = process.t_max if start is None else float(start)
        stop = process.t_min if stop is None else float(stop)
        if not isinstance(dynamics, self.needs):
            raise ValueError(
                f"{name} needs a dynamics with the parts of {self.needs.__name__}, got {type(dynamics).__name__}; "
                "use a solver that asks for a drift alone, or give the dynamics those parts"
            )
        reason = self.refusal(dynamics)
        if reason is not None:
            raise ValueError(f"{name} cannot serve this dynamics: {reason}")
        if start == stop or not all(process.t_min <= t <= process.t_max for t in (start, stop)):
            raise ValueError(
                f"{name}: expected two different times within [{process.t_min}, {process.t_max}], "
                f"got start={start}, stop={stop}"
            )
        if (dynamics.stochastic or self.draws) and start < stop:
            raise ValueError(
                f"{name}: sampling with noise runs from large times to small ones, got start={start} < stop={stop}; "
                "encode along the flow (eta=0) with a deterministic solver"
            )
        return self.prepare(dynamics, start, stop)

    def trajectory(
        self,
        dynamics: Dynamics,
        x: State,
        noise: StepNoise | None = None,
        start: float | None = None,
        stop: float | None = None,
    ) -> Iterator[tuple[Tensor, State]]:
        """Binds at once, then yields (t, x) at the beginning and after every step, with t of shape (B,).

        Args:
            dynamics: what to integrate.
            x: the state at `start`, a tuple of tensors of leading size B.
            noise: where the steps draw from; needed by a stochastic dynamics.
            start: as in :meth:`bind`.
            stop: as in :meth:`bind`.
        """
        run = self.bind(dynamics, start, stop)
        if (dynamics.stochastic or self.draws) and noise is None:
            raise ValueError(f"{type(self).__name__} draws noise for this dynamics and needs noise=, got None")
        return run.trajectory(x, noise)

    def __call__(
        self,
        dynamics: Dynamics,
        x: State,
        noise: StepNoise | None = None,
        start: float | None = None,
        stop: float | None = None,
    ) -> State:
        """The state at `stop`; the arguments are those of :meth:`trajectory`."""
        for _, state in self.trajectory(dynamics, x, noise, start, stop):
            last = state
        return last


# One step of a fixed-step method: (number of the step, state, memory, noise) -> (state, memory).
Step = Callable[[int, State, Any, StepNoise | None], tuple[State, Any]]


class FixedStep(Solver):
    """A method on a time grid that is the same for all samples."""

    @abstractmethod
    def times(self, dynamics: Dynamics, start: float, stop: float) -> Tensor:
        """The grid, float64, with both ends."""

    @abstractmethod
    def method(self, dynamics: Any, times: Tensor) -> Step:
        """Computes the coefficients of all steps at once and returns the function that takes one."""

    def prepare(self, dynamics: Dynamics, start: float, stop: float) -> Run:
        times = self.times(dynamics, start, stop)
        return _FixedRun(times, self.method(dynamics, times))


@dataclass(frozen=True)
class GridSteps(FixedStep):
    """A fixed-step method with the usual two settings.

    Args:
        steps: the number of steps.
        grid: the rule for their times.
    """

    steps: int
    grid: Grid = Uniform()

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"{type(self).__name__} needs a whole number of steps >= 1, got steps={self.steps!r}")

    def times(self, dynamics: Dynamics, start: float, stop: float) -> Tensor:
        return self.grid.times(dynamics.process, self.steps, start, stop)


@dataclass(frozen=True)
class _FixedRun(Run):
    times: Tensor
    advance: Step

    def init(self, x: State, noise: StepNoise | None) -> Progress:
        return Progress(self.times[0].expand(len(x[0])), x, 0, None, noise)

    def step(self, progress: Progress) -> Progress:
        x, memory = self.advance(progress.k, progress.x, progress.memory, progress.noise)
        k = progress.k + 1
        return Progress(self.times[k].expand(len(x[0])), x, k, memory, progress.noise)

    def finished(self, progress: Progress) -> bool:
        return progress.k == len(self.times) - 1


def combine(*terms: tuple[float | Tensor, State]) -> State:
    """The linear combination of states, entry by entry: combine((a, x), (b, y)) = a x + b y."""
    return tuple(_sum([c * entry for (c, _), entry in zip(terms, entries)]) for entries in zip(*(s for _, s in terms)))


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def rows(x: State, index: Tensor) -> State:
    """The state of some samples."""
    return tuple(entry[index] for entry in x)


# A coefficient of a step: a number, or a 0-dimensional tensor where gradients flow to the grid.
Scalar = float | Tensor


def scalars(values: Tensor) -> list[Any]:
    """The entries of a vector as numbers, or as tensors where it requires gradients."""
    return list(values.unbind()) if values.requires_grad else values.tolist()


def drawn(noise: StepNoise | None) -> StepNoise:
    """The noise of a step that cannot do without."""
    if noise is None:
        raise ValueError("this step draws noise, but the run was begun with noise=None")
    return noise


def on_grid(times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The time before each step, the time after it, and the step (negative when time runs down)."""
    return times[:-1], times[1:], torch.diff(times)
