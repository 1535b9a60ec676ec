r"""The solvers of torchsde, for reference.

torchsde integrates a batch forwards in a time u: here u = -t when time runs down, so that its grid points are those of
every other solver. The noise of a diffusion model is additive, with one Brownian motion for each number of the state.
Each number is therefore a row of torchsde's batch, with one channel of noise and no D x D matrix of coefficients. For
additive noise Itô's and Stratonovich's equations are the same, and methods for either apply.

Li et al., Scalable Gradients for Stochastic Differential Equations, 2020, https://arxiv.org/abs/2001.01328.
"""

from __future__ import annotations

__all__ = ["TorchSDE"]

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..brownian import along_path
from ..dynamics import Dynamics, State
from ..grids import Grid, Uniform
from ..noise import StepNoise, Stream
from ..shapes import check_count, float64
from .base import FixedRun, Progress, Run, SDESolver, check_tolerances, require_noise, rows
from .systems import SystemsRun, advanced, sample_in

_METHODS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("euler", "milstein", "srk"), ("ito",)),
    **dict.fromkeys(("euler_heun", "heun", "log_ode", "midpoint", "reversible_heun"), ("stratonovich",)),
    "milstein": ("ito", "stratonovich"),
}
# The first step of torchsde's adaptive methods as a fraction of the interval.
_FIRST_STEP = 0.01


@dataclass(frozen=True)
class TorchSDE(SDESolver):
    """Any method of `torchsde.sdeint`, on a time grid or adaptive, driven by this library's noise.

    On a grid it takes one step of the method for each interval and draws the same noise as the other fixed-step
    solvers: `TorchSDE("euler", steps)` is :class:`sde.solvers.EulerMaruyama` up to rounding. Without `steps` it is
    adaptive, along Brownian paths (:mod:`sde.brownian`), and one step of its run is a whole solve. torchsde then solves
    the batch as one system, with one step size and one error norm for all samples, so that a sample's result depends on
    its batch; `per_sample=True` solves the samples one after the other.

    Args:
        method: torchsde's name: euler, milstein, srk (Ito); euler_heun, heun, log_ode, midpoint, milstein,
            reversible_heun (Stratonovich).
        steps: the number of steps, or None for adaptive ones.
        grid: the rule for the times of the steps.
        rtol: the relative tolerance of an adaptive step.
        atol: the absolute tolerance of an adaptive step.
        per_sample: solve each sample on its own instead of the batch as one system; without effect on a grid.
        max_steps: the largest number of adaptive steps, rejected ones included.
        sde_type: "ito" or "stratonovich"; by default that of the method, for milstein "ito".
    """

    method: str = "srk"
    steps: int | None = None
    grid: Grid = Uniform()
    rtol: float = 1e-2
    atol: float = 1e-2
    per_sample: bool = False
    max_steps: int = 10_000
    sde_type: str | None = None

    def __post_init__(self) -> None:
        types = _METHODS.get(self.method)
        if types is None:
            raise ValueError(f"TorchSDE: method is one of {', '.join(_METHODS)}, got {self.method!r}")
        if self.sde_type is not None and self.sde_type not in types:
            raise ValueError(
                f"TorchSDE: torchsde's {self.method} is a method for sde_type={' or '.join(map(repr, types))}, "
                f"got {self.sde_type!r}"
            )
        if self.steps is not None:  # adaptive
            check_count("TorchSDE", "steps", self.steps, 1)
        check_tolerances(type(self).__name__, self.rtol, self.atol, self.max_steps)

    def prepare(self, dynamics: Dynamics, start: float, stop: float) -> Run:
        if self.steps is None:
            return _AdaptiveRun(self, dynamics, start, stop)
        times = self.grid.times(dynamics.process, self.steps, start, stop)

        def step(k: int, x: State, memory: Any, noise: StepNoise | None) -> tuple[State, Any]:
            before, after = times[k : k + 2].tolist()
            system = _System(self, dynamics, x[0], before, after, noise, k)
            # Longer than the interval, which torchsde cuts it to: one step.
            y, memory = system.integrate(dt=2.0 * abs(after - before), memory=memory)
            return (y,), memory

        return FixedRun(times, step)


