"""Solvers and time grids designed for a model by a pilot run."""

__all__ = [
    "EqualError",
    "Gradient",
    "Pilot",
    "Tuning",
    "load_grid",
    "load_variance",
    "save_grid",
    "save_variance",
    "tune_grid",
    "tune_particles",
    "tune_solver",
]

from .cache import load_grid, load_variance, save_grid, save_variance
from .equal_error import EqualError
from .gradient import Gradient
from .particles import tune_particles
from .pilot import Pilot, Tuning
from .tune import tune_grid
from .tune_solver import tune_solver
