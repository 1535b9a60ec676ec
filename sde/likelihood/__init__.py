"""Likelihoods."""

from .ode import LogProb, log_prob

__all__ = ["LogProb", "log_prob"]
