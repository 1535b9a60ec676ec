r"""A perceptual distance between items and their references, on the features of any network.

.. math::
    d(x, y) = \sum_l \operatorname*{mean}_{h,w} \sum_c w_{lc} \big(\hat f_{lc}(x) - \hat f_{lc}(y)\big)^2_{hw}, \qquad
    \hat f_l = f_l / |f_l|,

the maps :math:`f_l` of the layers having unit length over channels at every position. This is the form of LPIPS (Zhang
et al. 2018, https://arxiv.org/abs/1801.03924). Its numbers belong to one network and one set of weights; the paper's
are fitted to human judgements, and without them (w = 1) distances order pairs but have no absolute meaning.
"""

from __future__ import annotations

__all__ = ["FeatureMaps", "perceptual_distance"]

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .estimate import Estimate, mean_estimate
from .sets import check_paired, slices


class FeatureMaps(Protocol):
    """A network of feature maps, in evaluation mode."""

    def __call__(self, x: Tensor, /) -> Sequence[Tensor]:
        r"""The maps of the layers, each with shape (B, C, \*), for items (B, \*)."""


def perceptual_distance(
    x: Tensor,
    reference: Tensor,
    network: FeatureMaps,
    *,
    weights: Sequence[Tensor] | None = None,
    batch_size: int = 64,
) -> Estimate:
    r"""The perceptual distance, the mean over items.

    Args:
        x: items with shape (B, \*), as the network takes them.
        reference: their references, with the same shape.
        network: what gives the feature maps, for example ``lambda x: [a := first(x), second(a)]``.
        weights: the weights of the channels of each layer, non-negative with shapes (C,); 1 by default.
        batch_size: the number of items that the network sees at a time.
    """
    check_paired("perceptual_distance", x, reference, tuple(range(2, 7)))
    with torch.no_grad():
        values = [_distances(network(x[p]), network(reference[p]), weights) for p in slices(len(x), batch_size)]
    return mean_estimate(torch.cat(values))


def _distances(maps: Sequence[Tensor], others: Sequence[Tensor], weights: Sequence[Tensor] | None) -> Tensor:
    if weights is not None and [len(w) for w in weights] != [f.shape[1] for f in maps]:
        raise ValueError(
            f"perceptual_distance: expected weights with lengths {[f.shape[1] for f in maps]}, one tensor a layer, got "
            f"{[len(w) for w in weights]}"
        )
    total = torch.zeros(len(maps[0]), dtype=torch.float64, device=maps[0].device)
    for layer, (a, b) in enumerate(zip(maps, others, strict=True)):
        squares = (_unit(a) - _unit(b)).square().flatten(2) if a.ndim > 2 else (_unit(a) - _unit(b)).square()[..., None]
        if weights is not None:
            squares = squares * weights[layer].to(squares)[:, None]
        total += squares.sum(1).mean(1)
    return total


def _unit(maps: Tensor) -> Tensor:
    maps = maps.double()
    return maps / (maps.norm(dim=1, keepdim=True) + 1e-10)
