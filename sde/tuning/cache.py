"""Tuned grids kept beside a model."""

from __future__ import annotations

__all__ = ["load_grid", "save_grid"]

import dataclasses
import json
import os
from pathlib import Path

from ..grids import Explicit
from ..solvers import GridSteps
from ..storage.files import write_atomically


def save_grid(directory: str | os.PathLike[str], solver: GridSteps, grid: Explicit, *, data: bool = False) -> Path:
    """Keeps a tuned grid beside a model, for :func:`load_grid`.

    Args:
        directory: a run directory; the file goes to `grids/` in it.
        solver: the solver it was tuned for.
        grid: the grid.
        data: whether it was tuned for likelihoods.
    """
    path = _place(directory, solver, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"solver": _settings(solver), "points": list(grid.points)}, indent=1)
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def load_grid(directory: str | os.PathLike[str], solver: GridSteps, *, data: bool = False) -> Explicit | None:
    """The grid that was kept for a solver, or None where there is none for just its settings."""
    path = _place(directory, solver, data)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        return Explicit(content["points"]) if content["solver"] == _settings(solver) else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no tuned grid ({error}); delete it to have the grid tuned anew") from error


def _settings(solver: GridSteps) -> str:
    """All settings of a solver but its grid."""
    kept = [f for f in dataclasses.fields(solver) if f.name != "grid"]
    return f"{type(solver).__name__}({', '.join(f'{f.name}={getattr(solver, f.name)!r}' for f in kept)})"


def _place(directory: str | os.PathLike[str], solver: GridSteps, data: bool) -> Path:
    purpose = "likelihood" if data else "sample"
    return Path(directory) / "grids" / f"{type(solver).__name__}-{solver.steps}-{purpose}.json"
