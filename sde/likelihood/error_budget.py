r"""Error budget of a log-density.

All widths are half-widths of 99 % intervals, in nats. For each sample:

- **probes**: the error of an estimated trace. With P separate estimates the half-width is :math:`t_{P-1} s`, with the
  standard error s that the trace computes from their spread and the 0.995 quantile :math:`t_n` of Student's t
  distribution with n degrees of freedom (Student 1908). For a single probe it is unknown: NaN.
- **dequantisation**: the error of a mean over R draws of dequantisation noise, from the spread over draws in the same
  way. If the draws have different probes, as those of :meth:`sde.Model.log_prob`, it includes the error of the trace.
- **solver**: the error of the integration. Some rows are solved again in float64 with the same probes. The difference d
  is a part c of the error: 9/10 with a tenth of the tolerances, to which the error is proportional, and at least 1/2,
  which is taken, with twice the steps (:math:`1 - 2^{-p}` for a method of order p). With n rows the half-width is
  :math:`t_n \sqrt{\overline{(d / c)^2}}`, since the scale of the error is estimated from these rows alone; for a row
  that was solved again it is at least :math:`|d| / c`.
  This takes the errors for normal. Where a few samples have most of the error, as with a coarse adaptive solver, a
  few rows miss them and the width is too small: with tolerances of 1e-3 on VE, the width from 8 rows covered 90 of 100
  samples.

For the data set, because these are errors of the model and not of the computation:

- **prior mismatch**: the flow ends at :math:`p_T`, which is replaced by the prior. Averaged over data,
  :math:`\mathrm{KL}(p_T \Vert \mathrm{prior}) \le E_{x_0} \mathrm{KL}(q(x_T|x_0) \Vert \mathrm{prior})`, the KL
  divergence being convex, and the right side is that of two Gaussians,

  .. math:: \tfrac12 \sum_i \Big[\frac{\sigma_T^2 + \alpha_T^2 x_{0,i}^2}{v} - 1 - \log \frac{\sigma_T^2}{v} \Big]

  with v the prior's variance (Kingma et al. 2021, https://arxiv.org/abs/2107.00630, equation 11).
- **truncation**: the density is that of the state at :math:`t_{\min}`. It is compared with the one for
  :math:`t = 3 t_{\min}`, for :math:`y = x_t / \alpha_t`, which is data plus noise in the units of the data, at the same
  y:
  :math:`\log p_{3 t_{\min}}(a x) + D \log a - \log p_{t_{\min}}(x)` with
  :math:`a = \alpha_{3 t_{\min}} / \alpha_{t_{\min}}`. No noise is added to y.
- the **mean** over samples with its standard error, which comes from the finite test set.
"""

from __future__ import annotations

__all__ = ["COST", "ErrorBudget", "Mean", "budget_calls", "error_budget", "half_width", "quantile"]

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data.scaling import nats_to_bits
from ..denoisers import Denoiser
from ..grids import Explicit
from ..noise import sample_index
from ..processes import SDE
from ..shapes import check_count, event_dims, float64, named_tensors, numbers_of, sum_event
from ..solvers import GridSteps, Solver
from ..trace import Trace
from .flow import DensityFlow, LogProb, PriorDensity, default_solver, log_prob, tolerance

#: The largest cost of a further solution of a row, in those of its first one.
COST = 3


@dataclass(frozen=True)
class Mean:
    """A mean over n samples.

    Attributes:
        value: the mean; NaN without samples.
        standard_error: its standard error; NaN for fewer than two samples.
        n: the number of finite samples; the others are left out.
    """

    value: float
    standard_error: float
    n: int

    @property
    def half_width(self) -> float:
        """The half-width of its 99 % interval, by Student's t distribution."""
        return self.standard_error * quantile(self.n - 1)


