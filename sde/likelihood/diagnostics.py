r"""Diagnostics: three checks of a likelihood that need no exact answer.

**Round trip.** The probability flow is invertible: data -> latent -> data is the identity up to the error of the
solver. The `error` of a :class:`RoundTrip` is :math:`\|x' - x\| / \sqrt D` in the model's range.

**Forward and backward.** The log-densities computed on the way to the latent and on the way back,

.. math::
    \log p^\to = \log p_T(z) + \int_{t_{\min}}^{t_{\max}} \nabla \cdot \tilde f\, dt, \qquad
    \log p^\gets = \log p_T(z) + \int_{t_{\max}}^{t_{\min}} (-\nabla \cdot \tilde f)\, dt,

are equal with an exact solver. This holds for estimated divergences too, since both use the same probes. Both checks
measure the error of the solver and say nothing about the model.

**Calibration of the denoiser.** With :math:`x_t = \alpha_t x_0 + \sigma_t z`, the error of the posterior mean
:math:`\hat\varepsilon = E[z | x_t]` is orthogonal to the prediction, and hence

.. math::
    \underbrace{\tfrac1D E \| z - \hat\varepsilon \|^2}_{\text{measured}}
    = \underbrace{\tfrac1D E \big[ \|z\|^2 - \|\hat\varepsilon\|^2 \big]}_{\text{predicted}}
    \qquad \text{for every } t.

The divergence in the likelihood contains the same quantity: by Stein's identity
:math:`\sigma_t E[\nabla \cdot \hat\varepsilon] = E[z \cdot \hat\varepsilon]` for any network, which is
:math:`E \|\hat\varepsilon\|^2` for a calibrated one. The gap, measured minus predicted,

.. math:: \tfrac2D E \big[ \hat\varepsilon \cdot (\hat\varepsilon - z) \big],

is positive where the prediction is too large, as in an overfitted network, and negative where it is too small. With a
gap of more than about three standard errors over samples, the scores at that time are miscalibrated.

Chen et al. 2018, https://arxiv.org/abs/1806.07366; Efron, Tweedie's Formula and Selection Bias, 2011,
https://doi.org/10.1198/jasa.2011.tm11181; Stein, Estimation of the Mean of a Multivariate Normal Distribution, 1981,
https://doi.org/10.1214/aos/1176345632.
"""

from __future__ import annotations

__all__ = ["Calibration", "RoundTrip", "calibration", "round_trip"]

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Conditioned, Denoiser
from ..noise import Noise, sample_index
from ..runtime import exact_float32
from ..sampling import evaluating
from ..shapes import check_count, event_dims, expand, float64, recording, sum_event, working
from ..solvers import Solver
from ..trace import Trace
from .bounds import normal_like
from .flow import DensityFlow, default_solver, last_state, log_prob, tolerance


@dataclass(frozen=True)
class RoundTrip:
    """The result of integrating data to the latent and back.

    Attributes:
        error: the root mean square difference per dimension of a sample and its reconstruction, with shape (B,).
        forward: the log-density from the way to the latent, in nats, with shape (B,).
        backward: the log-density from the way back, in nats, with shape (B,).
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
            f"round trip of {len(difference)} samples, {self.nfe.double().mean().item():.1f} network calls each: "
            f"error per dimension {self.error.double().square().mean().sqrt().item():.2e} (root mean square), "
            f"{self.error.max().item():.2e} (largest); log p backward - forward {root:.2e} nats (root mean square), "
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
    progress: Callable[[float], object] | None = None,
) -> RoundTrip:
    r"""Encodes data and decodes it again, with the log-density along both ways.

    Args:
        denoiser: the model.
        x: data in the model's range, with shape (B, \*).
        solver, trace, seed, index, condition, atol: as in :func:`sde.log_prob`; both ways use the same probes.
        progress: called after every step with the fraction of the work that is done.
    """
    report = (lambda done: None) if progress is None else progress
    process, solver = denoiser.process, default_solver() if solver is None else solver
    atol = tolerance(solver, event_dims(x), atol)
    flow: dict[str, Any] = {"trace": trace, "seed": seed, "index": index, "condition": condition, "atol": atol}
    with exact_float32(), recording(False), evaluating(denoiser):
        forward = log_prob(denoiser, x, solver=solver, guided=True, progress=lambda done: report(0.5 * done), **flow)
        backward = DensityFlow(denoiser, forward.latent, **flow)
        way = process.t_max, process.t_min
        states = solver.trajectory(backward.dynamics, backward.start, None, *way)
        back, change = last_state(states, process, *way, lambda done: report(0.5 + 0.5 * done))
        error = (sum_event((back - x).square()) / event_dims(x)).sqrt()
        return RoundTrip(error, forward.nats, forward.prior + change.mean(1), forward.nfe + backward.nfe)


@dataclass(frozen=True)
class Calibration:
    """The error of the denoiser at one time, per dimension, in units of the noise's variance.

    Attributes:
        t: the time.
        log_snr: the log signal-to-noise ratio at that time.
        measured: the mean square error of the predicted noise.
        predicted: the error that follows from the size of the prediction if the denoiser is calibrated.
        standard_error: of `gap`, over samples; NaN for a single sample.
    """

    t: float
    log_snr: float
    measured: float
    predicted: float
    standard_error: float

    @property
    def gap(self) -> float:
        """The measured minus the predicted error."""
        return self.measured - self.predicted

    @property
    def z(self) -> float:
        """The gap in standard errors, about standard normal for a calibrated denoiser."""
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
        times: the number of times.
        seed: the seed of the noise.
        index: the positions of the samples in their data set, int64 with shape (B,), which key the noise.
        condition: tensors of leading size B, or scalars, passed to the denoiser by name.

    Returns:
        A generator of the calibration at each time.
    """
    check_count("calibration", "times", times, 2)
    if len(x0) == 0:
        raise ValueError("calibration needs at least one sample, got 0 samples")
    process, x0 = denoiser.process, working(x0)
    ends = float64([process.t_min, process.t_max])
    high, low = process.log_snr(ends).tolist()
    inner = process.time(torch.linspace(high, low, times, dtype=torch.float64, device="cpu")[1:-1])
    index = sample_index(x0, index)
    conditioned = Conditioned(denoiser, condition, torch.zeros(len(x0), dtype=torch.int64, device=x0.device))

    def each() -> Iterator[Calibration]:
        for k, t in enumerate(torch.cat([ends[:1], inner, ends[1:]])):
            z = normal_like(x0, Noise(seed), index, k)
            mean, std = process.marginal(x0, t)
            with exact_float32(), torch.no_grad(), evaluating(denoiser):
                prediction = conditioned.noise(mean + expand(std, z) * z, t).double()
            measured = sum_event((z - prediction).square()) / event_dims(z)
            predicted = sum_event(z.double().square() - prediction.square()) / event_dims(z)
            spread = (measured - predicted).std().item() if len(z) > 1 else math.nan
            numbers = (measured.mean().item(), predicted.mean().item(), spread / math.sqrt(len(z)))
            yield Calibration(t.item(), process.log_snr(t).item(), *numbers)

    return each()
