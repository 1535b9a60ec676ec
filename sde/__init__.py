"""Score-based generative modelling with stochastic differential equations."""

__all__ = [
    "__version__",
    "EDM",
    "Conditioned",
    "DataPrediction",
    "Denoiser",
    "LogSNRLevel",
    "NetworkDenoiser",
    "NoiseLevel",
    "NoisePrediction",
    "Parametrisation",
    "ScorePrediction",
    "TimeLevel",
    "VelocityPrediction",
    "Wrapper",
    "Dynamics",
    "Reverse",
    "Semilinear",
    "WithLogDensity",
    "LogProb",
    "log_prob",
    "Model",
    "load",
    "Noise",
    "NoiseSource",
    "StepNoise",
    "Stream",
    "SDE",
    "VE",
    "VP",
    "ChainSDE",
    "DiscreteChain",
    "SubVP",
    "Samples",
    "encode",
    "expand",
    "sample",
    "Exact",
    "Hutchinson",
    "Trace",
    "data",
    "exact",
    "grids",
    "networks",
    "objective",
    "solvers",
]

from . import data, exact, grids, networks, objective, solvers
from .denoiser import Conditioned, Denoiser, NetworkDenoiser, Wrapper
from .dynamics import Dynamics, Reverse, Semilinear, WithLogDensity
from .likelihood import LogProb, log_prob
from .model import Model, load
from .noise import Noise, NoiseSource, StepNoise, Stream
from .parametrisation import (
    EDM,
    DataPrediction,
    LogSNRLevel,
    NoiseLevel,
    NoisePrediction,
    Parametrisation,
    ScorePrediction,
    TimeLevel,
    VelocityPrediction,
)
from .processes import SDE, VE, VP, ChainSDE, DiscreteChain, SubVP
from .sampling import Samples, encode, sample
from .shapes import expand
from .trace import Exact, Hutchinson, Trace
from .version import __version__
