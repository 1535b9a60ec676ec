r"""Operators on single entries of the data: masks, the identity, and the brightness of colours."""

from __future__ import annotations

__all__ = ["Grayscale", "Identity", "Mask"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .operator import Diagonalised, Spectral, boolean


class Mask(Diagonalised):
    r"""Some entries of the data, :math:`y = m \odot x`: inpainting. Entries of y that are not measured do not count.

    Args:
        mask: True where measured: bool, of the event's shape for a mask shared by all samples, or with one axis more,
            (B, \*), for one per sample.
    """

    trusted = True

    def __init__(self, mask: Tensor) -> None:
        self.mask = boolean(mask, "Mask")

    def __call__(self, x: Tensor) -> Tensor:
        mask = self._for(self.mask, x.ndim)
        if mask.shape[1:] != x.shape[1:] or len(mask) not in (1, len(x)):
            raise ValueError(
                f"Mask: expected data of shape (B, {', '.join(map(str, mask.shape[1:]))})"
                f"{'' if len(mask) == 1 else f' with B = {len(mask)}'}, got {tuple(x.shape)}"
            )
        return torch.where(mask.to(x.device), x, 0.0)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def measured(self, y: Tensor) -> Tensor:
        return self._for(self.mask, y.ndim).to(y.device)

    def spectrum(self, x: Tensor) -> Tensor:
        return self.measured(x).to(x.dtype)

    def on_data(self, f: Spectral, x: Tensor) -> Tensor:
        return f(self.spectrum(x)) * x

    def on_measurement(self, f: Spectral, y: Tensor) -> Tensor:
        return self.on_data(f, y)


class Identity(Diagonalised):
    """The data itself: denoising."""

    trusted = True

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def spectrum(self, x: Tensor) -> Tensor:
        return torch.ones_like(x[:1])

    def on_data(self, f: Spectral, x: Tensor) -> Tensor:
        return f(self.spectrum(x)) * x

    def on_measurement(self, f: Spectral, y: Tensor) -> Tensor:
        return self.on_data(f, y)


class Grayscale(Diagonalised):
    r"""The brightness of colours, :math:`y = \sum_c w_c x_c`, of shape (B, 1, \*spatial): colourisation.

    Args:
        weights: one for each channel; those of red, green and blue in ITU-R BT.601 by default.
    """

    trusted = True

    def __init__(self, weights: Sequence[float] = (0.299, 0.587, 0.114)) -> None:
        self.weights = tuple(float(w) for w in weights)
        self._square = sum(w * w for w in self.weights)
        if not 0.0 < self._square < math.inf:
            raise ValueError(f"Grayscale: expected finite weights that are not all 0, got {self.weights}")

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim < 3 or x.shape[1] != len(self.weights):
            raise ValueError(f"Grayscale: expected data of shape (B, {len(self.weights)}, ...), got {tuple(x.shape)}")
        return (self._column(x) * x).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._column(y) * y

    def spectrum(self, x: Tensor) -> Tensor:
        return torch.full_like(x[:1, :1], self._square)

    def on_data(self, f: Spectral, x: Tensor) -> Tensor:
        one = x.new_ones(1, *(1,) * (x.ndim - 1))
        null, seen = f(0.0 * one), f(self._square * one)
        return null * x + (seen - null) / self._square * self.adjoint(self(x))

    def on_measurement(self, f: Spectral, y: Tensor) -> Tensor:
        return f(torch.full_like(y[:1], self._square)) * y

    def _column(self, x: Tensor) -> Tensor:
        return x.new_tensor(self.weights).reshape(1, -1, *(1,) * (x.ndim - 2))
