r"""Likelihoods by the instantaneous change of variables along the probability flow.

.. math::
    \log p_{t_{\min}}(x) = \log p_{\mathrm{prior}}(x_T)
        + \int_{t_{\min}}^{t_{\max}} \nabla \cdot \tilde f(x_t, t)\, dt

Chen et al., Neural Ordinary Differential Equations, 2018, https://arxiv.org/abs/1806.07366, theorem 1; Song et al.
2021, appendix D.2.
"""

from __future__ import annotations

__all__ = ["DensityFlow", "LogProb", "check_tolerance", "default_solver", "log_prob"]

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Conditioned, Denoiser
from ..dynamics import Reverse, State, WithLogDensity
from ..noise import Noise, sample_index
from ..sampling import evaluating
from ..shapes import event_dims, working
from ..solvers import FixedStep, RungeKutta, Solver
from ..trace import Hutchinson, Trace


@dataclass(frozen=True)
class LogProb:
    r"""A log-density and its terms, in nats.

    Attributes:
        nats: :math:`\log p(x)` = prior + divergence + log_weight, with shape (B,).
        prior: the prior's log-density at the latent, with shape (B,).
        divergence: the integral of the divergence along the path, averaged over probes, with shape (B,).
        standard_error: of `nats` over the probes, with shape (B,): 0 for an exact trace, NaN for a single probe, whose
            error is unknown. :func:`sde.error_budget` estimates the other errors.
        nfe: network calls, int64 with shape (B,).
        latent: the state at `t_max`, in the shape of x.
        vjps: vector-Jacobian products of the network, int64 with shape (B,): those of the trace and the denoiser's own.
        log_weight: the change from the log-density of the state to that of the data, with shape (B,): 0 for
            :func:`sde.log_prob`, whose unit is that of x in the model's range. For :meth:`sde.Model.log_prob` it is the
            log-determinant of the scaling, or the log-weight of the dequantisation
            (:mod:`sde.likelihood.dequantisation`).
    """

    nats: Tensor
    prior: Tensor
    divergence: Tensor
    standard_error: Tensor
    nfe: Tensor
    latent: Tensor
    vjps: Tensor
    log_weight: Tensor | float = 0.0


def default_solver(dtype: torch.dtype) -> RungeKutta:
    """The default solver: adaptive, with rtol and atol of 1e-6 for data in float64, else 1e-5.

    Its error is about 1e-4 nats per dimension. Below 1e-5, float32 spends its calls on rounding.
    """
    tolerance = 1e-6 if dtype == torch.float64 else 1e-5
    return RungeKutta(rtol=tolerance, atol=tolerance)


class DensityFlow:
    r"""The probability flow of a batch that carries the log-density along, ready for a solver.

    Args:
        denoiser: the model.
        x: the batch, with shape (B, \*).
        trace: the trace; one Rademacher probe by default.
        seed: the seed of the probes.
        index: the keys of the probes, int64 with shape (B,); 0 to B - 1 by default.
        condition: tensors of leading size B, or scalars.
        atol: the absolute tolerance of the log-density.

    Attributes:
        dynamics: the flow with its probes.
        start: the state with x and a log-density of 0 for each estimate of the trace.
        nfe: the network calls so far, int64 with shape (B,).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        trace: Trace | None = None,
        *,
        seed: int = 0,
        index: Tensor | None = None,
        condition: Mapping[str, Tensor] | None = None,
        atol: float | None = None,
    ) -> None:
        x = working(x)
        self.nfe = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self._vjps = torch.zeros_like(self.nfe)
        conditioned = Conditioned(denoiser, condition, self.nfe, vjps=self._vjps)
        probes = (Hutchinson() if trace is None else trace).bind(Noise(seed), sample_index(x, index), x)
        self.dynamics = WithLogDensity(Reverse(conditioned, eta=0.0), probes, atol)
        self.start: State = (x, torch.zeros(len(x), probes.estimates, dtype=x.dtype, device=x.device))

    @property
    def vjps(self) -> Tensor:
        """The vector-Jacobian products so far, int64 with shape (B,)."""
        # Each product of the trace goes back through all calls of a prediction.
        return self._vjps + self.nfe * self.dynamics.trace.vjps(event_dims(self.start[0]))


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
    r"""The log-density of states under a model, in nats.

    This is the density of x itself, in the model's range, at `t_min`. :meth:`sde.Model.log_prob` takes data values
    instead. Samples that a solver marks as failed are NaN in every part of the result but the counts of calls.

    Args:
        denoiser: the model; it is run in evaluation mode.
        x: data in the model's range, with shape (B, \*). The computation runs in its dtype, float32 at
            least.
        solver: a deterministic solver; :func:`default_solver` by default.
        trace: how to compute the divergence; one Rademacher probe by default.
        seed: the seed of the probes.
        index: the positions of the samples in their data set, int64 with shape (B,), which key the probes; 0 to B -
            1 by default.
        condition: tensors of leading size B, or scalars, passed to the denoiser by name.
        prior: anything with `log_prob(x)` in nats, in place of the process's own at `t_max`.
        atol: the absolute tolerance of the log-density in nats, for adaptive solvers; the solver's own by default.
        t: the time of x and of the density; `t_min` by default.
        differentiable: keep the graph, for gradients with respect to x, the condition and the parameters.

    Raises:
        ValueError: if x or index have a wrong shape or dtype, x is not finite, the solver cannot integrate a flow with
            its log-density, or `atol` is given for a solver without tolerances.
    """
    _check(x)
    process, solver = denoiser.process, default_solver(x.dtype) if solver is None else solver
    check_tolerance(solver, atol)
    with torch.set_grad_enabled(differentiable), evaluating(denoiser):
        flow = DensityFlow(denoiser, x, trace, seed=seed, index=index, condition=condition, atol=atol)
        run = solver.bind(flow.dynamics, process.t_min if t is None else t, process.t_max)
        latent, change = run(flow.start)
        prior_nats = process.prior_log_prob(latent) if prior is None else prior.log_prob(latent)
        # The state carries log p_T(x_T) - log p_t(x_t) along, the negative of the divergence's integral.
        divergence = -change.mean(1)
        nats = prior_nats + divergence
    error = flow.dynamics.trace.standard_error(change.detach()).where(~nats.detach().isnan(), math.nan)
    return LogProb(nats, prior_nats, divergence, error, flow.nfe, latent, flow.vjps)


def _check(x: Tensor) -> None:
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(
            f"log_prob: expected data of shape (B, *) with B >= 1 and an event dimension, got {tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise ValueError(
            f"log_prob: expected floating-point data in the model's range, got {x.dtype}; dequantise and scale it "
            "first, or use Model.log_prob"
        )
    bad = ~x.flatten(1).isfinite().all(1)
    if bool(bad.any()):
        raise ValueError(f"log_prob: the data is not finite at index {int(bad.nonzero()[0])} of the batch")


def check_tolerance(solver: Solver, atol: float | None) -> None:
    """Refuses a tolerance of the log-density that is not positive, or that the solver does not use."""
    if atol is None:
        return
    if not atol > 0.0:
        raise ValueError(f"expected atol > 0 nats, or None for the solver's own tolerance, got atol={atol}")
    if isinstance(solver, FixedStep):
        raise ValueError(
            f"{type(solver).__name__} takes fixed steps and controls no error, so atol={atol} would have no effect: "
            "use atol=None, or an adaptive solver such as RungeKutta"
        )
