r"""Solvers designed for a model by a pilot run.

The pilot is solved accurately, and a quarter of its samples is held out. From the best standard grid, the times are
tuned first; then all numbers of the solver (:mod:`sde.tuning.design`), with a prior whose strength falls by steps as
long as that helps the samples that are held out (:mod:`sde.tuning.gauss_newton`).
"""

from __future__ import annotations

__all__ = ["purpose", "tune_solver"]

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..grids import Grid, Karras, LogSNR, Quadratic, Uniform
from ..processes import SDE
from ..sampling import evaluating
from ..shapes import as_tensor, check_count, float64, recording
from ..solvers import Arcsinh, Designed, UniPC
from ..trace import Trace
from .design import Design
from .gauss_newton import Descent
from .hard_starts import with_hard_starts
from .pilot import OutOfTime, check_pilot
from .reference import PilotFlow, frozen, pilot_flow, solved

# The strengths of the prior, and with each of them the Gauss-Newton steps and the largest number of those of BFGS.
STRENGTHS, STEPS, REFINEMENTS = (1e-2, 1e-3, 1e-4), 5, 40
# The smallest pilot: some to learn from, and some that are held out.
SMALLEST = 4


def tune_solver(
    denoiser: Denoiser,
    shape: Sequence[int] | None = None,
    steps: int = 10,
    *,
    data: Tensor | None = None,
    trace: Trace | None = None,
    condition: Mapping[str, Tensor] | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    seconds: float | None = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[float], object] | None = None,
) -> Designed:
    r"""A solver of `steps` network calls that is designed for a model by a pilot run.

    Times, coefficients and the noise levels on which the network is conditioned are those with which the pilot comes
    closest to its accurate solution, by Gauss-Newton steps and BFGS (:mod:`sde.tuning.gauss_newton`). For sampling, the
    pilot starts from `shape[0]` draws of the prior, which differ from those of :func:`sde.sample`, half of them
    near a border between modes (:mod:`sde.tuning.hard_starts`); for likelihoods, from data, and the error is that of
    the log-density.

    Args:
        denoiser: the model, guidance and wrappers included: the solver belongs to all of it.
        shape: the shape (B, \*) of the pilot, for sampling; 256 samples are good, 512 better; fewer than 4 are refused.
        steps: the number of steps and network calls.
        data: data in the model's range, with shape (B, \*), for likelihoods and encoding.
        trace: the trace for likelihoods, one Rademacher probe by default.
        condition: the condition of each pilot sample, as in :func:`sde.sample`: those that samples will have.
        tolerance: rtol and atol of the accurate solution; by default 1e-4 up to 12 steps and 1e-5 beyond.
        seed: the seed of the pilot run.
        seconds: the time for all of it, the accurate solution included. Samples that are not solved in a third of it
            are left out. Without it the result does not depend on the speed of the machine; another rounding may lead
            to another design that is as good.
        dtype: the dtype of the state; by default that of the denoiser, or that of the data for likelihoods.
        progress: called with the fraction of the work that is done.

    Returns:
        The solver, which says in `origin` what it was designed for. If the time is too short to solve 4 samples, it is
        UniPC on a standard grid, with a warning.

    Raises:
        ValueError: if the pilot is too small, unless one of shape and data is set, or if `seconds` is not positive.
        FloatingPointError: if every solution of the pilot failed.
    """
    begun, process = time.monotonic(), denoiser.process
    check_count("tune_solver", "steps", steps, 1)
    check_pilot("tune_solver", shape, seconds)
    size = len(data) if data is not None else shape[0] if shape is not None else SMALLEST
    if size < SMALLEST:
        raise ValueError(f"tune_solver needs a pilot of at least {SMALLEST} samples, to hold some out, got {size}")
    deadline = math.inf if seconds is None else begun + seconds
    third = math.inf if seconds is None else begun + seconds / 3.0
    report = (lambda done: None) if progress is None else progress
    tolerance = tolerance or (1e-4 if steps <= 12 else 1e-5)
    # A tenth of the errors that a design with so few calls has.
    with recording(False), evaluating(denoiser), frozen(denoiser):
        atol = None if data is None else tolerance * math.prod(data.shape[1:]) * math.log(2.0)
        start: dict[str, Any] = {"trace": trace, "condition": condition, "seed": seed, "dtype": dtype, "atol": atol}
        flow = pilot_flow(denoiser, shape, data, **start)
        if data is None:
            flow = with_hard_starts(flow, seed, math.inf if seconds is None else begun + seconds / 6.0)
        flow = solved(flow, tolerance, third, progress=lambda done: report(0.25 * done))
        origin = f"{purpose(denoiser, condition, data=data is not None)}, from {len(flow)} pilot samples"
        if len(flow) < SMALLEST:
            warnings.warn(
                f"tune_solver: in seconds={seconds} the pilot could not be solved; the solver is not designed",
                stacklevel=2,
            )
            plain = UniPC(steps, 3, variable=Arcsinh())
            return Designed.of(plain, process, flow.start, flow.stop, "nothing yet")
        solver = _designed(flow, steps, deadline, origin, seed, lambda done: report(0.25 + 0.75 * done))
        # Of the samples that were solved.
        solver = replace(solver, conditions=tuple(_whole_numbers(flow.dynamics.condition).items()))
        report(1.0)
    return solver


