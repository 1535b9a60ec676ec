r"""Denoisers: :math:`E[x_0 \mid x_t]` inside, the score outside.

By Tweedie's formula one quantity in four forms describes a diffusion model:

.. math::
    x_0 = \frac{x_t + \sigma_t^2 s}{\alpha_t}, \qquad
    \varepsilon = -\sigma_t s, \qquad
    v = \alpha_t \varepsilon - \sigma_t x_0, \qquad
    s = \nabla \log p_t(x_t).

A network gives F, and each parametrisation says with which coefficients every form is read straight from it,
:math:`a(t)\, x_t + b(t)\, F`, never one form through another: going from noise to :math:`x_0` and back in float32
loses 1e-4 for sub-VP at t = 1e-3 and 1e-2 at 1e-5.

Efron, Tweedie's Formula and Selection Bias, 2011; Ho et al. 2020, https://arxiv.org/abs/2006.11239; Salimans and Ho
2022, https://arxiv.org/abs/2202.00512; Karras et al. 2022, https://arxiv.org/abs/2206.00364.
"""

from __future__ import annotations

__all__ = [
    "Denoiser",
    "NetworkDenoiser",
    "Conditioned",
    "Parametrisation",
    "NoisePrediction",
    "DataPrediction",
    "ScorePrediction",
    "VelocityPrediction",
    "EDM",
    "NoiseLevel",
    "Time",
    "LogSNR",
]

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .processes import SDE
from .shapes import expand

# A reading a(t) x_t + b(t) F; None stands for a coefficient that is 0 everywhere.
Coefficients = tuple[Tensor | None, Tensor]


