"""Solvers against each other: error against network calls on a target whose truth is known."""

__all__ = [
    "Cell",
    "Estimate",
    "ExactProblem",
    "Problem",
    "Row",
    "Settings",
    "Table",
    "TrainedProblem",
    "compare",
    "digits_mixture",
    "markdown",
    "open_problem",
    "plan",
    "read_mixture",
    "read_table",
    "work_precision",
    "write_report",
]

from .cells import Cell, plan
from .errors import Estimate
from .picture import work_precision
from .problems import ExactProblem, Problem, TrainedProblem, digits_mixture, open_problem, read_mixture
from .report import markdown, write_report
from .rows import Row, Table, read_table
from .run import Settings, compare
