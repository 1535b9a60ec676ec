"""The measurement of a dynamics, for solvers that impose it on the states of a prior."""

from __future__ import annotations

__all__ = ["Renumbered", "why_not_measured", "measurement_normals"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..dynamics import Reverse
from ..measurement import Measurement
from ..noise import StepNoise, Stream


def why_not_measured(dynamics: Reverse, *, diagonal: bool) -> str | None:
    """The reason why a solver cannot impose the measurement of a dynamics, or None.

    Args:
        dynamics: the dynamics.
        diagonal: whether the operator needs a decomposition.
    """
    if dynamics.eta != 1.0:
        return f"its steps are those of the reverse SDE, eta=1, got eta={dynamics.eta}"
    measurement = dynamics.denoiser.measured()
    if measurement is None:
        return (
            "it imposes a measurement that the denoiser does not follow itself, and this one has none: use "
            "sde.measurement.Unguided(denoiser, measurement)"
        )
    operator = measurement.operator
    if not operator.linear:
        return f"it needs a linear operator, got {operator.name}: use sde.measurement.DPS"
    if diagonal and not operator.diagonal:
        return (
            f"it needs an operator with a fast singular value decomposition, got {operator.name}: "
            "sde.measurement.Matrix.of(operator, shape) gives one of a few hundred dimensions a decomposition"
        )
    return None


@dataclass(frozen=True)
class Renumbered(StepNoise):
    """The noise of a solver inside another one: draw k of it is a draw of its own of the stream CORRECTOR.

    Draws with a remainder of 2 or 3 after division by 4 are left for the outer solver, :meth:`own`.

    Args:
        source: the noise of the outer solver.
        first: the number of draws of inner solvers before this one's.
    """

    source: StepNoise
    first: int

    def normal(self, stream: Stream, k: int | Tensor, start: float | Tensor, stop: float | Tensor) -> Tensor:
        place = 4 * (k + self.first) + (stream is not Stream.STEP)
        return self.source.normal(Stream.CORRECTOR, place, start, stop)

    def own(self, which: int, t: float) -> Tensor:
        """Normals of the outer solver, the first or the second ones, 0 or 1, of this number."""
        return self.source.normal(Stream.CORRECTOR, 4 * self.first + 2 + which, t, t)

    def select(self, index: Tensor) -> Renumbered:
        return Renumbered(self.source.select(index), self.first)


def measurement_normals(noise: StepNoise, k: int, measurement: Measurement, reference: Tensor) -> Tensor:
    r"""Standard normals for the noise of a measurement, draw k, with shape (B, \*m).

    Args:
        noise: the noise of the states.
        k: the number of the draw.
        measurement: the measurement.
        reference: states, with shape (B, \*).
    """
    shape = measurement.y.shape[1:]
    size = math.prod(shape)
    each = -(-size // reference[0].numel())  # draws that are as long as the measurement
    numbers = k * each + torch.arange(each, device=reference.device)
    return noise.normal(Stream.RESAMPLE, numbers[None], 0.0, 0.0).flatten(1)[:, :size].reshape(-1, *shape)
