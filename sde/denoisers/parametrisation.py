r"""Parametrisations: what a network's output means.

By Tweedie's formula one quantity in four forms describes a diffusion model:

.. math::
    x_0 = \frac{x_t + \sigma_t^2 s}{\alpha_t}, \qquad
    \varepsilon = -\sigma_t s, \qquad
    v = \alpha_t \varepsilon - \sigma_t x_0, \qquad
    s = \nabla \log p_t(x_t).

A network gives F. Each parametrisation gives the coefficients of every form as a function of it, :math:`a(t)\, x_t +
b(t)\, F`, and no form is computed through another: going from noise to :math:`x_0` and back in float32 loses 1e-4 for
sub-VP at t = 1e-3 and 1e-2 at 1e-5. All conversions stand in this file.

Ho et al. 2020, https://arxiv.org/abs/2006.11239; Salimans and Ho 2022, https://arxiv.org/abs/2202.00512; Karras et al.
2022, https://arxiv.org/abs/2206.00364.
"""

from __future__ import annotations

__all__ = [
    "Coefficients",
    "Parametrisation",
    "Prediction",
    "from_score",
    "from_x0",
    "shifted",
    "to_x0",
    "NoisePrediction",
    "DataPrediction",
    "ScorePrediction",
    "ScaledScorePrediction",
    "VelocityPrediction",
    "FlowPrediction",
    "EDM",
]

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..processes import SDE
from ..shapes import expand, working

# A prediction a(t) x_t + b(t) F; None stands for a coefficient that is 0 everywhere.
Coefficients = tuple[Tensor | None, Tensor]


class Prediction(enum.Enum):
    """The units in which a denoiser predicts."""

    X0 = "x0"
    NOISE = "noise"
    SCORE = "score"
    VELOCITY = "velocity"


