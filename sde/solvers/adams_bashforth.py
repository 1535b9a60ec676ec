r"""Adams and Bashforth's linear multistep methods on any grid."""

from __future__ import annotations

__all__ = ["AdamsBashforth"]

from dataclasses import dataclass, field

from torch import Tensor

from ..dynamics import Dynamics
from ..grids import Grid, Uniform
from .base import Step
from .coordinates import DriftCoordinates, Table
from .multistep import Multistep


@dataclass(frozen=True)
class AdamsBashforth(Multistep):
    r"""Adams and Bashforth's method for the probability flow, one call per step.

    .. math::
        x_{k+1} = x_k + \sum_{j<p} w_{kj} \tilde f(x_{k-j}, t_{k-j}), \qquad
        w_{kj} = \int_{t_k}^{t_{k+1}} \prod_{i \ne j} \frac{t - t_{k-i}}{t_{k-j} - t_{k-i}}\, dt

    The weights are computed for the grid, whatever it is. It needs the drift alone. Its order is p with
    :class:`RungeKuttaStart`, min(p, 2) with :class:`Ramp`.

    Bashforth and Adams 1883; Hairer, Nørsett and Wanner 1993, section III.5.

    Args:
        steps: the number of steps.
        order: p, the number of drifts it uses, 1 to 5.
        start: how the first ones are obtained.
        grid: the rule for the times.
    """

    order: int = 4
    grid: Grid = field(default=Uniform(), kw_only=True)

    def method(self, dynamics: Dynamics, times: Tensor) -> Step:
        table = Table(DriftCoordinates(), lambda t: t, dynamics.process, times)
        return self.adams(table, table.weights(self.order), dynamics)
