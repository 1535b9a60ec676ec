r"""Losses: denoising score matching with any weighting.

With :math:`x_t = \alpha_t x_0 + \sigma_t z`, the loss is the expectation over times and noise of

.. math:: w(t)\, \| \hat\varepsilon(x_t, t) - z \|^2 = w(t)\, \sigma_t^2\, \| s(x_t, t) - \nabla \log q(x_t | x_0) \|^2.

:math:`w = 1` is the simple loss of Ho et al. 2020 (equation 14); :math:`w = g^2/\sigma^2` is the likelihood
weighting: half the loss, summed over dimensions and integrated over time, bounds the negative log-likelihood up to a
constant (Song et al. 2021b, https://arxiv.org/abs/2101.09258, theorem 1). Every process has
:math:`g^2/\sigma^2 = -d\lambda/dt`, so times drawn uniformly in log-SNR are the importance sampling under which the
likelihood weighting becomes constant.
"""

from __future__ import annotations

__all__ = ["DenoisingScoreMatching", "Objective"]

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ..denoisers import Denoiser
from ..shapes import expand, working
from .times import Times, UniformTimes
from .weightings import Simple, Weighting


class Objective(ABC):
    """A loss for training."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
        """The loss of each sample.

        Args:
            denoiser: the model.
            x0: clean data in the model's range, with shape (B, *).
            u: uniforms in [0, 1) that determine the times, with shape (B,).
            z: standard normals, with the shape of `x0`.
            condition: named tensors on which the denoiser is conditioned.

        Returns:
            The losses, with shape (B,), in the dtype of the data, float32 at least.
        """


@dataclass(frozen=True)
class DenoisingScoreMatching(Objective):
    r"""The denoising score-matching loss, :math:`w(t) \|\hat\varepsilon(x_t, t) - z\|^2`.

    Args:
        weighting: the weighting w(t).
        times: the distribution of training times.
        mean: whether to average over the dimensions of a sample; False gives half their sum, which has the unit nats
            per unit of time under the likelihood weighting.
    """

    weighting: Weighting = Simple()
    times: Times = UniformTimes()
    mean: bool = True

    def __call__(self, denoiser: Denoiser, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
        process, x0, z = denoiser.process, working(x0), working(z)
        t, factor = self.times(process, u)
        mean, std = process.marginal(x0, t)
        error = (denoiser.noise(mean + expand(std, x0) * z, t, **condition) - z).flatten(1).square()
        return self.weighting(process, t) * factor * (error.mean(1) if self.mean else 0.5 * error.sum(1))
