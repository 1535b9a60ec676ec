r"""DPM-Solver++: exponential integrators that extrapolate the data prediction.

Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, 2022,
https://arxiv.org/abs/2211.01095.
"""

from __future__ import annotations

__all__ = ["DPMSolverPP", "DPMSolverPP2S"]

from dataclasses import dataclass, field

from torch import Tensor

from ..denoisers import Prediction
from ..dynamics import Semilinear, State
from ..grids import Grid, LogSNR
from ..noise import StepNoise
from .base import GridSteps, Step, scalars
from .coordinates import Arcsinh, DataCoordinates, LogNoise, Table
from .multistep import Multistep


@dataclass(frozen=True)
class DPMSolverPP(Multistep):
    r"""DPM-Solver++ in its multistep forms, 1 (DDIM), 2M, 3M, and their SDE forms; one call per step.

    .. math::
        x_{k+1} = \frac{s_{k+1}}{s_k} x_k + s_{k+1} \sum_{j<p} x_0(x_{k-j}, t_{k-j})
            \int \ell_{kj}\, d e^{(1 + \eta^2) \lambda} + \sigma_{k+1} \sqrt{1 - e^{-2 \eta^2 h}}\, z,
        \qquad s = \sigma e^{-\eta^2\lambda}

    with Lagrange's polynomials in :math:`\lambda = \log(\alpha/\sigma)`. For p = 2 the integral of the slope is
    replaced by half the whole integral (algorithm 2 of the paper); every other p uses the exact integrals. The
    published 3M halves the integral of the curvature and is of order 2; here it is of order 3. The order is p with
    :class:`RungeKuttaStart`, min(p, 2) with :class:`Ramp`.

    Args:
        steps: the number of steps.
        order: p, the number of predictions it uses, 1 to 5.
        start: how the first ones are obtained.
        grid: the rule for the times.
        variable: the variable of the polynomials; in any other than the default all integrals are exact.
        eta: the stochasticity of the dynamics that `sample` gives it: 0 for the flow, 1 for the SDE forms.
    """

    variable: LogNoise | Arcsinh = field(default=LogNoise(), kw_only=True)
    eta: float = field(default=0.0, kw_only=True)

    needs = Semilinear
    serves_noise = True

    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        table = Table(DataCoordinates(), self.variable.of, dynamics.process, times, dynamics.eta)
        weights = table.weights(self.order)
        if self.order == 2 and self.variable == LogNoise():
            h = scalars(table.parameter.diff())
            for k, (new, old) in enumerate(weights[1:], start=1):
                half = 0.5 * (new + old) * h[k] / h[k - 1]
                weights[k] = [new + old + half, -half]
        return self.adams(table, weights, dynamics)


@dataclass(frozen=True)
class DPMSolverPP2S(GridSteps):
    r"""DPM-Solver++(2S), of order 2 with two calls per step and no memory (algorithm 1 of the paper with r = 1/2).

    .. math::
        u &= \frac{\sigma_m}{\sigma_k} x_k - \alpha_m (e^{-h/2} - 1)\, x_0(x_k, t_k) \\
        x_{k+1} &= \frac{\sigma_{k+1}}{\sigma_k} x_k - \alpha_{k+1} (e^{-h} - 1)\, x_0(u, t_m)

    with :math:`t_m` in the middle of the step of :math:`\lambda`.

    Args:
        steps: the number of steps.
        grid: the rule for their times.
    """

    grid: Grid = LogSNR()

    needs = Semilinear

    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        coordinates, process = DataCoordinates(), dynamics.process
        table = Table(coordinates, LogNoise().of, process, times)  # refuses grids that reach a time without noise
        middles = process.time(table.parameter[:-1] + table.parameter[1:])
        before, middle, after = (coordinates.log_scale(process, t, 0.0) for t in (times[:-1], middles, times[1:]))
        integral, inner_integral = ((0.5 * process.log_snr(t)).exp() for t in (times, middles))  # alpha / sigma
        halfway = scalars((inner_integral - integral[:-1]) * middle.exp())
        whole = scalars(integral.diff() * after.exp())
        a, b, c = scalars(before), scalars(middle), scalars(after)
        points, inner = times.unbind(), middles.unbind()

        def step(k: int, state: State, memory: None, noise: StepNoise | None) -> tuple[State, None]:
            first = dynamics.predict(Prediction.X0, state, points[k])
            u = coordinates.move(dynamics, state, b[k] - a[k], [(halfway[k], first, a[k] - b[k])])
            second = dynamics.predict(Prediction.X0, u, inner[k])
            return coordinates.move(dynamics, state, c[k] - a[k], [(whole[k], second, b[k] - c[k])]), None

        return step
