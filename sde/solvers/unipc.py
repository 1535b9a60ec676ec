r"""UniPC: a predictor and a corrector that share their network calls.

Zhao et al., UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models, 2023,
https://arxiv.org/abs/2302.04867.
"""

from __future__ import annotations

__all__ = ["UniPC"]

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ..denoisers import Prediction
from ..dynamics import Semilinear, State
from ..noise import StepNoise
from .base import Step
from .coordinates import DataCoordinates, LogNoise, Table, Variable
from .euler import no_noise
from .multistep import Multistep


@dataclass(frozen=True)
class UniPC(Multistep):
    r"""UniPC in the data prediction, one call per step.

    The predictor is that of :class:`DPMSolverPP` with exact integrals. The reading that the next step takes at the
    predicted state anyway first corrects the step before: with it at hand the polynomial has p + 1 points,

    .. math::
        x^c_{k+1} = \frac{\sigma_{k+1}}{\sigma_k} x^c_k + \sigma_{k+1} \Big[ x_0(x_{k+1}, t_{k+1}) \int \ell_{k,-1}\,
            d e^\lambda + \sum_{j<p} x_0(x_{k-j}, t_{k-j}) \int \ell_{kj}\, d e^\lambda \Big].

    The last state is a predicted one: to correct it would take a call more. Where the paper solves its linear
    equations, from order 3 on, its coefficients are these whatever its B(h); for fewer points it puts 1/2. Of order
    p + 1 with :class:`RungeKuttaStart`, min(p, 2) + 1 with :class:`Ramp`.

    Args:
        steps: the number of steps.
        order: p, how many readings the predictor uses, 1 to 4.
        start: where the first ones come from.
        grid: the rule for the times.
        variable: in what the polynomials are polynomials.
    """

    variable: Variable = field(default=LogNoise(), kw_only=True)

    needs: ClassVar[type] = Semilinear
    eta: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order > 4:
            raise ValueError(f"UniPC has orders 1 to 4, got order={self.order}")

    def refusal(self, dynamics: Any) -> str | None:
        return no_noise(dynamics)

    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        coordinates = DataCoordinates()
        table = Table(coordinates, self.variable, dynamics.process, times)
        first = self.start.first(coordinates, dynamics, times, self.order)
        predictor, corrector = table.weights(self.order), table.weights(self.order, ahead=True)
        points, scale = times.unbind(), table.log_scales

        def step(k: int, state: State, memory: Any, noise: StepNoise | None) -> tuple[State, Any]:
            readings = (dynamics.predict(Prediction.X0, state, points[k]),)
            if memory is not None:
                before, older = memory
                readings += older
                if before is not None:
                    terms = [
                        (w, r, scale[k - j] - scale[k]) for j, (w, r) in enumerate(zip(corrector[k - 1], readings))
                    ]
                    state = coordinates.move(dynamics, before, scale[k] - scale[k - 1], terms)
            kept = readings[: self.order]
            begun = first(k, state, readings[0])
            if begun is not None:
                return begun, (None, kept)
            terms = [(w, r, scale[k - j] - scale[k + 1]) for j, (w, r) in enumerate(zip(predictor[k], readings))]
            return coordinates.move(dynamics, state, scale[k + 1] - scale[k], terms), (state, kept)

        return step
