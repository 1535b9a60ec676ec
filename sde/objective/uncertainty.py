r"""The learned uncertainty of the noise levels: a weighting that training finds.

Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024, section 2.2 and appendix B.3,
https://arxiv.org/abs/2312.02696; Kendall et al., Multi-Task Learning Using Uncertainty to Weigh Losses, 2018,
https://arxiv.org/abs/1705.07115.
"""

from __future__ import annotations

__all__ = ["LearnedUncertainty"]

import math

import torch
from torch import Tensor, nn

from ..denoisers import Denoiser
from ..noise import Noise, Stream
from ..shapes import check_count, event_dims
from .losses import DenoisingScoreMatching, Objective


class LearnedUncertainty(nn.Module, Objective):
    r"""Denoising score matching in which every noise level counts equally, whatever its error.

    With L the weighted mean error of a sample, the loss is

    .. math:: e^{-u(\lambda)} L + u(\lambda),

    the negative log-likelihood, up to a constant and a factor, of errors of variance :math:`e^u`. At its minimum over u
    the variance :math:`e^{u(\lambda)}` is the expectation of L at that noise level, so that all levels have the same
    weighted error. u is a linear function of Fourier features of :math:`\tfrac14 \log\tilde\sigma = -\lambda/8`, and
    begins at 0, where the loss is L.

    Its parameters are trained with the denoiser's: an optimiser for a loop of one's own takes those of both. They are
    no part of the model.

    Args:
        objective: the loss whose error is weighed; by default denoising score matching with its defaults.
        channels: the number of Fourier features.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, objective: DenoisingScoreMatching | None = None, channels: int = 128) -> None:
        super().__init__()
        check_count("LearnedUncertainty", "channels", channels)
        self.objective = DenoisingScoreMatching() if objective is None else objective
        # Fixed draws, so that every LearnedUncertainty has the same features.
        place = torch.arange(channels, device="cpu")
        zero = torch.zeros_like(place)
        self.register_buffer("frequencies", 2.0 * math.pi * Noise(0).normal(Stream.PERTURB, place, zero, ()))
        self.register_buffer("phases", 2.0 * math.pi * Noise(0).uniform(Stream.TIME, place, zero, ()))
        self.weights = nn.Parameter(torch.zeros(channels, device="cpu"))

    def log_variance(self, log_snr: Tensor) -> Tensor:
        r"""The logarithm u of the variance at some log-SNR, in its shape and dtype."""
        level = (-0.125 * log_snr).to(self.weights)[..., None]
        features = math.sqrt(2.0) * torch.cos(level * self.frequencies + self.phases)
        return ((features * self.weights).sum(-1) / math.sqrt(len(self.weights))).to(log_snr)

    def forward(self, denoiser: Denoiser, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
        t, factor, error = self.objective.weighted_error(denoiser, x0, u, z, **condition)
        value = self.log_variance(denoiser.process.log_snr(t))
        # With half the sum over the dimensions in place of their mean, u counts once for each of them.
        scale = 1.0 if self.objective.mean else 0.5 * event_dims(x0)
        return factor * (error * torch.exp(-value) + scale * value)
