r"""The interface of all solvers, and what the methods share.

A solver is a frozen description of a method. :meth:`Solver.bind` joins it to a dynamics: it refuses what does not fit
before the first network call, and computes everything that depends on time alone. The result, a :class:`Run`, has
`init` and `step`; the memory of a multistep method is part of the :class:`Progress` that `step` passes on. Solvers
know no network, no likelihood and no image, count nothing and never touch the grad mode.
"""

from __future__ import annotations

__all__ = [
    "FixedRun",
    "FixedStep",
    "GridSteps",
    "OneStep",
    "Progress",
    "Run",
    "SDESolver",
    "Scalar",
    "Solver",
    "Step",
    "affine_step",
    "combine",
    "finite",
    "intervals",
    "linear_combination",
    "require_noise",
    "rows",
    "scalars",
    "step_normals",
]

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..denoisers import Prediction
from ..dynamics import Dynamics, Semilinear, State, finite, linear_combination, rows
from ..grids import Grid, Uniform
from ..noise import StepNoise, Stream
from ..shapes import check_count, check_kind, working


@dataclass(frozen=True)
class Progress:
    """The state of a run.

    Attributes:
        t: the time of each sample, float64 with shape (B,).
        x: the state, a tuple of tensors of leading size B.
        k: the number of steps taken.
        memory: what the method remembers; private to it.
        noise: where the run draws from, or None for a deterministic one.
    """

    t: Tensor
    x: State
    k: int
    memory: Any
    noise: StepNoise | None


class Run(ABC):
    """A solver bound to a dynamics and an interval of time."""

    @property
    def steps(self) -> int | None:
        """The number of steps, if it is known before the first one."""
        return None

    @abstractmethod
    def init(self, x: State, noise: StepNoise | None) -> Progress:
        """The progress before the first step, from the state `x`."""

    @abstractmethod
    def step(self, progress: Progress) -> Progress:
        """The progress after one more step; samples that have arrived stay as they are."""

    @abstractmethod
    def finished(self, progress: Progress) -> bool:
        """Whether every sample has arrived."""

    def trajectory(self, x: State, noise: StepNoise | None = None) -> Iterator[tuple[Tensor, State]]:
        """Yields (t, x) before the first step and after every step, with t of shape (B,).

        The state is in float32 at least, and is rounded to the dtypes of `x` where it is yielded.
        """
        for progress in self.walk(x, noise):
            yield progress.t, tuple(entry.to(original.dtype) for entry, original in zip(progress.x, x))

    def __call__(self, x: State, noise: StepNoise | None = None) -> State:
        """The state at the end."""
        return deque(self.trajectory(x, noise), maxlen=1).pop()[1]

    def walk(self, x: State, noise: StepNoise | None = None) -> Iterator[Progress]:
        """Yields the progress before the first step and after every step, with the state in float32 at least."""
        progress = self.init(tuple(map(working, x)), noise)
        yield progress
        while not self.finished(progress):
            progress = self.step(progress)
            yield progress

    def outcome(self, progress: Progress) -> dict[str, Tensor]:
        """The results of a finished run beside the state, by name: fields of :class:`sde.Samples`, of shape (B,)."""
        return {}


class Solver(ABC):
    """A method that moves a state along time through a dynamics.

    The class attributes say what a method serves, and :meth:`bind` checks them. By default it is one for ODEs.

    Attributes:
        needs: the kind of dynamics that it needs.
        serves_noise: whether it serves a dynamics with noise.
        serves_log_density: whether it moves every entry of a state, the log-density included.
        fixed: whether its steps are the same whatever the state, so that it has no tolerances.
        imposes: whether it imposes a measurement that the denoiser leaves to it.
        atol: the absolute tolerance of a step; infinite for a method without one.
    """

    needs: ClassVar[type] = Dynamics
    serves_noise: ClassVar[bool] = False
    serves_log_density: ClassVar[bool] = True
    fixed: ClassVar[bool] = False
    imposes: ClassVar[bool] = False
    atol: float = math.inf

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "refusal" in vars(cls):  # a solver of version 0.1.0, which says there all that it does not serve
            cls.serves_noise = True

    @property
    def eta(self) -> float:
        """The stochasticity of the dynamics that `sample` gives it: 1 for the reverse SDE, 0 for the flow."""
        return 0.0

    @property
    def draws(self) -> bool:
        """Whether it draws noise even where the dynamics has none."""
        return False

    @property
    def population(self) -> int:
        """The states that it moves for each sample; with more than one it starts from states of shape (B, n, \\*)."""
        return 1

    @abstractmethod
    def prepare(self, dynamics: Any, start: float, stop: float) -> Run:
        """The run between two times; called by :meth:`Solver.bind`."""

    def incompatibility(self, dynamics: Any) -> str | None:
        """The reason why this method cannot serve a dynamics, or None; a method with further reasons extends it."""
        noise = dynamics.stochastic
        if len(dynamics.tolerances) > 1 and (noise or self.draws or not self.serves_log_density):
            return "it moves x alone, and this state carries the log-density too; use an ODE solver for likelihoods"
        if not isinstance(dynamics, self.needs):
            return (
                f"it needs the parts of {self.needs.__name__}, got {type(dynamics).__name__}; use a solver that needs "
                "a drift alone, or give the dynamics those parts"
            )
        if noise and not self.serves_noise:
            return "it solves ordinary differential equations, and this dynamics has noise; use the flow, eta=0"
        return self.refusal(dynamics)

    def finer(self, calls: int) -> Solver | None:
        """The same method with a smaller error, from which the error of this one is estimated; None if there is none.

        With fixed steps it has twice as many. An adaptive one has a tenth of the tolerances, and marks the samples that
        would take many more than `calls` calls.
        """
        return None

    def refusal(self, dynamics: Any) -> str | None:
        """The reasons of a solver of version 0.1.0; others extend :meth:`incompatibility`."""
        return None

    def bind(self, dynamics: Dynamics, start: float | None = None, stop: float | None = None) -> Run:
        """Joins the solver to a dynamics.

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
        reason = self.incompatibility(dynamics)
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
        """Binds at once, then yields (t, x) before the first step and after every step, with t of shape (B,).

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
        return deque(self.trajectory(dynamics, x, noise, start, stop), maxlen=1).pop()[1]


