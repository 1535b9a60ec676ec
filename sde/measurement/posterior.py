r"""Denoisers of a posterior: :math:`E[x_0 \mid x_t, y]`, approximately, from the denoiser of the prior.

By Bayes' rule the posterior's score is that of the prior plus the gradient of :math:`\log p(y \mid x_t)`, which no
denoiser knows. Each method approximates it, and :math:`E[x_0|x_t,y] = E[x_0|x_t] + (\sigma_t^2/\alpha_t) \nabla \log
p(y \mid x_t)`. A gradient through the network is one vector-Jacobian product, and the covariance of :math:`x_0` given
:math:`x_t` is :math:`(\sigma_t^2/\alpha_t)` times the Jacobian of the denoiser, which is symmetric.

A draw that fits its measurement may still be from the wrong mode. Every method states its bias, measured against exact
posteriors; `solvers.Particles` removes most of it, with any of these methods as its proposal.
"""

from __future__ import annotations

__all__ = ["PosteriorDenoiser", "Pull"]

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..denoisers import Denoiser, Prediction, Steering, Wrapper, shifted, to_x0
from ..shapes import expand, working
from .measurement import Measurement
from .update import FullUpdate, IsotropicUpdate, Update
from .variance import NormalVariance, Variance

# The product of a tensor like x_0 with the Jacobian of the denoiser, x_t to x_0.
Pull = Callable[[Tensor], Tensor]


class PosteriorDenoiser(Wrapper):
    r"""A denoiser with a measurement; a leaf defines :meth:`change`.

    Its `log_potential` is :math:`\log \mathcal N(y; A\, E[x_0|x_t], v_t A A^T + \sigma^2 I)`, by which
    `solvers.Particles` weighs.

    Args:
        inner: the denoiser of the prior. A guided or weighed one is weighed by y too.
        measurement: the measurement of the batch, in the model's range.
        variance: :math:`v_t`, the variance of :math:`x_0` given :math:`x_t`: what :func:`sde.tune_particles` measures,
            or by default that of unit normal data, which kernels of particles do not trust: they have then none in
            them, as DDPM's. A covariance takes its place in all that follows.

    Raises:
        ValueError: if the method needs a linear operator, and this one is not; or, before a network call, if y does not
            fit the data.
    """

    gradient: ClassVar[bool] = True
    needs_linear: ClassVar[bool] = True

    def __init__(self, inner: Denoiser, measurement: Measurement, variance: Variance | None = None) -> None:
        super().__init__(inner)
        if self.needs_linear and not measurement.operator.linear:
            raise ValueError(
                f"{type(self).__name__} needs a linear operator, got {measurement.operator.name}, which is "
                "not: use sde.measurement.DPS"
            )
        self.measurement, self.weighed = measurement, True
        self.variance, self.known = NormalVariance() if variance is None else variance, variance is not None
        self._updates: dict[Any, Update] = {}
        self.vjps = inner.vjps + inner.calls * self.products()

    def products(self) -> int:
        """The vector-Jacobian products of one prediction."""
        return int(self.gradient)

    @abstractmethod
    def change(self, x0: Tensor, pull: Pull, t: Tensor) -> Tensor:
        r""":math:`E[x_0|x_t,y] - E[x_0|x_t]`, with shape (B, \*).

        Args:
            x0: :math:`E[x_0|x_t]`, with shape (B, \*).
            pull: the vector-Jacobian product of the denoiser; a method without `gradient` does not call it.
            t: the time, with shape () or (B,).
        """

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        state = working(x_t)

        def network(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            prediction = self.inner.predict(what, x, t, **condition)
            return to_x0(what, self.process, prediction, x, t), (prediction,)

        change, _, (prediction,) = self._evaluate(network, state, t)
        return shifted(what, self.process, prediction, change, t).to(x_t.dtype)

    def steer(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Steering:
        state = working(x_t)

        def network(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            steering = self.inner.steer(x, t, **condition)
            return steering.guided, (steering.x0, steering.log_potential)

        change, guided, (x0, potential) = self._evaluate(network, state, t)
        update = self.update(x0, t)
        return Steering(x0, guided + change, potential + update.log_likelihood(x0), update.kernel)

    def log_potential(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        state = working(x_t)
        self.measurement.check(state)
        steering = self.inner.steer(state, t, **condition)
        return steering.log_potential + self.update(steering.x0, t).log_likelihood(steering.x0)

    def update(self, x0: Tensor, t: Tensor) -> Update:
        r"""The posterior given y of data that is normal around a prediction of :math:`x_0`, with its covariance.

        Args:
            x0: the prediction, with shape (B, \*).
            t: the time, with shape () or (B,).
        """
        key = (t.item(), x0.shape, x0.dtype, x0.device) if t.ndim == 0 else None
        if key in self._updates:
            return self._updates[key]
        covariance = self.variance.covariance(self.process, t) if self.measurement.operator.linear else None
        update: Update = (
            IsotropicUpdate(self.measurement, self.variance(self.process, t).to(x0), measured=self.known)
            if covariance is None
            else FullUpdate(self.measurement, covariance, x0)
        )
        self._updates.clear()
        if key is not None:
            self._updates[key] = update
        return update

    def potential_cost(self, t: Tensor) -> int | Tensor:
        return self.inner.cost(t)[0]

    def select(self, index: Tensor) -> PosteriorDenoiser:
        other = self.wrap(self.inner.select(index))
        other.measurement, other._updates = self.measurement.select(index), {}
        return other

    def _evaluate(
        self, network: Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]], x_t: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """The change of x_0, x_0 and what else the network gave, with one evaluation."""
        self.measurement.check(x_t)
        if not self.gradient:
            x0, others = network(x_t)
            return self.change(x0, _no_gradient, t), x0, others
        x0, pull, others = torch.func.vjp(network, x_t, has_aux=True)  # type: ignore[misc]
        return self.change(x0, lambda w: pull(w)[0], t), x0, others

    def _covariance_scale(self, x: Tensor, t: Tensor) -> Tensor:
        r""":math:`\sigma_t^2 / \alpha_t`, which broadcasts to `x`."""
        return expand(self.process.var(t) / self.process.alpha(t), x)


def _no_gradient(w: Tensor) -> Tensor:
    raise TypeError("this method takes no gradient")
