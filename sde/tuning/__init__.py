"""Solvers and time grids designed for a model by a pilot run."""

__all__ = [
    "Choice",
    "EqualError",
    "Gradient",
    "Pilot",
    "PilotRows",
    "Tuning",
    "choose_solver",
    "load_grid",
    "load_solver",
    "load_variance",
    "pilot_rows",
    "purpose",
    "save_grid",
    "save_solver",
    "save_variance",
    "tune_grid",
    "tune_particles",
    "tune_solver",
    "tune_trace",
]

from .cache import load_grid, load_solver, load_variance, save_grid, save_solver, save_variance
from .equal_error import EqualError
from .gradient import Gradient
from .likelihood import Choice, PilotRows, choose_solver, pilot_rows
from .particles import tune_particles
from .pilot import Pilot, Tuning
from .trace import tune_trace
from .tune import tune_grid
from .tune_solver import purpose, tune_solver
