r"""Training of a learned schedule by the variance of the loss.

The likelihood's bound depends on the ends of the schedule alone, but the variance of its estimate at a random time
depends on the schedule between them. With h the integrand over the log-SNR and p the density of :math:`\lambda_t` for
uniform t, the loss of a sample is L = h/p and

.. math:: E[L^2] = \int \frac{E[h^2 | \lambda]}{p(\lambda)}\, d\lambda, \qquad
          \nabla_\eta E[L^2] = -E\big[L^2\, \nabla_\eta \log p_\eta(\lambda)\big],

the second expectation at fixed :math:`\lambda`: no derivative of the network is needed. The minimum is at
:math:`p \propto \sqrt{E[h^2|\lambda]}`.

Kingma et al., Variational Diffusion Models, 2021, section 5.1 and appendix I.2, https://arxiv.org/abs/2107.00630, who
differentiate through the network.
"""

from __future__ import annotations

__all__ = ["LearnedSchedule"]

import math
from dataclasses import dataclass

from torch import Tensor

from ..denoisers import Denoiser
from ..processes.learned import LearnedVP
from .bounds import ContinuousBound
from .losses import Objective
from .times import UniformTimes


@dataclass(frozen=True)
class LearnedSchedule(Objective):
    r"""The bound of a denoiser whose process is a :class:`sde.LearnedVP`, and the variance of its estimate.

    The value is that of :class:`sde.objective.ContinuousBound` at uniform times. Its gradient is that of the bound for
    the parameters of the network and for ends that are learned, and that of :math:`\tfrac12 E[L^2]` for the schedule
    between the ends, with L the estimate of the bound's integral.

    Args:
        weight: the factor of the schedule's gradient, for optimisers that depend on it and for clipping.
        mean: nats per dimension; False gives nats.
    """

    weight: float = 1.0
    mean: bool = True

    def __post_init__(self) -> None:
        if not 0.0 < self.weight < math.inf:
            raise ValueError(f"LearnedSchedule needs a finite weight > 0, got weight={self.weight}")

    def __call__(self, denoiser: Denoiser, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
        process = denoiser.process
        if not isinstance(process, LearnedVP):
            raise ValueError(f"LearnedSchedule trains the schedule of a denoiser with an sde.LearnedVP, got {process}")
        with process.frozen_interior():
            path, ends = ContinuousBound(UniformTimes(), self.mean).terms(denoiser, x0, u, z, **condition)
        t, _ = UniformTimes()(process, u)
        second_moment = -0.5 * self.weight * path.detach().square() * process.log_density(t).to(path)
        return path + ends + (second_moment - second_moment.detach())
