r"""Losses: denoising score matching with any weighting.

With :math:`x_t = \alpha_t x_0 + \sigma_t z`, the loss is the expectation over times and noise of

.. math:: w(t)\, \| \hat\varepsilon(x_t, t) - z \|^2 = w(t)\, \sigma_t^2\, \| s(x_t, t) - \nabla \log q(x_t | x_0) \|^2

or of the squared error of another prediction, with a weight of its own (:mod:`sde.objective.weightings`).
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
from typing import Literal

from torch import Tensor

from ..denoisers import Denoiser, Prediction
from ..processes import SDE
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
    r"""The denoising score-matching loss, :math:`w(t) \|\hat\varepsilon(x_t, t) - z\|^2` or that of another prediction.

    Args:
        weighting: the weighting w(t).
        times: the distribution of training times.
        mean: whether to average over the dimensions of a sample; False gives half their sum, which has the unit nats
            per unit of time under the likelihood weighting.
        compare: the prediction that is compared with the truth: the noise z, :math:`x_0`, the score :math:`-z/\sigma_t`
            or the velocity :math:`\alpha_t z - \sigma_t x_0`; or its name. It changes the loss under the weighting
            :class:`Simple` alone, and elsewhere its rounding: that of the network's own prediction is the smallest.
    """

    weighting: Weighting = Simple()
    times: Times = UniformTimes()
    mean: bool = True
    compare: Prediction | Literal["noise", "x0", "score", "velocity"] = Prediction.NOISE

    def __post_init__(self) -> None:
        object.__setattr__(self, "compare", Prediction(self.compare))

    def __call__(self, denoiser: Denoiser, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
        _, factor, error = self.weighted_error(denoiser, x0, u, z, **condition)
        return factor * error

    def weighted_error(
        self, denoiser: Denoiser, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The times, their importance weights, and the weighted errors there, of which the losses are the products.

        The arguments are those of the call; each result has shape (B,).
        """
        process, x0, z, compared = denoiser.process, working(x0), working(z), Prediction(self.compare)
        t, factor = self.times(process, u)
        mean, std = process.marginal(x0, t)
        prediction = denoiser.predict(compared, mean + expand(std, x0) * z, t, **condition)
        error = (prediction - truth(compared, process, x0, z, t)).flatten(1).square()
        return t, factor, self.weighting.weight(compared, process, t) * per_sample(error, self.mean)


def truth(what: Prediction, process: SDE, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """The target of a prediction for clean data x0 (B, *) and noise z, with shape (B, *)."""
    if what is Prediction.NOISE:
        return z
    if what is Prediction.X0:
        return x0
    sigma = expand(process.sigma(t), x0)
    return -z / sigma if what is Prediction.SCORE else expand(process.alpha(t), x0) * z - sigma * x0


def per_sample(errors: Tensor, mean: bool) -> Tensor:
    """The mean over the dimensions of each sample, or half their sum: (B, *) -> (B,)."""
    errors = errors.flatten(1)
    return errors.mean(1) if mean else 0.5 * errors.sum(1)
