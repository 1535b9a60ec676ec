r"""Likelihoods by the instantaneous change of variables along the probability flow.

.. math::
    \log p_{t_{\min}}(x) = \log p_{\mathrm{prior}}(x_T)
        + \int_{t_{\min}}^{t_{\max}} \nabla \cdot \tilde f(x_t, t)\, dt

An adaptive solver holds the log-density of every sample to a tolerance of its own in each step, :func:`tolerance`: by
default 5e-5 bits/dim, :math:`5 \cdot 10^{-5} D \log 2` nats for data of D dimensions.

Chen et al., Neural Ordinary Differential Equations, 2018, https://arxiv.org/abs/1806.07366, theorem 1; Song et al.
2021, appendix D.2.
"""

from __future__ import annotations

__all__ = [
    "OF_THE_FLOW",
    "TOLERANCE",
    "DensityFlow",
    "LogProb",
    "PriorDensity",
    "check_states",
    "check_unguided",
    "default_solver",
    "last_state",
    "log_prob",
    "tolerance",
]

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..denoisers import Conditioned, Denoiser
from ..dynamics import Reverse, State, WithLogDensity
from ..noise import Noise, sample_index
from ..processes import SDE
from ..sampling import chosen_solver, evaluating, travelled
from ..shapes import (
    check_callable,
    check_kind,
    check_recordable,
    event_dims,
    numbers_of,
    recordable,
    recording,
    working,
)
from ..solvers import RungeKutta, Solver
from ..trace import Hutchinson, Trace

#: The default tolerance of the log-density of a sample in a step of an adaptive solver, in bits/dim.
TOLERANCE = 5e-5
#: What the refusal of a guided denoiser advises where `guided` can be set.
OF_THE_FLOW = "; guided=True computes the density of the flow itself, from which its samples come"


class PriorDensity(Protocol):
    """A density of latents, such as that of :class:`sde.exact.Marginal` or of a flow that was fitted to latents."""

    def log_prob(self, x: Tensor, /) -> Tensor:
        r"""The log-density of latents (B, \*) in nats, with shape (B,)."""


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


def default_solver() -> RungeKutta:
    """The default solver: adaptive, with rtol and atol of 1e-4 for the state."""
    return RungeKutta(rtol=1e-4, atol=1e-4)


def tolerance(solver: Solver, dims: int, atol: float | None = None) -> float | None:
    r"""The absolute tolerance of the log-density, in nats.

    Args:
        solver: the solver.
        dims: D, the number of dimensions of a sample.
        atol: the tolerance that the user gives, in nats.

    Returns:
        `atol` if it is given; else :data:`TOLERANCE` bits/dim, or the solver's own `atol` in bits/dim if that is less;
        None for a solver with fixed steps, which has no tolerance.

    Raises:
        ValueError: if `atol` is not positive, or is given for a solver with fixed steps.
    """
    if atol is None:
        bits = min(TOLERANCE, solver.atol)
        return None if solver.fixed else bits * dims * math.log(2.0)
    if not atol > 0.0:
        raise ValueError(f"expected atol > 0 nats, or None for {TOLERANCE} bits/dim, got atol={atol}")
    if solver.fixed:
        raise ValueError(
            f"{type(solver).__name__} takes fixed steps and controls no error, so atol={atol} would have no effect: "
            "use atol=None, or an adaptive solver such as RungeKutta"
        )
    return atol


def step_error(error: float | None, error_per_image: float | None) -> float:
    """The error to accept in a step of an adaptive solver, in bits/dim, for an error of the whole.

    The errors of the steps add up: on trained networks an adaptive solver makes 20 to 40 times the error that it
    accepts in a step, and a tenth to a quarter of that in the mean over the data.

    Args:
        error: the error of the mean over the data to accept, in bits/dim; any by default.
        error_per_image: the root mean square error of a sample to accept; by default four times `error`.

    Raises:
        ValueError: unless an error is given, and both are positive.
    """
    errors = [e for e in (error, error_per_image) if e is not None]
    if not errors or not all(e > 0.0 for e in errors):
        raise ValueError(
            f"expected error > 0 or error_per_image > 0, in bits/dim, got error={error}, "
            f"error_per_image={error_per_image}"
        )
    mean = math.inf if error is None else error
    return min(mean / 10.0, (4.0 * mean if error_per_image is None else error_per_image) / 40.0)


