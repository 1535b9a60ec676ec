r"""Is a likelihood to be trusted? Three checks that need no exact answer.

**Round trip.** The probability flow is invertible: data -> latent -> data is the identity up to the error of the
solver. :attr:`RoundTrip.error` is :math:`\|x' - x\| / \sqrt D` in the model's range.

**Forward and backward.** The density that is computed on the way to the latent and the one computed on the way back,

.. math::
    \log p^\to = \log p_T(z) + \int_{t_{\min}}^{t_{\max}} \nabla \cdot \tilde f\, dt, \qquad
    \log p^\gets = \log p_T(z) + \int_{t_{\max}}^{t_{\min}} (-\nabla \cdot \tilde f)\, dt,

agree with an exact solver, also where the divergence is estimated, as both take the same probes. Both checks tell the
error of the solver, and nothing of the model.

**Calibration of the denoiser.** With :math:`x_t = \alpha_t x_0 + \sigma_t z` a denoiser that gives the posterior mean,
:math:`\hat\varepsilon = E[z | x_t]`, has an error that is orthogonal to its answer, and hence

.. math::
    \underbrace{\tfrac1D E \| z - \hat\varepsilon \|^2}_{\text{measured}}
    = \underbrace{\tfrac1D E \big[ \|z\|^2 - \|\hat\varepsilon\|^2 \big]}_{\text{predicted}}
    \qquad \text{for every } t.

What it predicts of its own error is also what the divergence in the likelihood says: by Stein's identity
:math:`\sigma_t E[\nabla \cdot \hat\varepsilon] = E[z \cdot \hat\varepsilon]` for any network, which for a calibrated
one is :math:`E \|\hat\varepsilon\|^2`. A gap, measured less predicted,

.. math:: \tfrac2D E \big[ \hat\varepsilon \cdot (\hat\varepsilon - z) \big],

is positive where the network answers too much, overfitted or too sharp, and negative where it answers too little. It is
given with its standard error over samples: beyond some three of them the scores at that time are miscalibrated.

Chen et al. 2018, https://arxiv.org/abs/1806.07366; Efron, Tweedie's Formula and Selection Bias, 2011,
https://doi.org/10.1198/jasa.2011.tm11181; Stein, Estimation of the Mean of a Multivariate Normal Distribution, 1981,
https://doi.org/10.1214/aos/1176345632.
"""

from __future__ import annotations

__all__ = ["Calibration", "RoundTrip", "calibration", "round_trip"]

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Conditioned, Denoiser
from ..dynamics import Reverse, WithLogDensity
from ..noise import Noise, Stream
from ..runtime import exact_float32
from ..sampling import evaluating
from ..shapes import event_dims, expand, sum_event
from ..solvers import Solver
from ..trace import Hutchinson, Trace
from .flow import default_solver, log_prob


@dataclass(frozen=True)
class RoundTrip:
    """Data to latent and back.

    Attributes:
        error: the root mean square difference of a sample from what came back, per dimension, with shape (B,).
        forward: the log-density along the way to the latent, in nats, with shape (B,).
        backward: the log-density along the way back, in nats, with shape (B,).
        nfe: network calls of both ways, int64 with shape (B,).
    """

    error: Tensor
    forward: Tensor
    backward: Tensor
    nfe: Tensor

    def __str__(self) -> str:
        difference = (self.backward - self.forward).double()
        root = difference.square().mean().sqrt().item()
        return (
            f"{len(difference)} samples there and back with {self.nfe.double().mean().item():.1f} network calls each: "
            f"error per dimension {self.error.double().square().mean().sqrt().item():.2e} (root mean square), "
            f"{self.error.max().item():.2e} (largest); log p backward less forward {root:.2e} nats (root mean square), "
            f"{difference.abs().max().item():.2e} (largest)"
        )


