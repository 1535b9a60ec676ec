r"""The plan of a comparison: a list of experiments, each with a solver, a grid and a number of steps.

A budget is a number of network calls. The number of steps for a budget is measured: runs with a denoiser of negligible
cost count the calls, and the largest number of steps within the budget is used. Solvers without steps get tolerances
instead.
"""

from __future__ import annotations

__all__ = ["FAILED", "OK", "REFUSED", "TOO_SMALL", "Cell", "DesignPilot", "Entry", "Experiment", "plan", "plan_designs"]

import bisect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from ..dynamics import Reverse
from ..exact import Empirical
from ..instantiate import build, public
from ..processes import SDE
from ..sampling import sample
from ..shapes import check_count
from ..solvers import Solver
from ..tuning.tune_solver import SMALLEST

# The status of an experiment.
OK = "ok"
TOO_SMALL = "too small"  # the budget is smaller than the calls of one step
REFUSED = "refused"  # the solver, the grid and the process are incompatible
FAILED = "failed"  # the run raised an error


@dataclass(frozen=True)
class Entry:
    """One solver with one budget or one tolerance: the columns that an experiment and its row share.

    Attributes:
        solver: the name of the solver in tables; `exact` for a set of exact samples.
        grid: the name of the grid; empty if the solver has no grid or uses its own.
        calls: the budget in network calls; 0 for a tolerance.
        tolerance: the relative and absolute tolerance; 0 for a budget.
        steps: the number of steps within the budget; 0 for a tolerance.
        config: the config of the solver, as JSON.
        status: `ok`, `too small` (the budget is below the calls of one step), `refused` or `failed`.
        reason: why the status is not `ok`.
        stochastic: whether the solver draws noise.
    """

    solver: str
    grid: str = ""
    calls: int = 0
    tolerance: float = 0.0
    steps: int = 0
    config: str = ""
    status: str = OK
    reason: str = ""
    stochastic: bool = False

    @property
    def key(self) -> tuple[str, str, int, float, str]:
        """The solver, grid, budget, tolerance and config, which identify the entry."""
        return self.solver, self.grid, self.calls, self.tolerance, self.config


@dataclass(frozen=True)
class DesignPilot:
    """The pilot run of a designed solver (:func:`sde.tune_solver`).

    Attributes:
        samples: the number of its samples.
        seconds: the time for all of it, or None.
        seed: its seed.
    """

    samples: int = 256
    seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("a designed solver", "samples of its pilot", self.samples, SMALLEST)


@dataclass(frozen=True)
class Experiment(Entry):
    """An entry of the plan, with its solver.

    Attributes:
        method: the solver; None if the experiment cannot run, or designs its solver first.
        design: the pilot run that designs the solver, or None.
    """

    method: Solver | None = None
    design: DesignPilot | None = None


Cell = Experiment  # the name in version 0.1.0


# Data that is always 0: its exact denoiser has a negligible cost.
_ZERO = Empirical(torch.zeros(1, 1, device="cpu"))


