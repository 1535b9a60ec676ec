"""Data sets of raw values, and the affine map from these values to the model's range."""

from __future__ import annotations

__all__ = [
    "Scaling",
    "DataSet",
    "Split",
    "Source",
    "Conditioned",
    "UnreadableSample",
    "hold_out",
    "split_off",
    "digits",
    "arrays",
    "images",
    "moons",
    "checkerboard",
    "swissroll",
    "rings",
    "gaussians",
]

from .arrays import arrays
from .dataset import DataSet, Split, hold_out, split_off
from .digits import digits
from .images import images
from .scaling import Scaling
from .source import Conditioned, Source, UnreadableSample
from .toys import checkerboard, gaussians, moons, rings, swissroll
