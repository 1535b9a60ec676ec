r"""The plan of a comparison: which solvers, on which grids, with how many steps.

A budget is a number of network calls. How many steps it buys is not declared by a solver but found out: a pilot run
over a denoiser that costs nothing counts the calls of so many steps, and the largest number of steps whose calls fit is
taken. Solvers without steps get tolerances instead.
"""

from __future__ import annotations

__all__ = ["FAILED", "OK", "REFUSED", "TOO_SMALL", "Cell", "plan"]

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..dynamics import Reverse
from ..instantiate import build
from ..processes import SDE
from ..sampling import sample
from ..solvers import Solver

# What became of a cell.
OK = "ok"
TOO_SMALL = "too small"  # its budget buys no step
REFUSED = "refused"  # solver, grid and process do not fit
FAILED = "failed"  # the run broke off


@dataclass(frozen=True)
class Cell:
    """One solver with one setting.

    Attributes:
        solver: its name in tables.
        grid: the name of its grid; empty where it has none to choose.
        calls: the budget in network calls; 0 where the setting is a tolerance.
        tolerance: relative and absolute tolerance; 0 where the setting is a budget.
        steps: the steps that the budget buys; 0 for a tolerance.
        config: the tree of the solver as it is built, as JSON.
        method: the solver; None where there is none to run.
        status: OK, TOO_SMALL or REFUSED.
        reason: why it cannot run.
        stochastic: whether the solver draws noise.
    """

    solver: str
    grid: str
    calls: int
    tolerance: float
    steps: int
    config: str
    method: Solver | None
    status: str = OK
    reason: str = ""
    stochastic: bool = False


class _Still(Denoiser):
    """A denoiser that costs nothing: all data is 0."""

    def __init__(self, process: SDE) -> None:
        super().__init__()
        self.process = process

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return torch.zeros_like(x_t)


def plan(
    name: str,
    tree: Mapping[str, Any],
    process: SDE,
    *,
    grids: Mapping[str, Mapping[str, Any]],
    calls: Sequence[int],
    tolerances: Sequence[float],
    trust: Sequence[str] = (),
) -> Iterator[Cell]:
    """Yields the cells of one solver: every grid with every budget, or every tolerance.

    A node of the tree with a `grid` is a method on a grid: it gets `grid` and `steps`. A tree that has none, but has
    `steps`, gets these; one with `rtol` and `atol`, or with `steps: null` beside them, gets tolerances.

    Args:
        name: the solver's name in tables.
        tree: its config, a plain tree as :func:`sde.instantiate.build` takes it.
        process: the process that it is going to serve.
        grids: the trees of the grids by name; none leaves each solver its own.
        calls: the budgets.
        tolerances: for solvers that take them.
        trust: as in :func:`sde.instantiate.build`.

    Raises:
        ValueError: if a tree is not a solver's, or has neither steps nor tolerances.
    """
    if not all(_is_number(c, int) and c >= 1 for c in calls):
        raise ValueError(f"expected calls to be whole numbers >= 1, got calls={[*calls]}")
    if not all(_is_number(t, int | float) and t > 0.0 for t in tolerances):
        raise ValueError(f"expected tolerances > 0, got tolerances={[*tolerances]}")
    solver = build(tree, trust=trust)
    if not isinstance(solver, Solver):
        raise ValueError(f"solver {name!r}: expected the config of a solver, got {tree.get('_target_')!r}")
    named = Cell(name, "", 0, 0.0, 0, "", None, stochastic=solver.eta > 0.0 or solver.draws)
    if _has_grid(tree) or tree.get("steps") is not None:
        for grid, node in grids.items() if grids and _has_grid(tree) else [("", None)]:
            make = partial(_with_steps, tree, node)
            for budget in calls:
                yield _within(replace(named, grid=grid, calls=budget), make, process, trust)
    elif "rtol" in tree and "atol" in tree:
        for tolerance in tolerances:
            config = {**tree, "rtol": tolerance, "atol": tolerance}
            yield _settled(replace(named, tolerance=tolerance), config, process, trust)
    else:
        raise ValueError(
            f"solver {name!r} cannot be compared: expected a config with steps, or with rtol and atol, "
            f"got the keys {', '.join(tree)}"
        )


def _within(cell: Cell, make: Callable[[int], Mapping[str, Any]], process: SDE, trust: Sequence[str]) -> Cell:
    """The cell with the most steps whose calls are within its budget."""

    def calls(steps: int) -> int:
        try:
            return _calls(build(make(steps), trust=trust), process)
        except ValueError:
            return 0  # what is refused makes no call; said below, if it is what remains

    # Bisection; no method takes more steps than calls and a few at its ends that ask for none.
    low, high = 0, cell.calls + 2
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if calls(middle) <= cell.calls else (low, middle - 1)
    if low == 0:
        return replace(cell, config=_text(make(1)), status=TOO_SMALL, reason=f"one step takes {calls(1)} calls")
    return _settled(replace(cell, steps=low), make(low), process, trust)


def _settled(cell: Cell, tree: Mapping[str, Any], process: SDE, trust: Sequence[str]) -> Cell:
    """The cell with its config and solver, or with the reason for which that refuses."""
    cell = replace(cell, config=_text(tree))
    try:
        solver = build(tree, trust=trust)
        solver.bind(Reverse(_Still(process), eta=solver.eta))
    except ValueError as error:
        return replace(cell, status=REFUSED, reason=str(error))
    return replace(cell, method=solver)


def _calls(solver: Solver, process: SDE) -> int:
    """The network calls of a solver with steps."""
    return int(sample(_Still(process), (1, 1), solver=solver, dtype=torch.float64).nfe.max())


def _has_grid(tree: Any) -> bool:
    """Whether there is a node with a grid that is asked for steps: `steps: null` makes some methods adaptive."""
    if not isinstance(tree, Mapping):
        return False
    here = "grid" in tree and tree.get("steps", 0) is not None
    return here or any(_has_grid(value) for value in tree.values())


def _with_steps(tree: Mapping[str, Any], grid: Mapping[str, Any] | None, steps: int) -> dict[str, Any]:
    """The tree with so many steps, and a grid if one is given, at every node that has one, or else at its root."""
    if "grid" in tree:
        return {**tree, "steps": steps, "grid": tree["grid"] if grid is None else grid}
    if not _has_grid(tree):
        return {**tree, "steps": steps}
    return {key: _with_steps(value, grid, steps) if _has_grid(value) else value for key, value in tree.items()}


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _text(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, sort_keys=True)
