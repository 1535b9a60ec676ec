r"""Sliced score matching: no knowledge of the perturbation kernel, and one random projection of the Jacobian.

Song, Garg, Shi and Ermon, Sliced Score Matching: A Scalable Approach to Density and Score Estimation, 2019,
https://arxiv.org/abs/1905.07088, equation 8 (the form with reduced variance); Song et al. 2021, equation 19.
"""

from __future__ import annotations

__all__ = ["SlicedScoreMatching"]

from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers import Denoiser, Prediction
from ..noise import Noise, Stream
from ..shapes import event_dims, expand, working
from ..trace import Probes
from .losses import Objective, per_sample
from .times import Times, UniformTimes
from .weightings import Simple, Weighting


@dataclass(frozen=True)
class SlicedScoreMatching(Objective):
    r"""The sliced score-matching loss of perturbed data, with a vector v of random signs:

    .. math:: w(t)\, \Big( \|\hat\varepsilon(x_t, t)\|^2
        - 2 \sigma_t\, v^\top \frac{\partial \hat\varepsilon(x_t, t)}{\partial x_t} v \Big)
        = w(t)\, \sigma_t^2\, \Big( \|s\|^2 + 2\, v^\top \frac{\partial s}{\partial x_t} v \Big) .

    By partial integration its expectation is that of :math:`w(t) \|\hat\varepsilon - E[z | x_t]\|^2`, less
    :math:`w(t) E\|E[z | x_t]\|^2`, which no denoiser changes: the same minimum as denoising score matching with the
    same weighting. The latter has less variance and costs no derivative; this loss does not use the noise that was
    added. It takes a forward call and a vector-Jacobian product, and training differentiates both. The signs are keyed
    by the digits of u, which differ from sample to sample and from step to step.

    Args:
        weighting: the weighting of the squared error of the noise; :class:`Simple` is 1.
        times: the distribution of training times.
        mean: whether to average over the dimensions of a sample; False gives half their sum.
    """

    weighting: Weighting = Simple()
    times: Times = UniformTimes()
    mean: bool = True

    def __call__(self, denoiser: Denoiser, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
        process, x0 = denoiser.process, working(x0)
        key = u.double().contiguous().view(torch.int64)
        v = Noise(0).rademacher(Stream.PROBE, key, torch.zeros_like(key), x0.shape[1:], x0.dtype)
        t, factor = self.times(process, u)
        mean, std = process.marginal(x0, t)
        noise, slope = Probes(v[None])(lambda x: denoiser.noise(x, t, **condition), mean + expand(std, x0) * working(z))
        slope = slope[:, 0] / event_dims(x0) if self.mean else 0.5 * slope[:, 0]
        loss = per_sample(noise.square(), self.mean) - 2.0 * std * slope
        return self.weighting.weight(Prediction.NOISE, process, t) * factor * loss
