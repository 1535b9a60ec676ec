"""Digits: the fixed split, its levels, and a validation set that leaves the test set alone."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from sde.data import Scaling, digits


def test_split_is_the_given_permutation() -> None:
    data, bunch = digits(), load_digits()
    permutation = np.random.RandomState(0).permutation(1797)
    for split, index in ((data.train, permutation[:1500]), (data.test, permutation[1500:])):
        assert split.values.shape == (len(index), 1, 8, 8)
        assert np.array_equal(split.values[:, 0].numpy(), bunch.images[index])
        assert split.labels is not None
        assert np.array_equal(split.labels.numpy(), bunch.target[index])
    assert (len(data.train), len(data.test)) == (1500, 297)


def test_what_it_is() -> None:
    data = digits(low=0.0, high=1.0)
    assert data.name == "digits"
    assert data.shape == (1, 8, 8)
    assert data.classes == 10
    assert data.valid is None
    assert data.train.values.dtype == torch.uint8
    assert data.scaling == Scaling.interval(17, 0.0, 1.0)
    assert digits().scaling == Scaling.interval(17, -1.0, 1.0)


def test_fingerprint_is_known() -> None:
    """The content of a published data set, in a published order, in our definition of the fingerprint."""
    assert digits().fingerprint == digits(low=0.0).fingerprint
    assert digits().fingerprint == "70c56d00107bf10c7a79810d5e00d91c80920539b0d0ac8d6ab2cc7532a5a745"


def test_holdout() -> None:
    whole, data = digits(), digits(holdout=150)
    assert data.valid is not None
    assert (len(data.train), len(data.valid)) == (1350, 150)
    assert data.test.fingerprint == whole.test.fingerprint
    both = torch.cat([data.train.values, data.valid.values]).flatten(1).sort(0).values
    assert torch.equal(both, whole.train.values.flatten(1).sort(0).values)
    assert data.split("valid").fingerprint == digits(holdout=0.1).split("valid").fingerprint
