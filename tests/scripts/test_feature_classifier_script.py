"""The command that trains a classifier for features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.commands import files, here, refused

from sde.evaluation import load_classifier


def test_it_trains_and_stores_and_replaces_nothing_else(tmp_path: Path) -> None:
    command = ("width=8", "steps=3", "device=cpu")
    first = here(tmp_path, "feature_classifier", *command)
    assert first.code == 0, first.err
    assert "of the 297 test items; wrote runs/classifiers/digits.pt" in first.out
    features = load_classifier(tmp_path / "runs" / "classifiers" / "digits.pt")
    before = files(tmp_path)
    assert here(tmp_path, "feature_classifier", *command).code == 0  # the same settings
    assert load_classifier(tmp_path / "runs" / "classifiers" / "digits.pt").fingerprint == features.fingerprint
    refused(here(tmp_path, "feature_classifier", *command, "seed=1"), "overwrite=true")
    assert files(tmp_path).keys() == before.keys()
    np.savez(tmp_path / "a.npz", x_train=np.zeros((4, 6), np.uint8), x_test=np.zeros((4, 6), np.uint8))
    refused(here(tmp_path, "feature_classifier", "data=arrays", "data.path=a.npz"), "a has no labels")


@pytest.mark.slow
def test_the_default_recognises_the_digits(tmp_path: Path) -> None:
    result = here(tmp_path, "feature_classifier", "device=cpu")
    assert float(result.out.split("recognises ")[1].split()[0]) >= 0.97, result.out
