"""The keys of the scripts that train classifiers (:mod:`schema`)."""

from __future__ import annotations

from typing import Annotated

from keys import Checkpoint, Count, Device, Fraction, Keys, Positive, Seed, Weights

from sde.data import DataSet
from sde.instantiate.annotations import Limit


class FeatureClassifier(Keys):
    """`feature_classifier.py`."""

    trust: list[str]
    steps: Count
    batch_size: Count
    lr: Positive
    width: Annotated[int, Limit(">=", 8)]
    n_features: Count
    seed: Seed
    device: Device
    out: Weights | None
    overwrite: bool
    data: DataSet


class NoiseAware(Keys):
    """`noise_classifier.py`."""

    trust: list[str]
    ckpt: Checkpoint
    ema: str | None
    steps: Count
    batch_size: Count
    lr: Positive
    width: Count
    depth: Count
    dropout: Fraction
    seed: Seed
    device: Device
    out: Weights | None
    overwrite: bool
    data: DataSet | None = None
