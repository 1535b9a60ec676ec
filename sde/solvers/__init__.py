"""Solvers: one interface, one small file per method."""

from .adams_bashforth import AdamsBashforth
from .adaptive_sde import AdaptiveSDE
from .ancestral import Ancestral
from .base import FixedStep, GridSteps, OneStep, Progress, Run, Solver, Step, linear_combination
from .coordinates import Arcsinh, LogNoise, Variable
from .ddim import DDIM
from .decoupled import Decoupled
from .deis import DEIS
from .designed import Designed
from .dpm_solver_pp import DPMSolverPP, DPMSolverPP2S
from .euler import Euler
from .euler_maruyama import EulerMaruyama
from .heun import Heun
from .midpoint import DPMSolver2, DPMSolver3, Midpoint
from .multistep import Multistep, Ramp, RungeKuttaStart, Start
from .particles import Particles
from .polish import Polish
from .predictor_corrector import Corrector, Langevin, PredictorCorrector, SongLangevin
from .replacement import Replacement
from .reverse_diffusion import ReverseDiffusion
from .runge_kutta import RungeKutta
from .scipy_ode import ScipyODE
from .stochastic_runge_kutta import StochasticRungeKutta
from .tableaus import BOGACKI_SHAMPINE, DORMAND_PRINCE, DORMAND_PRINCE_8, TSITOURAS, Tableau
from .torch_sde import TorchSDE
from .unipc import UniPC

__all__ = [
    "Solver",
    "FixedStep",
    "GridSteps",
    "OneStep",
    "Run",
    "Progress",
    "Step",
    "linear_combination",
    "EulerMaruyama",
    "Ancestral",
    "ReverseDiffusion",
    "PredictorCorrector",
    "StochasticRungeKutta",
    "AdaptiveSDE",
    "TorchSDE",
    "Corrector",
    "Langevin",
    "SongLangevin",
    "Euler",
    "Heun",
    "Midpoint",
    "DPMSolver2",
    "DPMSolver3",
    "DDIM",
    "DPMSolverPP",
    "DPMSolverPP2S",
    "UniPC",
    "DEIS",
    "AdamsBashforth",
    "Designed",
    "Multistep",
    "Ramp",
    "RungeKuttaStart",
    "Start",
    "Variable",
    "LogNoise",
    "Arcsinh",
    "RungeKutta",
    "Tableau",
    "BOGACKI_SHAMPINE",
    "DORMAND_PRINCE",
    "DORMAND_PRINCE_8",
    "TSITOURAS",
    "ScipyODE",
    "Particles",
    "Replacement",
    "Decoupled",
    "Polish",
]
