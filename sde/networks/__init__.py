r"""Networks: plain torch modules that map noisy data and a noise level to something shaped like the data.

Every network is called as `net(x, noise_level, **condition)`, with `x` of shape (B, *) and `noise_level` of shape
() or (B,), and returns a tensor like `x`. A network knows no process: what the noise level is (a time, a step
number, log sigma) and what the output means (noise, clean data, velocity) is decided by the denoiser that holds
it. The conditions are `label`, an int64 tensor of shape () or (B,), where the network was built with `classes`;
a label equal to `classes` means "no label", the null class of classifier-free guidance (Ho and Salimans 2022,
arXiv:2207.12598); and in a U-Net built with `augment` the vectors that describe how the data was augmented.

A fresh network returns zeros: its last layer starts at zero. In evaluation, sample i of the output depends on
sample i of the input only. Every network can be differentiated twice and in forward mode, and computes its
embedding of the noise level once per call, for a single row where the noise level is a scalar.
"""

from __future__ import annotations

__all__ = [
    "FIR",
    "MLP",
    "Box",
    "DiT",
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
    "UNet",
]

from .dit import DiT
from .embedding import Fourier, LevelEmbedding, Positional
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
