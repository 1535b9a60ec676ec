r"""Sampling, from noise to data with any solver, and encoding, from data to noise along the flow."""

from __future__ import annotations

__all__ = [
    "Prior",
    "Samples",
    "chosen_solver",
    "coupling_times",
    "default_solver",
    "encode",
    "evaluating",
    "polish",
    "recording",
    "rehearse",
    "sample",
    "state_like",
    "travelled",
]

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .denoisers import Conditioned, Denoiser, Prediction
from .dynamics import Reverse
from .grids import LogSNR
from .measurement import Measurement, Unguided
from .noise import Noise, NoiseSource, Stream, sample_index
from .processes import SDE
from .shapes import (
    check_callable,
    check_kind,
    check_recordable,
    described,
    expand,
    float64,
    named_tensors,
    numbers_of,
    recordable,
    recording,
    working,
    working_dtype,
)
from .solvers import Ancestral, Arcsinh, Polish, Solver, UniPC


class Prior(Protocol):
    """A distribution of latents to start from, such as :class:`sde.exact.Marginal`."""

    def sample(self, n: int, /, *, generator: torch.Generator) -> Tensor:
        r"""n latents, with shape (n, \*)."""


@dataclass(frozen=True)
class Samples:
    """The result of :func:`sample`.

    Attributes:
        x: the samples, with shape (B, *).
        nfe: the number of network calls for each, int64 with shape (B,).
        vjps: the number of vector-Jacobian products of the network for each, int64 with shape (B,); 0 unless the
            denoiser takes gradients, as some kinds of guidance do.
        log_evidence: for `solvers.Particles`, the logarithm of an unbiased estimate of the evidence, in nats, with
            shape (B,); that of p(y) where the weight is a likelihood.
        ess: for `solvers.Particles`, the smallest effective sample size of each system's run, with shape (B,).
        acceptance: for `solvers.Polish`, the fraction of the Langevin steps that were accepted, with shape (B,).
    """

    x: Tensor
    nfe: Tensor
    vjps: Tensor
    log_evidence: Tensor | None = None
    ess: Tensor | None = None
    acceptance: Tensor | None = None


def default_solver() -> Solver:
    """The default solver for samples: UniPC with 18 calls.

    It interpolates in arcsinh(sigma / alpha), on a grid that is uniform in log-SNR; its errors are in the table of
    :doc:`/choosing-a-solver`.
    """
    return UniPC(18, order=3, variable=Arcsinh())


def chosen_solver(denoiser: Denoiser, solver: Solver | None, default: Callable[[], Solver] = default_solver) -> Solver:
    """The solver for a denoiser, the default one for None.

    Raises:
        ValueError: if it is no solver, or the denoiser is none.
    """
    check_kind("the denoiser", denoiser, Denoiser, "model.denoiser or sde.NetworkDenoiser(net, sde.VP())")
    solver = default() if solver is None else solver
    check_kind("solver", solver, Solver, "sde.solvers.Heun(20)")
    return solver


