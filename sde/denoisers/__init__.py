"""Denoisers: a network, or closed formulas, that answer :math:`E[x_0 | x_t]`, and what wraps them."""

__all__ = [
    "EDM",
    "Clip",
    "Coefficients",
    "Conditioned",
    "DataPrediction",
    "Denoiser",
    "DynamicThreshold",
    "FlowPrediction",
    "LearnedVarianceDenoiser",
    "Limited",
    "LogSNRLevel",
    "MatchedLevel",
    "NetworkDenoiser",
    "NoiseLevel",
    "NoisePrediction",
    "Parametrisation",
    "PredictingDenoiser",
    "QuantisedDenoiser",
    "Prediction",
    "ScaledScorePrediction",
    "ScorePrediction",
    "Steering",
    "TimeLevel",
    "VelocityPrediction",
    "Wrapper",
    "from_score",
    "from_x0",
    "shifted",
    "to_x0",
]

from .base import Conditioned, Denoiser, Steering, Wrapper
from .clipping import Clip, DynamicThreshold, Limited
from .levels import LogSNRLevel, MatchedLevel, NoiseLevel, TimeLevel
from .network import LearnedVarianceDenoiser, NetworkDenoiser, PredictingDenoiser
from .parametrisation import (
    EDM,
    Coefficients,
    DataPrediction,
    FlowPrediction,
    NoisePrediction,
    Parametrisation,
    Prediction,
    ScaledScorePrediction,
    ScorePrediction,
    VelocityPrediction,
    from_score,
    from_x0,
    shifted,
    to_x0,
)
from .quantised import QuantisedDenoiser
