r"""Measured orders of convergence: the table in the documentation, which the tests verify.

Every deterministic method runs with increasing numbers of steps along the flow of a mixture of Gaussians, between two
times at which the flow is smooth, and computes the log-density as well. The exact result is a solution at a tolerance
of 1e-13. The order is the slope of the error over the last doubling of the steps with errors above 1e-10.
"""

from __future__ import annotations

__all__ = ["CLAIMS", "Claim", "Measured", "measure", "schedule", "write_orders"]

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde.denoisers import Conditioned
from sde.dynamics import Reverse, State, WithLogDensity
from sde.exact import Mixture
from sde.processes import SDE
from sde.solvers import (
    DDIM,
    DEIS,
    DORMAND_PRINCE_8,
    AdamsBashforth,
    Arcsinh,
    DPMSolver2,
    DPMSolver3,
    DPMSolverPP,
    DPMSolverPP2S,
    Euler,
    FixedStep,
    Heun,
    Midpoint,
    RungeKutta,
    RungeKuttaStart,
    UniPC,
)
from sde.storage.files import write_atomically
from sde.trace import ExactTrace

Method = Callable[[int], FixedStep]


@dataclass(frozen=True)
class Claim:
    """A solver as a function of its number of steps, and the order that it claims."""

    method: Method
    order: int

    @property
    def name(self) -> str:
        """The constructor call of the solver, with n for its steps."""
        solver: Any = self.method(1)
        others = [f for f in fields(solver) if f.name not in ("steps", "grid")]
        changed = [
            f"{f.name}={getattr(solver, f.name)!r}"
            for f in others
            if f.default is MISSING or f.name == "order" or getattr(solver, f.name) != f.default
        ]
        return f"{type(solver).__name__}({', '.join(['n', *changed])})"


_FULL = RungeKuttaStart()

CLAIMS: tuple[Claim, ...] = (
    Claim(Euler, 1),
    Claim(Heun, 2),
    Claim(Midpoint, 2),
    Claim(DDIM, 1),
    Claim(DPMSolver2, 2),
    Claim(DPMSolver3, 3),
    Claim(DPMSolverPP2S, 2),
    *(Claim(lambda n, k=k: DPMSolverPP(n, k), min(k, 2)) for k in (1, 2, 3)),  # type: ignore[misc]
    *(Claim(lambda n, k=k: DPMSolverPP(n, k, _FULL), k) for k in (2, 3)),  # type: ignore[misc]
    *(Claim(lambda n, k=k: UniPC(n, k), min(k, 2) + 1) for k in (1, 2, 3)),  # type: ignore[misc]
    *(Claim(lambda n, k=k: UniPC(n, k, _FULL), k + 1) for k in (1, 2, 3, 4)),  # type: ignore[misc]
    Claim(lambda n: UniPC(n, 3, _FULL, variable=Arcsinh()), 4),
    *(Claim(lambda n, k=k: DEIS(n, k), min(k, 2)) for k in (1, 2, 3, 4)),  # type: ignore[misc]
    *(Claim(lambda n, k=k: DEIS(n, k, _FULL), k) for k in (2, 3, 4)),  # type: ignore[misc]
    *(Claim(lambda n, k=k: AdamsBashforth(n, k), min(k, 2)) for k in (1, 2, 3, 4)),  # type: ignore[misc]
    *(Claim(lambda n, k=k: AdamsBashforth(n, k, _FULL), k) for k in (2, 3, 4, 5)),  # type: ignore[misc]
)


@dataclass(frozen=True)
class Measured:
    """The measured errors of a method.

    Attributes:
        steps: the numbers of steps.
        errors: the errors of x and of the log-density for each number of steps.
        calls: the network calls per step for the last number of steps.
    """

    steps: tuple[int, ...]
    errors: tuple[tuple[float, ...], tuple[float, ...]]
    calls: float

    @property
    def orders(self) -> tuple[float, float]:
        """The measured orders of x and of the log-density."""
        return _slope(self.steps, self.errors[0]), _slope(self.steps, self.errors[1])


def _slope(steps: Sequence[int], errors: Sequence[float]) -> float:
    above = [(n, e) for n, e in zip(steps, errors) if e > 1e-10]
    (m, before), (n, after) = above[-2:]
    return math.log(before / after) / math.log(n / m)


def mixture() -> Mixture:
    """Three correlated Gaussians in two dimensions with different sizes and weights."""
    weights, means = [0.5, 0.3, 0.2], [[-1.2, 0.4], [1.0, 1.1], [0.3, -1.4]]
    covs = [[[0.12, 0.05], [0.05, 0.08]], [[0.05, -0.02], [-0.02, 0.15]], [[0.2, 0.0], [0.0, 0.03]]]
    return Mixture(*(torch.tensor(values, dtype=torch.float64) for values in (weights, means, covs)))


@lru_cache
def _problem(process: SDE, start: float, stop: float) -> tuple[WithLogDensity, Tensor, State]:
    target = mixture()
    x = target.at(process, start).sample(24, generator=torch.Generator().manual_seed(3))
    dynamics = WithLogDensity(Reverse(target.denoiser(process), 0.0), ExactTrace())
    with torch.no_grad():
        truth = RungeKutta(DORMAND_PRINCE_8, rtol=1e-13, atol=1e-13)(
            dynamics, (x, x.new_zeros(len(x), 1)), None, start, stop
        )
    return dynamics, x, truth


def schedule(order: int) -> tuple[tuple[int, ...], float, float]:
    """Steps and times for a method of this order, such that its errors are asymptotic and above 1e-10."""
    return ((48, 96, 192), 0.55, 0.35) if order > 4 else ((32, 64, 128), 0.5, 0.4)


def measure(method: Method, process: SDE, steps: Sequence[int], start: float, stop: float) -> Measured:
    """The errors of a method along the flow of the mixture.

    Args:
        method: the solver as a function of its number of steps.
        process: the process.
        steps: the numbers of steps, increasing.
        start: the initial time.
        stop: the final time.
    """
    dynamics, x, truth = _problem(process, start, stop)
    errors: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for n in steps:
            state = method(n)(dynamics, (x, x.new_zeros(len(x), 1)), None, start, stop)
            for values, entry, exact in zip(errors, state, truth):
                values.append(float((entry - exact).square().mean().sqrt()))
    return Measured(tuple(steps), (tuple(errors[0]), tuple(errors[1])), _calls(method, process, steps[-1], x))


def _calls(method: Method, process: SDE, n: int, x: Tensor) -> float:
    nfe = torch.zeros(len(x), dtype=torch.int64)
    with torch.no_grad():
        method(n)(Reverse(Conditioned(mixture().denoiser(process), None, nfe), 0.0), (x,), None, 0.5, 0.4)
    return int(nfe[0]) / n


def write_orders(path: Path, process: SDE) -> str:
    """Measures all claims, writes the table to a CSV file, and returns its text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["solver", "calls per step", "claimed order", "measured for x", "measured for log p"])
    for claim in CLAIMS:
        measured = measure(claim.method, process, *schedule(claim.order))
        x, log_density = measured.orders
        writer.writerow([claim.name, f"{measured.calls:.3g}", claim.order, f"{x:.2f}", f"{log_density:.2f}"])
    write_atomically(path, lambda file: file.write(out.getvalue().encode()))
    return out.getvalue()
