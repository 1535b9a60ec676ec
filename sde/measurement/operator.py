r"""Operators: what an instrument does to data, :math:`x_0 \mapsto A(x_0)`, without its noise.

A posterior sampler asks a linear operator for three things: :math:`A x`, :math:`A^T y`, and the solution of

.. math:: (v A A^T + \sigma^2 I)\, w = r,

the inverse covariance of y where the data has the covariance :math:`v I`. By default the last one is found by conjugate
gradients. An operator with a fast singular value decomposition, a :class:`Diagonalised` one, gives functions of
:math:`A^T A`, from which this solution, its determinant and draws of the conditional Gaussian follow in closed form.
"""

from __future__ import annotations

__all__ = [
    "Compose",
    "Diagonalised",
    "Linear",
    "LinearOperator",
    "Operator",
    "applied",
    "boolean",
    "check_adjoint",
    "decomposed",
    "positive",
    "rowwise",
]

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..noise import Noise, Stream
from ..shapes import float64, numbers_of, sum_event

Self = TypeVar("Self", bound="Operator")

# A function of the squares of the singular values, entry by entry.
Spectral = Callable[[Tensor], Tensor]


def rowwise(value: Tensor | float, reference: Tensor) -> Tensor:
    """A number, or one for each sample (B,), that broadcasts against tensors of the rank and dtype of `like`."""
    values = torch.as_tensor(value, dtype=reference.dtype, device=reference.device)
    return values.reshape(-1, *(1,) * (reference.ndim - 1))


