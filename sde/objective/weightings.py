r"""Weightings of the loss over time.

A weighting is defined for the squared error of one prediction. That of another prediction, at the same state, is a
multiple of it, because all predictions are linear functions of one:

.. math::
    \|\delta x_0\|^2 = \frac{\sigma_t^2}{\alpha_t^2} \|\delta\varepsilon\|^2, \qquad
    \|\delta s\|^2 = \frac{1}{\sigma_t^2} \|\delta\varepsilon\|^2, \qquad
    \|\delta v\|^2 = \frac{(\alpha_t^2 + \sigma_t^2)^2}{\alpha_t^2} \|\delta\varepsilon\|^2 .

So what a loss compares and what weighs it are independent: every weighting below stands for the same quantity whatever
is compared, except :class:`Simple`, which is 1 for the prediction that is compared.
"""

from __future__ import annotations

__all__ = ["EDMWeighting", "FlowMatching", "Likelihood", "MinSNR", "Sigmoid", "Simple", "SoftMinSNR", "Weighting"]

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..denoisers import NoisePrediction, Prediction
from ..processes import SDE


class Weighting(ABC):
    """The weight of a squared error as a function of time.

    Attributes:
        of: the prediction whose squared error has the weight :meth:`__call__`; None for the one that a loss compares.
    """

    of: ClassVar[Prediction | None] = Prediction.NOISE

    @abstractmethod
    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        """The weight w(t) of the squared error of `of`, in the shape of `t`."""

    def weight(self, compared: Prediction, process: SDE, t: Tensor) -> Tensor:
        """The weight of the squared error of the prediction `compared`, in the shape of `t`."""
        weight = self(process, t)
        if self.of is None or self.of is compared:
            return weight
        return weight * (_error_scale(self.of, process, t) / _error_scale(compared, process, t)).square()


def _error_scale(what: Prediction, process: SDE, t: Tensor) -> Tensor:
    """The error of a prediction as a multiple of that of the noise."""
    return NoisePrediction().coefficients(what, process, t)[1]


@dataclass(frozen=True)
class Simple(Weighting):
    """The weighting w(t) = 1 of what is compared; with the noise it is the loss of Ho et al. 2020, equation 14."""

    of = None

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Likelihood(Weighting):
    r"""The weighting :math:`g(t)^2/\sigma_t^2` of the noise (Song et al. 2021b), that of the likelihood's bound."""

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        return process.g2(t) / process.var(t)


@dataclass(frozen=True)
class EDMWeighting(Weighting):
    r"""The weighting :math:`(\tilde\sigma^2 + \sigma_d^2) / (\tilde\sigma \sigma_d)^2` of :math:`x_0`, with
    :math:`\tilde\sigma = \sigma_t/\alpha_t`.

    It gives the output of a network with the parametrisation :class:`sde.EDM` the weight 1 at every time; Karras et al.
    2022 use it with :class:`sde.objective.LogNormalTimes`.

    Args:
        data_std: :math:`\sigma_d`.
    """

    data_std: float = 0.5

    of = Prediction.X0

    def __post_init__(self) -> None:
        _check_positive(self, "data_std", self.data_std)

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        return process.log_snr(t).exp() + self.data_std**-2


@dataclass(frozen=True)
class MinSNR(Weighting):
    r"""The weighting :math:`\min(\mathrm{SNR}, \gamma)` of :math:`x_0`, with SNR = :math:`\alpha_t^2/\sigma_t^2`.

    Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy, 2023, https://arxiv.org/abs/2303.09556.

    Args:
        gamma: the largest weight.
    """

    gamma: float = 5.0

    of = Prediction.X0

    def __post_init__(self) -> None:
        _check_positive(self, "gamma", self.gamma)

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        return process.log_snr(t).exp().clamp(max=self.gamma)


@dataclass(frozen=True)
class SoftMinSNR(Weighting):
    r"""The smooth form of :class:`MinSNR`, :math:`1/(\mathrm{SNR}^{-1} + \gamma^{-1})` of :math:`x_0`.

    Crowson et al., Scalable High-Resolution Pixel-Space Image Synthesis with Hourglass Diffusion Transformers, 2024,
    https://arxiv.org/abs/2401.11605.

    Args:
        gamma: the limit of the weight for small noise.
    """

    gamma: float = 4.0

    of = Prediction.X0

    def __post_init__(self) -> None:
        _check_positive(self, "gamma", self.gamma)

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        return self.gamma * torch.sigmoid(process.log_snr(t) - math.log(self.gamma))


@dataclass(frozen=True)
class Sigmoid(Weighting):
    r"""The likelihood weighting, damped for small noise: :math:`\frac{g(t)^2}{\sigma_t^2} \operatorname{sigmoid}(b -
    \lambda_t)` of the noise.

    The damping is a decreasing function of the log-SNR, so that the loss is the likelihood's bound on data with noise
    of a random size (Kingma and Gao, Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation,
    2023, https://arxiv.org/abs/2303.00848).

    Args:
        bias: the log-SNR b at which the damping is one half.
    """

    bias: float = 2.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.bias):
            raise ValueError(f"Sigmoid needs a finite bias, got bias={self.bias}")

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        return process.g2(t) / process.var(t) * torch.sigmoid(self.bias - process.log_snr(t))


@dataclass(frozen=True)
class FlowMatching(Weighting):
    r"""The weighting of conditional flow matching, under which the loss is that of the velocity of the interpolant.

    With :math:`x_t = \alpha_t x_0 + \sigma_t z` the flow of a denoiser moves at :math:`u_\theta = f x_t - \frac12 g^2
    s_\theta` and the interpolant at :math:`\dot x_t = \dot\alpha_t x_0 + \dot\sigma_t z`, so that

    .. math:: \|u_\theta(x_t, t) - \dot x_t\|^2 = \frac{g(t)^4}{4 \sigma_t^2}\, \|\hat\varepsilon - z\|^2 .

    For :class:`sde.RectifiedFlow` :math:`\dot x_t = z - x_0`. It is defined here for the velocity v of Salimans and Ho
    (:attr:`sde.Prediction.VELOCITY`), with which no digits are lost near the prior.

    Lipman et al., Flow Matching for Generative Modeling, 2023, https://arxiv.org/abs/2210.02747, theorem 2; Liu et al.,
    Flow Straight and Fast, 2023, https://arxiv.org/abs/2209.03003.
    """

    of = Prediction.VELOCITY

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        alpha, var = process.alpha(t), process.var(t)
        return (0.5 * alpha * process.g2(t) / (alpha.square() + var)).square() / var


def _check_positive(weighting: Weighting, argument: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise ValueError(f"{type(weighting).__name__} needs a finite {argument} > 0, got {argument}={value}")
