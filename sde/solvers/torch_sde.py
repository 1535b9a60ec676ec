r"""The solvers of torchsde, as the reference for SDEs.

torchsde integrates forwards in a time u of one batch: here u = -t when time runs down, so that its grid points are
those of every other solver. The noise of a diffusion model is additive, one Brownian motion for each number of the
state: each number is a row of torchsde's batch, with one channel of noise and no D x D matrix of coefficients. For
additive noise Itô's and Stratonovich's equations are the same, and both kinds of methods serve.

Li et al., Scalable Gradients for Stochastic Differential Equations, 2020, https://arxiv.org/abs/2001.01328.
"""

from __future__ import annotations

__all__ = ["TorchSDE"]

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..brownian import along_path
from ..dynamics import Dynamics, State
from ..grids import Grid, Uniform
from ..noise import StepNoise, Stream
from .base import FixedRun, Progress, Run, Solver, check_tolerances, require_noise, rows

_METHODS = {
    "euler": ("ito",),
    "milstein": ("ito", "stratonovich"),
    "srk": ("ito",),
    "euler_heun": ("stratonovich",),
    "heun": ("stratonovich",),
    "log_ode": ("stratonovich",),
    "midpoint": ("stratonovich",),
    "reversible_heun": ("stratonovich",),
}
# The first step of torchsde's adaptive methods as a share of the interval; they take it from there.
_FIRST_STEP = 0.01


@dataclass(frozen=True)
class TorchSDE(Solver):
    """Any method of `torchsde.sdeint`, on a time grid or adaptive, driven by this library's noise.

    On a grid it takes one step of the method for each interval and draws what the other fixed-step solvers draw:
    `TorchSDE("euler", steps)` is :class:`sde.solvers.EulerMaruyama` up to rounding. Without `steps` it is adaptive,
    along Brownian paths (:mod:`sde.brownian`), and moves each system from beginning to end in one go. torchsde then
    solves the whole batch as one system, with one step size and one error norm for all its samples, so that a sample's
    result depends on its batch mates; `per_sample=True` solves every sample on its own, one after the other.

    Args:
        method: torchsde's name: euler, milstein, srk (Ito); euler_heun, heun, log_ode, midpoint, milstein,
            reversible_heun (Stratonovich).
        steps: the number of steps, or None for adaptive ones.
        grid: the rule for the times of the steps.
        rtol: the relative tolerance of an adaptive step.
        atol: the absolute tolerance of an adaptive step.
        per_sample: solve each sample on its own instead of the batch as one system; of no account on a grid.
        max_steps: the most adaptive steps, rejected ones included.
        sde_type: "ito" or "stratonovich"; by default the one that the method is for, for milstein "ito".
    """

    method: str = "srk"
    steps: int | None = None
    grid: Grid = Uniform()
    rtol: float = 1e-2
    atol: float = 1e-2
    per_sample: bool = False
    max_steps: int = 10_000
    sde_type: str | None = None

    eta = 1.0
    serves_noise = True
    serves_log_density = False

    def __post_init__(self) -> None:
        types = _METHODS.get(self.method)
        if types is None:
            raise ValueError(f"TorchSDE: method is one of {', '.join(_METHODS)}, got {self.method!r}")
        if self.sde_type is not None and self.sde_type not in types:
            raise ValueError(
                f"TorchSDE: torchsde's {self.method} is a method for sde_type={' or '.join(map(repr, types))}, "
                f"got {self.sde_type!r}"
            )
        whole = isinstance(self.steps, int) and not isinstance(self.steps, bool) and self.steps >= 1
        if self.steps is not None and not whole:
            raise ValueError(
                f"TorchSDE needs a whole number of steps >= 1, or None for adaptive ones, got steps={self.steps!r}"
            )
        check_tolerances(type(self).__name__, self.rtol, self.atol, self.max_steps)

    def prepare(self, dynamics: Dynamics, start: float, stop: float) -> Run:
        if self.steps is None:
            return _AdaptiveRun(self, dynamics, start, stop)
        times = self.grid.times(dynamics.process, self.steps, start, stop)

        def step(k: int, x: State, memory: Any, noise: StepNoise | None) -> tuple[State, Any]:
            before, after = times[k : k + 2].tolist()
            system = _System(self, dynamics, x[0], before, after, noise, k)
            # Longer than the interval, which torchsde cuts it to: one step.
            y, memory = system.integrate(x[0], memory or (), dt=2.0 * abs(after - before))
            return (y,), memory

        return FixedRun(times, step)