def round_trip(
    denoiser: Denoiser,
    x: Tensor,
    *,
    solver: Solver | None = None,
    trace: Trace | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    condition: Mapping[str, Tensor] | None = None,
    atol: float | None = None,
) -> RoundTrip:
    r"""Encodes data and decodes it again, with the log-density along both ways.

    Args:
        denoiser: the model.
        x: data in the model's range, with shape (B, \*).
        solver: as in :func:`sde.log_prob`, like the arguments that follow.
        trace: one Rademacher probe by default, the same on both ways.
        seed: the seed of the probes.
        index: the positions that key the probes.
        condition: what the denoiser is told.
        atol: the absolute tolerance of the log-density.
    """
    process = denoiser.process
    solver = default_solver(x.dtype) if solver is None else solver
    trace = Hutchinson() if trace is None else trace
    index = torch.arange(len(x)) if index is None else index.cpu()
    settings: dict[str, Any] = {"solver": solver, "trace": trace, "condition": condition, "atol": atol}
    with exact_float32(), torch.no_grad(), evaluating(denoiser):
        there = log_prob(denoiser, x, seed=seed, index=index, **settings)
        nfe = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        probes = trace.bind(Noise(seed), index.to(x.device), x)
        dynamics = WithLogDensity(Reverse(Conditioned(denoiser, condition, nfe), eta=0.0), probes, atol)
        start = torch.zeros(len(x), probes.estimates, dtype=x.dtype, device=x.device)
        back, change = solver(dynamics, (there.latent, start), start=process.t_max, stop=process.t_min)
    error = (sum_event((back - x).square()) / event_dims(x)).sqrt()
    return RoundTrip(error, there.nats, there.prior + change.mean(1), there.nfe + nfe)


@dataclass(frozen=True)
class Calibration:
    """The error of the denoiser at one time, per dimension, in units of the noise's variance.

    Attributes:
        t: the time.
        log_snr: the log signal-to-noise ratio there.
        measured: the mean square error of the predicted noise.
        predicted: what the size of the prediction says that the error is.
        standard_error: of `gap`, over samples; NaN for a single one.
    """

    t: float
    log_snr: float
    measured: float
    predicted: float
    standard_error: float

    @property
    def gap(self) -> float:
        """Measured less predicted."""
        return self.measured - self.predicted

    @property
    def z(self) -> float:
        """The gap in standard errors: for a calibrated denoiser about a standard normal."""
        return self.gap / self.standard_error if self.standard_error > 0.0 else math.nan

    def __str__(self) -> str:
        return (
            f"{self.t:7.1e}  {self.log_snr:7.2f}  {self.measured:8.5f}  {self.predicted:9.5f}  "
            f"{self.gap:8.5f} +- {self.standard_error:.5f}   {self.z:5.1f}"
        )


def calibration(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    times: int = 16,
    seed: int = 0,
    index: Tensor | None = None,
    condition: Mapping[str, Tensor] | None = None,
) -> Iterator[Calibration]:
    r"""The calibration of the denoising error at times from `t_min` to `t_max`, even in the log-SNR.

    Args:
        denoiser: the model.
        x0: data that the model was not trained on, in the model's range, with shape (B, \*).
        times: how many times.
        seed: the seed of the noise.
        index: the positions of the samples in their data set, int64 with shape (B,), which key the noise.
        condition: what the denoiser is told.

    Returns:
        A generator of one time after another.
    """
    if type(times) is not int or times < 2 or len(x0) == 0:
        raise ValueError(f"expected times >= 2 and at least one sample, got times={times!r} and {len(x0)} samples")
    process = denoiser.process
    ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
    high, low = process.log_snr(ends).tolist()
    inner = process.time(torch.linspace(high, low, times, dtype=torch.float64)[1:-1])
    index = (torch.arange(len(x0)) if index is None else index).to(x0.device)
    nfe = torch.zeros(len(x0), dtype=torch.int64, device=x0.device)
    known = Conditioned(denoiser, condition, nfe)

    def each() -> Iterator[Calibration]:
        for k, t in enumerate(torch.cat([ends[:1], inner, ends[1:]])):
            z = Noise(seed).normal(Stream.PERTURB, index, torch.full_like(index, k), x0.shape[1:], x0.dtype)
            mean, std = process.marginal(x0, t)
            with exact_float32(), torch.no_grad(), evaluating(denoiser):
                answer = known.noise(mean + expand(std, z) * z, t).double()
            measured = sum_event((z - answer).square()) / event_dims(z)
            predicted = sum_event(z.double().square() - answer.square()) / event_dims(z)
            spread = (measured - predicted).std().item() if len(z) > 1 else math.nan
            numbers = (measured.mean().item(), predicted.mean().item(), spread / math.sqrt(len(z)))
            yield Calibration(t.item(), process.log_snr(t).item(), *numbers)

    return each()
