"""The accurate solution with which a pilot compares, within a time."""

from __future__ import annotations

__all__ = ["PilotFlow", "frozen", "pilot_flow", "prior_draws", "solved"]

import contextlib
import itertools
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..denoisers import Conditioned, Denoiser
from ..dynamics import Reverse, Semilinear, State, finite, rows
from ..likelihood.flow import DensityFlow, check_states
from ..noise import Noise, Stream, repeat_key
from ..processes import SDE
from ..sampling import state_like
from ..shapes import check_recordable, event_dims, float64
from ..solvers import RungeKutta
from ..trace import Trace

# The samples of the first batch that is solved, which shows how long a sample takes.
FIRST = 8


@dataclass(frozen=True)
class PilotFlow:
    """A flow with the states at its start and, once it is solved, at its end.

    Attributes:
        dynamics: the flow.
        begin: the state at `start`.
        start: the initial time.
        stop: the final time.
        truth: the accurate state at `stop`; empty before it is solved.
    """

    dynamics: Semilinear
    begin: State
    start: float
    stop: float
    truth: State = ()

    def __len__(self) -> int:
        return len(self.begin[0])

    def select(self, index: Tensor) -> PilotFlow:
        """The flow of some samples."""
        begin, truth = rows(self.begin, index), rows(self.truth, index)
        return replace(self, dynamics=self.dynamics.select(index), begin=begin, truth=truth)

    def errors(self, state: State) -> Tensor:
        """The errors of final states, float64 with shape (B, m): of every coordinate of a sample, or, with a
        log-density, of this alone, in nats per dimension."""
        if len(state) == 1:
            return (state[0] - self.truth[0]).double().flatten(1)
        process = self.dynamics.process
        nats, exact = (process.prior_log_prob(latent) - change.mean(1) for latent, change in (state, self.truth))
        return ((nats - exact).double() / event_dims(state[0]))[:, None]


def pilot_flow(
    denoiser: Denoiser,
    shape: Sequence[int] | None,
    data: Tensor | None,
    *,
    trace: Trace | None = None,
    condition: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    atol: float | None = None,
) -> PilotFlow:
    """The flow of pilot samples: from draws of the prior that :func:`sde.sample` does not make, or from data."""
    if (shape is None) == (data is None):
        number = "neither" if data is None else "both"
        raise ValueError(f"a pilot needs either shape=(B, ...) for sampling or data= for likelihoods, got {number}")
    process = denoiser.process
    if data is not None:
        check_states(data)
        flow = DensityFlow(denoiser, data.to(dtype or data.dtype), trace, seed=seed, condition=condition, atol=atol)
        return PilotFlow(flow.dynamics, flow.start, process.t_min, process.t_max)
    assert shape is not None
    reference = state_like(denoiser)
    index = torch.arange(shape[0], device=reference.device)
    begin = prior_draws(process, seed, index, 1, shape[1:], dtype or reference.dtype)
    dynamics = Reverse(Conditioned(denoiser, condition, torch.zeros_like(index)), eta=0.0)
    return PilotFlow(dynamics, (begin,), process.t_max, process.t_min)


def prior_draws(
    process: SDE, seed: int, index: Tensor, repeat: int, shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """Draws of the prior for the rows `index` of a pilot; :func:`sde.sample` has `repeat` 0."""
    keys = repeat_key(index, repeat)
    z = Noise(seed).normal(Stream.PRIOR, keys, torch.zeros_like(keys), shape, dtype)
    return process.prior_var(float64(process.t_max)).sqrt().item() * z


def solved(
    flow: PilotFlow,
    tolerance: float,
    deadline: float = math.inf,
    *,
    progress: Callable[[float], object] = lambda done: None,
) -> PilotFlow:
    """The flow of those samples whose accurate solution was found in time, without those that failed.

    The samples are solved in batches, the first one small. What is not finished at the deadline is left out.

    Args:
        flow: the flow.
        tolerance: rtol and atol of the solution.
        deadline: when to stop, by `time.monotonic`.
        progress: called with the fraction of the samples that are solved.

    Raises:
        FloatingPointError: if every solution failed.
    """
    solver, index, ends, failed = RungeKutta(rtol=tolerance, atol=tolerance, on_failure="mark"), [], [], 0
    total, first, size = len(flow), 0, min(FIRST, len(flow)) if math.isfinite(deadline) else len(flow)
    device = flow.begin[0].device
    while first < total and time.monotonic() < deadline:
        begun, chunk = time.monotonic(), torch.arange(first, min(first + size, total), device=device)
        part = flow.select(chunk)
        path = solver.trajectory(part.dynamics, part.begin, None, flow.start, flow.stop)
        in_time = itertools.takewhile(lambda _: time.monotonic() <= deadline, path)
        t, state = deque(itertools.chain([next(path)], in_time), maxlen=1).pop()
        arrived, good = (t == flow.stop).to(device), finite(state)
        failed += int((~good).sum())
        index.append(chunk[arrived & good])
        ends.append(rows(state, arrived & good))
        first += len(chunk)
        progress(first / total)
        rate = (time.monotonic() - begun) / len(chunk)
        # Large batches are faster; no batch takes more than about half of the time that is left.
        left = 0.5 * (deadline - time.monotonic()) / rate if math.isfinite(deadline) else total
        size = int(min(max(left, 1), 4 * size))
    count = sum(map(len, index))
    if failed:
        if not count:
            raise FloatingPointError("every solution of the pilot failed: check the denoiser")
        warnings.warn(f"{failed} samples of the pilot failed and are left out", stacklevel=3)
    if not count:
        return replace(
            flow.select(torch.arange(0, device=device)), truth=rows(flow.begin, torch.arange(0, device=device))
        )
    truth = tuple(torch.cat(entries) for entries in zip(*ends))
    return replace(flow.select(torch.cat(index)), truth=truth)


@contextlib.contextmanager
def frozen(denoiser: Denoiser) -> Iterator[None]:
    """Turns off gradients with respect to the parameters, which tuning does not need."""
    check_recordable(denoiser, "no gradient can be computed through it")
    trainable = [p for p in denoiser.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
