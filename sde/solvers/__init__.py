"""Solvers: one interface, one small file per method."""

from .ancestral import Ancestral
from .base import FixedStep, GridSteps, Progress, Run, Solver, Step
from .euler import Euler
from .euler_maruyama import EulerMaruyama
from .heun import Heun
from .predictor_corrector import Corrector, Langevin, PredictorCorrector, SongLangevin
from .reverse_diffusion import ReverseDiffusion
from .runge_kutta import RungeKutta
from .scipy_ode import ScipyODE
from .tableaus import BOGACKI_SHAMPINE, DORMAND_PRINCE, Tableau

__all__ = [
    "Solver",
    "FixedStep",
    "GridSteps",
    "Run",
    "Progress",
    "Step",
    "EulerMaruyama",
    "Ancestral",
    "ReverseDiffusion",
    "PredictorCorrector",
    "Corrector",
    "Langevin",
    "SongLangevin",
    "Euler",
    "Heun",
    "RungeKutta",
    "Tableau",
    "BOGACKI_SHAMPINE",
    "DORMAND_PRINCE",
    "ScipyODE",
]
