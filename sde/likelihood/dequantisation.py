r"""Dequantisation: log-likelihoods of discrete data from a density.

The cells of the levels, scaled to the model's range, divide it: a density p there gives level v the probability
:math:`P(v) = \int_{\mathrm{cell}} p(x)\, dx`. Noise u in :math:`[0, 1)^D` with a density q(u | v) makes
:math:`x = \alpha\, (a (v + u) + b)`, a and b those of :class:`sde.data.Scaling`, and by Jensen's inequality

.. math::
    \log P(v) \ge E\big[ \log p(x) + w \big], \qquad w = D \log(\alpha a) - \log q(u | v) .

The better q matches p within the cell, the tighter: with K draws the importance-weighted bound

.. math::
    \log P(v) \ge E\Big[ \log \frac1K \sum_{k=1}^K e^{\log p(x_k) + w_k} \Big]

grows with K and tends to :math:`\log P(v)`. The density that diffusion models have at `t_min` is of data scaled by
:math:`\alpha` with noise of standard deviation :math:`\sigma` on top. Noise of that kind, cut off at the edges of the
cell, is the truncated normal of Zheng et al.: with :math:`s = \sigma/(\alpha a)`, the noise in cells, and
:math:`\tau = 1/(2s)`,

.. math::
    u = \tfrac12 + s z, \quad |z| \le \tau, \qquad
    \log q(u) = -\tfrac12 z^2 - \log\big(\sqrt{2\pi}\, s\, Z\big), \quad Z = \operatorname{erf}(\tau/\sqrt2), \qquad
    H = \log\big(\sqrt{2\pi e}\, s\, Z\big) - \frac{\tau\, e^{-\tau^2/2}}{\sqrt{2\pi}\, Z} .

Theis, van den Oord and Bethge, A note on the evaluation of generative models, 2016, https://arxiv.org/abs/1511.01844;
Zheng et al., Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs, 2023,
https://arxiv.org/abs/2305.03935; Burda et al., Importance Weighted Autoencoders, 2016,
https://arxiv.org/abs/1509.00519.
"""

from __future__ import annotations

__all__ = [
    "Dequantised",
    "Dequantiser",
    "DiscreteLogProb",
    "TruncatedNormal",
    "UniformDequantiser",
    "dequantise",
    "discrete_log_prob",
    "importance_weighted",
]

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import Scaling
from ..denoisers import Denoiser
from ..noise import Noise, Stream
from ..processes import SDE
from ..sampling import state_like
from ..shapes import event_dims, sum_event
from .flow import log_prob


class Dequantiser(ABC):
    r"""A rule for the noise that makes levels continuous.

    Attributes:
        alpha: the factor :math:`\alpha` between the model's range and the states that the density is of.
    """

    alpha: float

    @abstractmethod
    def draw(self, values: Tensor, noise: Noise, index: Tensor, counter: Tensor) -> tuple[Tensor, Tensor]:
        r"""Draws u in the cell of each level.

        Args:
            values: levels, with shape (B, \*).
            noise: the source, whose stream DEQUANTISE is drawn from.
            index: the positions that key the noise, int64 with shape (B,).
            counter: which draw for each of them, int64 with shape (B,).

        Returns:
            u, float64 with shape (B, \*), and :math:`\log q(u | v)` in nats with shape (B,).
        """


@dataclass(frozen=True)
class UniformDequantiser(Dequantiser):
    """Noise uniform on the cell, whose log-density is 0 (Theis et al. 2016)."""

    alpha: float = 1.0

    def draw(self, values: Tensor, noise: Noise, index: Tensor, counter: Tensor) -> tuple[Tensor, Tensor]:
        u = noise.uniform(Stream.DEQUANTISE, index, counter, values.shape[1:], torch.float64)
        return u, torch.zeros(len(u), dtype=u.dtype, device=u.device)


@dataclass(frozen=True)
class TruncatedNormal(Dequantiser):
    r"""Normal noise around the middle of the cell, cut off at its edges (Zheng et al. 2023).

    Args:
        std: s, the standard deviation before it is cut off, in cells. Far below 1/2 nothing is cut off; far above it
            the noise is uniform.
        alpha: as in :class:`Dequantiser`.
    """

    std: float
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.std) and self.std > 0.0 and self.alpha > 0.0):
            raise ValueError(
                f"TruncatedNormal needs a finite std > 0 and alpha > 0, got std={self.std}, alpha={self.alpha}"
            )

    @classmethod
    def matched(cls, process: SDE, scaling: Scaling) -> TruncatedNormal:
        """The noise that the process has put on data at `t_min`."""
        low = torch.tensor(process.t_min, dtype=torch.float64)
        alpha = process.alpha(low).item()
        return cls(process.sigma(low).item() / (alpha * scaling.scale), alpha)

    @property
    def tau(self) -> float:
        r""":math:`\tau`, where the standard normal is cut off."""
        return 0.5 / self.std

    @property
    def mass(self) -> float:
        r"""Z, the mass of the normal within its cell."""
        return math.erf(self.tau / math.sqrt(2.0))

    def log_density(self, u: Tensor) -> Tensor:
        r""":math:`\log q(u)` of each dimension by itself, in nats."""
        z = (u - 0.5) / self.std
        return -0.5 * z.square() - math.log(math.sqrt(2.0 * math.pi) * self.std * self.mass)

    def entropy(self, dims: int) -> float:
        """H of an event of D = `dims` dimensions, in nats: the mean of what `draw` answers is -H."""
        cut = self.tau * math.exp(-0.5 * self.tau**2) / (math.sqrt(2.0 * math.pi) * self.mass)
        return dims * (math.log(math.sqrt(2.0 * math.pi * math.e) * self.std * self.mass) - cut)

    def draw(self, values: Tensor, noise: Noise, index: Tensor, counter: Tensor) -> tuple[Tensor, Tensor]:
        share = noise.uniform(Stream.DEQUANTISE, index, counter, values.shape[1:], torch.float64)
        # Symmetric about the middle, so that both tails keep their digits.
        z = math.sqrt(2.0) * torch.erfinv((2.0 * share - 1.0) * self.mass)
        u = 0.5 + self.std * z.clamp(-self.tau, self.tau)
        return u, sum_event(self.log_density(u))