def _designed(
    flow: PilotFlow, steps: int, deadline: float, origin: str, seed: int, report: Callable[[float], object]
) -> Designed:
    """The solver for a solved flow."""
    process = flow.dynamics.process
    device = flow.begin[0].device
    used = len(flow) - max(len(flow) // 4, 1)
    train, held = (flow.select(torch.arange(*ends, device=device)) for ends in ((0, used), (used, len(flow))))
    clean = (flow.truth if flow.start > flow.stop else flow.begin)[0]
    data_std = float(clean.double().std() / process.alpha(float64(process.t_min)))
    method = UniPC(steps, 3, variable=Arcsinh(data_std))
    times = LogSNR().times(process, steps, flow.start, flow.stop)
    design = Design(method, process, times, data_std, density=flow.start < flow.stop)
    generator = torch.Generator("cpu").manual_seed(seed)
    best = design, design.start()
    try:
        design, parameters = _first(design, train, deadline)
        best = design, parameters
        gaps, _, shift, _, _ = design.kinds()
        times_alone = gaps | (shift & (shift.cumsum(0) == 1))
        descent = Descent(design, train, deadline, generator)
        strengths = [(0.0, times_alone), *((s, torch.ones_like(gaps)) for s in STRENGTHS)]
        least, done, total = math.inf, 0, len(strengths) * (STEPS + REFINEMENTS)

        def judge() -> None:
            nonlocal best, least, done
            if (error := descent.held_out(held)) < least:
                best, least = (design, descent.parameters), error
            done += 1
            report(done / total)

        for k, (strength, free) in enumerate(strengths):
            descent.prior = strength * (~times_alone).double()
            descent.begin(best[1])
            least = before = descent.held_out(held)
            for _ in range(STEPS if k else 2 * STEPS):
                descent.step(free)
                judge()
            if k:
                descent.refine(free, REFINEMENTS, judge)
            if k and least > 0.999 * before:
                break
            done = (k + 1) * (STEPS + REFINEMENTS)
    except OutOfTime:
        pass
    return best[0].solver(best[1], origin)


def _first(design: Design, flow: PilotFlow, deadline: float) -> tuple[Design, Tensor]:
    """The best standard grid for the plain method, with its parameters."""
    some = flow.select(torch.arange(min(len(flow), 64), device=flow.begin[0].device))
    best, least = (design, design.start()), math.inf
    descent = Descent(design, some, deadline, torch.Generator("cpu"))
    for times, skip in _grids(design.process, design.steps, flow.start, flow.stop, design.data_std):
        descent.design = design.on(times)
        parameters = descent.design.start()
        if skip:  # the first call is conditioned on the second time
            at = int(descent.design.kinds()[2].nonzero()[0])
            parameters[at] = 0.5 * design.process.log_snr(times[:2]).diff()
        descent.begin(parameters)
        error = float(descent.squares.log().mean())
        if error < least:
            best, least = (descent.design, parameters), error
    return best


def _grids(process: SDE, steps: int, start: float, stop: float, data_std: float) -> Iterator[tuple[Tensor, bool]]:
    r"""Standard grids, and those whose first step leads at once to a noise level a few times that of the data: far
    above it the flow moves towards the mean of the data, which the first call finds there as well."""
    high, low = max(start, stop), min(start, stop)
    grids: list[Grid] = [LogSNR(), Karras(), Quadratic(), Uniform()]
    for grid in grids:
        try:
            yield grid.times(process, steps, start, stop), False
        except ValueError:  # a grid that this process does not have
            continue
    kappa = (-0.5 * process.log_snr(float64([high, low]))).exp()
    for width in (0.2 * data_std, 0.5 * data_std, data_std, 3.0 * data_std):
        for top in (math.inf, 3.0 * data_std, 6.0 * data_std, 12.0 * data_std, 30.0 * data_std):
            skip = bool(kappa[1] < top < kappa[0]) and steps > 2
            ends = torch.stack([kappa[0].clamp(max=top), kappa[1]])
            w = (ends / width).asinh()
            line = torch.linspace(0.0, 1.0, steps + 1 - skip, dtype=torch.float64, device="cpu")
            inner = process.time(-2.0 * (width * (w[0] + (w[1] - w[0]) * line).sinh()).log())
            times = torch.cat([float64([high]), inner[1 - skip : -1], float64([low])])
            if (skip or math.isinf(top)) and bool((times.diff() < 0).all()):
                yield (times, skip) if start > stop else (times.flip(0), False)


def purpose(denoiser: Denoiser, condition: Mapping[str, Tensor] | None = None, *, data: bool = False) -> str:
    """The purpose of a designed solver in words: the use, the denoiser with its wrappers and their settings, and its
    conditions, with the values of those that are whole numbers."""
    names = ", ".join(_values(name, value) for name, value in sorted((condition or {}).items()))
    use = "likelihoods" if data else "samples"
    return f"{use} of {_name(denoiser)}{' given ' + names if names else ''}"


def _name(denoiser: Denoiser) -> str:
    """The name of a denoiser with those that it wraps, and with the settings of the wrappers."""
    inner = getattr(denoiser, "inner", None)
    if not isinstance(inner, Denoiser):
        return type(denoiser).__name__
    return f"{type(denoiser).__name__}({', '.join(filter(None, [denoiser.extra_repr(), _name(inner)]))})"


def _whole_numbers(condition: Mapping[str, Tensor | float]) -> dict[str, list[int]]:
    """The values of the conditions that are whole numbers, by name and sorted."""
    tensors = {name: as_tensor(value) for name, value in condition.items()}
    return {
        name: sorted(set(value.reshape(-1).tolist()))
        for name, value in tensors.items()
        if not value.is_floating_point() and value.ndim <= 1
    }


def _values(name: str, value: Tensor | float) -> str:
    """A condition by its name, with the values of whole numbers: `label 0 to 9`, `label 3, 7`."""
    numbers = _whole_numbers({name: value}).get(name)
    if numbers is None:
        return name
    consecutive = len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{name} {numbers[0]} to {numbers[-1]}" if consecutive else f"{name} {', '.join(map(str, numbers))}"
