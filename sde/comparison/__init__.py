"""Comparison of solvers: error as a function of network calls, on targets with known exact results."""

__all__ = [
    "Cell",
    "DesignPilot",
    "Entry",
    "Estimate",
    "ExactProblem",
    "Experiment",
    "PosteriorProblem",
    "Problem",
    "Row",
    "Settings",
    "Table",
    "TrainedProblem",
    "Way",
    "compare",
    "compare_posteriors",
    "digits_mixture",
    "markdown",
    "open_problem",
    "plan",
    "plan_designs",
    "posterior_problem",
    "posterior_report",
    "posterior_ways",
    "read_mixture",
    "read_table",
    "work_precision",
    "write_report",
]

from ..metrics import Estimate
from .plan import Cell, DesignPilot, Entry, Experiment, plan, plan_designs
from .plots import work_precision
from .posteriors import (
    PosteriorProblem,
    Way,
    compare_posteriors,
    posterior_problem,
    posterior_report,
    posterior_ways,
)
from .problems import ExactProblem, Problem, TrainedProblem, digits_mixture, open_problem, read_mixture
from .report import markdown, write_report
from .run import Settings, compare
from .table import Row, Table, read_table