class Operator(ABC):
    """A differentiable map of data (B, \\*) to measurements (B, \\*m); a leaf defines `__call__`, one sample at a time.

    Attributes:
        linear: whether it is linear, and has an :meth:`adjoint`.
        diagonal: whether it is :class:`Diagonalised`: kernels of particles then have the variance of the data in them.
        gain: for a nonlinear operator, the typical square of the norm of a row of its Jacobian J: :math:`J J^T` is
            taken for this number where y is weighed.
        trusted: whether its adjoint is known to be one, as those of this library are; others are checked by
            :class:`sde.Measurement`.
    """

    linear: bool = False
    diagonal: bool = False
    gain: float = 1.0
    trusted: bool = False
    _index: Tensor | None = None

    @property
    def name(self) -> str:
        """Its name in messages."""
        return type(self).__name__

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The measurement without noise, in the dtype and on the device of `x`."""

    def pullback(self, x: Tensor, y: Tensor) -> Tensor:
        """The product of `y` with the Jacobian at `x`, with the shape of `x`."""
        return torch.func.vjp(self.__call__, x)[1](y)[0]

    def adjoint(self, y: Tensor) -> Tensor:
        r""":math:`A^T y`, with the shape of the data."""
        raise TypeError(f"{type(self).__name__} is not linear and has no adjoint: expected a linear operator")

    def solve(self, r: Tensor, variance: Tensor | float, noise: Tensor | float) -> Tensor:
        r"""The solution w of :math:`(v A A^T + \sigma^2) w = r`, one for each sample.

        Args:
            r: the right-hand sides, with shape (B, \*m); 0 where nothing is measured.
            variance: v, of shape () or (B,).
            noise: the standard deviation :math:`\sigma`, of shape () or (B,).
        """
        return r / (self.gain * rowwise(variance, r) + rowwise(noise, r).square())

    def log_det(self, x: Tensor, rows: Tensor, variance: Tensor | float, noise: Tensor | float) -> Tensor:
        r""":math:`\log \det(v A A^T + \sigma^2)` over what is measured, float64 of shape (B,) or (1,).

        Without a decomposition, it is that of the noise alone, which differs by little at the end of a run, where v is
        small.

        Args:
            x: data, for its shape.
            rows: the number of measured entries, float64 of shape (B,) or (1,).
            variance: v, of shape () or (B,).
            noise: the standard deviation :math:`\sigma`, of shape () or (B,).
        """
        return rows * float64(noise).to(rows.device).square().log()

    def spread(
        self, z: Tensor, variance: Tensor | float, noise: Tensor | float, floor: float, scale: float
    ) -> tuple[Tensor, Tensor | float]:
        r"""Normals of the covariance :math:`b I + c^2 V`, where V is that of data of variance v given y.

        .. math:: V = v I - v^2 A^T (v A A^T + \sigma^2)^{-1} A

        Without a decomposition V is taken to be :math:`v I`; such an operator is asked with v = 0.

        Args:
            z: standard normals, with shape (B, \*).
            variance: v, of shape () or (B,).
            noise: the standard deviation :math:`\sigma`, of shape () or (B,).
            floor: b.
            scale: c.

        Returns:
            The normals, and half of the logarithm of the determinant relative to that of :math:`(b + c^2 v) I`.
        """
        return (floor + scale**2 * rowwise(variance, z)).sqrt() * z, 0.0

    def measured(self, y: Tensor) -> Tensor | None:
        """The mask of the entries of `y` that are measurements, bool, broadcasting against it; None if all are."""
        return None

    def select(self: Self, index: Tensor) -> Self:
        """This operator for some samples of a batch; indices may repeat."""
        other = copy.copy(self)
        other._index = index if self._index is None else self._index[index]
        return other

    def _for(self, value: Tensor, ndim: int) -> Tensor:
        """A parameter of rank `ndim` - 1, shared by all samples, with a leading axis, or one of rank `ndim` with the
        selected samples on it."""
        if value.ndim == ndim - 1:
            return value[None]
        if value.ndim != ndim:
            raise ValueError(
                f"{type(self).__name__}: expected a parameter of {ndim - 1} dimensions, shared by all samples, or of "
                f"{ndim} with one axis more for the samples, got shape {tuple(value.shape)}"
            )
        return value if self._index is None or len(value) == 1 else value[self._index.to(value.device)]


class LinearOperator(Operator):
    """A linear operator; a leaf defines `__call__` and `adjoint`."""

    linear = True

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """As in :class:`Operator`."""

    def pullback(self, x: Tensor, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def solve(self, r: Tensor, variance: Tensor | float, noise: Tensor | float) -> Tensor:
        """By conjugate gradients, each sample until its residual is that of rounding: it does not depend on others."""
        v, var = rowwise(variance, r), rowwise(noise, r).square()
        w, search, rest = torch.zeros_like(r), r, r
        square = start = _squares(r)
        tolerance = (16.0 * torch.finfo(r.dtype).eps) ** 2
        for _ in range(max(100, 2 * r[0].numel())):
            active = square > tolerance * start
            if not bool(active.any()):
                break
            product = v * self(self.adjoint(search)) + var * search
            step = torch.where(active, square / positive(sum_event(search * product)), 0.0)
            w, rest = w + rowwise(step, r) * search, rest - rowwise(step, r) * product
            new = _squares(rest)
            search = rest + rowwise(torch.where(active, new / positive(square), 0.0), r) * search
            square = torch.where(active, new, square)
        return w


class Diagonalised(LinearOperator):
    r"""A linear operator whose singular value decomposition is fast: functions of :math:`A^T A` are in closed form."""

    diagonal = True

    @abstractmethod
    def spectrum(self, x: Tensor) -> Tensor:
        r"""The squares of the singular values for data like `x`, with leading size 1 or B; 0 where nothing is seen."""

    @abstractmethod
    def on_data(self, f: Spectral, x: Tensor) -> Tensor:
        r""":math:`f(A^T A)\, x`, with f a function of the squares of the singular values, 0 included."""

    @abstractmethod
    def on_measurement(self, f: Spectral, y: Tensor) -> Tensor:
        r""":math:`f(A A^T)\, y`, in the same way, of a y that is 0 where nothing is measured."""

    def solve(self, r: Tensor, variance: Tensor | float, noise: Tensor | float) -> Tensor:
        def inverse(squares: Tensor) -> Tensor:
            total = rowwise(variance, squares) * squares + rowwise(noise, squares).square()
            return torch.where(total > 0, 1.0 / positive(total), 0.0)  # without noise: what data can explain alone

        return self.on_measurement(inverse, r)

    def log_det(self, x: Tensor, rows: Tensor, variance: Tensor | float, noise: Tensor | float) -> Tensor:
        squares = self.spectrum(x).double()
        var = rowwise(noise, squares).square()
        seen = torch.where(squares > 0, (rowwise(variance, squares) * squares + var).log(), 0.0)
        unexplained = rows - (squares > 0).flatten(1).sum(1)
        log_var = float64(noise).to(squares.device).square().log()
        return sum_event(seen) + torch.where(unexplained > 0, unexplained * log_var, 0.0)

    def spread(
        self, z: Tensor, variance: Tensor | float, noise: Tensor | float, floor: float, scale: float
    ) -> tuple[Tensor, Tensor | float]:
        def ratio(squares: Tensor) -> Tensor:
            """The variance along a singular vector, relative to that where nothing is measured."""
            v, var = rowwise(variance, squares), rowwise(noise, squares).square()
            rest = torch.where(squares > 0, var / positive(v * squares + var), 1.0)
            return (floor + scale**2 * v * rest) / (floor + scale**2 * v)

        squares = self.spectrum(z).double()
        half_log_det = 0.5 * sum_event(torch.where(squares > 0, ratio(squares).log(), 0.0))
        free = (floor + scale**2 * rowwise(variance, z)).sqrt()
        return free * self.on_data(lambda s: ratio(s).sqrt(), z), half_log_det


def decomposed(operator: Operator, purpose: str) -> Diagonalised:
    """The operator, which must have a decomposition.

    Raises:
        ValueError: if it has none.
    """
    if not isinstance(operator, Diagonalised):
        raise ValueError(
            f"{purpose} needs an operator with a fast singular value decomposition, got {operator.name}; "
            "sde.measurement.Matrix.of(operator, shape) gives a linear one of a few hundred dimensions a decomposition"
        )
    return operator


class Linear(LinearOperator):
    """A linear operator made of two functions, such as `Linear(physics.A, physics.A_adjoint)` of a physics of deepinv.

    Args:
        forward: the map of (B, \\*) to (B, \\*m).
        adjoint: its adjoint.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]) -> None:
        self._forward, self._adjoint = forward, adjoint

    def __call__(self, x: Tensor) -> Tensor:
        return self._forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._adjoint(y)


