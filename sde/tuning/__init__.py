"""Tuned time grids: times optimised for a model and a solver by a pilot run."""

__all__ = ["EqualError", "Gradient", "Pilot", "Tuning", "load_grid", "save_grid", "tune_grid", "tune_particles"]

from .cache import load_grid, save_grid
from .equal_error import EqualError
from .gradient import Gradient
from .particles import tune_particles
from .pilot import Pilot, Tuning
from .tune import tune_grid
