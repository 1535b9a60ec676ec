r"""Operators that are a matrix on the flattened data."""

from __future__ import annotations

__all__ = ["Matrix"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..noise import Noise, Stream
from .operator import Diagonalised, LinearOperator, Spectral


class Matrix(Diagonalised):
    r"""A matrix on the flattened data, :math:`y = A x`, with y of shape (B, M).

    Args:
        A: the matrix, with shape (M, D), or (B, M, D) for one per sample.
        shape: the event shape of the data; (D,) by default.
    """

    trusted = True

    def __init__(self, A: Tensor, shape: Sequence[int] | None = None) -> None:
        if A.ndim not in (2, 3) or not A.is_floating_point() or not bool(A.isfinite().all()):
            raise ValueError(f"Matrix: expected a finite matrix (M, D) or (B, M, D), got {A.dtype} {tuple(A.shape)}")
        self.shape = tuple(A.shape[-1:] if shape is None else shape)
        if math.prod(self.shape) != A.shape[-1]:
            raise ValueError(f"Matrix: a matrix of shape {tuple(A.shape)} does not fit data of shape {self.shape}")
        self.A = A
        left, s, self._right = torch.linalg.svd(A.double(), full_matrices=False)
        self._left = left.mT
        self._squares = torch.where(s > 1e-12 * s.amax(-1, keepdim=True), s, 0.0).square()

    @classmethod
    def random(cls, rows: int, shape: Sequence[int], seed: int = 0) -> Matrix:
        """A random projection: independent normal entries of variance 1/D, as of compressed sensing."""
        dims, zero = math.prod(shape), torch.zeros(1, dtype=torch.int64, device="cpu")
        A = Noise(seed).normal(Stream.PROBE, zero, zero, (rows, dims), torch.float64)[0]
        return cls(A / math.sqrt(dims), shape)

    @classmethod
    def of(cls, operator: LinearOperator, shape: Sequence[int]) -> Matrix:
        """The matrix of another linear operator on data of an event shape, which gives that one a decomposition."""
        dims = math.prod(shape)
        columns = operator(torch.eye(dims, dtype=torch.float64, device="cpu").reshape(dims, *shape))
        return cls(columns.flatten(1).mT.contiguous(), shape)

    def __call__(self, x: Tensor) -> Tensor:
        many = len(self._for(self.A, 3))
        if tuple(x.shape[1:]) != self.shape or many not in (1, len(x)):
            raise ValueError(
                f"Matrix: expected data of shape (B, {', '.join(map(str, self.shape))})"
                f"{'' if many == 1 else f' with B = {many}'}, got {tuple(x.shape)}"
            )
        return self._times(self.A, x.flatten(1))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._times(self.A.mT, y).reshape(-1, *self.shape)

    def spectrum(self, x: Tensor) -> Tensor:
        return self._for(self._squares, 2).to(x)

    def on_data(self, f: Spectral, x: Tensor) -> Tensor:
        return self._on(f, self._right, x.flatten(1)).reshape(x.shape)

    def on_measurement(self, f: Spectral, y: Tensor) -> Tensor:
        return self._on(f, self._left, y)

    def _on(self, f: Spectral, vectors: Tensor, x: Tensor) -> Tensor:
        """The function on the space of the singular vectors, and f(0) on the rest of it, if there is any."""
        squares, along = self.spectrum(x), self._times(vectors, x)
        seen = self._times(vectors.mT, f(squares) * along)
        if vectors.shape[-2] == vectors.shape[-1]:
            return seen
        return seen + f(torch.zeros_like(squares[:, :1])) * (x - self._times(vectors.mT, along))

    def _times(self, matrix: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", self._for(matrix, 3).to(x).expand(len(x), -1, -1), x)
