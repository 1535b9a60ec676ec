"""Objectives: losses, their weightings over time, and the distribution of training times."""

__all__ = [
    "Objective",
    "DenoisingScoreMatching",
    "SlicedScoreMatching",
    "LearnedUncertainty",
    "ContinuousBound",
    "ChainBound",
    "Hybrid",
    "LearnedSchedule",
    "Weighting",
    "Simple",
    "Likelihood",
    "EDMWeighting",
    "MinSNR",
    "SoftMinSNR",
    "Sigmoid",
    "FlowMatching",
    "Times",
    "UniformTimes",
    "UniformLogSNR",
    "LogNormalTimes",
    "ChainTimes",
]

from .bounds import ChainBound, ContinuousBound, Hybrid
from .losses import DenoisingScoreMatching, Objective
from .schedule import LearnedSchedule
from .sliced import SlicedScoreMatching
from .times import ChainTimes, LogNormalTimes, Times, UniformLogSNR, UniformTimes
from .uncertainty import LearnedUncertainty
from .weightings import EDMWeighting, FlowMatching, Likelihood, MinSNR, Sigmoid, Simple, SoftMinSNR, Weighting
