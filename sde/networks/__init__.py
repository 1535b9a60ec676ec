r"""Networks: plain torch modules that map noisy data and a noise level to something shaped like the data.

Every network is called as `net(x, noise_level, **condition)`, with `x` of shape (B, *) and `noise_level` of shape
() or (B,), and returns a tensor like `x`. A network knows no process: what the noise level is (a time, a step
number, log sigma) and what the output means (noise, clean data, velocity) is decided by the denoiser that holds
it. The one condition is `label`, an int64 tensor of shape () or (B,), where the network was built with `classes`;
a label equal to `classes` means "no label", the null class of classifier-free guidance (Ho and Salimans 2022,
arXiv:2207.12598).

A fresh network returns zeros: its last layer starts at zero. In evaluation, sample i of the output depends on
sample i of the input only. Every network can be differentiated twice and in forward mode, and computes its
embedding of the noise level once per call, for a single row where the noise level is a scalar.
"""

from __future__ import annotations

__all__ = ["MLP", "Fourier", "LevelEmbedding", "Positional", "UNet"]

from .embedding import Fourier, LevelEmbedding, Positional
from .mlp import MLP
from .unet import UNet