def plan(
    name: str,
    tree: Mapping[str, Any],
    process: SDE,
    *,
    grids: Mapping[str, Mapping[str, Any]],
    calls: Sequence[int],
    tolerances: Sequence[float],
    trust: Sequence[str] = (),
) -> Iterator[Experiment]:
    """Yields the experiments of one solver: every grid with every budget, or every tolerance.

    Every node of the tree with a `grid` gets the grid and the number of steps. If there is none, a tree with `steps`
    gets the number of steps. A tree with `rtol` and `atol`, and without `steps` or with `steps: null`, gets tolerances.

    Args:
        name: the name of the solver in tables.
        tree: the config of the solver, a plain tree for :func:`sde.instantiate.build`.
        process: the process of the comparison.
        grids: the configs of the grids by name; if empty, solvers use their own grids.
        calls: the budgets in network calls, for solvers with steps.
        tolerances: the tolerances, for solvers without steps.
        trust: as in :func:`sde.instantiate.build`.

    Raises:
        ValueError: if the tree is not the config of a solver, or has neither steps nor tolerances.
    """
    if not all(_is_number(c, int) and c >= 1 for c in calls):
        raise ValueError(f"expected calls to be whole numbers >= 1, got calls={[*calls]}")
    if not all(_is_number(t, int | float) and t > 0.0 for t in tolerances):
        raise ValueError(f"expected tolerances > 0, got tolerances={[*tolerances]}")
    solver = build(tree, trust=trust)
    if not isinstance(solver, Solver):
        raise ValueError(f"solver {name!r}: expected the config of a solver, got {tree.get('_target_')!r}")
    blank = Experiment(name, stochastic=solver.eta > 0.0 or solver.draws)
    if _has_grid(tree) or tree.get("steps") is not None:
        for grid, node in grids.items() if grids and _has_grid(tree) else [("", None)]:
            config = partial(_with_steps, tree, node)
            for budget in calls:
                yield _with_budget(replace(blank, grid=grid, calls=budget), config, process, trust)
    elif "rtol" in tree and "atol" in tree:
        for tolerance in tolerances:
            adaptive = {**tree, "rtol": tolerance, "atol": tolerance}
            yield _check_fit(replace(blank, tolerance=tolerance), adaptive, process, trust)
    else:
        raise ValueError(
            f"solver {name!r}: expected a config with steps, or with rtol and atol, got the keys {', '.join(tree)}"
        )


def plan_designs(calls: Sequence[int], pilot: DesignPilot) -> Iterator[Experiment]:
    """Yields an experiment for each budget, whose solver is designed when it runs: its pilot is part of its cost.

    Args:
        calls: the budgets in network calls.
        pilot: the pilot run.
    """
    config = _to_json({"_target_": "sde.tune_solver", **asdict(pilot)})
    for budget in calls:
        yield Experiment("designed", calls=budget, steps=budget, config=config, design=pilot)


def _with_budget(
    experiment: Experiment, config: Callable[[int], Mapping[str, Any]], process: SDE, trust: Sequence[str]
) -> Experiment:
    """The experiment with the largest number of steps within its budget."""

    def calls(steps: int) -> int:
        try:
            solver = build(config(steps), trust=trust)
            return int(sample(_ZERO.denoiser(process), (1, 1), solver=solver, dtype=torch.float64).nfe.max())
        except ValueError:
            return 0  # a refused solver makes no calls; _check_fit reports the reason

    # A method may have up to two steps without a call, at its first and last time.
    steps = bisect.bisect_right(range(1, experiment.calls + 3), experiment.calls, key=calls)
    if steps == 0:
        reason = f"one step takes {calls(1)} calls"
        return replace(experiment, config=_to_json(config(1)), status=TOO_SMALL, reason=reason)
    return _check_fit(replace(experiment, steps=steps), config(steps), process, trust)


def _check_fit(experiment: Experiment, tree: Mapping[str, Any], process: SDE, trust: Sequence[str]) -> Experiment:
    """The experiment with its config, and with its solver or the reason why this is incompatible with the process."""
    experiment = replace(experiment, config=_to_json(tree))
    try:
        solver = build(tree, trust=trust)
        solver.bind(Reverse(_ZERO.denoiser(process), eta=solver.eta))
    except ValueError as error:
        return replace(experiment, status=REFUSED, reason=str(error))
    return replace(experiment, method=solver)


def _has_grid(tree: Any) -> bool:
    """Whether any node has a grid and fixed steps: `steps: null` makes some methods adaptive."""
    if not isinstance(tree, Mapping):
        return False
    fixed = "grid" in tree and tree.get("steps", 0) is not None
    return fixed or any(_has_grid(value) for value in tree.values())


def _with_steps(tree: Mapping[str, Any], grid: Mapping[str, Any] | None, steps: int) -> dict[str, Any]:
    """The tree with steps and, unless it is None, the grid at every node with a grid; else with steps at its root."""
    if "grid" in tree:
        return {**tree, "steps": steps, "grid": tree["grid"] if grid is None else grid}
    if not _has_grid(tree):
        return {**tree, "steps": steps}
    return {key: _with_steps(value, grid, steps) if _has_grid(value) else value for key, value in tree.items()}


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _to_json(tree: Mapping[str, Any]) -> str:
    return json.dumps(public(tree), sort_keys=True)