def last_state(
    states: Iterator[tuple[Tensor, State]],
    process: SDE,
    start: float,
    stop: float,
    progress: Callable[[float], object] | None = None,
) -> State:
    """The state at the end of a trajectory.

    Args:
        states: the trajectory (:meth:`sde.solvers.Solver.trajectory`).
        process: its process.
        start: the time at its start.
        stop: the time at its end.
        progress: called after every step with the fraction of the way that is done (:func:`sde.sampling.travelled`).
    """
    for point in states:
        if progress is not None:
            progress(travelled(process, point[0], start, stop))
    return point[1]


class DensityFlow:
    r"""The probability flow of a batch that carries the log-density along, ready for a solver.

    Args:
        denoiser: the model.
        x: the batch, with shape (B, \*).
        trace: the trace; one Rademacher probe by default.
        seed: the seed of the probes.
        index: the keys of the probes, int64 with shape (B,); 0 to B - 1 by default.
        condition: tensors of leading size B, or scalars.
        atol: the absolute tolerance of the log-density in nats; the solver's own by default.

    Raises:
        ValueError: if the denoiser was made under inference mode.

    Attributes:
        dynamics: the flow with its probes.
        start: the state with x and a log-density for each estimate of the trace, of mean 0 (:meth:`BoundTrace.start`).
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
        check_recordable(denoiser, "no divergence can be computed through it")
        trace = Hutchinson() if trace is None else trace
        check_kind("trace", trace, Trace, "sde.ExactTrace()")
        x = recordable(working(x))
        self.nfe = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self._vjps = torch.zeros_like(self.nfe)
        conditioned = Conditioned(denoiser, condition, self.nfe, vjps=self._vjps)
        probes = trace.bind(Noise(seed), sample_index(x, index), x)
        self.dynamics = WithLogDensity(Reverse(conditioned, eta=0.0), probes, atol)
        self.start: State = (x, probes.start(x))

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
    prior: PriorDensity | None = None,
    atol: float | None = None,
    error: float | None = None,
    error_per_image: float | None = None,
    t: float | None = None,
    differentiable: bool = False,
    guided: bool = False,
    progress: Callable[[float], object] | None = None,
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
        atol: the absolute tolerance of the log-density in nats, for adaptive solvers; by default 5e-5 bits/dim of
            each sample, or less for a tight solver (:func:`sde.likelihood.flow.tolerance`).
        error, error_per_image: in place of `atol`, the errors of the integration to accept in bits/dim, of the mean and
            of a sample (:func:`sde.likelihood.flow.step_error`).
        t: the time of x and of the density; `t_min` by default.
        differentiable: keep the graph, for gradients with respect to x, the condition and the parameters.
        guided: accept a guided denoiser, and compute the density of the flow that its predictions define.
        progress: called after every step with the fraction of the work that is done (:func:`last_state`).

    Raises:
        ValueError: if x or index have a wrong shape or dtype, x is not finite, the solver cannot integrate a flow with
            its log-density, `atol` is given for a solver without tolerances, the denoiser is guided, or an argument is
            of another kind.
    """
    solver, x = chosen_solver(denoiser, solver, default_solver), numbers_of("x", x)
    check_callable(progress=progress)
    check_states(x)
    if not guided:
        check_unguided(denoiser, OF_THE_FLOW)
    process = denoiser.process
    if error is not None or error_per_image is not None:
        if atol is not None:
            raise ValueError(f"log_prob: expected either atol= or error= and error_per_image=, got atol={atol} as well")
        atol = step_error(error, error_per_image) * event_dims(x) * math.log(2.0)
    atol, begin = tolerance(solver, event_dims(x), atol), denoiser.process.t_min if t is None else t
    with recording(differentiable), evaluating(denoiser):
        flow = DensityFlow(denoiser, x, trace, seed=seed, index=index, condition=condition, atol=atol)
        states = solver.trajectory(flow.dynamics, flow.start, None, begin, process.t_max)
        latent, change = last_state(states, process, begin, process.t_max, progress)
        prior_nats = process.prior_log_prob(latent) if prior is None else prior.log_prob(latent)
        # The state carries log p_T(x_T) - log p_t(x_t) along, the negative of the divergence's integral.
        divergence = -change.mean(1)
        nats = prior_nats + divergence
    spread = flow.dynamics.trace.standard_error(change.detach()).where(~nats.detach().isnan(), math.nan)
    return LogProb(nats, prior_nats, divergence, spread, flow.nfe, latent, flow.vjps)


def check_unguided(denoiser: Denoiser, advice: str = "") -> None:
    """Refuses a guided denoiser, whose score is that of no density under its process."""
    if denoiser.guided:
        raise ValueError(
            "a guided score is not the score of a density: noising data and weighing it by a power of p(y|x) do not "
            f"commute, so that the result would be no likelihood of a model{advice}"
        )


def check_states(x: Tensor) -> None:
    """Refuses states that have no log-density."""
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