@dataclass(frozen=True)
class ErrorBudget:
    """The errors of a log-density: half-widths of 99 % intervals for each sample, and errors of the mean.

    Attributes:
        probes: the half-width of the trace, with shape (B,): 0 for an exact one, NaN for a single probe.
        dequantisation: the half-width of the mean over the draws of dequantisation noise, with shape (B,); None without
            repeats.
        solver: the half-width of the integration, with shape (B,).
        rows: the samples that were solved again, int64.
        mean: the mean of the log-density over samples.
        prior_mismatch: the mean over the data of KL(q(x_T|x_0) || prior), an upper bound on the average cost of the
            prior; NaN, which is unknown, for another prior than the process's own.
        truncation: the mean change over the rows when `t_min` is tripled.
        unit: nats, or bits/dim.
    """

    probes: Tensor
    dequantisation: Tensor | None
    solver: Tensor
    rows: Tensor
    mean: Mean
    prior_mismatch: float
    truncation: Mean
    unit: str = "nats"

    @property
    def total(self) -> Tensor:
        """The half-width for random errors (of the draws if there are repeats, else of the probes) plus the solver's,
        with shape (B,)."""
        return (self.probes if self.dequantisation is None else self.dequantisation) + self.solver

    def in_bits(self, dims: int) -> ErrorBudget:
        r"""The budget in bits/dim, from one in nats for samples of D = `dims` dimensions.

        The mean is that of :math:`-\log_2 p / D`, and the truncation its change, with the opposite sign of that of the
        log-density.
        """

        def bits(mean: Mean) -> Mean:
            return Mean(nats_to_bits(mean.value, dims), nats_to_bits(-mean.standard_error, dims), mean.n)

        probes, solver = (nats_to_bits(-width, dims) for width in (self.probes, self.solver))
        draws = None if self.dequantisation is None else nats_to_bits(-self.dequantisation, dims)
        prior = nats_to_bits(-self.prior_mismatch, dims)
        return ErrorBudget(probes, draws, solver, self.rows, bits(self.mean), prior, bits(self.truncation), "bits/dim")

    def __str__(self) -> str:
        parts = {"solver": self.solver, "probes": self.probes, "dequantisation": self.dequantisation}
        widths = [
            f"{name} {'unknown' if width.isnan().all() else f'+- {width.nanmean().item():.2g}'}"
            for name, width in parts.items()
            if width is not None
        ]
        return (
            f"99 % half-widths of a sample in {self.unit}, from {len(self.rows)} samples solved again: "
            f"{', '.join(widths)}; on the mean: at most {self.prior_mismatch:.2g} by the prior, "
            f"{self.truncation.value:+.2g} +- {self.truncation.half_width:.2g} by tripling t_min"
        )


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
    prior: PriorDensity | None = None,
    atol: float | None = None,
    rows: Tensor | int = 16,
    repeats: Tensor | None = None,
    finer: Solver | None = None,
    progress: Callable[[float], object] | None = None,
) -> ErrorBudget:
    r"""The error budget of a result of :func:`sde.log_prob`.

    Its cost is two more solutions for each of the rows, from `t_min` and from three times `t_min`, with
    :meth:`sde.solvers.Solver.finer`. Each takes at most about three times the largest number of calls in the result
    (:func:`budget_calls`); a row that would take more gives no estimate.

    Args:
        denoiser: the model.
        x: the states, with shape (B, \*).
        result: the result of :func:`sde.log_prob` for them.
        solver, trace, seed, index, condition, prior, atol: the arguments of that call.
        rows: the samples that are solved again, int64, or their number; they are then evenly spread over the finite
            ones.
        repeats: the log-densities of the same samples for R >= 2 draws of dequantisation noise and probes, with shape
            (R, B). The budget is then for their mean.
        finer: the solver for the second solution; by default `solver` with a tenth of the tolerances, or with twice the
            steps.
        progress: called after every step with the fraction of the work that is done.

    Raises:
        ValueError: if `result`, `rows` or `repeats` do not have the number of samples of x.
    """
    x = numbers_of("x", x)
    b = len(x)
    if result.nats.shape != (b,):
        raise ValueError(
            f"error_budget: expected the result of these {b} samples, got one of shape {tuple(result.nats.shape)}"
        )
    if repeats is not None and (repeats.ndim != 2 or len(repeats) < 2 or repeats.shape[1] != b):
        raise ValueError(f"error_budget: expected repeats of shape (R, {b}) with R >= 2, got {tuple(repeats.shape)}")
    solver, index = default_solver() if solver is None else solver, sample_index(x, index)
    atol = tolerance(solver, event_dims(x), atol)
    estimates = DensityFlow(denoiser, x[:1], trace, seed=seed, index=index[:1]).dynamics.trace.estimates
    rows = _rows(rows, result.nats.detach())
    named = {name: value[rows] if value.ndim else value for name, value in named_tensors(condition).items()}
    again: dict[str, Any] = {"trace": trace, "seed": seed, "index": index[rows], "condition": named, "prior": prior}
    again["guided"], denoiser = True, denoiser.select(rows)  # the result has been computed
    calls = COST * int(result.nfe.max())
    finer = solver.finer(calls) or default_solver().finer(calls) if finer is None else finer
    again["atol"] = None if finer.fixed or atol is None else atol / 10.0
    y = x[rows].detach().double()
    fine = log_prob(denoiser, y, solver=finer, progress=_part(progress, 0.0), **again).nats
    change = _truncation(denoiser, y, fine, {**again, "solver": finer, "progress": _part(progress, 0.5)})
    # The finer solution is one of the states: the weight of a result in data units is not part of it.
    nats, weight = result.nats.detach().double(), float64(result.log_weight).detach().to(x.device)
    draws = None if repeats is None else repeats.detach().double()
    return ErrorBudget(
        probes=half_width(result.standard_error.double(), estimates),
        dequantisation=None if draws is None else half_width(draws.std(0) / math.sqrt(len(draws)), len(draws)),
        solver=_solver_width(nats - weight, fine, rows, 0.5 if finer.fixed else 0.9),
        rows=rows,
        mean=mean(nats if draws is None else draws.mean(0)),
        prior_mismatch=math.nan if prior is not None else _prior_mismatch(denoiser.process, x.detach().double()),
        truncation=mean(change),
    )


