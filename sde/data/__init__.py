"""Data sets of raw values, and the affine map between them and the range in which a model works."""

from __future__ import annotations

__all__ = [
    "Scaling",
    "DataSet",
    "Split",
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

from sde.data.arrays import arrays
from sde.data.dataset import DataSet, Split, hold_out, split_off
from sde.data.digits import digits
from sde.data.images import images
from sde.data.scaling import Scaling
from sde.data.toys import checkerboard, gaussians, moons, rings, swissroll
