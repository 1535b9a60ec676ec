"""Pilot runs for sampling and for likelihoods."""

from __future__ import annotations

__all__ = ["tune_grid"]

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..dynamics import State
from ..grids import Explicit
from ..sampling import evaluating
from ..shapes import recording
from ..solvers import GridSteps
from ..trace import Trace
from .gradient import Gradient
from .pilot import Pilot, Tuning, check_pilot
from .reference import frozen, pilot_flow, solved


def tune_grid(
    denoiser: Denoiser,
    shape: Sequence[int] | None = None,
    solver: GridSteps | None = None,
    *,
    data: Tensor | None = None,
    trace: Trace | None = None,
    condition: Mapping[str, Tensor] | None = None,
    tuning: Tuning | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    seconds: float | None = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[float], object] | None = None,
) -> Explicit:
    r"""A grid for a model, a solver and its number of steps, from a pilot run.

    For sampling, the pilot run starts from `shape[0]` samples of the prior, which differ from those of
    :func:`sde.sample`, and the error is that of the samples. For likelihoods, it starts from data, and the error is
    that of the log-density. With more pilot samples the grid is better for other samples: 16 are enough, 64 to 128 are
    better.

    Args:
        denoiser: the model.
        shape: the shape (B, \*) of the pilot samples, for sampling.
        solver: a deterministic solver with fixed steps; only its grid is tuned.
        data: data in the model's range, with shape (B, \*), for likelihoods.
        trace: the trace for likelihoods, one Rademacher probe by default.
        condition: the condition of each pilot sample, as in :func:`sde.sample`.
        tuning: the method of tuning; :class:`Gradient` by default.
        tolerance: rtol and atol of the accurate solution; by default 1e-8 in float64 and 1e-5 in float32.
        seed: the seed of the pilot run.
        seconds: the time for all of it, the accurate solution included: samples that are not solved in half of it are
            left out.
        progress: called with the fraction of the work that is done: a quarter is the accurate solution.
        dtype: the dtype of the state; by default that of the denoiser, or that of the data for likelihoods.

    Returns:
        The grid, for `dataclasses.replace(solver, grid=grid)`.

    Raises:
        ValueError: if the solver is stochastic or has no fixed steps, unless exactly one of shape and data is set, or
            if the time is not positive.
    """
    if not isinstance(solver, GridSteps):
        raise ValueError(f"tune_grid needs a solver with steps and a grid, got {type(solver).__name__}")
    if solver.eta != 0.0 or solver.draws:
        raise ValueError(
            "tune_grid needs a deterministic solver, because it compares with the exact flow from the same initial "
            f"state, got {solver}"
        )
    check_pilot("tune_grid", shape, seconds)
    begun = time.monotonic()
    deadline, half = (math.inf if seconds is None else begun + part * seconds for part in (1.0, 0.5))
    report = (lambda done: None) if progress is None else progress
    with recording(False), evaluating(denoiser), frozen(denoiser):
        flow = pilot_flow(denoiser, shape, data, trace=trace, condition=condition, seed=seed, dtype=dtype)
        solver.bind(flow.dynamics, flow.start, flow.stop)
        tolerance = tolerance or (1e-8 if flow.begin[0].dtype == torch.float64 else 1e-5)
        flow = solved(flow, tolerance, half, progress=lambda done: report(0.25 * done))
        if not len(flow):
            warnings.warn(
                f"tune_grid: no pilot sample was solved in seconds={seconds}; the grid is not tuned", stacklevel=2
            )
            times = solver.grid.times(denoiser.process, solver.steps, denoiser.process.t_max, denoiser.process.t_min)
            return Explicit(times.tolist())

        def loss(state: State) -> Tensor:
            return flow.errors(state).square().mean()

        pilot = Pilot(
            flow.dynamics,
            solver,
            flow.begin,
            flow.start,
            flow.stop,
            loss,
            deadline,
            lambda done: report(0.25 + 0.75 * done),
        )
        times = (tuning or Gradient()).times(pilot)
        report(1.0)
    return Explicit(times.tolist())
