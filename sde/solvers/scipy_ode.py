r"""The solvers of `scipy.integrate.solve_ivp`, for reference.

SciPy integrates one vector. By default the whole batch is that vector, with one step size and one error norm for all
samples, so that a sample's result depends on its batch. `per_sample=True` solves the samples one after the other.
"""

from __future__ import annotations

__all__ = ["ScipyODE"]

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..dynamics import Dynamics, State
from ..shapes import float64
from .base import Progress, Run, Solver, check_tolerances, finite, rows
from .systems import SystemsRun, advanced, sample_in

# The calls of a step, at least 1 for methods that are not listed.
_CALLS = {"RK23": 3, "RK45": 6, "DOP853": 12}
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

    def finer(self, calls: int) -> ScipyODE:
        steps = min(self.max_steps, max(1, calls // _CALLS.get(self.method, 1)))
        tolerances: Any = {"rtol": max(self.rtol / 10.0, 1e-13), "atol": self.atol / 10.0}
        return replace(self, **tolerances, per_sample=True, max_steps=steps, on_failure="mark")

    def prepare(self, dynamics: Dynamics, start: float, stop: float) -> Run:
        return _ScipyRun(self, dynamics, start, stop)


class _ScipyRun(SystemsRun):
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
        return advanced(progress, index, t, x, (None if system.finished else system, waiting))


class _Failure(FloatingPointError):
    """A system that cannot be solved, as opposed to an error inside a denoiser."""


class _System:
    """One vector for SciPy: the entries of some samples, concatenated in float64."""

    def __init__(self, run: _ScipyRun, x: State, index: Tensor) -> None:
        self.index, self.reference, self.name, self.max_steps = index, x, run.solver.method, run.solver.max_steps
        self.dynamics, self.steps, self.finished = run.dynamics.select(index), 0, False
        y = _flat(x)
        self._check("state", run.start, x)
        tolerances = [run.solver.atol if tolerance is None else tolerance for tolerance in run.dynamics.tolerances]
        atol = np.repeat(tolerances, [entry.numel() for entry in x])
        import scipy.integrate  # slow to import, and only this solver needs it

        method = getattr(scipy.integrate, self.name)
        self.ode = method(self._drift, run.start, y, run.stop, rtol=run.solver.rtol, atol=atol)

    def step(self) -> tuple[float, State]:
        message = self.ode.step()
        self.steps += 1
        self.finished, at = self.ode.status == "finished", f"at t={self.ode.t:.6g}{sample_in(self.index)}"
        if self.ode.status == "failed":
            raise _Failure(f"SciPy's {self.name} failed {at}: {message}")
        if not self.finished and self.steps >= self.max_steps:
            raise _Failure(
                f"SciPy's {self.name} is still {at} after max_steps={self.max_steps} steps; raise max_steps, or rtol "
                "and atol"
            )
        return self.ode.t, self._unflat(self.ode.y)

    def _drift(self, t: float, y: np.ndarray) -> np.ndarray:
        slopes = self.dynamics.drift(self._unflat(y), float64(t))
        slope = _flat(slopes)
        self._check("drift", t, slopes)
        return slope

    def _check(self, what: str, t: float, entries: State) -> None:
        bad = ~finite(entries)
        if bool(bad.any()):
            i = int(self.index[bad][0])
            raise _Failure(f"the {what} is not finite at t={t:.6g} (sample {i}); check the denoiser at this time")

    def _unflat(self, y: np.ndarray) -> State:
        entries = torch.from_numpy(y).split([entry.numel() for entry in self.reference])
        return tuple(values.reshape(entry.shape).to(entry) for values, entry in zip(entries, self.reference))


def _flat(entries: State) -> np.ndarray:
    if torch.is_grad_enabled() and any(entry.requires_grad for entry in entries):
        raise ValueError(
            "ScipyODE: gradients do not pass through SciPy; use sde.solvers.RungeKutta for them, or torch.no_grad()"
        )
    return torch.cat([entry.detach().double().cpu().flatten() for entry in entries]).numpy()
