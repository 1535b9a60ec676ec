r"""Networks that predict the variance of the reverse step along with its mean.

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

__all__ = ["LearnedVarianceDenoiser"]

from torch import Tensor

from .denoiser import PredictingDenoiser


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
