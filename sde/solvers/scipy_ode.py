r"""The solvers of `scipy.integrate.solve_ivp`, for reference.

SciPy integrates one vector. By default the whole batch is that vector, with one step size and one error norm for all
samples, so that a sample's result depends on its batch. `per_sample=True` solves the samples one after the other.
"""

from __future__ import annotations

__all__ = ["ScipyODE"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..dynamics import Dynamics, State
from ..noise import StepNoise
from .base import Progress, Run, Solver, check_tolerances, finite, rows

_NO_GRADIENTS = "ScipyODE: gradients do not pass through SciPy; use sde.solvers.RungeKutta for them, or torch.no_grad()"
_METHODS = ("RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA")


@dataclass(frozen=True)
class ScipyODE(Solver):
    """Any method of `scipy.integrate.solve_ivp`, one of its steps at a time.

    Args:
        method: SciPy's name of the method: RK23, RK45, DOP853, Radau, BDF or LSODA.
        rtol: the relative tolerance.
        atol: the absolute tolerance, for entries of the state without a tolerance of their own.
        per_sample: solve each sample on its own instead of the batch as one system.
        max_steps: the largest number of steps of SciPy's solver.
        on_failure: as in :class:`sde.solvers.RungeKutta`; "mark" needs `per_sample=True`.
    """

    method: str = "RK45"
    rtol: float = 1e-5
    atol: float = 1e-5
    per_sample: bool = False
    max_steps: int = 10_000
    on_failure: Literal["raise", "mark"] = "raise"

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise ValueError(f"ScipyODE: method is one of {', '.join(_METHODS)}, got {self.method!r}")
        check_tolerances(type(self).__name__, self.rtol, self.atol, self.max_steps, self.on_failure)
        if self.on_failure == "mark" and not self.per_sample:
            raise ValueError(
                "ScipyODE: on_failure='mark' marks single samples, but the batch is one system, which fails as a "
                "whole; set per_sample=True"
            )

    def prepare(self, dynamics: Dynamics, start: float, stop: float) -> Run:
        return _ScipyRun(self, dynamics, start, stop)


@dataclass(frozen=True)
class _ScipyRun(Run):
    solver: ScipyODE
    dynamics: Dynamics
    start: float
    stop: float

    def init(self, x: State, noise: StepNoise | None) -> Progress:
        if torch.is_grad_enabled() and any(entry.requires_grad for entry in x):
            raise ValueError(_NO_GRADIENTS)
        batch = len(x[0])
        index = torch.arange(batch, device=x[0].device)
        groups = list(index.split(1)) if self.solver.per_sample else [index]
        return Progress(torch.full((batch,), self.start, dtype=torch.float64), x, 0, (None, groups), noise)

    def finished(self, progress: Progress) -> bool:
        current, waiting = progress.memory
        return current is None and not waiting

    def step(self, progress: Progress) -> Progress:
        system, waiting = progress.memory
        index, waiting = (waiting[0], waiting[1:]) if system is None else (system.index, waiting)
        try:
            system = system or _System(self, rows(progress.x, index), index)
            t, x = system.step()
        except _Failure:
            if self.solver.on_failure == "raise":
                raise
            marked = tuple(entry.index_fill(0, index, math.nan) for entry in progress.x)
            return Progress(progress.t, marked, progress.k + 1, (None, waiting), progress.noise)
        new_t = progress.t.index_fill(0, index.cpu(), t)
        new_x = tuple(a.index_copy(0, index, b) for a, b in zip(progress.x, x))
        memory = (None if system.finished else system, waiting)
        return Progress(new_t, new_x, progress.k + 1, memory, progress.noise)


class _Failure(FloatingPointError):
    """A system that cannot be solved, as opposed to an error inside a denoiser."""


class _System:
    """One vector for SciPy: the entries of some samples, concatenated in float64."""

    def __init__(self, run: _ScipyRun, x: State, index: Tensor) -> None:
        self.index, self.reference, self.name, self.max_steps = index, x, run.solver.method, run.solver.max_steps
        self.dynamics = run.dynamics.select(index)
        self.steps = 0
        self._check("state", run.start, x)
        atol = [
            np.full(entry.numel(), run.solver.atol if tolerance is None else tolerance)
            for entry, tolerance in zip(x, run.dynamics.tolerances)
        ]
        import scipy.integrate  # slow to import, and only this solver needs it

        method = getattr(scipy.integrate, self.name)
        self.ode = method(self._drift, run.start, _flat(x), run.stop, rtol=run.solver.rtol, atol=np.concatenate(atol))

    @property
    def finished(self) -> bool:
        return self.ode.status == "finished"

    @property
    def _sample(self) -> str:
        return f" (sample {int(self.index)})" if len(self.index) == 1 else ""

    def step(self) -> tuple[float, State]:
        message = self.ode.step()
        self.steps += 1
        if self.ode.status == "failed":
            raise _Failure(f"SciPy's {self.name} failed at t={self.ode.t:.6g}{self._sample}: {message}")
        if not self.finished and self.steps >= self.max_steps:
            raise _Failure(
                f"SciPy's {self.name} is still at t={self.ode.t:.6g}{self._sample} after max_steps={self.max_steps} "
                "steps; raise max_steps, or rtol and atol"
            )
        return self.ode.t, self._unflat(self.ode.y)

    def _drift(self, t: float, y: np.ndarray) -> np.ndarray:
        slopes = self.dynamics.drift(self._unflat(y), torch.tensor(t, dtype=torch.float64))
        if torch.is_grad_enabled() and any(slope.requires_grad for slope in slopes):
            raise ValueError(_NO_GRADIENTS)
        self._check("drift", t, slopes)
        return _flat(slopes)

    def _check(self, what: str, t: float, entries: State) -> None:
        bad = ~finite(entries)
        if bool(bad.any()):
            i = int(self.index[bad][0])
            raise _Failure(f"the {what} is not finite at t={t:.6g} (sample {i}); check the denoiser at this time")

    def _unflat(self, y: np.ndarray) -> State:
        entries = torch.from_numpy(y).split([entry.numel() for entry in self.reference])
        return tuple(values.reshape(entry.shape).to(entry) for values, entry in zip(entries, self.reference))


def _flat(entries: Sequence[Tensor]) -> np.ndarray:
    return torch.cat([entry.detach().double().cpu().flatten() for entry in entries]).numpy()