class SDESolver(Solver):
    """A method for the reverse SDE, which moves x alone."""

    eta = 1.0
    serves_noise = True
    serves_log_density = False


# One step of a fixed-step method: (number of the step, state, memory, noise) -> (state, memory).
Step = Callable[[int, State, Any, StepNoise | None], tuple[State, Any]]


class FixedStep(Solver):
    """A method on a time grid that is the same for all samples."""

    fixed = True

    @abstractmethod
    def times(self, dynamics: Dynamics, start: float, stop: float) -> Tensor:
        """The grid, float64, with both ends."""

    @abstractmethod
    def method(self, dynamics: Any, times: Tensor) -> Step:
        """Computes the coefficients of all steps at once and returns the function that takes one step."""

    def prepare(self, dynamics: Dynamics, start: float, stop: float) -> Run:
        times = self.times(dynamics, start, stop)
        return FixedRun(times, self.method(dynamics, times))


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
        check_count(type(self).__name__, "steps", self.steps, 1)
        check_kind(f"{type(self).__name__}'s grid", self.grid, Grid, "sde.grids.Karras()")

    def times(self, dynamics: Dynamics, start: float, stop: float) -> Tensor:
        return self.grid.times(dynamics.process, self.steps, start, stop)

    def finer(self, calls: int) -> GridSteps:
        return replace(self, steps=2 * self.steps, grid=self.grid.doubled())


class OneStep(GridSteps):
    """A method on a grid whose step needs only the state and two times: the short way to a solver of one's own."""

    @abstractmethod
    def step(self, dynamics: Any, x: State, t: Tensor, s: Tensor, noise: Callable[[], Tensor]) -> State:
        """The state at the time `s`.

        Args:
            dynamics: the dynamics.
            x: the state at the time `t`, a tuple of tensors of leading size B.
            t, s: the times before and after the step, float64 with shape (); s < t for sampling, s > t for encoding.
            noise: returns the standard normals of this step, with the shape of the first entry of `x`.
        """

    def method(self, dynamics: Any, times: Tensor) -> Step:
        points, normals = times.unbind(), step_normals(times)

        def step(k: int, x: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
            return self.step(dynamics, x, points[k], points[k + 1], partial(normals, noise, k)), None

        return step


@dataclass(frozen=True)
class FixedRun(Run):
    """The run of a method on a grid.

    Args:
        times: the grid, float64 with shape (N + 1,).
        advance: the method's step.
    """

    times: Tensor
    advance: Step

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    def init(self, x: State, noise: StepNoise | None) -> Progress:
        return Progress(self.times[0].expand(len(x[0])), x, 0, None, noise)

    def step(self, progress: Progress) -> Progress:
        x, memory = self.advance(progress.k, progress.x, progress.memory, progress.noise)
        k = progress.k + 1
        return Progress(self.times[k].expand(len(x[0])), x, k, memory, progress.noise)

    def finished(self, progress: Progress) -> bool:
        return progress.k == self.steps


def affine_step(dynamics: Semilinear, times: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Step:
    """The step :math:`x_s = a x_t + b\\, s(x_t, t) + c z`, the form of most one-step samplers for an SDE."""
    points, normals = times.unbind(), step_normals(times)
    scale, score_weight, std = a.tolist(), b.tolist(), c.tolist()

    def step(k: int, state: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
        x = scale[k] * state[0]
        x = x.add_(dynamics.predict(Prediction.SCORE, state, points[k])[0], alpha=score_weight[k])
        if std[k]:
            x = x.add_(normals(noise, k), alpha=std[k])
        return (x,), None

    return step


combine = linear_combination  # the name of version 0.1.0


# A coefficient of a step: a number, or a 0-dimensional tensor where gradients flow to the grid.
Scalar = float | Tensor


def scalars(values: Tensor) -> list[Any]:
    """The entries of a vector as numbers, or as tensors where it requires gradients."""
    return list(values.unbind()) if values.requires_grad else values.tolist()


def require_noise(noise: StepNoise | None) -> StepNoise:
    """The noise of a step that cannot do without."""
    if noise is None:
        raise ValueError("this step draws noise, but the run was started with noise=None")
    return noise


def step_normals(times: Tensor) -> Callable[..., Tensor]:
    """The function (noise, k, stream=Stream.STEP) -> the standard normals of step k of a grid."""
    numbers = times.tolist()

    def normals(noise: StepNoise | None, k: int, stream: Stream = Stream.STEP) -> Tensor:
        return require_noise(noise).normal(stream, k, numbers[k], numbers[k + 1])

    return normals


def intervals(times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The time before each step, the time after it, and the step (negative when time runs down)."""
    return times[:-1], times[1:], torch.diff(times)
