r"""DPM-Solver++: exponential integrators that extrapolate the data prediction.

Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, 2022,
https://arxiv.org/abs/2211.01095.
"""

from __future__ import annotations

__all__ = ["DPMSolverPP", "DPMSolverPP2S"]

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ..denoisers import Prediction
from ..dynamics import Semilinear, State
from ..grids import Grid, LogSNR
from ..noise import StepNoise
from .base import GridSteps, Step, scalars
from .coordinates import DataCoordinates, LogNoise, Table, Variable
from .euler import no_noise
from .multistep import Multistep, adams


@dataclass(frozen=True)
class DPMSolverPP(Multistep):
    r"""DPM-Solver++ in its multistep forms, 1 (DDIM), 2M, 3M, and their SDE forms; one call per step.

    .. math::
        x_{k+1} = \frac{s_{k+1}}{s_k} x_k + s_{k+1} \sum_{j<p} x_0(x_{k-j}, t_{k-j})
            \int \ell_{kj}\, d e^{(1 + \eta^2) \lambda} + \sigma_{k+1} \sqrt{1 - e^{-2 \eta^2 h}}\, z,
        \qquad s = \sigma e^{-\eta^2\lambda}

    with Lagrange's polynomials in :math:`\lambda = \log(\alpha/\sigma)`. The second order takes the slope of the
    line times half the whole integral (algorithm 2 of the paper) in place of its own integral; every other order takes
    the integrals as they are. The published third order halves that of the curvature, which makes it a method of order
    2; here it is of order 3. Of order p with :class:`RungeKuttaStart`, min(p, 2) with :class:`Ramp`.

    Args:
        steps: the number of steps.
        order: p, how many readings it uses, 1 to 5.
        start: where the first ones come from.
        grid: the rule for the times.
        variable: in what the polynomials are polynomials; in any other than the default all integrals are exact.
        eta: the share of noise of the dynamics that `sample` makes for it: 0 for the flow, 1 for the SDE forms.
    """

    variable: Variable = field(default=LogNoise(), kw_only=True)
    eta: float = field(default=0.0, kw_only=True)

    needs: ClassVar[type] = Semilinear

    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        coordinates = DataCoordinates()
        table = Table(coordinates, self.variable, dynamics.process, times, dynamics.eta)
        weights = table.weights(self.order)
        if self.order == 2 and self.variable == LogNoise():
            h = scalars(table.parameter.diff())
            for k, (new, old) in enumerate(weights[1:], start=1):
                half = 0.5 * (new + old) * h[k] / h[k - 1]
                weights[k] = [new + old + half, -half]
        return adams(coordinates, table, weights, self.order, self.start, dynamics, times)


@dataclass(frozen=True)
class DPMSolverPP2S(GridSteps):
    r"""DPM-Solver++(2S), of order 2 with two calls per step and no memory (algorithm 1 of the paper with r = 1/2).

    .. math::
        u &= \frac{\sigma_m}{\sigma_k} x_k - \alpha_m (e^{-h/2} - 1)\, x_0(x_k, t_k) \\
        x_{k+1} &= \frac{\sigma_{k+1}}{\sigma_k} x_k - \alpha_{k+1} (e^{-h} - 1)\, x_0(u, t_m)

    with :math:`t_m` half-way in :math:`\lambda`.

    Args:
        steps: the number of steps.
        grid: the rule for their times.
    """

    grid: Grid = LogSNR()

    needs: ClassVar[type] = Semilinear
    eta: ClassVar[float] = 0.0

    def refusal(self, dynamics: Any) -> str | None:
        return no_noise(dynamics)

    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        coordinates, process = DataCoordinates(), dynamics.process
        table = Table(coordinates, LogNoise(), process, times)  # refuses grids that reach a time without noise
        middles = process.time(table.parameter[:-1] + table.parameter[1:])
        before, middle, after = (coordinates.log_scale(process, t, 0.0) for t in (times[:-1], middles, times[1:]))
        clock = coordinates.clock(process, times)
        halfway = scalars((coordinates.clock(process, middles) - clock[:-1]) * middle.exp())
        whole = scalars(clock.diff() * after.exp())
        a, b, c = scalars(before), scalars(middle), scalars(after)
        points, inner = times.unbind(), middles.unbind()

        def step(k: int, state: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
            first = dynamics.predict(Prediction.X0, state, points[k])
            u = coordinates.move(dynamics, state, b[k] - a[k], [(halfway[k], first, a[k] - b[k])])
            second = dynamics.predict(Prediction.X0, u, inner[k])
            return coordinates.move(dynamics, state, c[k] - a[k], [(whole[k], second, b[k] - c[k])]), None

        return step