def sample(
    denoiser: Denoiser,
    shape: Sequence[int] | None = None,
    *,
    solver: Solver | None = None,
    seed: int = 0,
    first: int = 0,
    index: Tensor | None = None,
    condition: Mapping[str, Tensor] | None = None,
    prior: Prior | None = None,
    x_T: Tensor | None = None,
    eta: float | None = None,
    denoise: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    noise: NoiseSource | None = None,
    differentiable: bool = False,
    start: float | None = None,
    x_start: Tensor | None = None,
    trajectory: Callable[[tuple[Tensor, Tensor]], object] | None = None,
    progress: Callable[[float], object] | None = None,
) -> Samples:
    r"""Draws samples by a solver from the prior at `t_max` to data at `t_min`.

    Sample i of the batch uses the noise of index `first + i`, so that samples do not depend on how they are batched.

    Args:
        denoiser: the model; it is run in evaluation mode.
        shape: the shape (B, \*) of the batch; or give `x_T`, or `start` and `x_start`.
        solver: the solver; :func:`default_solver` by default.
        seed: the seed of all noise, including the prior.
        first: the index of the first sample.
        index: the indices of all samples, int64 with shape (B,), in place of `first`.
        condition: named tensors of leading size B, or scalars, on which the denoiser is conditioned.
        prior: anything with `sample(n, generator=)` to start from, in place of the process's prior.
        x_T: the state at `t_max` to start from, in place of a draw.
        eta: the stochasticity of the dynamics, 1 for the reverse SDE, 0 for the probability flow; the solver's own
            by default.
        denoise: add one Tweedie step at `t_min`, :math:`E[x_0 | x]`, which removes the noise that is left there.
        dtype: the dtype of the samples; that of `x_T`, `x_start` or the denoiser, float32 at least, by default. The
            state is in float32 at least.
        device: the device of the state; the denoiser's by default.
        noise: the source of the noise of the solver's steps; that of the seed by default. The prior uses the seed.
        differentiable: keep the graph, for gradients through the solver.
        start: the time to start from, within (t_min, t_max], with `x_start`.
        x_start: the state at the time `start`, with shape (B, \*).
        trajectory: called with (t, x) before the first step, after every step, and with the result of `denoise`; t has
            shape (B,), x shape (B, \*). With `path = []` and `trajectory=path.append`, :func:`sde.plots.trajectory`
            plots `path`.
        progress: called after every step with the fraction of the work that is done, which ends at 1: that of the
            steps, or, for solvers with adaptive steps, that of :math:`\arctan(\sigma_t / \alpha_t)` on average over
            the samples.

    Raises:
        ValueError: if solver and dynamics do not fit, not exactly one of `shape`, `x_T` and `x_start` is given, or an
            argument is of another kind.
    """
    solver = chosen_solver(denoiser, solver)
    check_callable(trajectory=trajectory, progress=progress)
    if dtype is not None:
        check_kind("dtype", dtype, torch.dtype, "torch.float64")
    if sum(value is not None for value in (shape, x_T, x_start)) != 1:
        raise ValueError("sample: expected one of a shape (B, *), a latent x_T at t_max, and a state x_start at start")
    if (start is None) != (x_start is None):
        raise ValueError(
            f"sample: start= and x_start= go together, got start={start} with x_start "
            f"{'left out' if x_start is None else 'given'}"
        )
    state = x_start if x_T is None else x_T
    if state is not None and prior is not None:
        raise ValueError("sample: with x_T or x_start there is no draw from a prior: leave out prior=")
    if prior is not None and not callable(getattr(prior, "sample", None)):
        raise ValueError(
            f"sample: expected a prior with sample(n, generator=), got {described(prior)}; x_T= takes states"
        )
    if state is not None:
        state = numbers_of("x_T" if x_start is None else "x_start", state)
    elif not isinstance(shape, Sequence) or isinstance(shape, str) or not shape:
        raise ValueError(f"sample: expected a shape (B, *), such as (16, 2), got {described(shape)}")
    if differentiable or denoiser.vjps:
        check_recordable(denoiser, "no gradient can be computed through it")
    reference = state_like(denoiser) if state is None else state
    dtype = dtype or working_dtype(reference.dtype)
    reference = torch.empty(0, dtype=working_dtype(dtype), device=device or reference.device)
    batch, *event = shape if state is None else state.shape  # type: ignore[misc]
    keyed, process = Noise(seed), denoiser.process
    with recording(differentiable), evaluating(denoiser):
        index = torch.arange(first, first + batch, device=reference.device) if index is None else index
        index = sample_index(torch.empty(batch, device=reference.device), index)
        conditioned = Conditioned(denoiser, condition, torch.zeros_like(index), vjps=torch.zeros_like(index))
        dynamics = Reverse(conditioned, eta=solver.eta if eta is None else eta)
        run, population = solver.bind(dynamics, start), solver.population
        if state is not None:
            x = recordable(state.to(reference))[:, None].expand(-1, population, *event)
        elif prior is not None:
            generators = (keyed.generator(Stream.PRIOR, i) for i in index.tolist())
            draws = [prior.sample(population, generator=generator) for generator in generators]
            x = torch.stack(draws).to(reference)
        else:
            end = float64(process.t_max)
            counters = torch.arange(population, device=reference.device)
            z = keyed.normal(Stream.PRIOR, index[:, None], counters, event, reference.dtype)
            x = process.prior_var(end).sqrt().item() * z
        step_noise = (keyed if noise is None else noise).batch(index, event, reference.dtype)
        begin, work = process.t_max if start is None else start, run.steps and run.steps + denoise
        x = x[:, 0] if population == 1 else x
        for k, now in enumerate(run.walk((x,), step_noise)):
            t, (x,) = now.t, now.x
            if trajectory is not None:
                trajectory((t, x))
            if progress is not None and k:
                progress(k / work if work else travelled(process, t, begin, process.t_min))
        if denoise:
            flat = x.reshape(-1, *event)
            each = torch.arange(batch, device=x.device).repeat_interleave(len(flat) // batch)
            last = dynamics if len(flat) == batch else dynamics.select(each)
            x = last.predict(Prediction.X0, (flat,), float64(process.t_min))[0].reshape(x.shape)
            if trajectory is not None:
                trajectory((t, x))
        if progress is not None and (denoise or not work):
            progress(1.0)
    return Samples(x.to(dtype), *conditioned.counts, **run.outcome(now))


def rehearse(
    denoiser: Denoiser,
    shape: Sequence[int],
    solver: Solver | None = None,
    condition: Mapping[str, Tensor] | None = None,
) -> None:
    """Tries whether :func:`sample` can draw from a denoiser: the solver is bound, and one prediction made at `t_max`.

    Raises:
        ValueError: as :func:`sample`, or any error of the denoiser.
    """
    solver, reference = chosen_solver(denoiser, solver), state_like(denoiser)
    with recording(False), evaluating(denoiser):
        nfe = torch.zeros(shape[0], dtype=torch.int64, device=reference.device)
        dynamics = Reverse(Conditioned(denoiser, condition, nfe), eta=solver.eta)
        solver.bind(dynamics)
        dynamics.predict(Prediction.SCORE, (reference.new_zeros(*shape),), float64(denoiser.process.t_max))


def polish(
    denoiser: Denoiser,
    measurement: Measurement,
    x: Tensor,
    *,
    solver: Polish | None = None,
    fraction: float = 0.9,
    seed: int = 0,
    index: Tensor | None = None,
    condition: Mapping[str, Tensor] | None = None,
) -> Samples:
    r"""Draws from a posterior by any method, moved by a chain whose stationary distribution it is.

    Each draw gets the noise s z, with s the `fraction` of :meth:`sde.Measurement.coupling`, by which it is near the
    posterior of noisy data, and then the steps of :class:`sde.solvers.Polish`. It corrects draws within their modes.

    Args:
        denoiser: the denoiser of the prior.
        measurement: the measurement of the batch.
        x: the draws, in the model's range, with shape (B, \*).
        solver: the solver; 50 Langevin steps and 8 ancestral ones by default.
        fraction: in (0, 1).
        seed: the seed of all noise. Take another one than that of the draws.
        index: the indices of the draws, int64 with shape (B,).
        condition: as in :func:`sample`.

    Raises:
        ValueError: if the operator or its noise do not allow it; the noise must be above what is left at `t_min`.
    """
    process, keys = denoiser.process, sample_index(x, index)
    solver = Polish(Ancestral(8, grid=LogSNR())) if solver is None else solver
    posterior, named = Unguided(denoiser, measurement), named_tensors(condition)
    times = coupling_times(process, measurement, fraction).expand(len(x))
    x = working(x)
    measurement.check(x)
    z = Noise(seed).normal(Stream.PERTURB, keys, torch.zeros_like(keys), x.shape[1:], x.dtype)
    results: dict[str, Tensor] = {}
    for t in times.unique():  # a run has one starting time
        rows = (times == t).nonzero()[:, 0].to(x.device)
        mean, std = process.marginal(x[rows], t)
        part = {name: value[rows] if value.ndim else value for name, value in named.items()}
        how: dict[str, Any] = {"solver": solver, "seed": seed, "index": keys[rows], "condition": part, "denoise": True}
        r = sample(posterior.select(rows), start=t.item(), x_start=mean + expand(std, mean) * z[rows], **how)
        for name in ("x", "nfe", "vjps", "acceptance"):
            value = getattr(r, name)
            results.setdefault(name, value.new_empty(len(x), *value.shape[1:]))[rows] = value
    return Samples(**results)


def coupling_times(process: SDE, measurement: Measurement, fraction: float = 0.9) -> Tensor:
    """The times from which :func:`polish` starts, float64 of shape (1,) or (B,), on the CPU; its errors are those."""
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"polish needs a fraction in (0, 1), got {fraction}")
    spreads = fraction * measurement.coupling().cpu()
    ends = process.log_snr(float64([process.t_max, process.t_min]))
    if bool((-2.0 * spreads.log() >= ends[1]).any()):
        raise ValueError(
            f"polish: the measurement allows a noise of {spreads.min():.4g} in the data, and more is left at t_min: it "
            "is too accurate to be polished"
        )
    return process.time((-2.0 * spreads.log()).clamp(min=ends[0]))


