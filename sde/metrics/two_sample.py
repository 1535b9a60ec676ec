r"""The classifier two-sample test: can a classifier tell samples from the reference?

A classifier is trained on half of both sets. On n items of the other half, equally many from each set, it is right with
an accuracy :math:`\hat a`, whose standard error is :math:`\sqrt{\hat a (1 - \hat a)/n}`. For equal distributions the
number of right answers is binomial with probability 1/2, **whatever the classifier**, which gives an exact p-value. An
accuracy of 1/2 means only that this classifier found no difference.

Lopez-Paz and Oquab 2017, https://arxiv.org/abs/1610.06545.
"""

from __future__ import annotations

__all__ = ["Classifier", "classifier_two_sample_test"]

import warnings
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..noise import Noise, Stream
from .estimate import Estimate, proportion
from .sets import Index, check_pair, index_pair, keyed_order


class Classifier(Protocol):
    """A classifier with the interface of scikit-learn, on NumPy arrays."""

    def fit(self, features: Any, labels: Any) -> Any:
        """Trains on features (N, D) and labels (N,), 0 for the reference and 1 for samples."""

    def predict(self, features: Any) -> Any:
        """The labels of features (N, D), with shape (N,)."""


def classifier_two_sample_test(
    samples: Tensor,
    reference: Tensor,
    *,
    classifier: Classifier | None = None,
    seed: int = 0,
    index: Index | None = None,
) -> Estimate:
    """The accuracy of a classifier on items it has not seen, with Wilson's interval and the binomial p-value.

    The larger set is reduced to the size of the smaller one. Features are standardised by the training half.

    Args:
        samples: features with shape (n, D), n >= 8.
        reference: features with shape (m, D), m >= 8.
        classifier: the classifier; by default scikit-learn's network with one hidden layer of 64, stopped early.
        seed: the seed of the split and of the default classifier.
        index: the indices of the items of both sets, int64 with shapes (n,) and (m,); positions by default.
    """
    check_pair("classifier_two_sample_test", samples, reference, 8)
    size = min(len(samples), len(reference))
    orders = [keyed_order(keys, seed, Stream.SPLIT)[:size] for keys in index_pair(samples, reference, index)]

    def half_of(part: slice) -> tuple[Tensor, Tensor]:
        """Items of both sets, one half in memory at a time, and their labels."""
        items = torch.cat([side[order[part]].double().cpu() for side, order in zip((samples, reference), orders)])
        return items, torch.arange(2, device="cpu").flip(0).repeat_interleave(len(items) // 2)

    train, labels = half_of(slice(size // 2))
    mean, scale = train.mean(0), train.std(0)
    scale[scale == 0] = 1.0
    if classifier is None:
        classifier = _network(seed)
    with warnings.catch_warnings():
        # scikit-learn's, that it stopped at its number of epochs: the test is valid for any classifier.
        warnings.filterwarnings("ignore", message=".*Maximum iterations.*")
        classifier.fit(train.sub_(mean).div_(scale).numpy(), labels.numpy())
        del train
        test, labels = half_of(slice(size // 2, None))
        predicted = torch.as_tensor(classifier.predict(test.sub_(mean).div_(scale).numpy()), device="cpu")
    right, n = int((predicted == labels).sum()), len(test)
    from scipy.stats import binom

    return replace(proportion(right, n), null=0.5, p_value=float(binom.sf(right - 1, n, 0.5)))


def _network(seed: int) -> Classifier:
    from sklearn.neural_network import MLPClassifier

    bits = Noise(seed).bits(Stream.SPLIT, torch.tensor(0, device="cpu"), torch.tensor(1, device="cpu"), 1)
    return MLPClassifier((64,), early_stopping=True, max_iter=100, random_state=int(bits) & 0xFFFFFFFF)
