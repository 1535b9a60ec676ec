"""Likelihoods: the log-density along the flow, variational bounds, and dequantisation."""

from .bounds import Bound, continuous_bound, density_bound
from .chain_bound import chain_bound
from .dequantisation import (
    Dequantised,
    Dequantiser,
    DiscreteLogProb,
    TruncatedNormal,
    UniformDequantiser,
    discrete_log_prob,
    importance_weighted,
)
from .error_budget import ErrorBudget, Mean, error_budget
from .flow import LogProb, PriorDensity, log_prob
from .variational import VariationalDequantiser, train_dequantiser

__all__ = [
    "LogProb",
    "PriorDensity",
    "log_prob",
    "ErrorBudget",
    "Mean",
    "error_budget",
    "Bound",
    "chain_bound",
    "continuous_bound",
    "density_bound",
    "Dequantised",
    "Dequantiser",
    "DiscreteLogProb",
    "TruncatedNormal",
    "UniformDequantiser",
    "VariationalDequantiser",
    "discrete_log_prob",
    "importance_weighted",
    "train_dequantiser",
]
