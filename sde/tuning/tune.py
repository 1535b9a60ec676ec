"""Pilot runs for sampling and for likelihoods."""

from __future__ import annotations

__all__ = ["tune_grid"]

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..denoisers import Conditioned, Denoiser
from ..dynamics import Reverse, Semilinear, State
from ..grids import Explicit
from ..likelihood.flow import DensityFlow, last_state
from ..noise import Noise, Stream, repeat_key
from ..sampling import evaluating, recording, state_like
from ..shapes import event_dims, float64
from ..solvers import GridSteps, RungeKutta
from ..trace import Trace
from .gradient import Gradient
from .pilot import Pilot, Tuning


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
        seconds: the time after which tuning stops; it makes at least one iteration.
        progress: called with the fraction of the work that is done: a quarter is the accurate solution.
        dtype: the dtype of the state; by default that of the denoiser, or that of the data for likelihoods.

    Returns:
        The grid, for `dataclasses.replace(solver, grid=grid)`.

    Raises:
        ValueError: if the solver is stochastic or has no fixed steps, or unless exactly one of shape and data is set.
    """
    if (shape is None) == (data is None):
        number = "neither" if data is None else "both"
        raise ValueError(f"tune_grid needs either shape=(B, ...) for sampling or data= for likelihoods, got {number}")
    if not isinstance(solver, GridSteps):
        raise ValueError(f"tune_grid needs a solver with steps and a grid, got {type(solver).__name__}")
    if solver.eta != 0.0 or solver.draws:
        raise ValueError(
            "tune_grid needs a deterministic solver, because it compares with the exact flow from the same initial "
            f"state, got {solver}"
        )
    process, deadline = denoiser.process, math.inf if seconds is None else time.monotonic() + seconds
    with recording(False), evaluating(denoiser), _frozen(denoiser):
        if data is None:
            assert shape is not None
            reference = state_like(denoiser)
            index = repeat_key(torch.arange(shape[0], device=reference.device), 1)
            z = Noise(seed).normal(Stream.PRIOR, index, torch.zeros_like(index), shape[1:], dtype or reference.dtype)
            end = float64(process.t_max)
            begin: State = (process.prior_var(end).sqrt().item() * z,)
            dynamics: Semilinear = Reverse(Conditioned(denoiser, condition, torch.zeros_like(index)), eta=0.0)
            start, stop = process.t_max, process.t_min
        else:
            flow = DensityFlow(denoiser, data.to(dtype or data.dtype), trace, seed=seed, condition=condition)
            begin, dynamics, start, stop = flow.start, flow.dynamics, process.t_min, process.t_max
        solver.bind(dynamics, start, stop)
        tolerance = tolerance or (1e-8 if begin[0].dtype == torch.float64 else 1e-5)
        report = (lambda done: None) if progress is None else progress
        states = RungeKutta(rtol=tolerance, atol=tolerance).trajectory(dynamics, begin, None, start, stop)
        truth = last_state(states, process, start, stop, lambda done: report(0.25 * done))

        def loss(state: State) -> Tensor:
            if len(state) == 1:
                return (state[0] - truth[0]).double().square().mean()
            # The error of log p, the log-density of the prior at the latent minus the change, in nats per dimension.
            nats, exact = (process.prior_log_prob(latent) - change.mean(1) for latent, change in (state, truth))
            return ((nats - exact).double() / event_dims(state[0])).square().mean()

        times = (tuning or Gradient()).times(
            Pilot(dynamics, solver, begin, start, stop, loss, deadline, lambda done: report(0.25 + 0.75 * done))
        )
        report(1.0)
    return Explicit(times.tolist())


@contextlib.contextmanager
def _frozen(denoiser: Denoiser) -> Iterator[None]:
    """Turns off gradients with respect to the parameters, which tuning does not need."""
    trainable = [p for p in denoiser.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