class _AdaptiveRun(SystemsRun):
    def step(self, progress: Progress) -> Progress:
        """One system from beginning to end."""
        _, (index, *waiting) = progress.memory
        path = along_path(require_noise(progress.noise)).select(index) if self.dynamics.stochastic else None
        (x,) = rows(progress.x, index)
        dynamics, sample = self.dynamics.select(index), sample_in(index)
        system = _System(self.solver, dynamics, x, self.start, self.stop, path, sample=sample)
        x, _ = system.integrate(dt=_FIRST_STEP * abs(self.stop - self.start))
        return advanced(progress, index, self.stop, (x,), (None, waiting))


@dataclass(eq=False)
class _System:
    """An SDE and its Brownian motion in the form that torchsde takes, over rows of one number, (B D, 1)."""

    solver: TorchSDE
    dynamics: Dynamics
    x: Tensor
    start: float
    stop: float
    noise: StepNoise | None
    k: int = 0
    sample: str = ""
    calls: int = 0
    last: tuple[float, Tensor, Tensor] | None = None

    noise_type = "additive"
    # torchsde's name for a Brownian motion with all that a method may need.
    levy_area_approximation = "foster"

    def __post_init__(self) -> None:
        self.sde_type = self.solver.sde_type or _METHODS[self.solver.method][0]
        self.sign = -1.0 if self.start > self.stop else 1.0
        self.zeros = torch.zeros(self.x.numel(), 1, dtype=self.x.dtype, device=self.x.device)
        self.shape = self.zeros.shape

    def integrate(self, dt: float, memory: Any = None) -> tuple[Tensor, Any]:
        """The state at the end, and the method's memory for the next interval."""
        import torchsde  # only this solver needs it

        y = self.x.reshape(self.shape)
        ends = float64([self.sign * self.start, self.sign * self.stop])
        if memory:
            # torchsde calls the drift at the start for its shape. A method with a memory does not use its value.
            self.last = (float(ends[0]), y, y)
        ys, memory = torchsde.sdeint(
            self,
            y,
            ends,
            bm=self,
            method=self.solver.method,
            dt=dt,
            adaptive=self.solver.steps is None,
            rtol=self.solver.rtol,
            atol=self.solver.atol,
            dt_min=0.0,  # `_check_step` refuses steps that are too short
            extra=True,
            extra_solver_state=memory or None,
        )
        return ys[-1].reshape(self.x.shape), memory

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        """The drift along u; torchsde calls it more than once at the beginning of a step."""
        if self.last is not None and self.last[1] is y and self.last[0] == float(u):
            return self.last[2]
        (drift,) = self.dynamics.drift((y.reshape(self.x.shape),), self.sign * u)
        if self.solver.steps is None and not bool(drift.isfinite().all()):
            raise FloatingPointError(
                f"the drift is not finite at t={self.sign * float(u):.6g}{self.sample}; check the denoiser at this time"
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
        increment = area = self.zeros
        if self.dynamics.stochastic:
            source, span = require_noise(self.noise), (self.sign * float(ta), self.sign * float(tb))
            increment = source.normal(Stream.STEP, self.k, *span).to(self.zeros).reshape(self.shape) * math.sqrt(h)
            if return_U:
                area = source.normal(Stream.AREA, self.k, *span).to(self.zeros).reshape(self.shape)
                area = area * math.sqrt(h / 12.0)
        if return_U:
            return increment, h * (0.5 * increment + area)
        if return_A:
            # One motion for each row has no Levy area with another.
            return increment, self.zeros[..., None]
        return increment

    def _check_step(self, u: float, h: float) -> None:
        """Raises an error if an adaptive run does not advance; a step of torchsde takes three increments."""
        self.calls += 1
        t = self.sign * u
        if not u + 0.01 * h > u:
            raise FloatingPointError(
                f"torchsde's {self.solver.method} is stuck at t={t:.6g}{self.sample}: no step is small enough for the "
                "tolerance; check the denoiser at this time, or raise rtol and atol"
            )
        if self.calls > 3 * self.solver.max_steps:
            raise FloatingPointError(
                f"torchsde's {self.solver.method} is still near t={t:.6g}{self.sample} after "
                f"max_steps={self.solver.max_steps} steps; raise max_steps, or rtol and atol"
            )
