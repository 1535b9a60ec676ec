"""Features: what sets of items are compared in. A name, a fingerprint, and a map from items to vectors (N, D)."""

__all__ = [
    "ClassifierNetwork",
    "Extracted",
    "Features",
    "ModuleFeatures",
    "RawValues",
    "accuracy",
    "as_items",
    "dinov2",
    "efficientnet_lite0",
    "extract",
    "fit_classifier",
    "inception",
    "load_program",
    "resize",
]

from .base import Extracted, Features, as_items, extract
from .classifier import ClassifierNetwork, accuracy, fit_classifier
from .network import ModuleFeatures, load_program, resize
from .pretrained import dinov2, efficientnet_lite0, inception
from .raw import RawValues
