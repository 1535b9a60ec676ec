r"""The variational bounds on the log-likelihood as losses, in nats.

The chains and their terms are those of :mod:`sde.likelihood`, which estimates the same bounds of a trained model for
single data values. Here the data are values in the model's range, and the decoder is a Gaussian density.
"""

from __future__ import annotations

__all__ = ["ChainBound", "ContinuousBound", "Hybrid", "decoder_variance", "step_divergence"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..processes import SDE
from ..shapes import check_count, event_dims, expand, float64, sum_event, working
from .losses import DenoisingScoreMatching, Objective, per_sample
from .times import ChainTimes, Times, UniformLogSNR
from .weightings import Likelihood


@dataclass(frozen=True)
class ContinuousBound(Objective):
    r"""Minus the bound of variational diffusion models on the log-density of the data, in continuous time.

    .. math::
        \mathrm{KL}\big(q(x_T | x_0) \,\|\, \pi\big)
        + \tfrac12 \int_{t_{\min}}^{t_{\max}} \frac{g^2}{\sigma^2}\, E\|\hat\varepsilon(x_t, t) - z\|^2\, dt
        + \frac D2 \big(1 + \log 2\pi - \lambda_{t_{\min}}\big)

    The integral is estimated at one time. The last term is that of the decoder
    :math:`p(x_0 | x) \propto q(x | x_0)` at `t_min`, a Gaussian of variance :math:`\sigma^2/\alpha^2`. The first and
    the last term depend on the ends of the process alone, which a :class:`sde.LearnedVP` may learn.

    Kingma et al., Variational Diffusion Models, 2021, equations 11 to 18, https://arxiv.org/abs/2107.00630.

    Args:
        times: the distribution of training times.
        mean: nats per dimension; False gives nats.
    """

    times: Times = UniformLogSNR()
    mean: bool = True

    def __call__(self, denoiser: Denoiser, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
        path, ends = self.terms(denoiser, x0, u, z, **condition)
        return path + ends

    def terms(self, denoiser: Denoiser, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor]:
        """The estimate of the integral, and the sum of the two other terms, each with shape (B,)."""
        process, dims = denoiser.process, event_dims(x0)
        rate = DenoisingScoreMatching(Likelihood(), self.times, mean=False)(denoiser, x0, u, z, **condition)
        data = 0.5 * dims * (1.0 + math.log(2.0 * math.pi) - process.log_snr(float64(process.t_min)))
        path, ends = (
            (process.t_max - process.t_min) * rate,
            (data.to(x0.device) + _prior_divergence(process, x0)).to(rate),
        )
        return (path / dims, ends / dims) if self.mean else (path, ends)


@dataclass(frozen=True)
class ChainBound(Objective):
    r"""Minus the variational bound of a discrete chain on the log-density of the data, from one of its steps.

    Step i, uniform in 1..n, stands for all: the loss is :math:`n L_{i-1} + L_n`, with :math:`L_n` the divergence of the
    prior. For i > 1, :math:`L_{i-1}` is the divergence of the reverse step from the chain's posterior
    (:func:`sde.objective.bounds.step_divergence`); :math:`L_0` is minus the log-density under the decoder, a Gaussian
    about :math:`E[x_0|x_1]` with the variance :func:`sde.objective.bounds.decoder_variance`. The variance of the
    reverse steps is the learned one of the denoiser, or that of the posterior.

    Ho et al. 2020, equation 5, https://arxiv.org/abs/2006.11239; Nichol and Dhariwal 2021, section 3.1.

    Args:
        n: the number of steps of the chain.
        mean: nats per dimension; False gives nats.
    """

    n: int
    mean: bool = True

    def __post_init__(self) -> None:
        check_count("ChainBound", "n", self.n, 2)

    def __call__(self, denoiser: Denoiser, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
        _, terms = _chain_terms(self.n, denoiser, x0, u, z, condition)
        nats = self.n * sum_event(terms) + _prior_divergence(denoiser.process, x0).to(terms)
        return nats / event_dims(x0) if self.mean else nats


@dataclass(frozen=True)
class Hybrid(Objective):
    r"""The hybrid loss of a denoiser with a learned variance, :math:`L_{\mathrm{simple}} + \eta\, L_{\mathrm{vlb}}`.

    :math:`L_{\mathrm{vlb}}` is the bound of :class:`ChainBound` in bits/dim, without the prior's term, which nothing
    changes. No gradient flows through its mean: it trains the variance alone, and the simple loss the mean.

    Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, section 3.1 and equation 16,
    https://arxiv.org/abs/2102.09672.

    Args:
        n: the number of steps of the chain.
        weight: the weight :math:`\eta` of the bound.
    """

    n: int
    weight: float = 0.001

    def __post_init__(self) -> None:
        check_count("Hybrid", "n", self.n, 2)
        if not 0.0 <= self.weight < math.inf:
            raise ValueError(f"Hybrid needs a finite weight >= 0, got weight={self.weight}")

    def __call__(self, denoiser: Denoiser, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
        error, terms = _chain_terms(self.n, denoiser, x0, u, z, condition, detach_mean=True)
        return per_sample(error, True) + self.weight * self.n / math.log(2.0) * terms.flatten(1).mean(1)


def step_divergence(process: SDE, s: Tensor, t: Tensor, error: Tensor, v: float | Tensor = 0.0) -> Tensor:
    r"""The divergence L of the reverse step from t to s in every dimension, in nats.

    With s before t the chain's posterior and the reverse step have the variances :math:`\beta =
    \sigma_s^2\sigma_{t|s}^2/\sigma_t^2` and :math:`\tilde\beta = \beta^{1-v} (\sigma_{t|s}^2)^v`, and means that differ
    as the noise does, so that

    .. math::
        L = \tfrac12 \Big[ \log\frac{\tilde\beta}{\beta} + \frac{\beta}{\tilde\beta} - 1
            + \frac{1}{\tilde\beta} \Big(\frac{\sigma_{t|s}^2}{\alpha_{t|s}\, \sigma_t}\Big)^2
              (\hat\varepsilon(x_t, t) - z)^2 \Big].

    Args:
        process: the process.
        s: the time after the step, float64 with shape () or (B,).
        t: the time before the step.
        error: :math:`(\hat\varepsilon - z)^2`, with shape (B, \*).
        v: the variance interpolation coefficient, a number or with shape (B, \*).

    Returns:
        With shape (B, \*).
    """
    log_alpha, var = process.transition(s, t)
    small = var * process.var(s) / process.var(t)
    factor = expand(var.square() * (-2.0 * log_alpha).exp() / (process.var(t) * small), error)
    log_ratio = v * expand((var / small).log(), error)  # log of beta~/beta
    shrunk = torch.exp(-log_ratio)
    return 0.5 * (log_ratio + shrunk - 1.0 + factor * shrunk * error)


def decoder_variance(process: SDE, times: Tensor, v: float | Tensor = 0.0) -> Tensor:
    r"""The variance of the decoder at the first of the times :math:`t_1 < t_2 < \dots`, for a coefficient v.

    At the last step, to the clean end, the posterior has no variance, which no decoder can have. As in OpenAI's
    programs, the decoder has that of the step before; with a learned variance it interpolates between that variance and
    :math:`\sigma_1^2`.
    """
    first, second = times[0], times[1]
    small = process.transition(first, second)[1] * process.var(first) / process.var(second)
    large = process.var(first)
    return small * float64(v * (large / small).log().item()).exp()


def _chain_terms(
    n: int,
    denoiser: Denoiser,
    x0: Tensor,
    u: Tensor,
    z: Tensor,
    condition: dict[str, Tensor],
    detach_mean: bool = False,
) -> tuple[Tensor, Tensor]:
    """The squared errors of the noise, and the terms of the bound in nats, each with shape (B, *)."""
    process, x0, z = denoiser.process, working(x0), working(z)
    t, _ = ChainTimes(n)(process, u)
    mean, sigma = process.marginal(x0, t)
    x_t = mean + expand(sigma, x0) * z
    score, v = denoiser.score_and_variance(x_t, t, **condition)
    error = (expand(sigma, x0) * score + z).square()
    step = (t.double() * n).round()
    v = torch.zeros((), dtype=error.dtype, device=error.device) if v is None else v
    settled = error.detach() if detach_mean else error
    # Differences of neighbouring times need float64. Step 1 has no step before it: any other stands in for it.
    later = step.clamp(min=2.0)
    divergence = step_divergence(process, (later - 1.0) / n, later / n, settled, v)
    times = float64([1.0 / n, 2.0 / n])
    var = decoder_variance(process, times, v).to(error)
    # E[x0|x_1] misses x0 by the noise's error times sigma/alpha.
    spread = torch.exp(-process.log_snr(times[0])).to(error) * settled
    decoder = 0.5 * (spread / var + (2.0 * math.pi * var).log())
    return error, torch.where(expand(step, x0) > 1.0, divergence, decoder)


def _prior_divergence(process: SDE, x0: Tensor) -> Tensor:
    """:meth:`sde.SDE.prior_divergence` at `t_max`, with gradients for the parameters of a learned process."""
    end = float64(process.t_max)
    alpha2, var, v = (2.0 * process.log_alpha(end)).exp(), process.var(end), process.prior_var(end)
    ratio = var / v
    square = sum_event(x0.double().square())
    return 0.5 * ((alpha2 / v).to(square) * square + (event_dims(x0) * (ratio - 1.0 - ratio.log())).to(square))