def budget_calls(rows: int, nfe: float) -> float:
    """The largest number of network calls of an error budget.

    Args:
        rows: the number of samples that are solved again.
        nfe: the network calls of the result for each of them.
    """
    return 2.0 * COST * rows * nfe


def half_width(standard_error: Tensor, n: int) -> Tensor:
    """The half-width of the 99 % interval of a mean of n values, by Student's t distribution; 0 without error."""
    return torch.where(standard_error == 0.0, standard_error, standard_error * quantile(n - 1))


def quantile(degrees: int) -> float:
    """The 0.995 quantile of Student's t distribution; NaN without degrees of freedom."""
    from scipy.special import stdtrit  # slow to import, and rarely needed

    return float(stdtrit(degrees, 0.995)) if degrees > 0 else math.nan


def mean(values: Tensor) -> Mean:
    """The mean of the finite ones of some values, with shape (B,)."""
    values = values[values.isfinite()]
    n = len(values)
    error = values.std().item() / math.sqrt(n) if n > 1 else math.nan
    return Mean(values.mean().item(), error, n)


def _rows(rows: Tensor | int, nats: Tensor) -> Tensor:
    """The samples to solve again, int64."""
    if isinstance(rows, Tensor):
        if rows.ndim != 1 or rows.dtype != torch.int64 or len(rows) == 0 or len(rows.unique()) < len(rows):
            raise ValueError(f"error_budget: expected rows int64 with shape (n,), without duplicates, got {rows}")
        if not bool(((rows >= 0) & (rows < len(nats))).all()):
            raise ValueError(f"error_budget: expected rows within 0 to {len(nats) - 1}, got {rows.tolist()}")
        return rows.to(nats.device)
    finite = nats.isfinite().nonzero()[:, 0]
    check_count("error_budget", "rows", rows)
    if len(finite) == 0:
        raise ValueError("error_budget: expected a finite log-density, got none")
    n = min(rows, len(finite))
    return finite[(torch.arange(n, device=finite.device) * len(finite)) // n]


def _part(progress: Callable[[float], object] | None, before: float) -> Callable[[float], object] | None:
    """The progress of one of two solutions as that of both."""
    return None if progress is None else lambda done: progress(before + 0.5 * done)


def _solver_width(nats: Tensor, fine: Tensor, rows: Tensor, part: float) -> Tensor:
    """The half-width of the solver's error, with shape (B,), from a difference that is `part` of it; NaN for a sample
    without a result."""
    error = (nats[rows] - fine).abs() / part
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


def _truncation(denoiser: Denoiser, x: Tensor, nats: Tensor, again: Mapping[str, Any]) -> Tensor:
    """The change of the log-density of the data when `t_min` is tripled, with shape (n,)."""
    process, solver = denoiser.process, again["solver"]
    times = float64([process.t_min, 3.0 * process.t_min])
    log_a, begin = process.log_alpha(times).diff().item(), times[1].item()
    if isinstance(solver, GridSteps):  # the same steps, so that their errors cancel in the change
        grid = solver.grid.times(process, solver.steps, process.t_max, process.t_min).tolist()
        points = [*(t for t in grid if t > begin), begin]
        again = {**again, "solver": replace(solver, steps=len(points) - 1, grid=Explicit(points))}
    later = log_prob(denoiser, math.exp(log_a) * x, t=begin, **again).nats
    return later + event_dims(x) * log_a - nats
