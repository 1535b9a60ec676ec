r"""Networks: plain torch modules that map noisy data and a noise level to an output with the shape of the data.

Every network is called as `net(x, noise_level, **condition)`, with `x` of shape (B, *) and `noise_level` of shape () or
(B,), and returns a tensor with the shape of `x`. A network is independent of the process: the denoiser around it
decides what the noise level is (a time, a step number, log sigma) and what the output means (noise, clean data,
velocity).

The conditions: `label`, int64 with shape () or (B,), is used by networks built with `classes`; a label equal to
`classes` means "no label", the null class of classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598).
`embedding`, `tokens` with `tokens_mask`, and `image` are used by networks built with `conditions`; see
:mod:`sde.networks.conditions`. `augment` is used by a U-Net built with `augment`, and describes how the data was
augmented.

A new network returns zeros, because its last layer is initialised to zero. In evaluation mode, sample i of the output
depends only on sample i of the input. Every network can be differentiated twice and in forward mode. It embeds the
noise level once per call, in a single row if the noise level is a scalar.
"""

from __future__ import annotations

__all__ = [
    "FIR",
    "MLP",
    "Box",
    "Conditions",
    "DiT",
    "Encoder",
    "Filter",
    "Filtered",
    "FilteredConv",
    "Fourier",
    "InResidual",
    "InputPyramid",
    "InputResidual",
    "InputSkip",
    "LevelEmbedding",
    "Middle",
    "NoInputs",
    "NoOutputs",
    "Normalisation",
    "OutputPyramid",
    "OutputResidual",
    "OutputSkip",
    "Positional",
    "Resampling",
    "StridedConv",
    "Taken",
    "UNet",
]

from .conditions import Conditions, Taken
from .dit import DiT
from .embedding import Fourier, LevelEmbedding, Positional
from .encoder import Encoder
from .filters import FIR, Box, Filter
from .layers import Normalisation
from .mlp import MLP
from .pyramids import (
    InputPyramid,
    InputResidual,
    InputSkip,
    NoInputs,
    NoOutputs,
    OutputPyramid,
    OutputResidual,
    OutputSkip,
)
from .resampling import Filtered, FilteredConv, InResidual, Resampling, StridedConv
from .unet import Middle, UNet
