r"""Operators on images: downsampling and blurs, along the axes after the channels, or along the only axis of (B, D).

A separable operator is a product of one matrix for each axis, and its singular value decomposition that of theirs. A
blur with circular edges is diagonal in the Fourier basis.
"""

from __future__ import annotations

__all__ = ["Blur", "Downsample", "Fourier", "ReflectingBlur", "SeparableBlur"]

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .operator import Diagonalised, LinearOperator, Spectral, boolean


def _axes(x: Tensor) -> list[int]:
    return list(range(2 if x.ndim > 2 else 1, x.ndim))


class _Separable(Diagonalised):
    """One matrix for each spatial axis."""

    trusted = True

    def __init__(self) -> None:
        self._known: dict[object, tuple[Tensor, ...]] = {}

    @abstractmethod
    def matrix(self, n: int) -> Tensor:
        """The matrix for an axis of n entries, float64 with shape (m, n)."""

    @abstractmethod
    def size(self, m: int) -> int:
        """The length n of an axis whose measurement has m entries."""

    def _decomposed(self, n: int, reference: Tensor) -> tuple[Tensor, ...]:
        """The matrix (m, n); the left singular vectors (m, m), the squares of as many singular values, and the same on
        the right, for n."""
        key = n, reference.dtype, reference.device
        if key not in self._known:
            matrix = self.matrix(n)
            left, s, right = torch.linalg.svd(matrix, full_matrices=True)
            squares = torch.where(s > 1e-12 * s[0], s, 0.0).square()
            padded = [functional.pad(squares, (0, size - len(s))) for size in matrix.shape]
            self._known[key] = tuple(v.to(reference) for v in (matrix, left.mT, padded[0], right, padded[1]))
        return self._known[key]

    def _along(self, x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
        for axis, matrix in zip(_axes(x), matrices):
            x = torch.movedim(torch.tensordot(x, matrix, dims=([axis], [1])), -1, axis)
        return x

    def __call__(self, x: Tensor) -> Tensor:
        return self._along(x, [self._decomposed(x.shape[a], x)[0] for a in _axes(x)])

    def adjoint(self, y: Tensor) -> Tensor:
        return self._along(y, [self._decomposed(self.size(y.shape[a]), y)[0].mT for a in _axes(y)])

    def spectrum(self, x: Tensor) -> Tensor:
        return _outer(x, [self._decomposed(x.shape[a], x)[4] for a in _axes(x)])

    def on_data(self, f: Spectral, x: Tensor) -> Tensor:
        right = [self._decomposed(x.shape[a], x)[3] for a in _axes(x)]
        return self._along(f(self.spectrum(x)) * self._along(x, right), [v.mT for v in right])

    def on_measurement(self, f: Spectral, y: Tensor) -> Tensor:
        known = [self._decomposed(self.size(y.shape[a]), y) for a in _axes(y)]
        squares = _outer(y, [axis[2] for axis in known])
        return self._along(f(squares) * self._along(y, [axis[1] for axis in known]), [axis[1].mT for axis in known])


def _outer(x: Tensor, squares: Sequence[Tensor]) -> Tensor:
    """The products of the squares of the singular values along the axes, with the rank of `x` and leading size 1."""
    result = torch.ones_like(x[:1])
    for axis, values in zip(_axes(x), squares):
        result = result * values.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return result


def _box(u: Tensor) -> Tensor:
    return (u.abs() < 0.5).to(u)


def _cubic(u: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -1/2, as in the usual bicubic interpolation."""
    a, u = -0.5, u.abs()
    near = (a + 2.0) * u**3 - (a + 3.0) * u**2 + 1.0
    far = a * u**3 - 5.0 * a * u**2 + 8.0 * a * u - 4.0 * a
    return torch.where(u <= 1.0, near, torch.where(u < 2.0, far, 0.0))


_KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"box": _box, "bicubic": _cubic}


class Downsample(_Separable):
    """A smaller image, of 1/factor of the length of every spatial axis: super-resolution.

    Args:
        factor: the factor, which must divide the lengths.
        kernel: `box` for the mean of each block, or `bicubic` for Keys' kernel widened by the factor (with
            antialiasing), the image being continued by reflection at its edges.
    """

    def __init__(self, factor: int, kernel: str = "box") -> None:
        super().__init__()
        if factor < 1 or kernel not in _KERNELS:
            raise ValueError(
                f"Downsample: expected factor >= 1 and a kernel of {', '.join(_KERNELS)}, got {factor}, {kernel!r}"
            )
        self.factor, self.kernel = factor, kernel

    def matrix(self, n: int) -> Tensor:
        if n % self.factor:
            raise ValueError(f"Downsample: expected axes whose length is a multiple of {self.factor}, got {n}")
        f = self.factor
        reach = torch.arange(-2 * f - n, n + 2 * f, dtype=torch.float64, device="cpu")
        centres = (torch.arange(n // f, dtype=torch.float64, device="cpu") + 0.5) * f - 0.5
        weights = _KERNELS[self.kernel]((centres[:, None] - reach) / f)
        # Reflection at the edges of the outer pixels, -1 -> 0, with period 2n.
        place = (reach.long() % (2 * n)).where(reach.long() % (2 * n) < n, 2 * n - 1 - reach.long() % (2 * n))
        matrix = torch.zeros(n // f, n, dtype=torch.float64, device="cpu").index_add_(1, place, weights)
        return matrix / matrix.sum(1, keepdim=True)

    def size(self, m: int) -> int:
        return m * self.factor


def _odd(kernel: Tensor, owner: str) -> Tensor:
    if kernel.ndim == 0 or any(n % 2 == 0 for n in kernel.shape) or not bool(kernel.isfinite().all()):
        raise ValueError(f"{owner}: expected a finite kernel of odd lengths, got shape {tuple(kernel.shape)}")
    return kernel.detach().to("cpu", torch.float64)


class SeparableBlur(_Separable):
    r"""A blur by the same kernel along every spatial axis, with reflecting edges (... 2 1 | 0 1 2 ...).

    Args:
        kernel: the kernel, with shape (k,), k odd.
    """

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        if kernel.ndim != 1:
            raise ValueError(f"SeparableBlur: expected a kernel of shape (k,), got {tuple(kernel.shape)}")
        self.kernel = _odd(kernel, "SeparableBlur")

    def matrix(self, n: int) -> Tensor:
        half = len(self.kernel) // 2
        if half >= n:
            raise ValueError(f"SeparableBlur: expected axes longer than half the kernel, {half}, got {n}")
        rows = torch.arange(n, device="cpu")[:, None]
        place = (rows + torch.arange(half, -half - 1, -1, device="cpu")).abs()  # a convolution turns the kernel around
        place = torch.where(place < n, place, 2 * (n - 1) - place)
        return torch.zeros(n, n, dtype=torch.float64, device="cpu").scatter_add_(1, place, self.kernel.expand(n, -1))

    def size(self, m: int) -> int:
        return m


class _Fourier(Diagonalised):
    """An operator whose :math:`A^T A` is diagonal in the Fourier basis."""

    trusted = True

    def on_data(self, f: Spectral, x: Tensor) -> Tensor:
        axes = _axes(x)
        return torch.fft.ifftn(f(self.spectrum(x)) * torch.fft.fftn(x, dim=axes), dim=axes).real


class Blur(_Fourier):
    r"""A blur with circular edges, the convolution :math:`y = k * x`.

    Args:
        kernel: the kernel, with an odd length along every spatial axis; one of shape (k,) acts along each of them.
    """

    def __init__(self, kernel: Tensor) -> None:
        self.kernel = _odd(kernel, "Blur")

    def _transfer(self, x: Tensor) -> Tensor:
        """The Fourier transform of the kernel, with a leading axis (two, if the data has channels)."""
        axes, kernel = _axes(x), self.kernel
        if kernel.ndim == 1:
            kernel = math.prod(
                (self.kernel.reshape([-1 if i == j else 1 for j in range(len(axes))]) for i in range(len(axes))),
                start=torch.ones((), dtype=torch.float64, device="cpu"),
            )
        sizes = [x.shape[a] for a in axes]
        if kernel.ndim != len(axes) or any(k > n for k, n in zip(kernel.shape, sizes)):
            raise ValueError(f"Blur: a kernel of shape {tuple(self.kernel.shape)} does not fit data {tuple(x.shape)}")
        placed = torch.zeros(sizes, dtype=torch.float64, device="cpu")
        placed[tuple(slice(k) for k in kernel.shape)] = kernel
        placed = placed.roll([-(k // 2) for k in kernel.shape], dims=list(range(kernel.ndim)))
        transfer = torch.fft.fftn(placed).to(x.device, torch.promote_types(x.dtype, torch.complex64))
        return transfer.reshape((1,) * (x.ndim - len(axes)) + tuple(sizes))

    def _filtered(self, transfer: Tensor, x: Tensor) -> Tensor:
        return torch.fft.ifftn(transfer * torch.fft.fftn(x, dim=_axes(x)), dim=_axes(x)).real

    def __call__(self, x: Tensor) -> Tensor:
        return self._filtered(self._transfer(x), x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._filtered(self._transfer(y).conj(), y)

    def spectrum(self, x: Tensor) -> Tensor:
        return self._transfer(x).abs().square().to(x.dtype).expand(1, *x.shape[1:])

    def on_measurement(self, f: Spectral, y: Tensor) -> Tensor:
        return self.on_data(f, y)


class ReflectingBlur(LinearOperator):
    r"""A blur with reflecting edges by a kernel that need not be separable; it is solved by conjugate gradients.

    Args:
        kernel: the kernel, with an odd length along every one of one to three spatial axes.
    """

    trusted = True

    def __init__(self, kernel: Tensor) -> None:
        self.kernel = _odd(kernel, "ReflectingBlur")

    def __call__(self, x: Tensor) -> Tensor:
        axes = _axes(x)
        if self.kernel.ndim != len(axes) or not 1 <= len(axes) <= 3:
            raise ValueError(
                f"ReflectingBlur: expected data with {self.kernel.ndim} spatial axes, got {tuple(x.shape)}"
            )
        flat = x.reshape(-1, 1, *[x.shape[a] for a in axes])
        padding = [p for k in reversed(self.kernel.shape) for p in (k // 2, k // 2)]
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[len(axes) - 1]
        kernel = self.kernel.flip(list(range(self.kernel.ndim))).to(x)[None, None]
        return convolve(functional.pad(flat, padding, mode="reflect"), kernel).reshape(x.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.func.vjp(self.__call__, torch.zeros_like(y))[1](y)[0]


class Fourier(_Fourier):
    r"""Some Fourier coefficients of the data, as of a magnetic-resonance scanner.

    :math:`y = m \odot F x` with the unitary Fourier transform over the spatial axes, its real and imaginary parts on a
    last axis: of shape (B, \*, 2). Entries of y that are not measured do not count.

    Args:
        mask: True where measured, in the order of :func:`torch.fft.fftn`: bool, of the event's shape, or with one axis
            more for the samples.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = boolean(mask, "Fourier")

    def _masked(self, x: Tensor) -> Tensor:
        mask = self._for(self.mask, x.ndim).to(x.device)
        if mask.shape[1:] != x.shape[1:] or len(mask) not in (1, len(x)):
            raise ValueError(
                f"Fourier: expected data of shape (B, {', '.join(map(str, mask.shape[1:]))})"
                f"{'' if len(mask) == 1 else f' with B = {len(mask)}'}, got {tuple(x.shape)}"
            )
        return mask

    def __call__(self, x: Tensor) -> Tensor:
        mask = self._masked(x)
        return torch.view_as_real(torch.fft.fftn(x, dim=_axes(x), norm="ortho") * mask)

    def adjoint(self, y: Tensor) -> Tensor:
        coefficients = torch.view_as_complex(y.contiguous())
        masked = coefficients * self._masked(coefficients)
        return torch.fft.ifftn(masked, dim=_axes(masked), norm="ortho").real

    def measured(self, y: Tensor) -> Tensor:
        return self._for(self.mask, y.ndim - 1).to(y.device)[..., None]

    def spectrum(self, x: Tensor) -> Tensor:
        # Real data has the coefficients of -k too: their mean is the diagonal of A^T A.
        mask, axes = self._masked(x).to(x.dtype), _axes(x)
        return 0.5 * (mask + mask.flip(axes).roll([1] * len(axes), axes))

    def on_measurement(self, f: Spectral, y: Tensor) -> Tensor:
        # f(A A^T) = f(0) off the range of A, and A f(A^T A) / (A^T A) A^T on it, where the squares are 1/2 or 1.
        data = self.adjoint(y)
        null = f(torch.zeros_like(self.spectrum(data)))[..., None]
        on = self(self.on_data(lambda s: torch.where(s > 0, f(s) / s.clamp(min=0.5), 0.0), data))
        off = y - self(self.on_data(lambda s: torch.where(s > 0, 1.0 / s.clamp(min=0.5), 0.0), data))
        return on + torch.where(off.abs() > 0, null * off, 0.0)
