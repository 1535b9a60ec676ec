r"""Sampling: noise to data along any dynamics with any solver, and data to noise along the flow."""

from __future__ import annotations

__all__ = ["Samples", "default_solver", "encode", "evaluating", "sample", "state_like"]

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .denoisers import Conditioned, Denoiser, Prediction
from .dynamics import Reverse
from .noise import Noise, NoiseSource, Stream
from .solvers import Arcsinh, Solver, UniPC


@dataclass(frozen=True)
class Samples:
    """What :func:`sample` returns.

    Attributes:
        x: the samples, with shape (B, *).
        nfe: the network calls spent on each, int64 with shape (B,).
        vjps: the vector-Jacobian products of the network spent on each, int64 with shape (B,); 0 unless the denoiser
            takes gradients, as some kinds of guidance do.
    """

    x: Tensor
    nfe: Tensor
    vjps: Tensor


def default_solver() -> Solver:
    """The solver of samples where none is given: UniPC with 18 calls.

    It interpolates in arcsinh(sigma / alpha), on a grid that is uniform in log-SNR; see the table of errors in
    :doc:`/choosing-a-solver`.
    """
    return UniPC(18, order=3, variable=Arcsinh())


def sample(
    denoiser: Denoiser,
    shape: Sequence[int] | None = None,
    *,
    solver: Solver | None = None,
    seed: int = 0,
    first: int = 0,
    condition: Mapping[str, Tensor] | None = None,
    prior: Any = None,
    x_T: Tensor | None = None,
    eta: float | None = None,
    denoise: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    noise: NoiseSource | None = None,
    differentiable: bool = False,
    start: float | None = None,
    x_start: Tensor | None = None,
) -> Samples:
    r"""Draws samples: starts from the prior at `t_max` and runs the solver down to `t_min`.

    Sample i of the batch uses the noise of index `first + i`, so that a set of samples is the same in any batches.

    Args:
        denoiser: the model; it is run in evaluation mode.
        shape: the shape (B, \*) of the batch; or give `x_T`, or `start` and `x_start`.
        solver: how to integrate; :func:`default_solver` by default.
        seed: the seed of all noise, the prior's included.
        first: the index of the first sample.
        condition: tensors of leading size B, or scalars, handed to the denoiser by name.
        prior: anything with `sample(n, generator=)` to start from instead of the process's prior.
        x_T: the state at `t_max` to start from, instead of a draw.
        eta: the stochasticity of the dynamics, 1 for the reverse SDE, 0 for the probability flow; the solver's own
            by default.
        denoise: add one Tweedie step at `t_min`, :math:`E[x_0 | x]`, which removes the noise that is left there.
        dtype: the dtype of the state; the denoiser's by default.
        device: the device of the state; the denoiser's by default.
        noise: where the solver's steps draw from, in place of the seed; the prior is drawn by the seed all the same.
        differentiable: keep the graph, for gradients through the solver.
        start: the time to start from, within (t_min, t_max], with `x_start`.
        x_start: the state at the time `start`, with shape (B, \*).

    Raises:
        ValueError: if solver and dynamics do not fit, or not exactly one of `shape`, `x_T` and `x_start` is given.
    """
    if sum(given is not None for given in (shape, x_T, x_start)) != 1:
        raise ValueError("sample: expected one of a shape (B, *), a latent x_T at t_max, and a state x_start at start")
    if (start is None) != (x_start is None):
        raise ValueError(
            f"sample: start and x_start go together, got start={start} {'without' if start else 'with'} x_start"
        )
    state = x_start if x_T is None else x_T
    if state is not None and prior is not None:
        raise ValueError("sample: with x_T or x_start nothing is drawn from a prior: leave out prior=")
    solver = default_solver() if solver is None else solver
    reference = state_like(denoiser) if state is None else state
    reference = torch.empty(0, dtype=dtype or reference.dtype, device=device or reference.device)
    batch, *event = shape if state is None else state.shape  # type: ignore[misc]
    keyed, index = Noise(seed), torch.arange(first, first + batch, device=reference.device)
    nfe = torch.zeros(batch, dtype=torch.int64, device=reference.device)
    conditioned = Conditioned(denoiser, condition, nfe, vjps=torch.zeros_like(nfe))
    dynamics = Reverse(conditioned, eta=solver.eta if eta is None else eta)
    process = denoiser.process
    with torch.set_grad_enabled(differentiable), evaluating(denoiser):
        run = solver.bind(dynamics, start)
        if state is not None:
            x = state.to(reference)
        elif prior is not None:
            draws = [prior.sample(1, generator=keyed.generator(Stream.PRIOR, i)) for i in range(first, first + batch)]
            x = torch.cat(draws).to(reference)
        else:
            end = torch.tensor(process.t_max, dtype=torch.float64)
            z = keyed.normal(Stream.PRIOR, index, torch.zeros_like(index), event, reference.dtype)
            x = process.prior_var(end).sqrt().item() * z
        (x,) = run((x,), (keyed if noise is None else noise).batch(index, event, reference.dtype))
        if denoise:
            (x,) = dynamics.predict(Prediction.X0, (x,), torch.tensor(process.t_min, dtype=torch.float64))
    return Samples(x, *conditioned.counts)


def encode(
    denoiser: Denoiser,
    x: Tensor,
    *,
    solver: Solver | None = None,
    condition: Mapping[str, Tensor] | None = None,
    differentiable: bool = False,
) -> Tensor:
    r"""The latent of data: the probability flow from `t_min` up to `t_max`, in the dtype of `x`.

    Args:
        denoiser: the model; it is run in evaluation mode.
        x: data in the model's range, with shape (B, \*).
        solver: a deterministic solver; :func:`default_solver` by default.
        condition: as in :func:`sample`.
        differentiable: keep the graph.

    Returns:
        The latent, with shape (B, \*); `sample(denoiser, x_T=latent)` with a deterministic solver goes back.
    """
    nfe = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    dynamics = Reverse(Conditioned(denoiser, condition, nfe), eta=0.0)
    with torch.set_grad_enabled(differentiable), evaluating(denoiser):
        run = (default_solver() if solver is None else solver).bind(
            dynamics, denoiser.process.t_min, denoiser.process.t_max
        )
        (latent,) = run((x,))
    return latent


def state_like(denoiser: Denoiser) -> Tensor:
    """A tensor with the dtype and the device of a denoiser: its first parameter or buffer."""
    return next(itertools.chain(denoiser.parameters(), denoiser.buffers()), torch.empty(0))


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every submodule returns to the mode it was in."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True
