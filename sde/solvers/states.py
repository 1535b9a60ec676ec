"""What the steps of solvers do with states, coefficients and noise."""

from __future__ import annotations

__all__ = [
    "Scalar",
    "combine",
    "finite",
    "intervals",
    "linear_combination",
    "require_noise",
    "rows",
    "scalars",
    "step_normals",
]

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..dynamics import State
from ..noise import StepNoise, Stream


def linear_combination(*terms: tuple[float | Tensor, State]) -> State:
    """The linear combination of states, entry by entry: linear_combination((a, x), (b, y)) = a x + b y."""
    columns = zip(*(state for _, state in terms))
    return tuple(reduce(torch.add, [c * entry for (c, _), entry in zip(terms, entries)]) for entries in columns)


combine = linear_combination  # the name of version 0.1.0


def rows(x: State, index: Tensor) -> State:
    """The state of some samples."""
    return tuple(entry[index] for entry in x)


def finite(x: State) -> Tensor:
    """Whether a sample is finite in all its entries, bool (B,)."""
    return torch.stack([entry.detach().isfinite().flatten(1).all(1) for entry in x]).all(0)


# A coefficient of a step: a number, or a 0-dimensional tensor where gradients flow to the grid.
Scalar = float | Tensor


def scalars(values: Tensor) -> list[Any]:
    """The entries of a vector as numbers, or as tensors where it requires gradients."""
    return list(values.unbind()) if values.requires_grad else values.tolist()


def require_noise(noise: StepNoise | None) -> StepNoise:
    """The noise of a step that cannot do without."""
    if noise is None:
        raise ValueError("this step draws noise, but the run was started with noise=None")
    return noise


def step_normals(times: Tensor) -> Callable[..., Tensor]:
    """The function (noise, k, stream=Stream.STEP) -> the standard normals of step k of a grid."""
    numbers = times.tolist()

    def normals(noise: StepNoise | None, k: int, stream: Stream = Stream.STEP) -> Tensor:
        return require_noise(noise).normal(stream, k, numbers[k], numbers[k + 1])

    return normals


def intervals(times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The time before each step, the time after it, and the step (negative when time runs down)."""
    return times[:-1], times[1:], torch.diff(times)
