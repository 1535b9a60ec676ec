r"""What a log-density is uncertain by, and by how much: an error budget.

All widths are half-widths of 99 % intervals, in nats. For each sample:

- **probes**: the trace is estimated. With P estimates kept apart the half-width is :math:`t_{P-1} s`, with s the
  standard error that the trace makes of their spread and :math:`t_n` the 0.995 quantile of Student's law with n degrees
  of freedom (Student 1908). A single probe cannot tell: NaN.
- **dequantisation**: where the density of discrete data is a mean over R draws of noise, likewise from the spread over
  draws. Draws that differ in their probes too, as those of :meth:`sde.Model.log_prob` do, hold the error of both.
- **solver**: some rows are solved once more, in float64 and to a tenth of the tolerance, with the same probes. The
  error of a method that is held to a tolerance goes along with it, so that the difference d is 9/10 of the error. With
  n rows the half-width is :math:`t_n \sqrt{\overline{(10 d / 9)^2}}`, the scale of the error being known from these
  alone, and for a row that was solved again at least its own :math:`10 |d| / 9`.

Per data set, apart, since these are properties of the model and not of a computation:

- **prior mismatch**: the flow ends at :math:`p_T`, and the prior stands in for it. Averaged over data,
  :math:`\mathrm{KL}(p_T \Vert \mathrm{prior}) \le E_{x_0} \mathrm{KL}(q(x_T|x_0) \Vert \mathrm{prior})`, the KL
  divergence being convex, and the right side is that of two Gaussians,

  .. math:: \tfrac12 \sum_i \Big[\frac{\sigma_T^2 + \alpha_T^2 x_{0,i}^2}{v} - 1 - \log \frac{\sigma_T^2}{v} \Big]

  with v the prior's variance (Kingma et al. 2021, https://arxiv.org/abs/2107.00630, equation 11).
- **truncation**: the density is that of the state at :math:`t_{\min}`. What is compared is the density of
  :math:`y = x_t / \alpha_t`, which is data plus noise in the units of the data, at one and the same y for
  :math:`t = 3 t_{\min}` and for :math:`t = t_{\min}`:
  :math:`\log p_{3 t_{\min}}(a x) + D \log a - \log p_{t_{\min}}(x)` with
  :math:`a = \alpha_{3 t_{\min}} / \alpha_{t_{\min}}`. No noise is added to y.
- the **mean** over samples with its standard error, which the sampling of the test set causes.
"""

from __future__ import annotations

__all__ = ["ErrorBudget", "Mean", "error_budget", "half_width"]

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..noise import Noise
from ..processes import SDE
from ..shapes import event_dims, sum_event
from ..solvers import RungeKutta, Solver
from ..trace import Hutchinson, Trace
from .flow import LogProb, default_solver, log_prob


@dataclass(frozen=True)
class Mean:
    """A mean over n samples.

    Attributes:
        value: the mean; NaN for none.
        standard_error: its standard error; NaN for fewer than two.
        n: how many samples; those that are not finite are left out.
    """

    value: float
    standard_error: float
    n: int

    @property
    def half_width(self) -> float:
        """The half-width of its 99 % interval, by Student's law."""
        return self.standard_error * quantile(self.n - 1)


@dataclass(frozen=True)
class ErrorBudget:
    """The errors of a log-density: for each sample the half-widths of 99 % intervals, in nats.

    Attributes:
        probes: that of the trace, with shape (B,): 0 for an exact one, NaN for a single probe, which cannot tell.
        dequantisation: that of the mean over the draws of dequantisation noise, with shape (B,); None without repeats.
        solver: that of the integration, with shape (B,), in proportion to the largest differences that were seen.
        rows: the samples that were solved again, int64.
        mean: the mean of the log-density over samples.
        prior_mismatch: the mean over the data of KL(q(x_T|x_0) || prior), in nats, a bound on what the prior costs on
            average; NaN if another prior was given, of which nothing is known.
        truncation: the mean change over the rows when `t_min` is tripled, in nats.
    """

    probes: Tensor
    dequantisation: Tensor | None
    solver: Tensor
    rows: Tensor
    mean: Mean
    prior_mismatch: float
    truncation: Mean

    @property
    def total(self) -> Tensor:
        """The random error, which is that of the draws where there are repeats, and the solver's on top, (B,)."""
        return (self.probes if self.dequantisation is None else self.dequantisation) + self.solver


