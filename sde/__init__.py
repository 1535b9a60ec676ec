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
    "Prediction",
    "ScorePrediction",
    "TimeLevel",
    "VelocityPrediction",
    "Wrapper",
    "LearnedVarianceDenoiser",
    "Clip",
    "DynamicThreshold",
    "MatchedLevel",
    "ScaledScorePrediction",
    "Dynamics",
    "Reverse",
    "Semilinear",
    "WithLogDensity",
    "LogProb",
    "log_prob",
    "ErrorBudget",
    "error_budget",
    "Model",
    "load",
    "save",
    "EMA",
    "Batches",
    "Training",
    "BrownianPath",
    "Noise",
    "NoiseSource",
    "StepNoise",
    "Stream",
    "SDE",
    "VE",
    "VP",
    "ChainSDE",
    "Cosine",
    "DiscreteChain",
    "KarrasVE",
    "RectifiedFlow",
    "SubVP",
    "Samples",
    "encode",
    "expand",
    "sample",
    "tune_grid",
    "tune_solver",
    "Exact",
    "ExactTrace",
    "Hutchinson",
    "Orthogonal",
    "XTrace",
    "Trace",
    "data",
    "evaluation",
    "exact",
    "grids",
    "likelihood",
    "metrics",
    "networks",
    "objective",
    "plots",
    "solvers",
    "training",
    "tuning",
]

from . import data, evaluation, exact, grids, likelihood, metrics, networks, objective, plots, solvers, training, tuning
from .brownian import BrownianPath
from .denoisers import (
    EDM,
    Clip,
    Conditioned,
    DataPrediction,
    Denoiser,
    DynamicThreshold,
    LearnedVarianceDenoiser,
    LogSNRLevel,
    MatchedLevel,
    NetworkDenoiser,
    NoiseLevel,
    NoisePrediction,
    Parametrisation,
    Prediction,
    ScaledScorePrediction,
    ScorePrediction,
    TimeLevel,
    VelocityPrediction,
    Wrapper,
)
from .dynamics import Dynamics, Reverse, Semilinear, WithLogDensity
from .likelihood import ErrorBudget, LogProb, error_budget, log_prob
from .model import Model, load, save
from .noise import Noise, NoiseSource, StepNoise, Stream
from .processes import SDE, VE, VP, ChainSDE, Cosine, DiscreteChain, KarrasVE, RectifiedFlow, SubVP
from .sampling import Samples, encode, sample
from .shapes import expand
from .trace import Exact, ExactTrace, Hutchinson, Orthogonal, Trace, XTrace
from .training import EMA, Batches, Training
from .tuning import tune_grid, tune_solver
from .version import __version__

# The paired comparison of likelihoods now stands above `likelihood`; its name in version 0.1.0 goes on working.
vars(likelihood).update(Paired=evaluation.Paired, paired=evaluation.paired)
