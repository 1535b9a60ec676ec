r"""The measurements of a comparison: one row per experiment.

A deterministic solver starts from the noise of samples 0 to n - 1, and its results are compared with those of the exact
flow from the same noise. For a stochastic solver there is no such path: it draws more samples, n at a time, and their
distribution is compared with that of exact samples. Times of both kinds are measured on the same n samples.
"""

from __future__ import annotations

__all__ = ["Settings", "compare"]

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..metrics import Estimate
from ..profiling import Memory, Metered, now
from ..runtime import exact_float32
from ..sampling import Samples, state_like
from ..shapes import check_count
from ..solvers import Solver
from ..tuning import tune_solver
from .metrics import GROUPS, moments, sliced_wasserstein, strong
from .plan import FAILED, OK, DesignPilot, Entry, Experiment
from .problems import Problem
from .table import Row


@dataclass(frozen=True)
class Settings:
    """The settings of the measurements.

    Args:
        n: the number of samples of a run, for strong errors, times and memory.
        draws: the number of samples of a stochastic solver, and of exact samples.
        seed: the seed of all noise.
        repeats: the number of timed runs, whose median is reported.
        tolerance: the relative and absolute tolerance of the exact flow.
        directions: the number of directions of the sliced Wasserstein distance.
    """

    n: int = 128
    draws: int = 1024
    seed: int = 0
    repeats: int = 3
    tolerance: float = 1e-10
    directions: int = 128

    def __post_init__(self) -> None:
        for name, minimum in {"n": 2, "draws": 2 * GROUPS, "repeats": 1, "directions": 1, "seed": 0}.items():
            check_count("a comparison", name, getattr(self, name), minimum)
        if not isinstance(self.tolerance, int | float) or not self.tolerance > 0.0:
            raise ValueError(f"a comparison needs a number tolerance > 0, got tolerance={self.tolerance!r}")


class _Truth:
    """The exact results of a problem, computed on first use."""

    def __init__(self, problem: Problem, settings: Settings, progress: Callable[[float], object] | None) -> None:
        self._problem, self._settings, self._progress = problem, settings, progress

    @cached_property
    def ends(self) -> Tensor:
        return self._problem.ends(self._settings.n, self._settings.seed, self._settings.tolerance, self._progress)

    @cached_property
    def scale(self) -> float:
        return self._problem.scale(self.ends)

    @cached_property
    def samples(self) -> Tensor:
        return self._samples(0)

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        return self._problem.moments(self.samples)

    def distances(self, x: Tensor) -> dict[str, Any]:
        """The columns of the three distances between distributions."""
        mean, covariance = moments(x, *self.moments, self.scale)
        sliced = sliced_wasserstein(x, self.samples, self.scale, self._settings.directions)
        return {**_columns("sliced", sliced), **_columns("mean", mean), **_columns("covariance", covariance)}

    def floor(self) -> dict[str, Any]:
        """The distances of a second set of exact samples: the Monte-Carlo floor."""
        return self.distances(self._samples(1))

    def _samples(self, which: int) -> Tensor:
        return self._problem.samples(self._settings.draws, self._settings.seed, which, self._progress)


def compare(
    problem: Problem,
    experiments: Iterable[Experiment],
    settings: Settings | None = None,
    previous: Mapping[Any, Row] | None = None,
    progress: Callable[[float], object] | None = None,
) -> Iterator[Row]:
    """Yields one row for each experiment, in order, and one for exact samples before the first stochastic solver.

    Args:
        problem: the denoiser and its exact results.
        experiments: the experiments, from :func:`plan`.
        settings: the settings of the measurements.
        previous: the rows of an earlier comparison by their key, as in :class:`Table`; experiments with a row of status
            `ok` are not run again.
        progress: called with the fraction that is done while exact results are computed, before the first experiment
            that needs them.
    """
    settings = Settings() if settings is None else settings
    previous = {} if previous is None else previous
    truth, floor = _Truth(problem, settings, progress), None
    for experiment in experiments:
        if experiment.method is not None and experiment.stochastic and floor is None:
            floor = Row("exact", nfe=0.0, stochastic=True)
            yield previous.get(floor.key) or replace(floor, **truth.floor())
        row = Row(**{f.name: getattr(experiment, f.name) for f in fields(Entry)})
        old = previous.get(row.key)
        yield old if old is not None and old.status == OK else _measure(row, experiment, problem, settings, truth)


def _measure(row: Row, experiment: Experiment, problem: Problem, settings: Settings, truth: _Truth) -> Row:
    """The row with the results of an experiment."""
    if experiment.method is None and experiment.design is None:
        return row
    network = Metered(problem.denoiser)

    def run(first: int, n: int) -> Samples:
        return problem.sample(network, n, first=first, solver=method, seed=settings.seed)

    try:
        with exact_float32():
            method, cost = experiment.method, dict[str, Any]()
            if experiment.design is not None:
                method, cost = _designed(problem, experiment.steps, experiment.design)
            with Memory(network) as memory:
                result = run(0, settings.n)
            times = [_timed(run, network, settings.n) for _ in range(settings.repeats)]
            parts = [result.x.cpu()]
            for first in range(settings.n, settings.draws if experiment.stochastic else 0, settings.n):
                parts.append(run(first, min(settings.n, settings.draws - first)).x.cpu())
    except (ValueError, ArithmeticError) as error:
        return replace(row, status=FAILED, reason=str(error))
    x = torch.cat(parts)
    if not bool(x.isfinite().all()):
        return replace(row, status=FAILED, reason="some results are not finite")
    if experiment.stochastic:
        columns = truth.distances(x[: settings.draws])
    else:
        rms, median = strong(x, truth.ends, truth.scale)
        columns = {**_columns("strong", rms), **_columns("median", median)}
    columns |= {"nfe": result.nfe.double().mean().item(), "nfe_max": int(result.nfe.max())}
    seconds, network_seconds = (statistics.median(values) for values in zip(*times))
    columns |= {"seconds": seconds, "network_seconds": network_seconds}
    columns |= {"memory": memory.peak, "own_memory": memory.own}
    return replace(row, **columns, **cost)


def _designed(problem: Problem, steps: int, pilot: DesignPilot) -> tuple[Solver, dict[str, Any]]:
    """The solver that a pilot run designs, and the columns of its cost."""
    begun, condition, shape = time.perf_counter(), problem.condition(0, pilot.samples), (pilot.samples, *problem.shape)
    network = Metered(problem.denoiser)
    solver = tune_solver(network, shape, steps, condition=condition, seed=pilot.seed, seconds=pilot.seconds)
    cost = {"pilot_seconds": time.perf_counter() - begun, "pilot_calls": network.clock.calls}
    return solver, {"pilot_samples": pilot.samples, **cost}


def _timed(run: Callable[[int, int], Samples], network: Metered, n: int) -> tuple[float, float]:
    """The seconds of one run, and the seconds spent in the network."""
    device = state_like(network).device
    network.clock.seconds, start = 0.0, now(device)
    run(0, n)
    return now(device) - start, network.clock.seconds


def _columns(name: str, estimate: Estimate) -> dict[str, Any]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
