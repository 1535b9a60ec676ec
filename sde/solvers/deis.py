r"""DEIS: exponential integrators that extrapolate the noise prediction.

Zhang and Chen, Fast Sampling of Diffusion Models with Exponential Integrator, 2023, https://arxiv.org/abs/2204.13902.
"""

from __future__ import annotations

__all__ = ["DEIS"]

from dataclasses import dataclass, field

from torch import Tensor

from ..dynamics import Semilinear
from .base import Step
from .coordinates import Arcsinh, LogNoise, NoiseCoordinates, Table
from .multistep import Multistep


@dataclass(frozen=True)
class DEIS(Multistep):
    r"""The exponential Adams method in the noise, one call per step.

    .. math::
        x_{k+1} = \frac{\alpha_{k+1}}{\alpha_k} x_k + \alpha_{k+1} \sum_{j<p} \varepsilon(x_{k-j}, t_{k-j})
            \int_{\kappa_k}^{\kappa_{k+1}} \ell_{kj}\, d\kappa, \qquad \kappa = \frac{\sigma}{\alpha}

    with Lagrange's polynomials in a variable of choice. With p = 1 it is DDIM. Its order is p with
    :class:`RungeKuttaStart`, min(p, 2) with :class:`Ramp`. Along a reverse SDE the integrals are 1 + eta^2 times as
    large, and the noise of the step is exact; its weak order is then 1.

    Args:
        steps: the number of steps.
        order: p, the number of predictions it uses, 1 to 5.
        start: how the first ones are obtained.
        grid: the rule for the times.
        variable: the variable of the polynomials.
        eta: the stochasticity of the dynamics that `sample` gives it.
    """

    variable: LogNoise | Arcsinh = field(default=LogNoise(), kw_only=True)
    eta: float = field(default=0.0, kw_only=True)

    needs = Semilinear
    serves_noise = True

    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        table = Table(NoiseCoordinates(), self.variable.of, dynamics.process, times, dynamics.eta)
        return self.adams(table, table.weights(self.order), dynamics)
