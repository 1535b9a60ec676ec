"""A prior with a measurement that its prediction does not follow, for solvers that impose it themselves."""

from __future__ import annotations

__all__ = ["Unguided"]

from dataclasses import replace

import torch
from torch import Tensor

from ..denoisers import Prediction, Steering
from ..shapes import working
from .measurement import Measurement
from .posterior import PosteriorDenoiser, Pull


class Unguided(PosteriorDenoiser):
    """The prior's own prediction, and a measurement beside it.

    For `solvers.Replacement`, `solvers.Decoupled` and `solvers.Polish`, which impose the measurement themselves. Also
    for `solvers.Particles` that propose from the prior and are weighed by y, which takes many of them. A solver that
    does not know measurements samples the prior.

    Args:
        inner, measurement, variance: as in :class:`PosteriorDenoiser`.
    """

    gradient = False
    needs_linear = False

    def change(self, x0: Tensor, pull: Pull, t: Tensor) -> Tensor:
        return torch.zeros_like(x0)

    def measured(self) -> Measurement:
        return self.measurement

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.measurement.check(working(x_t))
        return self.inner.predict(what, x_t, t, **condition)

    def steer(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Steering:
        state = working(x_t)
        self.measurement.check(state)
        steering = self.inner.steer(state, t, **condition)
        weight = self.update(steering.x0, t).log_likelihood(steering.x0)
        return replace(steering, log_potential=steering.log_potential + weight)
