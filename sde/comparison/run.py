r"""The comparison itself: one row per cell.

A deterministic solver is run from the noise of samples 0 to n - 1 and held to where the exact flow takes the same
noise. A solver that draws noise has no such path; it draws a larger number of samples, n at a time, whose distribution
is held to that of exact ones. Both kinds are timed on runs of the same n samples.
"""

from __future__ import annotations

__all__ = ["Settings", "compare"]

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..profiling import Memory, Metered, now
from ..runtime import exact_float32
from ..sampling import Samples, sample, state_like
from .metrics import GROUPS, Estimate, moments, sliced_wasserstein, strong
from .plan import FAILED, OK, Cell
from .problems import Problem
from .table import Row

# What a row takes over from its cell.
_SHARED = ("solver", "grid", "calls", "tolerance", "steps", "config", "status", "reason", "stochastic")


@dataclass(frozen=True)
class Settings:
    """How a comparison measures.

    Args:
        n: the samples of a run, on which strong errors, seconds and memory are measured.
        draws: the samples that a stochastic solver draws, and those of the truth.
        seed: the seed of all noise.
        repeats: how many timed runs the seconds are the median of.
        tolerance: relative and absolute tolerance of the exact flow.
        directions: of the sliced Wasserstein distance.
    """

    n: int = 128
    draws: int = 1024
    seed: int = 0
    repeats: int = 3
    tolerance: float = 1e-10
    directions: int = 128

    def __post_init__(self) -> None:
        least = {"n": 2, "draws": 2 * GROUPS, "repeats": 1, "directions": 1, "seed": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < bound:
                raise ValueError(f"a comparison needs a whole number {name} >= {bound}, got {name}={value!r}")
        if not isinstance(self.tolerance, int | float) or not self.tolerance > 0.0:
            raise ValueError(f"a comparison needs a number tolerance > 0, got tolerance={self.tolerance!r}")


class _Truth:
    """The truth of a problem, each part computed when it is first asked for and then kept."""

    def __init__(self, problem: Problem, settings: Settings) -> None:
        self._problem, self._settings = problem, settings

    @cached_property
    def ends(self) -> Tensor:
        return self._problem.ends(self._settings.n, self._settings.seed, self._settings.tolerance)

    @cached_property
    def scale(self) -> float:
        return self._problem.scale(self.ends)

    @cached_property
    def samples(self) -> Tensor:
        return self._problem.samples(self._settings.draws, self._settings.seed, which=0)

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        return self._problem.moments(self.samples)

    def distances(self, x: Tensor) -> dict[str, Any]:
        """The columns of the three distances between distributions."""
        mean, covariance = moments(x, *self.moments, self.scale)
        sliced = sliced_wasserstein(x, self.samples, self.scale, self._settings.directions)
        return {**_columns("sliced", sliced), **_columns("mean", mean), **_columns("covariance", covariance)}


def compare(
    problem: Problem,
    cells: Iterable[Cell],
    settings: Settings | None = None,
    done: Mapping[Any, Row] | None = None,
) -> Iterator[Row]:
    """Yields one row for each cell, in their order, and one of exact samples before the first stochastic solver.

    Args:
        problem: what the solvers are run on.
        cells: which solvers with which settings, from :func:`plan`.
        settings: how to measure.
        done: rows by their key, as :class:`Table` has them; those of a finished cell are yielded as they are.
    """
    settings = Settings() if settings is None else settings
    done = {} if done is None else done
    truth, level_is_there = _Truth(problem, settings), False
    for cell in cells:
        if cell.method is not None and cell.stochastic and not level_is_there:
            level_is_there, level = True, Row("exact", stochastic=True)
            yield done.get(level.key) or _level(level, problem, settings, truth)
        what = Row(**{name: getattr(cell, name) for name in _SHARED})
        before = done.get(what.key)
        yield before if before is not None and before.status == OK else _measure(what, cell, problem, settings, truth)


def _level(row: Row, problem: Problem, settings: Settings, truth: _Truth) -> Row:
    others = problem.samples(settings.draws, settings.seed, which=1)
    return replace(row, nfe=0.0, **truth.distances(others))


def _measure(row: Row, cell: Cell, problem: Problem, settings: Settings, truth: _Truth) -> Row:
    """The row with all that one cell's runs tell."""
    if cell.method is None:
        return row
    network = Metered(problem.denoiser)

    def run(first: int, n: int) -> Samples:
        condition = problem.condition(first, n)
        shape = (n, *problem.shape)
        return sample(network, shape, solver=cell.method, seed=settings.seed, first=first, condition=condition)

    try:
        with exact_float32():
            with Memory(network) as memory:
                result = run(0, settings.n)
            times = [_timed(run, network, settings.n) for _ in range(settings.repeats)]
            parts = [result.x.cpu()]
            for first in range(settings.n, settings.draws if cell.stochastic else 0, settings.n):
                parts.append(run(first, min(settings.n, settings.draws - first)).x.cpu())
    except (ValueError, ArithmeticError) as error:
        return replace(row, status=FAILED, reason=str(error))
    x = torch.cat(parts)
    if not bool(x.isfinite().all()):
        return replace(row, status=FAILED, reason="its results are not all finite")
    if cell.stochastic:
        errors = truth.distances(x[: settings.draws])
    else:
        rms, median = strong(x, truth.ends, truth.scale)
        errors = {**_columns("strong", rms), **_columns("median", median)}
    return replace(
        row,
        nfe=result.nfe.double().mean().item(),
        nfe_max=int(result.nfe.max()),
        seconds=statistics.median(whole for whole, _ in times),
        network_seconds=statistics.median(inside for _, inside in times),
        memory=memory.peak,
        own_memory=memory.own,
        **errors,
    )


def _timed(run: Callable[[int, int], Samples], network: Metered, n: int) -> tuple[float, float]:
    """The seconds of one run, and those spent in the network."""
    device = state_like(network).device
    network.clock.seconds, start = 0.0, now(device)
    run(0, n)
    return now(device) - start, network.clock.seconds


def _columns(name: str, estimate: Estimate) -> dict[str, Any]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
