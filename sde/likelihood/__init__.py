"""Likelihoods: the log-density along the flow, variational bounds, and dequantisation."""

from .bound import Bound, continuous_bound, density_bound
from .bound_chain import chain_bound
from .budget import ErrorBudget, Mean, error_budget
from .dequantise import (
    Dequantised,
    Dequantiser,
    DiscreteLogProb,
    TruncatedNormal,
    UniformDequantiser,
    discrete_log_prob,
    importance_weighted,
)
from .ode import LogProb, log_prob
from .pairing import Paired, paired
from .variational import VariationalDequantiser, train_dequantiser

__all__ = [
    "LogProb",
    "log_prob",
    "ErrorBudget",
    "Mean",
    "error_budget",
    "Paired",
    "paired",
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
