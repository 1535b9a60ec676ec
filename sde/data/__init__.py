"""Data sets of raw values, the affine map from these values to the model's range, and the encoders of captions."""

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
    "Augmentation",
    "HorizontalFlip",
    "Geometric",
    "digits",
    "false_colours",
    "arrays",
    "images",
    "audio",
    "mnist",
    "fashion_mnist",
    "cifar10",
    "celeba",
    "huggingface",
    "HuggingFaceRows",
    "moons",
    "checkerboard",
    "swissroll",
    "rings",
    "gaussians",
    "Words",
    "Bytes",
    "Transformers",
]

from .arrays import arrays
from .audio import audio
from .augmentation import Augmentation, Geometric, HorizontalFlip
from .captions import Bytes, Transformers, Words
from .dataset import DataSet, Split, hold_out, split_off
from .digits import digits
from .false_colours import false_colours
from .huggingface import HuggingFaceRows, huggingface
from .images import images
from .scaling import Scaling
from .source import Conditioned, Source, UnreadableSample
from .standard import celeba, cifar10, fashion_mnist, mnist
from .toys import checkerboard, gaussians, moons, rings, swissroll
