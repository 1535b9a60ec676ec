r"""Measurements :math:`y = A(x_0) + \sigma z`: an operator, what it gave, and the noise."""

from __future__ import annotations

__all__ = ["Measurement", "check_noise"]

import copy
import math
from typing import Any

import torch
from torch import Tensor

from ..shapes import float64, numbers_of, recordable, sum_event
from .operator import Operator, applied, check_adjoint, decomposed, positive, rowwise


class Measurement:
    r"""A measurement of a batch, :math:`y = A(x_0) + \sigma z`, in the units and the range of the denoiser.

    Args:
        operator: the operator A.
        y: the measurements, with shape (B, \*m), or (1, \*m) for all samples. What the operator does not measure does
            not count, whatever it holds.
        noise: the standard deviation :math:`\sigma` in the units of y, not negative, of shape () or (B,).

    Raises:
        ValueError: if y is not real and finite where it is measured (the first such index is named), the noise is
            negative or of another shape, the operator's adjoint is not one, or the operator changes dtype or device.
    """

    def __init__(self, operator: Operator, y: Tensor, noise: Tensor | float) -> None:
        if not y.is_floating_point() or y.ndim < 2 or y.numel() == 0:
            raise ValueError(f"Measurement: expected real y of shape (B, ...), got {y.dtype} {tuple(y.shape)}")
        self.operator, self.noise = operator, recordable(check_noise(noise, len(y))).to(y)
        rows = operator.measured(y)
        rows = y.new_ones(1, *(1,) * (y.ndim - 1), dtype=torch.bool) if rows is None else rows
        try:
            broken = ~(y.isfinite() | ~rows)
        except RuntimeError:
            raise ValueError(
                f"Measurement: y of shape {tuple(y.shape)} does not fit a mask of shape {tuple(rows.shape)}"
            ) from None
        if broken.shape != y.shape:
            raise ValueError(f"Measurement: y of shape {tuple(y.shape)} does not fit a mask of {tuple(rows.shape)}")
        if bool(broken.any()):
            first = tuple(broken.nonzero()[0].tolist())
            raise ValueError(f"Measurement: y{[*first]} is {y[first].item()}: expected a finite number")
        self.y = torch.where(rows, recordable(y), 0.0)
        self.count = rows.expand(len(rows), *y.shape[1:]).flatten(1).sum(1)  # measured entries, (1,) or (B,)
        self._whole = self
        self._index: Tensor | None = None
        self._grams: dict[Any, tuple[Tensor, Tensor]] = {}
        self._event: tuple[int, ...] | None = None  # of the data, where its adjoint is not known to be one
        if not operator.trusted and operator.linear:
            self._event = self._check_adjoint()

    def _check_adjoint(self) -> tuple[int, ...]:
        """The event shape of what the adjoint gives, after a test that it is one."""
        operator, y = self.operator.select(torch.zeros(1, dtype=torch.int64, device=self.y.device)), self.y[:1]
        name = operator.name
        try:
            event = operator.adjoint(y)
        except RuntimeError as error:
            raise ValueError(
                f"Measurement: the adjoint of {name} does not take y of shape {tuple(y.shape)} in {y.dtype}: {error}"
            ) from error
        if not isinstance(event, Tensor) or event.shape[:1] != (1,):
            what = tuple(event.shape) if isinstance(event, Tensor) else type(event).__name__
            raise ValueError(f"Measurement: expected data (1, ...) from the adjoint of {name} for one y, got {what}")
        if (event.dtype, event.device) != (y.dtype, y.device):
            raise ValueError(
                f"Measurement: expected an adjoint that keeps {y.dtype} on {y.device}, got {event.dtype} on "
                f"{event.device} from that of {name}"
            )
        applied(operator, event, y.shape[1:])
        difference = check_adjoint(operator, event.shape, dtype=y.dtype, device=str(y.device))
        if not difference < 1e3 * torch.finfo(y.dtype).eps:
            raise ValueError(
                f"Measurement: the adjoint of {name} is none: <Ax, y> and <x, A^T y> differ by {difference:.3g} of "
                "|Ax| |y|; give the transpose of a linear map, not a pseudo-inverse"
            )
        return tuple(event.shape[1:])

    def select(self, index: Tensor) -> Measurement:
        """The measurements of some samples of the batch; indices may repeat."""
        other = copy.copy(self)
        other.operator = self.operator.select(index)
        other._index = index if self._index is None else self._index[index]
        for name in ("y", "noise", "count"):
            value = getattr(self, name)
            if value.ndim and len(value) > 1:
                setattr(other, name, value[index.to(value.device)])
        return other

    def gram(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r""":math:`A^T A` of a linear operator as a matrix on flattened data, computed once for a batch and its parts.

        Args:
            x: states, with shape (B, \*).

        Returns:
            The matrices (U, D, D) and the noises (U,), float64, and which of them belongs to each sample, int64 (B,).
        """
        known, event = self._grams, tuple(x.shape[1:])
        if (event, x.device) not in known:
            known[event, x.device] = self._whole._computed_gram(x)
        gram, noise = known[event, x.device]
        if len(gram) == 1:
            return gram, noise, torch.zeros(len(x), dtype=torch.int64, device=x.device)
        index = torch.arange(len(gram), device=x.device) if self._index is None else self._index.to(x.device)
        distinct, rows = index.unique(return_inverse=True)
        return gram[distinct], noise[distinct], rows

    def _computed_gram(self, x: Tensor) -> tuple[Tensor, Tensor]:
        number, dims, operator = max(len(self.y), len(self.count), self.noise.numel()), x[0].numel(), self.operator
        noise = self.noise.double().to(x.device).reshape(-1)
        units = torch.eye(dims, dtype=torch.float64, device=x.device).reshape(dims, *x.shape[1:])

        def square(rows: Tensor, z: Tensor) -> Tensor:
            picked = operator.select(rows)
            return picked.adjoint(picked(z)).flatten(1)

        every = torch.arange(number, device=x.device)
        # A vector without a pattern shows whether all samples have the same operator.
        probe = (1.0 + units.new_tensor(range(dims)).sin()).reshape(1, *x.shape[1:]).expand(number, *x.shape[1:])
        seen = square(every, probe)
        same = torch.allclose(seen, seen[:1].expand_as(seen), rtol=1e-9, atol=0.0) and bool((noise == noise[0]).all())
        matrices = [square(torch.full((dims,), i, device=x.device), units) for i in ([0] if same else every.tolist())]
        return torch.stack(matrices), noise[:1] if same else noise.expand(number)

    def check(self, x: Tensor) -> None:
        """Refuses data that the operator does not map to the likes of y.

        Args:
            x: data or states, with shape (B, \\*).
        """
        if len(self.y) not in (1, len(x)):
            raise ValueError(f"y of shape {tuple(self.y.shape)} does not fit a batch of {len(x)}")
        applied(self.operator, x, self.y.shape[1:])
        if self._event is not None and self._event != tuple(x.shape[1:]):
            raise ValueError(
                f"the adjoint of {self.operator.name} gives data of shape (B, "
                f"{', '.join(map(str, self._event))}), and this is data of shape {tuple(x.shape)}"
            )

    def residual(self, x0: Tensor) -> Tensor:
        r""":math:`y - A(x_0)`, with shape (B, \*m); 0 where nothing is measured."""
        return self.y.to(x0) - self.operator(x0)

    def misfit(self, x0: Tensor) -> Tensor:
        r"""The root mean square of the residual in units of the noise, with shape (B,): about 1 for a fitting draw."""
        residual = self.residual(x0)
        mean = sum_event(residual.square()) / self.count.to(residual)
        return mean.sqrt() / self.noise.to(residual)

    def conditioned(self, x: Tensor, variance: Tensor | float, e: Tensor) -> Tensor:
        r"""A draw from :math:`\mathcal N(m, v I)` turned into one given y, with shape (B, \*) (Matheron's rule):

        .. math:: x + v A^T (v A A^T + \sigma^2 I)^{-1} (y + \sigma e - A x)

        Args:
            x: the draw, with shape (B, \*).
            variance: v, of shape () or (B,).
            e: standard normals, with shape (B, \*m).
        """
        noise, rows = self.noise.to(x), self.operator.measured(self.y)
        e = e if rows is None else torch.where(rows.to(x.device), e, 0.0)
        solved = self.operator.solve(self.residual(x) + rowwise(noise, e) * e, variance, noise)
        return x + rowwise(variance, x) * self.operator.adjoint(solved)

    def coupled(self, u: Tensor, spread: float, variance: float, z: Tensor) -> Tensor:
        r"""A draw u from :math:`\mathcal N(m, v I)` turned into one given y, with shape (B, \*); u is noisy data,
        :math:`x_0 + s \epsilon`.

        Along a singular vector with the singular value a, y has the noise :math:`\sigma / a` in the units of u. Where
        this is above s, y is a measurement of u with the noise :math:`(\sigma^2/a^2 - s^2)^{1/2}`: the noise of y is
        taken to have that of u in it, which leaves :math:`p(u | y)` what it is. Elsewhere u is y with as much noise
        added as is missing.

        Args:
            u: the draw, with shape (B, \*).
            spread: s.
            variance: v.
            z: standard normals, with shape (B, \*).

        Raises:
            ValueError: if the operator has no decomposition.
        """
        operator = decomposed(self.operator, "coupled noise")

        def rest(squares: Tensor) -> Tensor:
            return rowwise(self.noise, squares).square() - spread**2 * squares

        def gain(squares: Tensor) -> Tensor:
            free = rest(squares)
            total = torch.where(free > 0, variance * squares + free, squares)
            return torch.where(total > 0, torch.where(free > 0, variance / positive(total), 1.0 / positive(total)), 0.0)

        def scatter(squares: Tensor) -> Tensor:
            return gain(squares) * (rest(squares).abs() * squares).sqrt()

        pulled = operator.adjoint(operator.on_measurement(gain, self.residual(u)))
        return u + pulled + operator.on_data(scatter, z)

    def coupling(self) -> Tensor:
        r"""The largest s for which y is a measurement of :math:`x_0 + s \epsilon`, :math:`\sigma / |A|`: float64 of
        shape (1,) or (B,)."""
        operator = decomposed(self.operator, "coupled noise")
        squares = operator.spectrum(operator.adjoint(self.y)).double().flatten(1).amax(1)
        return self.noise.double() / squares.sqrt()

    def log_likelihood(self, x0: Tensor, variance: Tensor | float = 0.0) -> Tensor:
        r"""The logarithm of :math:`\mathcal N(y; A x_0, v A A^T + \sigma^2 I)`, in nats, with shape (B,).

        It is the likelihood of y where the data is normal around `x0` with the variance v in every direction. Of an
        operator without a decomposition the determinant is that at v = 0.

        Args:
            x0: data, with shape (B, \*).
            variance: v, of shape () or (B,).
        """
        residual, noise = self.residual(x0), self.noise.to(x0)
        count = self.count.to(residual.device, torch.float64)
        square = sum_event((residual * self.operator.solve(residual, variance, noise)).double())
        log_det = self.operator.log_det(x0, count, variance, noise)
        return -0.5 * (square + log_det + count * math.log(2.0 * math.pi))


def check_noise(noise: Tensor | float, batch: int) -> Tensor:
    """The standard deviation of the noise of a batch, float64 of shape () or (B,).

    Raises:
        ValueError: if it is negative, not finite or of another shape.
    """
    numbers_of("noise", noise)  # refuses what is none; a number itself is as accurate as it was given
    std = float64(noise)
    if std.ndim > 1 or (std.ndim and len(std) != batch):
        raise ValueError(f"Measurement: expected noise as a number or of shape ({batch},), got {tuple(std.shape)}")
    wrong = (~((std >= 0) & std.isfinite())).reshape(-1).nonzero()
    if len(wrong):
        place = f"noise[{int(wrong[0])}]" if std.ndim else "noise"
        value = std.reshape(-1)[wrong[0]].item()
        raise ValueError(f"Measurement: expected a finite noise >= 0, a standard deviation, got {place} = {value:g}")
    return std