@dataclass(frozen=True)
class Dequantised:
    r"""Discrete data made continuous.

    Attributes:
        x: states for a density in the model's range, with shape (B, \*).
        log_weight: w in nats, float64 with shape (B,): :math:`\log p(x) + w` is a lower bound on :math:`\log P(v)` on
            average.
    """

    x: Tensor
    log_weight: Tensor


def dequantise(
    dequantiser: Dequantiser,
    values: Tensor,
    scaling: Scaling,
    *,
    seed: int = 0,
    index: Tensor | None = None,
    repeat: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Dequantised:
    r"""One draw of dequantised data; gradients flow to the parameters of the dequantiser.

    Args:
        dequantiser: how to draw.
        values: levels, with shape (B, \*).
        scaling: of discrete data.
        seed: the seed of the noise.
        index: the positions of the samples in their data set, int64 with shape (B,), which key the noise; 0 to B - 1 by
            default.
        repeat: which draw.
        dtype: of the states.

    Raises:
        ValueError: if the data are continuous, or the values no levels.
    """
    if scaling.levels is None:
        raise ValueError("continuous data need no dequantisation: expected a scaling with levels")
    scaling.check(values)
    index = torch.arange(len(values), device=values.device) if index is None else index.to(values.device)
    u, log_q = dequantiser.draw(values, Noise(seed), index, torch.full_like(index, repeat))
    x = dequantiser.alpha * scaling.to_model(values, u, dtype=dtype)
    dims = event_dims(values)
    return Dequantised(x, dims * math.log(dequantiser.alpha) + scaling.log_det(dims) - log_q)


def importance_weighted(log_weights: Tensor) -> Tensor:
    r""":math:`\log \frac1K \sum_k e^{w_k}` along the first axis: (K, B) -> (B,), in nats."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))


@dataclass(frozen=True)
class DiscreteLogProb:
    """A lower bound on the log-probability of levels.

    Attributes:
        nats: the bound of all draws together, with shape (B,).
        draws: the bound of each draw by itself, with shape (K, B).
        standard_error: of the mean of `draws`, with shape (B,); NaN for a single draw.
        nfe: network calls, int64 with shape (B,).
        bits_per_dim: the bound as an upper bound on bits per dimension, with shape (B,).
    """

    nats: Tensor
    draws: Tensor
    standard_error: Tensor
    nfe: Tensor
    bits_per_dim: Tensor


def discrete_log_prob(
    denoiser: Denoiser,
    values: Tensor,
    scaling: Scaling,
    *,
    dequantiser: Dequantiser | None = None,
    draws: int = 1,
    weighted: bool = True,
    seed: int = 0,
    index: Tensor | None = None,
    repeat: int = 0,
    **settings: Any,
) -> DiscreteLogProb:
    r"""The bound on the log-probability of levels that the flow's density gives.

    Args:
        denoiser: the model.
        values: levels, with shape (B, \*).
        scaling: of discrete data.
        dequantiser: :class:`UniformDequantiser` by default.
        draws: K, each of which is a run of :func:`sde.log_prob`.
        weighted: whether the draws make an importance-weighted bound, or are averaged.
        seed: the seed of dequantisation and probes. With an estimated trace the weighted bound is biased upwards; with
            :class:`sde.ExactTrace` it is a bound.
        index: as in :func:`dequantise`.
        repeat: which K draws.
        settings: `solver`, `trace`, `condition`, `prior`, `atol` as in :func:`sde.log_prob`.

    Raises:
        ValueError: if there are no draws, or what :func:`dequantise` and :func:`sde.log_prob` refuse.
    """
    if draws < 1:
        raise ValueError(f"discrete_log_prob needs draws >= 1, got draws={draws}")
    index = torch.arange(len(values)) if index is None else index.cpu()
    rule, like = UniformDequantiser() if dequantiser is None else dequantiser, state_like(denoiser)
    bounds, nfe = [], torch.zeros(len(values), dtype=torch.int64)
    for k in range(repeat * draws, (repeat + 1) * draws):
        made = dequantise(rule, values.cpu(), scaling, seed=seed, index=index, repeat=k, dtype=like.dtype)
        # Every draw has probes of its own.
        r = log_prob(denoiser, made.x.detach().to(like.device), seed=seed, index=index + k * 2**40, **settings)
        bounds.append(r.nats.double().cpu() + made.log_weight.detach().cpu())
        nfe = nfe + r.nfe.cpu()
    each = torch.stack(bounds)
    nats = importance_weighted(each) if weighted else each.mean(0)
    error = each.std(0) / math.sqrt(draws) if draws > 1 else torch.full_like(nats, math.nan)
    return DiscreteLogProb(nats, each, error, nfe, -nats / (event_dims(values) * math.log(2.0)))