class Denoiser(nn.Module, ABC):
    r"""A module that knows its process and answers :math:`E[x_0 \mid x_t]`.

    A leaf sets the attribute `process` and defines :meth:`forward`. The other readings follow from it; a leaf that
    can give one more directly replaces :meth:`score` and :meth:`velocity`. Guidance and conditioning take a denoiser
    and return a denoiser.
    """

    process: SDE

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        r"""The denoised data :math:`E[x_0 \mid x_t]`.

        Args:
            x_t: the noisy state, with shape (B, *).
            t: the time, with shape () or (B,).
            condition: what else the denoiser is told, of leading size B or scalar.

        Returns:
            The posterior mean, with shape (B, *).
        """

    def score(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        r"""The score :math:`\nabla \log p_t(x_t) = (\alpha_t E[x_0|x_t] - x_t) / \sigma_t^2`, with shape (B, *)."""
        x0 = self(x_t, t, **condition)
        return (expand(self.process.alpha(t), x_t) * x0 - x_t) / expand(self.process.var(t), x_t)

    def noise(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        r"""The noise :math:`E[z \mid x_t] = -\sigma_t \nabla \log p_t(x_t)`, with shape (B, *)."""
        return -expand(self.process.sigma(t), x_t) * self.score(x_t, t, **condition)

    def velocity(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        r"""The velocity :math:`\alpha_t E[z|x_t] - \sigma_t E[x_0|x_t]` (Salimans and Ho 2022), with shape (B, *)."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        x0 = self(x_t, t, **condition)
        return expand(alpha / sigma, x_t) * x_t - expand((alpha.square() + sigma.square()) / sigma, x_t) * x0

    def select(self, index: Tensor) -> Denoiser:
        """This denoiser for some samples of its batch: itself, unless it holds something for each sample."""
        return self


class Parametrisation(ABC):
    r"""What a network's output F means: the coefficients of every reading :math:`a(t)\, x_t + b(t)\, F`.

    Attributes:
        data_std: the network is fed :math:`x_t / \sqrt{\alpha_t^2 \mathrm{data\_std}^2 + \sigma_t^2}`, which has
            unit variance for data of that standard deviation; None feeds :math:`x_t` as it stands. For VP and
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

    def input_scale(self, process: SDE, t: Tensor) -> Tensor | None:
        r"""What :math:`x_t` is multiplied by before the network sees it."""
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
class VelocityPrediction(Parametrisation):
    r"""The network predicts the velocity, :math:`v = \alpha_t \varepsilon - \sigma_t x_0` (Salimans and Ho 2022)."""

    data_std: float | None = 1.0

    def x0(self, process: SDE, t: Tensor) -> Coefficients:
        alpha, sigma = process.alpha(t), process.sigma(t)
        norm = alpha.square() + sigma.square()
        return alpha / norm, -sigma / norm

    def noise(self, process: SDE, t: Tensor) -> Coefficients:
        alpha, sigma = process.alpha(t), process.sigma(t)
        norm = alpha.square() + sigma.square()
        return sigma / norm, alpha / norm

    def velocity(self, process: SDE, t: Tensor) -> Coefficients:
        return None, torch.ones_like(t)


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
        alpha, sigma, norm = self._norm(process, t)
        return alpha * self.data_std**2 / norm, sigma * self.data_std * norm.rsqrt()

    def noise(self, process: SDE, t: Tensor) -> Coefficients:
        alpha, sigma, norm = self._norm(process, t)
        return sigma / norm, -alpha * self.data_std * norm.rsqrt()

    def velocity(self, process: SDE, t: Tensor) -> Coefficients:
        alpha, sigma, norm = self._norm(process, t)
        a = alpha * sigma * (1.0 - self.data_std**2) / norm
        return a, -(alpha.square() + sigma.square()) * self.data_std * norm.rsqrt()

    def _norm(self, process: SDE, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return alpha, sigma, sigma.square() + (alpha * self.data_std).square()


class NoiseLevel(ABC):
    """What a network is told about the time."""

    @abstractmethod
    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        """The network's second argument, in the shape of `t`."""


@dataclass(frozen=True)
class Time(NoiseLevel):
    """The label `scale * t + offset`: 1000 t is the step of a chain of 1000 steps."""

    scale: float = 1000.0
    offset: float = 0.0

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        return self.scale * t + self.offset


@dataclass(frozen=True)
class LogSNR(NoiseLevel):
    r"""The label :math:`-\mathrm{scale} \cdot \lambda_t`, which resolves the small times that a likelihood depends on.

    Kingma et al. 2021, https://arxiv.org/abs/2107.00630. :math:`-\lambda_t/8` is the :math:`\tfrac14 \log\sigma` of
    EDM.
    """

    scale: float = 0.125

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        return -self.scale * process.log_snr(t)


class NetworkDenoiser(Denoiser):
    """Any network `net(x, noise_level, **condition)` as a denoiser.

    The state keeps the dtype that the caller chose; here, and nowhere else, it is cast to the network's and back.

    Args:
        network: a module that answers in the shape of its first argument.
        process: the process it was, or will be, trained for.
        parametrisation: what its output means.
        level: what it is told about the time.
    """

    def __init__(
        self,
        network: nn.Module,
        process: SDE,
        parametrisation: Parametrisation | None = None,
        level: NoiseLevel | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.process = process
        self.parametrisation = NoisePrediction() if parametrisation is None else parametrisation
        self.level = Time() if level is None else level

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self._read(x_t, t, self.parametrisation.x0(self.process, t), condition)

    def score(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self._read(x_t, t, self.parametrisation.score(self.process, t), condition)

    def noise(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self._read(x_t, t, self.parametrisation.noise(self.process, t), condition)

    def velocity(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self._read(x_t, t, self.parametrisation.velocity(self.process, t), condition)

    def _read(self, x_t: Tensor, t: Tensor, reading: Coefficients, condition: Mapping[str, Tensor]) -> Tensor:
        scale = self.parametrisation.input_scale(self.process, t)
        x = x_t if scale is None else expand(scale, x_t) * x_t
        dtype = next((p.dtype for p in self.network.parameters()), x.dtype)
        out = self.network(x.to(dtype), self.level(self.process, t).to(device=x.device, dtype=dtype), **condition)
        if out.shape != x_t.shape:
            raise ValueError(
                f"a network answers in the shape of its input: expected {tuple(x_t.shape)}, got {tuple(out.shape)}"
            )
        a, b = reading
        read = expand(b, x_t) * out.to(x_t.dtype)
        return read if a is None else read + expand(a, x_t) * x_t


class Conditioned(Denoiser):
    """A denoiser with its condition fixed for one batch, which counts the calls made for each of its samples.

    Args:
        denoiser: the denoiser.
        condition: tensors of leading size B, or scalars.
        nfe: the counts, int64 with shape (B,); they grow by one for every sample of every call.
        rows: which of the B samples this one answers for; all by default.
    """

    def __init__(
        self, denoiser: Denoiser, condition: Mapping[str, Tensor] | None, nfe: Tensor, rows: Tensor | None = None
    ) -> None:
        super().__init__()
        self.process = denoiser.process
        self.denoiser, self.condition, self.nfe, self.rows = denoiser, dict(condition or {}), nfe, rows
        for name, value in self.condition.items():
            expected = len(nfe if rows is None else rows)
            if value.ndim and len(value) != expected:
                raise ValueError(
                    f"condition {name!r}: expected a scalar or leading size {expected}, one entry per sample, "
                    f"got shape {tuple(value.shape)}"
                )

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self._count()
        return self.denoiser(x_t, t, **self.condition, **condition)

    def score(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self._count()
        return self.denoiser.score(x_t, t, **self.condition, **condition)

    def noise(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self._count()
        return self.denoiser.noise(x_t, t, **self.condition, **condition)

    def velocity(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self._count()
        return self.denoiser.velocity(x_t, t, **self.condition, **condition)

    def select(self, index: Tensor) -> Conditioned:
        rows = index if self.rows is None else self.rows[index]
        condition = {name: value[index] if value.ndim else value for name, value in self.condition.items()}
        return Conditioned(self.denoiser.select(index), condition, self.nfe, rows)

    def _count(self) -> None:
        if self.rows is None:
            self.nfe += 1
        else:
            self.nfe[self.rows] += 1