def travelled(process: SDE, t: Tensor, start: float, stop: float) -> float:
    r"""The fraction of the way between two times in :math:`\arctan(\sigma_t / \alpha_t)`, the mean over t (B,)."""
    ends = float64([start, stop])
    first, last, here = (torch.atan2(process.sigma(s), process.alpha(s)) for s in (*ends, t))
    return float(((first - here) / (first - last)).mean())


def encode(
    denoiser: Denoiser,
    x: Tensor,
    *,
    solver: Solver | None = None,
    condition: Mapping[str, Tensor] | None = None,
    differentiable: bool = False,
    stop: float | None = None,
) -> Tensor:
    r"""Encodes data along the probability flow from `t_min` up to `t_max`, in the dtype of `x`, float32 at least.

    Args:
        denoiser: the model; it is run in evaluation mode.
        x: data in the model's range, with shape (B, \*).
        solver: a deterministic solver; :func:`default_solver` by default.
        condition: as in :func:`sample`.
        differentiable: keep the graph.
        stop: the time to stop at; `t_max` by default.

    Returns:
        The latent, with shape (B, \*); `sample(denoiser, x_T=latent)` with a deterministic solver returns the data.
    """
    if differentiable:
        check_recordable(denoiser, "no gradient can be computed through it")
    solver, x, process = chosen_solver(denoiser, solver), numbers_of("x", x), denoiser.process
    with recording(differentiable), evaluating(denoiser):
        nfe = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        dynamics = Reverse(Conditioned(denoiser, condition, nfe), eta=0.0)
        (latent,) = solver.bind(dynamics, process.t_min, process.t_max if stop is None else stop)(
            (recordable(working(x)),)
        )
    return latent


def state_like(denoiser: nn.Module) -> Tensor:
    """An empty tensor like the states of a denoiser: on the device and in the dtype, float32 at least, of its first
    parameter, or else its first buffer."""
    first = next(itertools.chain(denoiser.parameters(), denoiser.buffers()), torch.empty(0, device="cpu"))
    return first.new_empty(0, dtype=working_dtype(first.dtype))


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context; afterwards every submodule is in its mode from before."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True
