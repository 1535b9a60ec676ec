r"""Likelihoods by the instantaneous change of variables along the probability flow.

.. math::
    \log p_{t_{\min}}(x) = \log p_{\mathrm{prior}}(x_T)
        + \int_{t_{\min}}^{t_{\max}} \nabla \cdot \tilde f(x_t, t)\, dt

Chen et al., Neural Ordinary Differential Equations, 2018, https://arxiv.org/abs/1806.07366, theorem 1; Song et al.
2021, appendix D.2.
"""

from __future__ import annotations

__all__ = ["LogProb", "default_solver", "log_prob"]

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Conditioned, Denoiser
from ..dynamics import Reverse, WithLogDensity
from ..noise import Noise
from ..sampling import evaluating
from ..shapes import event_dims
from ..solvers import RungeKutta, Solver
from ..solvers.base import FixedStep
from ..trace import Hutchinson, Trace


@dataclass(frozen=True)
class LogProb:
    r"""A log-density and its parts, in nats.

    Attributes:
        nats: :math:`\log p(x)` = prior + divergence, with shape (B,).
        prior: the prior's log-density at the latent, with shape (B,).
        divergence: the integral of the divergence along the path, averaged over probes, with shape (B,).
        standard_error: of `nats` over the probes, with shape (B,): 0 for an exact trace, NaN for a single probe, which
            cannot tell. The other errors are told by :func:`sde.likelihood.error_budget.error_budget`.
        nfe: network calls, int64 with shape (B,).
        latent: the state at `t_max`, in the shape of x.
        vjps: vector-Jacobian products of the network, int64 with shape (B,): those of the trace and the denoiser's own.
    """

    nats: Tensor
    prior: Tensor
    divergence: Tensor
    standard_error: Tensor
    nfe: Tensor
    latent: Tensor
    vjps: Tensor


def default_solver(dtype: torch.dtype) -> RungeKutta:
    """The solver for data of a dtype: each sample on its own, at rtol and atol of 1e-6 in float64, else 1e-5.

    That keeps 1e-4 nats per dimension. Below 1e-5, float32 spends its calls on rounding.
    """
    tolerance = 1e-6 if dtype == torch.float64 else 1e-5
    return RungeKutta(rtol=tolerance, atol=tolerance)


def log_prob(
    denoiser: Denoiser,
    x: Tensor,
    *,
    solver: Solver | None = None,
    trace: Trace | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    condition: Mapping[str, Tensor] | None = None,
    prior: Any = None,
    atol: float | None = None,
    t: float | None = None,
    differentiable: bool = False,
) -> LogProb:
    r"""The log-density of data under a model, in nats.

    It is the density of the state at `t_min`, on which the flow starts; for discrete data pass dequantised values
    and turn the result into bits/dim with the data's scaling. Samples that a solver marks as failed are NaN in every
    part of the answer but `nfe`.

    Args:
        denoiser: the model; it is run in evaluation mode.
        x: data in the model's range, with shape (B, \*). The computation runs in its dtype.
        solver: a deterministic solver; by default :func:`default_solver`.
        trace: how to compute the divergence; one Rademacher probe by default.
        seed: the seed of the probes.
        index: the positions of the samples in their data set, int64 with shape (B,), which key the probes; 0 to B -
            1 by default.
        condition: tensors of leading size B, or scalars, handed to the denoiser by name.
        prior: anything with `log_prob(x)` in nats, in place of the process's own at `t_max`.
        atol: the absolute tolerance of the log-density in nats, for adaptive solvers; the solver's own by default.
        t: the time at which x stands, where the density is wanted; `t_min` by default.
        differentiable: keep the graph, for gradients with respect to x, the condition and the parameters.

    Raises:
        ValueError: if data or index are not what they should be, the solver cannot serve a flow with log-density, or a
            tolerance is asked of a solver that has none.
    """
    _check(x, index)
    process = denoiser.process
    solver = default_solver(x.dtype) if solver is None else solver
    _check_tolerance(solver, atol)
    trace = Hutchinson() if trace is None else trace
    index = torch.arange(len(x), device=x.device) if index is None else index.to(x.device)
    nfe = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    conditioned = Conditioned(denoiser, condition, nfe, vjps=torch.zeros_like(nfe))
    flow = Reverse(conditioned, eta=0.0)
    with torch.set_grad_enabled(differentiable), evaluating(denoiser):
        dynamics = WithLogDensity(flow, trace.bind(Noise(seed), index, x), atol)
        start = torch.zeros(len(x), dynamics.trace.estimates, dtype=x.dtype, device=x.device)
        begin = process.t_min if t is None else t
        latent, change = solver(dynamics, (x, start), start=begin, stop=process.t_max)
        prior_nats = process.prior_log_prob(latent) if prior is None else prior.log_prob(latent)
        # The state carries log p_T(x_T) - log p_t(x_t) along, the negative of the divergence's integral.
        divergence = -change.mean(1)
        nats = prior_nats + divergence
    spread = dynamics.trace.standard_error(change.detach()).where(~nats.detach().isnan(), math.nan)
    # Each product of the trace goes back through all calls of a prediction.
    vjps = conditioned.counts[1] + nfe * dynamics.trace.vjps(event_dims(x))
    return LogProb(nats, prior_nats, divergence, spread, nfe, latent, vjps)


def _check(x: Tensor, index: Tensor | None) -> None:
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(
            f"log_prob: expected data of shape (B, *) with B >= 1 and an event dimension, got {tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise ValueError(
            f"log_prob: expected floating-point data in the model's range, got {x.dtype}; dequantise and "
            "scale it first (Scaling.to_model)"
        )
    bad = ~x.flatten(1).isfinite().all(1)
    if bool(bad.any()):
        raise ValueError(f"log_prob: the data is not finite at index {int(bad.nonzero()[0])} of the batch")
    if index is not None and (index.shape != (len(x),) or index.dtype != torch.int64):
        raise ValueError(
            f"log_prob: expected index int64 with shape ({len(x)},), got {index.dtype} {tuple(index.shape)}"
        )


def _check_tolerance(solver: Solver, atol: float | None) -> None:
    if atol is None:
        return
    if not atol > 0.0:
        raise ValueError(f"log_prob needs atol > 0, got atol={atol}")
    if isinstance(solver, FixedStep):
        raise ValueError(
            f"log_prob: {type(solver).__name__} takes fixed steps and holds no tolerance, so that atol={atol} would "
            "have no effect; leave atol=None, or use an adaptive solver such as RungeKutta"
        )
