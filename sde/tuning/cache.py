"""Files of tuned grids, designed solvers, and the pilot runs of particles, in a run directory."""

from __future__ import annotations

__all__ = ["load_grid", "load_solver", "load_variance", "save_grid", "save_solver", "save_variance"]

import dataclasses
import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..grids import Explicit
from ..instantiate import build, class_name
from ..measurement import PilotCovariance, PilotVariance
from ..solvers import Designed, GridSteps
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
    digest = hashlib.sha256(_settings(solver).encode()).hexdigest()[:8]  # another order is another file
    path = Path(directory) / "grids" / f"{_name(solver, data)}-{digest}.json"
    text = json.dumps({"solver": _settings(solver), "points": list(grid.points)}, indent=1)
    return _write(path, lambda file: file.write(text.encode()))


def load_grid(directory: str | os.PathLike[str], solver: GridSteps, *, data: bool = False) -> Explicit | None:
    """The saved grid of a solver with the same settings, or None if there is none."""
    # The files of version 0.1.0 have no digest in their names.
    for path in sorted(Path(directory, "grids").glob(f"{_name(solver, data)}*.json")):
        try:
            content = json.loads(path.read_text())
            if content["solver"] == _settings(solver):
                return Explicit(content["points"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a tuned grid ({error}); delete it to tune the grid again") from error
    return None


def save_solver(directory: str | os.PathLike[str], solver: Designed, purpose: str) -> Path:
    """Saves a designed solver in a run directory, for :func:`load_solver`.

    Args:
        directory: the run directory; the file is written to its subdirectory `grids/`.
        solver: the solver.
        purpose: what it was designed for (:func:`sde.tuning.tune_solver.purpose`).

    Returns:
        The path of the file.
    """
    path = _solver_path(directory, solver.steps, purpose, solver.process)
    numbers = {f.name: getattr(solver, f.name) for f in dataclasses.fields(solver)}
    text = json.dumps({"purpose": purpose, "solver": {"_target_": class_name(solver), **numbers}}, indent=1)
    return _write(path, lambda file: file.write(text.encode()))


def load_solver(directory: str | os.PathLike[str], steps: int, purpose: str, process: str) -> Designed | None:
    """The saved solver of so many steps for a purpose and the `repr` of a process, or None if there is none."""
    path = _solver_path(directory, steps, purpose, process)
    if not path.exists():
        return None
    try:
        solver = build(json.loads(path.read_text())["solver"], rooms=("sde.solvers.designed",))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a designed solver ({error}); delete it to design it again") from error
    assert isinstance(solver, Designed)
    return solver


def save_variance(directory: str | os.PathLike[str], name: str, variance: PilotVariance | PilotCovariance) -> Path:
    """Saves what :func:`sde.tune_particles` measured in a run directory, for :func:`load_variance`.

    Args:
        directory: the run directory; the file is written to its subdirectory `grids/`.
        name: the name of the pilot run.
        variance: the variance or the covariance.
    """
    path = Path(directory) / "grids" / f"{name}.npz"
    values = np.asarray(variance.values)
    return _write(path, lambda file: np.savez(file, log_snr=np.asarray(variance.log_snr), values=values))


def load_variance(directory: str | os.PathLike[str], name: str) -> PilotVariance | PilotCovariance | None:
    """The variance or covariance of a pilot run, from a run directory, or None if there is none."""
    path = Path(directory) / "grids" / f"{name}.npz"
    try:
        with np.load(path) as content:
            places, values = content["log_snr"].tolist(), torch.from_numpy(content["values"])
        return PilotVariance(places, values.tolist()) if values.ndim == 1 else PilotCovariance(places, values)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a pilot run ({error}); delete it to run it again") from error


def _write(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Writes a file, or warns that it cannot: the work goes on with what the pilot run has found."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except OSError as error:
        warnings.warn(f"{path} cannot be written, and the next run needs a pilot of its own: {error}", stacklevel=4)
    return path


def _solver_path(directory: str | os.PathLike[str], steps: int, purpose: str, process: str) -> Path:
    digest = hashlib.sha256(f"{purpose} {process}".encode()).hexdigest()[:8]
    return Path(directory) / "grids" / f"Designed-{steps}-{digest}.json"


def _settings(solver: GridSteps) -> str:
    """All settings of a solver except its grid."""
    others = [f for f in dataclasses.fields(solver) if f.name != "grid"]
    return f"{type(solver).__name__}({', '.join(f'{f.name}={getattr(solver, f.name)!r}' for f in others)})"


def _name(solver: GridSteps, data: bool) -> str:
    return f"{type(solver).__name__}-{solver.steps}-{'likelihood' if data else 'sample'}"
