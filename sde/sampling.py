r"""Sampling: noise to data along any dynamics with any solver, and data to noise along the flow."""

from __future__ import annotations

__all__ = ["Samples", "encode", "evaluating", "sample", "state_like"]

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .denoisers import Conditioned, Denoiser
from .dynamics import Reverse
from .noise import Noise, NoiseSource, Stream
from .solvers import Solver


@dataclass(frozen=True)
class Samples:
    """What :func:`sample` returns.

    Attributes:
        x: the samples, with shape (B, *).
        nfe: the network calls spent on each, int64 with shape (B,).
    """

    x: Tensor
    nfe: Tensor


def sample(
    denoiser: Denoiser,
    shape: Sequence[int] | None = None,
    *,
    solver: Solver,
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
) -> Samples:
    r"""Draws samples: starts from the prior at `t_max` and runs the solver down to `t_min`.

    Sample i of the batch uses the noise of index `first + i`, so that a set of samples is the same in any batches.

    Args:
        denoiser: the model; it is run in evaluation mode.
        shape: the shape (B, \*) of the batch; or give `x_T`.
        solver: how to integrate.
        seed: the seed of all noise, the prior's included.
        first: the index of the first sample.
        condition: tensors of leading size B, or scalars, handed to the denoiser by name.
        prior: anything with `sample(n, generator=)` to start from instead of the process's prior.
        x_T: the state at `t_max` to start from, instead of a draw.
        eta: the share of noise of the dynamics, 1 for the reverse SDE, 0 for the probability flow; the solver's own
            kind by default.
        denoise: add one Tweedie step at `t_min`, :math:`E[x_0 | x]`, which removes the noise that is left there.
        dtype: the dtype of the state; the denoiser's by default.
        device: the device of the state; the denoiser's by default.
        noise: where the solver's steps draw from, in place of the seed; the prior is drawn by the seed all the same.
        differentiable: keep the graph, for gradients through the solver.

    Raises:
        ValueError: if solver and dynamics do not fit, or not exactly one of `shape` and `x_T` is given.
    """
    if (shape is None) == (x_T is None):
        raise ValueError("sample: expected either a shape (B, *) or a latent x_T, and not both")
    if x_T is not None and prior is not None:
        raise ValueError("sample: x_T is where the run starts, so that a prior= to draw the start from has no use")
    like = state_like(denoiser) if x_T is None else x_T
    like = torch.empty(0, dtype=dtype or like.dtype, device=device or like.device)
    batch, *event = shape if x_T is None else x_T.shape  # type: ignore[misc]
    keyed, index = Noise(seed), torch.arange(first, first + batch, device=like.device)
    nfe = torch.zeros(batch, dtype=torch.int64, device=like.device)
    dynamics = Reverse(Conditioned(denoiser, condition, nfe), eta=solver.eta if eta is None else eta)
    process = denoiser.process
    with torch.set_grad_enabled(differentiable), evaluating(denoiser):
        run = solver.bind(dynamics)
        if x_T is not None:
            x = x_T.to(like)
        elif prior is not None:
            draws = [prior.sample(1, generator=keyed.generator(Stream.PRIOR, i)) for i in range(first, first + batch)]
            x = torch.cat(draws).to(like)
        else:
            end = torch.tensor(process.t_max, dtype=torch.float64)
            z = keyed.normal(Stream.PRIOR, index, torch.zeros_like(index), event, like.dtype)
            x = process.prior_var(end).sqrt().item() * z
        (x,) = run((x,), (keyed if noise is None else noise).batch(index, event, like.dtype))
        if denoise:
            (x,) = dynamics.x0((x,), torch.tensor(process.t_min, dtype=torch.float64))
    return Samples(x, nfe)


def encode(
    denoiser: Denoiser,
    x: Tensor,
    *,
    solver: Solver,
    condition: Mapping[str, Tensor] | None = None,
    differentiable: bool = False,
) -> Tensor:
    r"""The latent of data: the probability flow from `t_min` up to `t_max`, in the dtype of `x`.

    Args:
        denoiser: the model; it is run in evaluation mode.
        x: data in the model's range, with shape (B, \*).
        solver: a deterministic solver.
        condition: as in :func:`sample`.
        differentiable: keep the graph.

    Returns:
        The latent, with shape (B, \*); `sample(denoiser, x_T=latent)` with a deterministic solver goes back.
    """
    nfe = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    dynamics = Reverse(Conditioned(denoiser, condition, nfe), eta=0.0)
    with torch.set_grad_enabled(differentiable), evaluating(denoiser):
        (latent,) = solver(dynamics, (x,), start=denoiser.process.t_min, stop=denoiser.process.t_max)
    return latent


def state_like(denoiser: Denoiser) -> Tensor:
    """A tensor with the dtype and the device of a denoiser: those of its first parameter or buffer."""
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
