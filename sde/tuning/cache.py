"""Files of tuned grids in a run directory."""

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
    """Saves a tuned grid in a run directory, for :func:`load_grid`.

    Args:
        directory: the run directory; the file is written to its subdirectory `grids/`.
        solver: the solver for which the grid was tuned.
        grid: the grid.
        data: whether the grid was tuned for likelihoods.

    Returns:
        The path of the file.
    """
    path = _path(directory, solver, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"solver": _settings(solver), "points": list(grid.points)}, indent=1)
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def load_grid(directory: str | os.PathLike[str], solver: GridSteps, *, data: bool = False) -> Explicit | None:
    """The saved grid of a solver with the same settings, or None if there is none."""
    path = _path(directory, solver, data)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        return Explicit(content["points"]) if content["solver"] == _settings(solver) else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a tuned grid ({error}); delete it to tune the grid again") from error


def _settings(solver: GridSteps) -> str:
    """All settings of a solver except its grid."""
    others = [f for f in dataclasses.fields(solver) if f.name != "grid"]
    return f"{type(solver).__name__}({', '.join(f'{f.name}={getattr(solver, f.name)!r}' for f in others)})"


def _path(directory: str | os.PathLike[str], solver: GridSteps, data: bool) -> Path:
    purpose = "likelihood" if data else "sample"
    return Path(directory) / "grids" / f"{type(solver).__name__}-{solver.steps}-{purpose}.json"