def error_budget(
    denoiser: Denoiser,
    x: Tensor,
    result: LogProb,
    *,
    solver: Solver | None = None,
    trace: Trace | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    condition: Mapping[str, Tensor] | None = None,
    prior: Any = None,
    atol: float | None = None,
    rows: Tensor | int = 16,
    repeats: Tensor | None = None,
    finer: Solver | None = None,
) -> ErrorBudget:
    r"""The error budget of what :func:`sde.log_prob` returned; the arguments up to `atol` are those of that call.

    It costs, for each of the rows, a solution to a tenth of the tolerance and one from three times `t_min`.

    Args:
        denoiser: the model.
        x: the data, with shape (B, \*).
        result: what :func:`sde.log_prob` returned for it.
        solver: the solver.
        trace: the trace.
        seed: the seed of the probes.
        index: the positions of the samples in their data set, int64 with shape (B,).
        condition: tensors of leading size B, or scalars.
        prior: the prior, if not the process's own.
        atol: the absolute tolerance of the log-density.
        rows: the samples that are solved again, int64, or how many, evenly spread over those that are finite.
        repeats: the log-densities of the same samples under R >= 2 draws of dequantisation noise, and of probes, with
            shape (R, B). The budget is then that of their mean.
        finer: the solver for the second solution; by default `solver` at a tenth of its tolerances, or, for any other
            than :class:`sde.solvers.RungeKutta`, this at 1e-7.

    Raises:
        ValueError: if the result is not that of `x`, or rows or repeats are not what they should be.
    """
    b = len(x)
    if result.nats.shape != (b,):
        raise ValueError(
            f"error_budget: expected the result of these {b} samples, got one of shape {tuple(result.nats.shape)}"
        )
    if repeats is not None and (repeats.ndim != 2 or len(repeats) < 2 or repeats.shape[1] != b):
        raise ValueError(f"error_budget: expected repeats of shape (R, {b}) with R >= 2, got {tuple(repeats.shape)}")
    process, solver = denoiser.process, default_solver(x.dtype) if solver is None else solver
    trace = Hutchinson() if trace is None else trace
    index = torch.arange(b, device=x.device) if index is None else index.to(x.device)
    estimates = trace.bind(Noise(seed), index[:1], x[:1]).estimates
    rows = _rows(rows, result.nats.detach())
    again = {
        "solver": _finer(solver) if finer is None else finer,
        "trace": trace,
        "seed": seed,
        "index": index[rows],
        "condition": {
            name: value[rows] if isinstance(value, Tensor) and value.ndim else value
            for name, value in (condition or {}).items()
        },
        "prior": prior,
        "atol": atol if atol is None or not isinstance(solver, RungeKutta) else atol / 10.0,
    }
    y = x[rows].detach().double()
    fine = log_prob(denoiser, y, **again).nats
    nats = result.nats.detach().double()
    return ErrorBudget(
        probes=half_width(result.standard_error.double(), estimates),
        dequantisation=None if repeats is None else _spread(repeats.detach().double()),
        solver=_solver_width(nats, fine, rows),
        rows=rows,
        mean=mean(nats if repeats is None else repeats.detach().double().mean(0)),
        prior_mismatch=math.nan if prior is not None else _prior_mismatch(process, x.detach().double()),
        truncation=mean(_truncation(denoiser, y, fine, again)),
    )


def half_width(standard_error: Tensor, n: int) -> Tensor:
    """The half-width of the 99 % interval of a mean of n values, by Student's law; 0 where the error is known to be."""
    return torch.where(standard_error == 0.0, standard_error, standard_error * quantile(n - 1))


def quantile(degrees: int) -> float:
    """The 0.995 quantile of Student's law; NaN for no degree of freedom."""
    from scipy.special import stdtrit  # slow to import, and few ask

    return float(stdtrit(degrees, 0.995)) if degrees > 0 else math.nan


def mean(values: Tensor) -> Mean:
    """The mean over the finite ones of some samples, with shape (B,)."""
    values = values[values.isfinite()]
    n = len(values)
    error = values.std().item() / math.sqrt(n) if n > 1 else math.nan
    return Mean(values.mean().item(), error, n)


def _spread(repeats: Tensor) -> Tensor:
    return half_width(repeats.std(0) / math.sqrt(len(repeats)), len(repeats))


def _rows(rows: Tensor | int, nats: Tensor) -> Tensor:
    """The samples to be solved again, int64."""
    if isinstance(rows, Tensor):
        if rows.ndim != 1 or rows.dtype != torch.int64 or len(rows) == 0 or len(rows.unique()) < len(rows):
            raise ValueError(f"error_budget: expected rows int64 with shape (n,), without duplicates, got {rows}")
        if not bool(((rows >= 0) & (rows < len(nats))).all()):
            raise ValueError(f"error_budget: expected rows within 0 to {len(nats) - 1}, got {rows.tolist()}")
        return rows.to(nats.device)
    finite = nats.isfinite().nonzero()[:, 0]
    if rows < 1 or len(finite) == 0:
        raise ValueError(
            f"error_budget: expected rows >= 1 and a finite log-density, got rows={rows} and {len(finite)} finite ones"
        )
    n = min(rows, len(finite))
    return finite[(torch.arange(n, device=finite.device) * len(finite)) // n]


def _finer(solver: Solver) -> Solver:
    if not isinstance(solver, RungeKutta):
        solver = default_solver(torch.float64)
    # A row that fails here tells nothing of the first solution; it is left out.
    return replace(solver, rtol=solver.rtol / 10.0, atol=solver.atol / 10.0, on_failure="mark")


def _solver_width(nats: Tensor, fine: Tensor, rows: Tensor) -> Tensor:
    """The half-width of the solver's error, with shape (B,); NaN for a sample without a result."""
    error = (nats[rows] - fine).abs() * (10.0 / 9.0)
    seen = error[error.isfinite()]
    pooled = seen.square().mean().sqrt() * quantile(len(seen))
    width = torch.where(nats.isnan(), math.nan, pooled)
    return width.index_copy(0, rows, torch.where(error.isfinite(), torch.maximum(width[rows], error), width[rows]))


def _prior_mismatch(process: SDE, x: Tensor) -> float:
    end = torch.tensor(process.t_max, dtype=torch.float64, device=x.device)
    location, std = process.marginal(x, end)
    v = process.prior_var(end)
    excess = std.square() / v - 1.0
    kl = 0.5 * (event_dims(x) * (excess - torch.log1p(excess)) + sum_event(location.square()) / v)
    return kl.mean().item()


def _truncation(denoiser: Denoiser, x: Tensor, nats: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """The change of the log-density of the data when `t_min` is tripled, with shape (n,)."""
    process = denoiser.process
    times = torch.tensor([process.t_min, 3.0 * process.t_min], dtype=torch.float64)
    log_a = process.log_alpha(times).diff().item()
    later = log_prob(denoiser, math.exp(log_a) * x, t=times[1].item(), **settings).nats
    return later + event_dims(x) * log_a - nats
