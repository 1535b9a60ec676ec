r"""The Inception score of the class probabilities that a classifier gives to samples.

.. math:: \exp \frac1N \sum_i \mathrm{KL}\big(p(y|x_i)\,\|\,\hat p(y)\big), \qquad \hat p = \frac1N \sum_i p(y|x_i)

It lies between 1 and the number of classes, and needs no reference: it says that samples are sure and diverse, not that
they look like data. As in the paper it is the mean over splits of the samples; within a split of few samples it is
biased downwards.

Salimans et al. 2016, https://arxiv.org/abs/1606.03498; Barratt and Sharma 2018, https://arxiv.org/abs/1801.01973.
"""

from __future__ import annotations

__all__ = ["inception_score"]

from dataclasses import replace

import torch
from torch import Tensor

from ..noise import Stream, sample_index
from ..shapes import check_count
from .estimate import Estimate, mean_estimate
from .sets import deal


def inception_score(logits: Tensor | None, *, splits: int = 10, seed: int = 0, index: Tensor | None = None) -> Estimate:
    """The Inception score: the mean over the splits, with its standard error, and the score of all items as `plain`.

    Args:
        logits: unnormalised log-probabilities of the classes with shape (N, C); -inf for a class of probability 0.
        splits: the number of splits; with 1, the value is that of the whole set and has no finite error.
        seed: the seed of the splits.
        index: the indices of the items, int64 with shape (N,); positions by default.
    """
    owner = "inception_score"
    check_count(owner, "splits", splits)
    if logits is None:
        raise ValueError(f"{owner}: these features come without class logits; use a network that classifies")
    if logits.ndim != 2 or logits.shape[1] < 2 or len(logits) < max(2, splits):
        raise ValueError(
            f"{owner}: expected logits with shape (N, C), N >= {max(2, splits)} for {splits} splits, C >= 2, got "
            f"{tuple(logits.shape)}"
        )
    bad = (logits.isnan() | logits.isposinf()).any(1) | logits.isneginf().all(1)
    if bad.any():
        raise ValueError(
            f"{owner}: expected logits that are finite or -inf, not all -inf; item {int(bad.nonzero()[0])} has others"
        )
    probabilities = logits.double().softmax(1)
    split_of = deal(sample_index(logits, index), splits, seed, Stream.SPLIT)
    scores = torch.stack([_score(probabilities[split_of == split]) for split in range(splits)])
    deviations = (scores - scores.mean()) / (splits * (splits - 1)) ** 0.5 if splits > 1 else None
    return replace(mean_estimate(scores), plain=float(_score(probabilities)), per_item=None, deviations=deviations)


def _score(probabilities: Tensor) -> Tensor:
    """exp(H(mean) - mean H): the mean divergence is the difference of two entropies."""
    entropy = torch.special.entr(probabilities)
    return (torch.special.entr(probabilities.mean(0)).sum() - entropy.sum(1).mean()).exp()
