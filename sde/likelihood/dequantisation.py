r"""Dequantisation: log-likelihoods of discrete data from a density.

The quantisation bins of the levels, scaled to the model's range, divide it into boxes. A density p there gives level v
the probability :math:`P(v) = \int_{\mathrm{bin}} p(x)\, dx`. Noise u in :math:`[0, 1)^D` with a density q(u | v) makes
:math:`x = \alpha\, (a (v + u) + b)`, with the a and b of :class:`sde.data.Scaling`, and by Jensen's inequality

.. math::
    \log P(v) \ge E\big[ \log p(x) + w \big], \qquad w = D \log(\alpha a) - \log q(u | v) .

The bound is tighter the better q matches p within the bin. With K draws the importance-weighted bound

.. math::
    \log P(v) \ge E\Big[ \log \frac1K \sum_{k=1}^K e^{\log p(x_k) + w_k} \Big]

grows with K and tends to :math:`\log P(v)`. The density of a diffusion model at `t_min` is that of data scaled by
:math:`\alpha` plus noise of standard deviation :math:`\sigma`. Noise of that kind, truncated to the bin, is the
truncated normal of Zheng et al.: with :math:`s = \sigma/(\alpha a)`, the noise in bin widths, and
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
    "States",
    "TruncatedNormal",
    "UniformDequantiser",
    "dequantise",
    "discrete_log_prob",
    "importance_weighted",
    "states",
]

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data.scaling import Scaling, nats_to_bits
from ..denoisers import Denoiser
from ..noise import Noise, Stream, repeat_key, sample_index
from ..processes import SDE
from ..runtime import exact_float32
from ..sampling import state_like
from ..shapes import check_count, event_dims, float64, numbers_of, sum_event
from ..solvers import Solver
from ..trace import Trace
from .flow import PriorDensity, log_prob


class Dequantiser(ABC):
    r"""The distribution of the noise that makes levels continuous.

    Attributes:
        alpha: the factor :math:`\alpha` between the model's range and the states whose density is evaluated.
    """

    alpha: float

    @abstractmethod
    def draw(self, values: Tensor, noise: Noise, index: Tensor, counter: Tensor) -> tuple[Tensor, Tensor]:
        r"""Draws u in the quantisation bin of each level.

        Args:
            values: levels, with shape (B, \*).
            noise: the source of the noise; the draws are from its stream DEQUANTISE.
            index: the positions that key the noise, int64 with shape (B,).
            counter: the number of the draw for each of them, int64 with shape (B,).

        Returns:
            u, float64 with shape (B, \*), and :math:`\log q(u | v)` in nats with shape (B,).
        """


@dataclass(frozen=True)
class UniformDequantiser(Dequantiser):
    """Uniform noise, with a log-density of 0 (Theis et al. 2016)."""

    alpha: float = 1.0

    def draw(self, values: Tensor, noise: Noise, index: Tensor, counter: Tensor) -> tuple[Tensor, Tensor]:
        u = noise.uniform(Stream.DEQUANTISE, index, counter, values.shape[1:], torch.float64)
        return u, torch.zeros(len(u), dtype=u.dtype, device=u.device)


@dataclass(frozen=True)
class TruncatedNormal(Dequantiser):
    r"""Normal noise around the middle of the bin, truncated at its edges (Zheng et al. 2023).

    Args:
        std: s, the standard deviation before truncation, in bin widths. Far below 1/2 almost nothing is cut off; far
            above it the noise is uniform.
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
        """The noise with the standard deviation that the process has added to data at `t_min`."""
        low = float64(process.t_min)
        alpha = process.alpha(low).item()
        return cls(process.sigma(low).item() / (alpha * scaling.bins[0]), alpha)

    @property
    def tau(self) -> float:
        r""":math:`\tau`, the point of truncation of the standard normal."""
        return 0.5 / self.std

    @property
    def mass(self) -> float:
        r"""Z, the probability of the normal within its bin."""
        return math.erf(self.tau / math.sqrt(2.0))

    def log_density(self, u: Tensor) -> Tensor:
        r""":math:`\log q(u)` of each dimension, in nats."""
        z = (u - 0.5) / self.std
        return -0.5 * z.square() - math.log(math.sqrt(2.0 * math.pi) * self.std * self.mass)

    def entropy(self, dims: int) -> float:
        """The entropy H in D = `dims` dimensions, in nats: minus the mean of the log-density that `draw` returns."""
        cut = self.tau * math.exp(-0.5 * self.tau**2) / (math.sqrt(2.0 * math.pi) * self.mass)
        return dims * (math.log(math.sqrt(2.0 * math.pi * math.e) * self.std * self.mass) - cut)

    def draw(self, values: Tensor, noise: Noise, index: Tensor, counter: Tensor) -> tuple[Tensor, Tensor]:
        uniform = noise.uniform(Stream.DEQUANTISE, index, counter, values.shape[1:], torch.float64)
        # Symmetric about the middle, so that both tails are precise.
        z = math.sqrt(2.0) * torch.erfinv((2.0 * uniform - 1.0) * self.mass)
        u = 0.5 + self.std * z.clamp(-self.tau, self.tau)
        return u, sum_event(self.log_density(u))


