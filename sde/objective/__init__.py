"""Objectives: losses, their weightings over time, and the distribution of training times."""

__all__ = [
    "Objective",
    "DenoisingScoreMatching",
    "Weighting",
    "Simple",
    "Likelihood",
    "Times",
    "UniformTimes",
    "UniformLogSNR",
    "ChainTimes",
]

from .losses import DenoisingScoreMatching, Objective
from .times import ChainTimes, Times, UniformLogSNR, UniformTimes
from .weightings import Likelihood, Simple, Weighting