def from_x0(what: Prediction, process: SDE, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    r"""The prediction `what` of a denoiser that knows :math:`x_0` alone, with shape (B, \*)."""
    dtype, x0, x_t = x_t.dtype, working(x0), working(x_t)
    if what is Prediction.VELOCITY:
        alpha, sigma = process.alpha(t), process.sigma(t)
        velocity = expand(alpha / sigma, x_t) * x_t - expand((alpha.square() + sigma.square()) / sigma, x_t) * x0
        return velocity.to(dtype)
    score = (expand(process.alpha(t), x_t) * x0 - x_t) / expand(process.var(t), x_t)
    return (score if what is Prediction.SCORE else -expand(process.sigma(t), x_t) * score).to(dtype)


def from_score(what: Prediction, process: SDE, score: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    r"""The prediction `what` of a denoiser that knows the score alone, with shape (B, \*)."""
    if what is Prediction.SCORE:
        return score
    dtype, score, x_t = x_t.dtype, working(score), working(x_t)
    if what is Prediction.NOISE:
        return (-expand(process.sigma(t), x_t) * score).to(dtype)
    x0 = (x_t + expand(process.var(t), x_t) * score) / expand(process.alpha(t), x_t)
    return (x0 if what is Prediction.X0 else from_x0(what, process, x0, x_t, t)).to(dtype)


def to_x0(what: Prediction, process: SDE, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    r""":math:`x_0` from any prediction, with shape (B, \*), as one sum of it and :math:`x_t`."""
    if what is Prediction.X0:
        return prediction
    alpha, sigma = process.alpha(t), process.sigma(t)
    a, b = {
        Prediction.SCORE: (1.0 / alpha, sigma.square() / alpha),
        Prediction.NOISE: (1.0 / alpha, -sigma / alpha),
        Prediction.VELOCITY: (alpha / (alpha.square() + sigma.square()), -sigma / (alpha.square() + sigma.square())),
    }[what]
    return expand(a, x_t) * x_t + expand(b, x_t) * prediction


def shifted(what: Prediction, process: SDE, prediction: Tensor, change: Tensor, t: Tensor) -> Tensor:
    r"""The prediction `what` after a `change` of :math:`x_0`, both with shape (B, \*)."""
    if what is Prediction.X0:
        return prediction + change
    alpha, sigma = process.alpha(t), process.sigma(t)
    factor = {
        Prediction.SCORE: alpha / sigma.square(),
        Prediction.NOISE: -alpha / sigma,
        Prediction.VELOCITY: -(alpha.square() + sigma.square()) / sigma,
    }[what]
    return prediction + expand(factor, change) * change


class Parametrisation(ABC):
    r"""The meaning of a network's output F: the coefficients of every prediction :math:`a(t)\, x_t + b(t)\, F`.

    Attributes:
        data_std: the input of the network is :math:`x_t / \sqrt{\alpha_t^2 \mathrm{data\_std}^2 + \sigma_t^2}`, which
            has unit variance for data of that standard deviation; with None it is :math:`x_t` itself. For VP and
            `data_std=1` both are the same.
    """

    data_std: float | None

    @abstractmethod
    def x0(self, process: SDE, t: Tensor) -> Coefficients:
        r"""The coefficients of :math:`E[x_0|x_t]`."""

    @abstractmethod
    def noise(self, process: SDE, t: Tensor) -> Coefficients:
        r"""The coefficients of the noise :math:`\varepsilon`."""

    @abstractmethod
    def velocity(self, process: SDE, t: Tensor) -> Coefficients:
        r"""The coefficients of the velocity :math:`v`."""

    def score(self, process: SDE, t: Tensor) -> Coefficients:
        r"""The coefficients of the score, those of the noise over :math:`-\sigma_t`."""
        (a, b), sigma = self.noise(process, t), process.sigma(t)
        return None if a is None else -a / sigma, -b / sigma

    def coefficients(self, what: Prediction, process: SDE, t: Tensor) -> Coefficients:
        """The coefficients of the prediction `what`."""
        methods = {Prediction.X0: self.x0, Prediction.NOISE: self.noise, Prediction.SCORE: self.score}
        return methods.get(what, self.velocity)(process, t)

    def input_scale(self, process: SDE, t: Tensor) -> Tensor | None:
        r"""The factor of :math:`x_t` at the input of the network, or None for 1."""
        if self.data_std is None:
            return None
        return (process.alpha(t).square() * self.data_std**2 + process.var(t)).rsqrt()


@dataclass(frozen=True)
class NoisePrediction(Parametrisation):
    r"""The network predicts the noise, :math:`F = \varepsilon` (Ho et al. 2020)."""

    data_std: float | None = 1.0

    def x0(self, process: SDE, t: Tensor) -> Coefficients:
        alpha = process.alpha(t)
        return 1.0 / alpha, -process.sigma(t) / alpha

    def noise(self, process: SDE, t: Tensor) -> Coefficients:
        return None, torch.ones_like(t)

    def velocity(self, process: SDE, t: Tensor) -> Coefficients:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return -sigma / alpha, alpha + sigma.square() / alpha


@dataclass(frozen=True)
class DataPrediction(Parametrisation):
    r"""The network predicts the clean data, :math:`F = x_0`."""

    data_std: float | None = 1.0

    def x0(self, process: SDE, t: Tensor) -> Coefficients:
        return None, torch.ones_like(t)

    def noise(self, process: SDE, t: Tensor) -> Coefficients:
        sigma = process.sigma(t)
        return 1.0 / sigma, -process.alpha(t) / sigma

    def velocity(self, process: SDE, t: Tensor) -> Coefficients:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return alpha / sigma, -(alpha.square() + sigma.square()) / sigma


@dataclass(frozen=True)
class ScorePrediction(Parametrisation):
    r"""The network predicts the score itself, :math:`F = s` (Song et al. 2021)."""

    data_std: float | None = 1.0

    def x0(self, process: SDE, t: Tensor) -> Coefficients:
        alpha = process.alpha(t)
        return 1.0 / alpha, process.var(t) / alpha

    def noise(self, process: SDE, t: Tensor) -> Coefficients:
        return None, -process.sigma(t)

    def velocity(self, process: SDE, t: Tensor) -> Coefficients:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return -sigma / alpha, -sigma * (alpha + sigma.square() / alpha)

    def score(self, process: SDE, t: Tensor) -> Coefficients:
        return None, torch.ones_like(t)


@dataclass(frozen=True)
class ScaledScorePrediction(Parametrisation):
    r"""The network predicts the score in units of the noise, :math:`F = \sigma_t s`, from :math:`x_t/\alpha_t`.

    Song and Ermon 2020, https://arxiv.org/abs/2006.09011, and the VE column of table 1 of Karras et al. 2022.
    """

    data_std = None

    def x0(self, process: SDE, t: Tensor) -> Coefficients:
        alpha = process.alpha(t)
        return 1.0 / alpha, process.sigma(t) / alpha

    def noise(self, process: SDE, t: Tensor) -> Coefficients:
        return None, -torch.ones_like(t)

    def velocity(self, process: SDE, t: Tensor) -> Coefficients:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return -sigma / alpha, -alpha - sigma.square() / alpha

    def input_scale(self, process: SDE, t: Tensor) -> Tensor | None:
        return 1.0 / process.alpha(t)


@dataclass(frozen=True)
class VelocityPrediction(Parametrisation):
    r"""The network predicts the velocity, :math:`v = \alpha_t \varepsilon - \sigma_t x_0` (Salimans and Ho 2022)."""

    data_std: float | None = 1.0

    def x0(self, process: SDE, t: Tensor) -> Coefficients:
        alpha, sigma, norm = _scales(process, t)
        return alpha / norm, -sigma / norm

    def noise(self, process: SDE, t: Tensor) -> Coefficients:
        alpha, sigma, norm = _scales(process, t)
        return sigma / norm, alpha / norm

    def velocity(self, process: SDE, t: Tensor) -> Coefficients:
        return None, torch.ones_like(t)


@dataclass(frozen=True)
class FlowPrediction(Parametrisation):
    r"""The network predicts the velocity of the flow, :math:`F = \dot\alpha_t x_0 + \dot\sigma_t \varepsilon = f x_t -
    \tfrac12 g^2 s`, which is :math:`z - x_0` for :class:`sde.RectifiedFlow` (Lipman et al. 2023, Liu et al. 2023).

    It determines the noise as long as :math:`g^2/\sigma` is not small; near the data's end of sub-VP it is, and digits
    are lost.
    """

    data_std: float | None = 1.0

    def x0(self, process: SDE, t: Tensor) -> Coefficients:
        ratio = process.var(t) / process.g2(t)
        return (1.0 + 2.0 * process.f(t) * ratio) / process.alpha(t), -2.0 * ratio / process.alpha(t)

    def noise(self, process: SDE, t: Tensor) -> Coefficients:
        b = 2.0 * process.sigma(t) / process.g2(t)
        return -process.f(t) * b, b

    def velocity(self, process: SDE, t: Tensor) -> Coefficients:
        alpha, sigma, norm = _scales(process, t)
        ratio = process.var(t) / process.g2(t)
        return -sigma / alpha - 2.0 * process.f(t) * ratio * norm / (alpha * sigma), 2.0 * ratio * norm / (
            alpha * sigma
        )


@dataclass(frozen=True)
class EDM(Parametrisation):
    r"""The preconditioned form of Karras et al. 2022, table 1, for any process.

    With :math:`\tilde x = x_t/\alpha_t`, :math:`\tilde\sigma = \sigma_t/\alpha_t` and :math:`\sigma_d` = `data_std`,

    .. math::
        x_0 = \frac{\sigma_d^2}{\tilde\sigma^2 + \sigma_d^2} \tilde x
            + \frac{\tilde\sigma \sigma_d}{\sqrt{\tilde\sigma^2 + \sigma_d^2}} F.
    """

    data_std: float = 0.5

    def x0(self, process: SDE, t: Tensor) -> Coefficients:
        alpha, sigma, norm = _scales(process, t, self.data_std)
        return alpha * self.data_std**2 / norm, sigma * self.data_std * norm.rsqrt()

    def noise(self, process: SDE, t: Tensor) -> Coefficients:
        alpha, sigma, norm = _scales(process, t, self.data_std)
        return sigma / norm, -alpha * self.data_std * norm.rsqrt()

    def velocity(self, process: SDE, t: Tensor) -> Coefficients:
        alpha, sigma, norm = _scales(process, t, self.data_std)
        a = alpha * sigma * (1.0 - self.data_std**2) / norm
        return a, -(alpha.square() + sigma.square()) * self.data_std * norm.rsqrt()


def _scales(process: SDE, t: Tensor, data_std: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, sigma, and the variance of the state for data of a standard deviation."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return alpha, sigma, sigma.square() + (alpha * data_std).square()