@dataclass(frozen=True)
class _AdaptiveRun(Run):
    solver: TorchSDE
    dynamics: Dynamics
    start: float
    stop: float

    def init(self, x: State, noise: StepNoise | None) -> Progress:
        every = torch.arange(len(x[0]), device=x[0].device)
        groups = list(every.split(1)) if self.solver.per_sample else [every]
        return Progress(torch.full((len(every),), self.start, dtype=torch.float64), x, 0, groups, noise)

    def finished(self, progress: Progress) -> bool:
        return not progress.memory

    def step(self, progress: Progress) -> Progress:
        """One system from beginning to end."""
        index, *waiting = progress.memory
        path = along_path(require_noise(progress.noise)).select(index) if self.dynamics.stochastic else None
        (before,) = rows(progress.x, index)
        whose = f" (sample {int(index)})" if len(index) == 1 else ""
        system = _System(self.solver, self.dynamics.select(index), before, self.start, self.stop, path, 0, whose)
        x, _ = system.integrate(before, (), dt=_FIRST_STEP * abs(self.stop - self.start))
        return replace(
            progress,
            t=progress.t.index_fill(0, index.cpu(), self.stop),
            x=(progress.x[0].index_copy(0, index, x),),
            k=progress.k + 1,
            memory=waiting,
        )


class _System:
    """An SDE and its Brownian motion as torchsde asks for them, over rows of one number, (B D, 1)."""

    noise_type = "additive"
    # torchsde's name for a Brownian motion that answers everything a method may ask.
    levy_area_approximation = "foster"

    def __init__(
        self,
        solver: TorchSDE,
        dynamics: Dynamics,
        x: Tensor,
        start: float,
        stop: float,
        noise: StepNoise | None,
        k: int,
        whose: str = "",
    ) -> None:
        self.solver, self.dynamics, self.noise, self.k, self.whose = solver, dynamics, noise, k, whose
        self.sde_type = solver.sde_type or _METHODS[solver.method][0]
        self.start, self.stop, self.event = start, stop, x.shape
        self.sign = -1.0 if start > stop else 1.0
        self.still = torch.zeros(x.numel(), 1, dtype=x.dtype, device=x.device)
        self.shape = self.still.shape
        self.calls = 0
        self.last: tuple[float, Tensor, Tensor] | None = None

    def integrate(self, x: Tensor, memory: tuple[Tensor, ...], dt: float) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The state at the end, and what the method carries on to the next interval."""
        import torchsde  # only this solver needs it

        y = x.reshape(self.shape)
        ends = torch.tensor([self.sign * self.start, self.sign * self.stop], dtype=torch.float64)
        if memory:
            # torchsde asks for the drift at the start to see its shape. A method that carries its drift along has no
            # other use for it.
            self.last = (float(ends[0]), y, y)
        adaptive = self.solver.steps is None
        ys, memory = torchsde.sdeint(
            self,
            y,
            ends,
            bm=self,
            method=self.solver.method,
            dt=dt,
            adaptive=adaptive,
            rtol=self.solver.rtol,
            atol=self.solver.atol,
            dt_min=0.0,  # steps that are too short are found below
            extra=True,
            extra_solver_state=memory or None,
        )
        return ys[-1].reshape(self.event), memory

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        """The drift along u; torchsde asks more than once at the beginning of a step."""
        if self.last is not None and self.last[1] is y and self.last[0] == float(u):
            return self.last[2]
        (drift,) = self.dynamics.drift((y.reshape(self.event),), self.sign * u)
        if self.solver.steps is None and not bool(drift.isfinite().all()):
            raise FloatingPointError(
                f"the drift is not finite at t={self.sign * float(u):.6g}{self.whose}; check the denoiser at this time"
            )
        drift = self.sign * drift.reshape(self.shape)
        self.last = (float(u), y, drift)
        return drift

    def g(self, u: Tensor, y: Tensor) -> Tensor:
        """The diffusion, (B D, 1, 1)."""
        return self.dynamics.diffusion(self.sign * u).to(y).expand(*self.shape, 1)

    def __call__(self, ta: Tensor, tb: Tensor, return_U: bool = False, return_A: bool = False) -> Any:
        """The increment of the Brownian motion from ta to tb, with its integral U or its Levy area A."""
        h = float(tb - ta)
        if self.solver.steps is None:
            self._check_step(float(ta), h)
        increment = area = self.still
        if self.dynamics.stochastic:
            source, span = require_noise(self.noise), (self.sign * float(ta), self.sign * float(tb))
            increment = source.normal(Stream.STEP, self.k, *span).reshape(self.shape) * math.sqrt(h)
            if return_U:
                area = source.normal(Stream.AREA, self.k, *span).reshape(self.shape) * math.sqrt(h / 12.0)
        if return_U:
            return increment, h * (0.5 * increment + area)
        if return_A:
            # One motion for each row has no Levy area with another.
            return increment, torch.zeros_like(increment)[..., None]
        return increment

    def _check_step(self, u: float, h: float) -> None:
        """Ends an adaptive run that does not get on; a step of torchsde's asks for three increments."""
        self.calls += 1
        t = self.sign * u
        if not u + 0.01 * h > u:
            raise FloatingPointError(
                f"torchsde's {self.solver.method} is stuck at t={t:.6g}{self.whose}: no step is small enough for the "
                "tolerance; check the denoiser at this time, or raise rtol and atol"
            )
        if self.calls > 3 * self.solver.max_steps:
            raise FloatingPointError(
                f"torchsde's {self.solver.method} is still near t={t:.6g}{self.whose} after "
                f"max_steps={self.solver.max_steps} steps; raise max_steps, or rtol and atol"
            )