@dataclass(frozen=True)
class States:
    r"""Data values as a model scores them.

    Attributes:
        x: states in the model's range, with shape (B, \*).
        log_weight: the change from the log-density of the states to that of the data in nats, float64 with shape (B,):
            the log-determinant of the scaling for continuous data. For discrete data it is the w of the dequantisation,
            and the mean of :math:`\log p(x) + w` is a lower bound on :math:`\log P(v)`.
        keys: the keys of the probes, int64 with shape (B,): every repeat has keys of its own.
    """

    x: Tensor
    log_weight: Tensor
    keys: Tensor

    def log_likelihood(self, nats: Tensor) -> Tensor:
        """The log-density of the states as that of the data, in nats, float64 on the CPU with shape (B,)."""
        return nats.double().cpu() + self.log_weight

    def bits_per_dim(self, nats: Tensor) -> Tensor:
        """The log-density of the states as bits/dim of the data, float64 on the CPU with shape (B,)."""
        return nats_to_bits(self.log_likelihood(nats), event_dims(self.x))


Dequantised = States  # the name of version 0.1.0


def dequantise(
    dequantiser: Dequantiser,
    values: Tensor,
    scaling: Scaling,
    *,
    seed: int = 0,
    index: Tensor | None = None,
    repeat: int = 0,
    dtype: torch.dtype = torch.float32,
) -> States:
    r"""Draws dequantised states once; gradients flow to the parameters of the dequantiser.

    Args:
        dequantiser: the distribution of the noise.
        values: levels, with shape (B, \*).
        scaling: the scaling of discrete data.
        seed: the seed of the noise.
        index: the positions of the samples in their data set, int64 with shape (B,), which key the noise; 0 to B - 1 by
            default.
        repeat: the number of the draw.
        dtype: the dtype of the states.

    Raises:
        ValueError: if the data is continuous, or a value is not a level.
    """
    if scaling.levels is None:
        raise ValueError(f"expected a scaling with levels: continuous data is not dequantised, got {dequantiser}")
    scaling.check(values)
    index = sample_index(values, index)
    u, log_q = dequantiser.draw(values, Noise(seed), index, torch.full_like(index, repeat))
    x = dequantiser.alpha * scaling.to_model(values, u, dtype=dtype)
    dims = event_dims(values)
    log_weight = dims * math.log(dequantiser.alpha) + scaling.log_det(dims) - log_q
    return States(x, log_weight, repeat_key(index, repeat))


