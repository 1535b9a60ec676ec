"""Score-based generative modelling with stochastic differential equations."""

__all__ = [
    "EDM",
    "Conditioned",
    "DataPrediction",
    "Denoiser",
    "LogSNR",
    "NetworkDenoiser",
    "NoiseLevel",
    "NoisePrediction",
    "Parametrisation",
    "ScorePrediction",
    "Time",
    "VelocityPrediction",
    "Dynamics",
    "Reverse",
    "Semilinear",
    "WithLogDensity",
    "LogProb",
    "log_prob",
    "Model",
    "load",
    "Noise",
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
from .denoiser import (
    EDM,
    Conditioned,
    DataPrediction,
    Denoiser,
    LogSNR,
    NetworkDenoiser,
    NoiseLevel,
    NoisePrediction,
    Parametrisation,
    ScorePrediction,
    Time,
    VelocityPrediction,
)
from .dynamics import Dynamics, Reverse, Semilinear, WithLogDensity
from .likelihood import LogProb, log_prob
from .model import Model, load
from .noise import Noise, StepNoise, Stream
from .processes import SDE, VE, VP, ChainSDE, DiscreteChain, SubVP
from .sampling import Samples, encode, sample
from .trace import Exact, Hutchinson, Trace

__version__ = "0.1.0"
