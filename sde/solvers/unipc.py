r"""UniPC: a predictor and a corrector that share their network calls.

Zhao et al., UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models, 2023,
https://arxiv.org/abs/2302.04867.
"""

from __future__ import annotations

__all__ = ["UniPC"]

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..denoisers import Prediction
from ..dynamics import Semilinear, State
from ..noise import StepNoise
from .base import Step
from .coordinates import Arcsinh, DataCoordinates, LogNoise, Table
from .multistep import Multistep


@dataclass(frozen=True)
class UniPC(Multistep):
    r"""UniPC in the data prediction, one call per step.

    The predictor is that of :class:`DPMSolverPP` with exact integrals. The prediction at the new state, which the next
    step needs anyway, first corrects the step before by a polynomial of p + 1 points,

    .. math::
        x^c_{k+1} = \frac{\sigma_{k+1}}{\sigma_k} x^c_k + \sigma_{k+1} \Big[ x_0(x_{k+1}, t_{k+1}) \int \ell_{k,-1}\,
            d e^\lambda + \sum_{j<p} x_0(x_{k-j}, t_{k-j}) \int \ell_{kj}\, d e^\lambda \Big].

    The last state is not corrected, which would take one more call. From order 3 on, the paper solves linear equations
    for its coefficients, and the solution is these for every B(h); for fewer points it takes 1/2. The order is p + 1
    with :class:`RungeKuttaStart`, min(p, 2) + 1 with :class:`Ramp`.

    Args:
        steps: the number of steps.
        order: p, the number of predictions the predictor uses, 1 to 4.
        start: how the first ones are obtained.
        grid: the rule for the times.
        variable: the variable of the polynomials.
    """

    variable: LogNoise | Arcsinh = field(default=LogNoise(), kw_only=True)

    needs = Semilinear

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order > 4:
            raise ValueError(f"UniPC has orders 1 to 4, got order={self.order}")

    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        table = Table(DataCoordinates(), self.variable.of, dynamics.process, times)
        first, points = self.first_steps(table, dynamics), times.unbind()
        predictor, corrector = table.weights(self.order), table.weights(self.order, ahead=True)

        def step(k: int, state: State, memory: Any, noise: StepNoise | None) -> tuple[State, Any]:
            predictions = (dynamics.predict(Prediction.X0, state, points[k]),)
            if memory is not None:
                before, older = memory
                predictions += older
                if before is not None:
                    state = table.move(dynamics, before, k - 1, corrector[k - 1], predictions, k)
            history = predictions[: self.order]
            moved = first(k, state, predictions[0])
            if moved is not None:
                return moved, (None, history)
            return table.move(dynamics, state, k, predictor[k], predictions, k), (state, history)

        return step