def states(
    denoiser: Denoiser,
    scaling: Scaling,
    values: Tensor,
    *,
    dequantiser: Dequantiser | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    repeat: int = 0,
) -> States:
    r"""The states, log-weights and keys of data values; everything that scores data starts here.

    Args:
        denoiser: the model, whose dtype and device the states get.
        scaling: the scaling of the values.
        values: data values as the data set gives them, with shape (B, \*).
        dequantiser: the noise for discrete data; :class:`UniformDequantiser` by default.
        seed: the seed of the dequantisation.
        index: the positions of the samples in their data set, int64 with shape (B,); 0 to B - 1 by default.
        repeat: the number of the draw of dequantisation noise and probes.

    Raises:
        ValueError: if the values are not data values of this scaling, or `dequantiser` is given for continuous data.
    """
    reference, values = state_like(denoiser), numbers_of("data values", values).cpu()
    index = sample_index(values, index)
    if scaling.levels is None and dequantiser is None:
        x = scaling.to_model(values, dtype=reference.dtype).to(reference.device)
        log_weight = torch.full((len(x),), scaling.log_det(event_dims(x)), dtype=torch.float64, device="cpu")
        return States(x, log_weight, repeat_key(index, repeat))
    rule = UniformDequantiser() if dequantiser is None else dequantiser
    with exact_float32():  # learned noise comes from a network
        draw = dequantise(rule, values, scaling, seed=seed, index=index, repeat=repeat, dtype=reference.dtype)
    return replace(draw, x=draw.x.to(reference.device))


def importance_weighted(log_weights: Tensor) -> Tensor:
    r""":math:`\log \frac1K \sum_k e^{w_k}` along the first axis: (K, B) -> (B,), in nats."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))


@dataclass(frozen=True)
class DiscreteLogProb:
    """A lower bound on the log-probability of levels.

    Attributes:
        nats: the bound of all draws together, with shape (B,).
        draws: the bound of each single draw, with shape (K, B).
        standard_error: of the mean of `draws`, with shape (B,); NaN for a single draw.
        nfe: network calls, int64 with shape (B,).
        bits_per_dim: `nats` as an upper bound on bits per dimension, with shape (B,).
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
    solver: Solver | None = None,
    trace: Trace | None = None,
    condition: Mapping[str, Tensor] | None = None,
    prior: PriorDensity | None = None,
    atol: float | None = None,
) -> DiscreteLogProb:
    r"""A lower bound on the log-probability of levels, by the density of the probability flow.

    Args:
        denoiser: the model.
        values: levels, with shape (B, \*).
        scaling: the scaling of discrete data.
        dequantiser: the noise; :class:`UniformDequantiser` by default.
        draws: K, the number of draws, each with a run of :func:`sde.log_prob`.
        weighted: True for the importance-weighted bound of the draws, False for their mean. With an estimated trace the
            weighted bound is biased upwards; with :class:`sde.ExactTrace` it is a bound.
        seed: the seed of dequantisation and probes.
        index: as in :func:`dequantise`.
        repeat: the number of the K draws.
        solver, trace, condition, prior, atol: as in :func:`sde.log_prob`.

    Raises:
        ValueError: if `draws` is not positive, or :func:`dequantise` or :func:`sde.log_prob` refuses an argument.
    """
    check_count("discrete_log_prob", "draws", draws)
    rule = UniformDequantiser() if dequantiser is None else dequantiser
    flow: dict[str, Any] = {"solver": solver, "trace": trace, "condition": condition, "prior": prior, "atol": atol}
    bounds, nfe = [], torch.zeros(len(values), dtype=torch.int64, device="cpu")
    for k in range(repeat * draws, (repeat + 1) * draws):
        with torch.no_grad():
            s = states(denoiser, scaling, values, dequantiser=rule, seed=seed, index=index, repeat=k)
        r = log_prob(denoiser, s.x, seed=seed, index=s.keys, **flow)
        bounds.append(s.log_likelihood(r.nats))
        nfe = nfe + r.nfe.cpu()
    each = torch.stack(bounds)
    nats = importance_weighted(each) if weighted else each.mean(0)
    error = each.std(0) / math.sqrt(draws) if draws > 1 else torch.full_like(nats, math.nan)
    return DiscreteLogProb(nats, each, error, nfe, nats_to_bits(nats, event_dims(values)))
