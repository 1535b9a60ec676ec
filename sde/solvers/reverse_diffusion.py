r"""The reverse diffusion sampler: the discretisation of the forward process, reversed.

Song et al. 2021, https://arxiv.org/abs/2011.13456, appendix E.
"""

from __future__ import annotations

__all__ = ["ReverseDiffusion"]

from dataclasses import dataclass

from torch import Tensor

from ..dynamics import Semilinear
from .base import GridSteps, SDESolver, Step, affine_step, intervals


@dataclass(frozen=True)
class ReverseDiffusion(SDESolver, GridSteps):
    r"""The forward step :math:`x_t = \alpha_{t|s} x_s + \sigma_{t|s} z`, reversed as an Euler-Maruyama step would be.

    .. math::
        x_s = (2 - \alpha_{t|s})\, x_t + \tfrac{1 + \eta^2}{2} \sigma_{t|s}^2\, s(x_t, t) + \eta\, \sigma_{t|s} z

    with the exact transition kernel of the process, which for a :class:`sde.ChainSDE` on the grid i/N is the DDPM
    step and for VE the NCSN step (Song et al. 2021, equations 46 to 50).

    Args:
        steps: the number of steps.
        grid: the rule for their times.
    """

    needs = Semilinear

    def method(self, dynamics: Semilinear, times: Tensor) -> Step:
        t, s, h = intervals(times)
        # Along the flow time may run upwards too; the kernel always leads from the smaller time to the larger.
        low, high = (s, t) if bool(h[0] < 0) else (t, s)
        log_alpha, var = dynamics.process.transition(low, high)
        sign = -h.sign()
        a = 1.0 - sign * log_alpha.expm1()
        b = sign * 0.5 * (1.0 + dynamics.eta**2) * var
        return affine_step(dynamics, times, a, b, dynamics.eta * var.sqrt())
