"""Measurements of inverse problems, and denoisers of the posterior given one."""

__all__ = [
    "DPS",
    "MMPS",
    "Blur",
    "Compose",
    "Diagonalised",
    "DiffPIR",
    "Downsample",
    "Fourier",
    "Grayscale",
    "Identity",
    "Linear",
    "LinearOperator",
    "Mask",
    "Matrix",
    "Measurement",
    "NormalVariance",
    "Operator",
    "PiGDM",
    "PilotCovariance",
    "PilotVariance",
    "PosteriorDenoiser",
    "ReflectingBlur",
    "SeparableBlur",
    "Unguided",
    "Variance",
    "VarianceGrid",
    "check_adjoint",
]

from .diffpir import DiffPIR
from .dps import DPS
from .entries import Grayscale, Identity, Mask
from .matrix import Matrix
from .measurement import Measurement
from .mmps import MMPS
from .operator import Compose, Diagonalised, Linear, LinearOperator, Operator, check_adjoint
from .pigdm import PiGDM
from .posterior import PosteriorDenoiser
from .spatial import Blur, Downsample, Fourier, ReflectingBlur, SeparableBlur
from .unguided import Unguided
from .variance import NormalVariance, PilotCovariance, PilotVariance, Variance, VarianceGrid
