"""Digits: 1,797 handwritten digits of 8x8 pixels with 17 grey levels, small enough for a CPU.

E. Alpaydin & C. Kaynak, "Optical Recognition of Handwritten Digits" (UCI Machine Learning Repository, 1998), in the
copy that scikit-learn ships. A pixel counts the ink in a 4x4 block of the scanned bitmap: 0 to 16, hence 17 levels.
"""

from __future__ import annotations

__all__ = ["digits"]

import numpy as np
import torch

from .dataset import DataSet, Split, hold_out
from .scaling import Scaling


def digits(*, low: float = -1.0, high: float = 1.0, holdout: float = 0) -> DataSet:
    """Scikit-learn's digits, with event shape (1, 8, 8), 17 levels and labels 0 to 9.

    The split is fixed: of `numpy.random.RandomState(0).permutation(1797)`, the first 1,500 are the training set, in
    that order, and the other 297 are the test set.

    Args:
        low: lower end of the model's range.
        high: upper end of the model's range.
        holdout: part of the training set to hold out as `valid`, as in `hold_out`.
    """
    # Imported here because scikit-learn takes longer to import than the rest of this package, which does not need it.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    permutation = np.random.RandomState(0).permutation(1797)
    values = torch.from_numpy(bunch.images.astype(np.uint8)[permutation, None])
    labels = torch.from_numpy(bunch.target.astype(np.int64)[permutation])
    train, valid = hold_out(Split(values[:1500], labels[:1500]), holdout)
    return DataSet("digits", Scaling.interval(17, low, high), train, Split(values[1500:], labels[1500:]), valid)
