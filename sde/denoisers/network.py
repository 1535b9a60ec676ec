r"""Networks as denoisers, with a learned reverse variance or without.

The network gives 2 C channels. The first C are its prediction, as any network's; the last C, u, say where the variance
of :math:`p(x_s \mid x_t)` lies between its two extremes, that of the posterior and that of the transition,

.. math:: \log \tilde\sigma^2 = v \log \sigma_{t|s}^2 + (1 - v) \log \frac{\sigma_s^2 \sigma_{t|s}^2}{\sigma_t^2},
          \qquad v = \frac{u + 1}{2}.

Both extremes are functions of the step, so that one u serves any grid: a chain that leaves steps out has the betas of
its longer steps.

Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, https://arxiv.org/abs/2102.09672,
equation 15.
"""

from __future__ import annotations

__all__ = [
    "LearnedVarianceDenoiser",
    "NetworkDenoiser",
    "PredictingDenoiser",
]

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..processes import SDE
from ..shapes import expand
from .base import Denoiser
from .levels import NoiseLevel, TimeLevel
from .parametrisation import Coefficients, NoisePrediction, Parametrisation


class PredictingDenoiser(Denoiser):
    """A denoiser whose readings all come from one call of a network; a leaf says which part of its answer is what."""

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
        self.level = TimeLevel() if level is None else level

    @abstractmethod
    def split(self, out: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
        """The parts of the network's answer to `x_t`: the prediction, with shape (B, *), and the fraction of
        :meth:`posterior` or None.

        Raises:
            ValueError: if the answer has another shape than such a network's.
        """

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self._read(x_t, t, self.parametrisation.x0(self.process, t), condition)[0]

    def score(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.posterior(x_t, t, **condition)[0]

    def noise(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self._read(x_t, t, self.parametrisation.noise(self.process, t), condition)[0]

    def velocity(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self._read(x_t, t, self.parametrisation.velocity(self.process, t), condition)[0]

    def posterior(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._read(x_t, t, self.parametrisation.score(self.process, t), condition)

    def _read(
        self, x_t: Tensor, t: Tensor, reading: Coefficients, condition: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        scale = self.parametrisation.input_scale(self.process, t)
        x = x_t if scale is None else expand(scale, x_t) * x_t
        dtype = next((p.dtype for p in self.network.parameters()), x.dtype)
        level = self.level(self.process, t).to(x.device, torch.promote_types(dtype, torch.float32))
        cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in condition.items()}
        prediction, fraction = self.split(self.network(x.to(dtype), level, **cast).to(x_t.dtype), x_t)
        a, b = reading
        read = expand(b, x_t) * prediction
        return read if a is None else read + expand(a, x_t) * x_t, fraction


class NetworkDenoiser(PredictingDenoiser):
    """Any network `net(x, noise_level, **condition)` as a denoiser.

    The state keeps the dtype that the caller chose; here, and nowhere else, it is cast to the network's and back, and
    floating conditions with it. The noise level stays in float32 at least.

    Args:
        network: a module that answers in the shape of its first argument.
        process: the process it was, or will be, trained for.
        parametrisation: what its output means; the noise by default.
        level: what it is told about the time; 1000 t by default.
    """

    def split(self, out: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
        if out.shape != x_t.shape:
            raise ValueError(
                f"a network answers in the shape of its input: expected {tuple(x_t.shape)}, got {tuple(out.shape)}"
            )
        return out, None


class LearnedVarianceDenoiser(PredictingDenoiser):
    r"""A denoiser that answers :math:`v` in :meth:`sde.Denoiser.posterior` too, from the same call of its network.

    Args:
        network: a module that answers (B, 2 C, \*) to (B, C, \*).
        process: the process it was trained for.
        parametrisation: what its first C channels mean; the noise by default.
        level: what it is told about the time; 1000 t by default.
    """

    def split(self, out: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
        batch, channels, *sizes = x_t.shape
        if tuple(out.shape) != (batch, 2 * channels, *sizes):
            raise ValueError(
                f"a network with a learned variance answers with twice the channels of its input: "
                f"expected {(batch, 2 * channels, *sizes)}, got {tuple(out.shape)}"
            )
        prediction, u = out.chunk(2, dim=1)
        return prediction, (u + 1.0) / 2.0
