"""The exact divergence."""

from __future__ import annotations

__all__ = ["ExactTrace"]

from dataclasses import dataclass

import torch
from torch import Tensor

from ..noise import Noise
from ..shapes import check_count, event_dims, working_dtype
from .base import BoundTrace, Trace, vjp


@dataclass(frozen=True)
class ExactTrace(Trace, BoundTrace):
    """The exact divergence by D vector-Jacobian products, for small D.

    Args:
        chunk: how many of them run at once; memory grows with it.
    """

    chunk: int = 64

    def __post_init__(self) -> None:
        check_count("ExactTrace", "chunk", self.chunk, 1)

    @property
    def estimates(self) -> int:
        return 1

    def vjps(self, dims: int) -> int:
        return dims

    def standard_error(self, estimates: Tensor) -> Tensor:
        return torch.zeros_like(estimates[:, 0])

    def bind(self, noise: Noise, index: Tensor, x: Tensor) -> ExactTrace:
        return self

    def select(self, index: Tensor) -> ExactTrace:
        return self

    def divergence(self, x: Tensor, value: Tensor, differentiable: bool) -> Tensor:
        d = event_dims(x)
        divergence = torch.zeros(len(x), dtype=working_dtype(x.dtype), device=x.device)
        for first in range(0, d, self.chunk):
            rows = torch.arange(first, min(first + self.chunk, d), device=x.device)
            unit = torch.nn.functional.one_hot(rows, d).to(divergence).reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
            jacobian = vjp(value, x, unit, len(unit), keep=True, differentiable=differentiable)
            divergence = divergence + (jacobian * unit).flatten(2).sum((0, 2))
        return divergence[:, None]