class Compose(LinearOperator):
    """Operators one after the other; it is linear if all of them are.

    Args:
        operators: the operators, in the order in which they are applied.
    """

    def __init__(self, *operators: Operator) -> None:
        if not operators:
            raise ValueError("Compose: expected at least one operator, got none")
        self.operators: Sequence[Operator] = operators
        self.linear = all(operator.linear for operator in operators)
        self.trusted = all(operator.trusted for operator in operators)

    @property
    def name(self) -> str:
        return f"Compose({', '.join(operator.name for operator in self.operators)})"

    def __call__(self, x: Tensor) -> Tensor:
        for operator in self.operators:
            x = operator(x)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        for operator in reversed(self.operators):
            y = operator.adjoint(y)
        return y

    def pullback(self, x: Tensor, y: Tensor) -> Tensor:
        return self.adjoint(y) if self.linear else Operator.pullback(self, x, y)

    def measured(self, y: Tensor) -> Tensor | None:
        return self.operators[-1].measured(y)

    def select(self, index: Tensor) -> Compose:
        other = copy.copy(self)
        other.operators = [operator.select(index) for operator in self.operators]
        return other


def applied(operator: Operator, x: Tensor, shape: Sequence[int]) -> Tensor:
    """The measurement without noise of data that may not fit, which is refused with a reason, with shape (B, \\*m).

    Args:
        operator: the operator.
        x: data, with shape (B, \\*).
        shape: the shape \\*m of a measurement.

    Raises:
        ValueError: if the operator does not take such data, gives something of another shape, or changes dtype or
            device.
    """
    name = operator.name
    try:
        seen = operator(x)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(f"{name} does not take data of shape {tuple(x.shape)} in {x.dtype}: {error}") from error
    if not isinstance(seen, Tensor):
        raise ValueError(f"{name}: expected a tensor of what it measures, got {type(seen).__name__}")
    if seen.shape != (len(x), *shape):
        raise ValueError(
            f"y of shape (B, {', '.join(map(str, shape))}) does not fit: {name} gives {tuple(seen.shape)} for data of "
            f"shape {tuple(x.shape)}"
        )
    if (seen.dtype, seen.device) != (x.dtype, x.device):
        raise ValueError(f"expected an operator that keeps {x.dtype} on {x.device}, got {seen.dtype} on {seen.device}")
    return seen


def boolean(mask: Tensor, owner: str) -> Tensor:
    """A mask, which must be one of bool; an array becomes a tensor."""
    mask = numbers_of("mask", mask)
    if mask.dtype != torch.bool:
        raise ValueError(f"{owner}: expected a mask of bool, True where measured, got {mask.dtype}")
    return mask


def check_adjoint(
    operator: Operator, shape: Sequence[int], *, seed: int = 0, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> float:
    r"""The error of `adjoint`: that of :math:`\langle A x, y \rangle = \langle x, A^T y \rangle` for normal x and y,
    relative to :math:`\|A x\| \|y\|`. It is of the order of rounding for an adjoint.

    Args:
        operator: a linear operator.
        shape: the shape (B, \*) of the data.
        seed: the seed of x and y.
        dtype: the dtype of x and y.
        device: their device.
    """
    noise, index = Noise(seed), torch.arange(shape[0], device=device)
    x = noise.normal(Stream.PROBE, index, torch.zeros_like(index), shape[1:], dtype)
    seen = operator(x)
    y = noise.normal(Stream.PROBE, index, torch.ones_like(index), seen.shape[1:], seen.dtype)
    error = (seen * y).sum() - (x * operator.adjoint(y)).sum()
    return float(error.abs() / positive(seen.norm() * y.norm()))


def _squares(r: Tensor) -> Tensor:
    return sum_event(r.square())


def positive(value: Tensor) -> Tensor:
    """The value, or the smallest number in place of 0, to divide by."""
    return torch.where(value > 0, value, torch.finfo(value.dtype).tiny)
