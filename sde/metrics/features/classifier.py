r"""A classifier of the data's own labels, whose last layer but one gives features.

The features of a network that was trained on photographs say little about digits, spectra or tables. Those of a small
classifier that was trained on the data itself separate what the labels separate, cost nothing, and need no download.
They are blind to what the labels do not need.

The network is a stack of stages: a convolution of as many dimensions as the data has (a linear map for vectors), layer
normalisation and GELU, each stage but the first at half the resolution, and twice the width up to four times the first;
then means over at most 2 positions a side, a hidden layer, which is the features, and the logits. Inputs are
standardised by the mean and standard deviation of each channel of the training items.
"""

from __future__ import annotations

__all__ = ["ClassifierNetwork", "accuracy", "fit_classifier"]

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu

from ...noise import Noise, Stream
from ...shapes import check_count, check_recordable, recordable, recording
from ..estimate import Estimate, proportion
from ..sets import slices
from .base import Extracted

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


class ClassifierNetwork(nn.Module):
    r"""A classifier that gives features, logits and feature maps of items (B, \*).

    Args:
        shape: the event shape, (D,), (C, L), (C, H, W) or (C, D, H, W).
        classes: the number of classes.
        width: the width of the first stage, at least 8.
        features: the number of features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shape: Sequence[int], classes: int, *, width: int = 32, features: int = 64) -> None:
        super().__init__()
        check_count("ClassifierNetwork", "classes", classes, 2)
        check_count("ClassifierNetwork", "features", features)
        if not 1 <= len(shape) <= 4 or width < 8:
            raise ValueError(
                "ClassifierNetwork: expected an event shape (D,), (C, L), (C, H, W) or (C, D, H, W) and a width >= 8, "
                f"got {tuple(shape)} and {width}"
            )
        self.shape, self.classes, self.width, self.size = tuple(shape), classes, width, features
        rank, channels = len(shape) - 1, shape[0]
        depth = 1 + max(1, min(4, math.ceil(math.log2(max(2, min(shape[1:])) / 2)))) if rank else 2
        stages: list[nn.Module] = []
        for stage in range(depth):
            wide = width * min(4, 2**stage)
            linear: nn.Module = nn.Linear(channels, wide)
            if rank:
                linear = _CONVOLUTIONS[rank](channels, wide, 3, padding=1, stride=2 if stage else 1)
            stages.append(nn.Sequential(linear, nn.GroupNorm(1, wide), nn.GELU()))
            channels = wide
        self.stages = nn.ModuleList(stages)
        self.pool: nn.Module = _POOLS[rank](2) if rank else nn.Identity()
        self.hidden = nn.Linear(channels * 2**rank, features)
        self.logits = nn.Linear(features, classes)
        axes = (shape[0], *[1] * rank)
        self.register_buffer("mean", torch.zeros(axes, device=None))
        self.register_buffer("std", torch.ones(axes, device=None))

    def forward(self, x: Tensor) -> Extracted:
        x = (x - self.mean) / self.std
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        features = gelu(self.hidden(self.pool(x).flatten(1)))
        return Extracted(features, self.logits(features), maps)

    def standardise(self, x: Tensor) -> None:
        """Sets the mean and standard deviation of the channels to those of items (N, *)."""
        channels = x.double().transpose(0, 1).flatten(1)
        self.mean.copy_(channels.mean(1).reshape(self.mean.shape))
        self.std.copy_(channels.std(1).clamp(min=1e-6).reshape(self.std.shape))


def fit_classifier(
    network: ClassifierNetwork,
    x: Tensor,
    labels: Tensor,
    *,
    steps: int,
    batch_size: int = 64,
    lr: float = 4e-3,
    seed: int = 0,
) -> Iterator[float]:
    """Trains a classifier in place by AdamW with a one-cycle learning rate, and yields the loss of every step.

    The initial weights are those that the network came with: seed torch before it is constructed.

    Args:
        network: the classifier; it is in evaluation mode at the end.
        x: items as features take them (:func:`as_items`), with shape (N, *).
        labels: int64 with shape (N,).
        steps: the number of steps.
        batch_size: the number of items of a step, at most N.
        lr: the largest learning rate.
        seed: the seed of the order of the items.
    """
    check_recordable(network, "its weights cannot be trained", "network")
    device = network.mean.device
    if tuple(x.shape[1:]) != network.shape or labels.shape != x.shape[:1] or int(labels.max()) >= network.classes:
        raise ValueError(
            f"fit_classifier: expected items (N, {', '.join(map(str, network.shape))}) with labels below "
            f"{network.classes}, got {tuple(x.shape)} and labels {tuple(labels.shape)} up to {int(labels.max())}"
        )
    network.standardise(x)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    batch_size, order = min(batch_size, len(x)), torch.empty(0, dtype=torch.int64, device="cpu")
    network.train()
    for step in range(steps):
        while len(order) < batch_size:
            generator = Noise(seed).generator(Stream.ORDER, step)
            order = torch.cat([order, torch.randperm(len(x), generator=generator, device="cpu")])
        index, order = order[:batch_size], order[batch_size:]
        with recording(True):
            extracted = network(recordable(x[index]).to(device, torch.float32))
            loss = cross_entropy(extracted.logits, recordable(labels[index]).to(device), label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        yield loss.item()
    network.eval()


def accuracy(network: ClassifierNetwork, x: Tensor, labels: Tensor) -> Estimate:
    """The proportion of items (N, *) that a classifier recognises, with its binomial error."""
    device, right = network.mean.device, 0
    with torch.no_grad():
        for part in slices(len(x), 256):
            logits = network(x[part].to(device, network.mean.dtype)).logits
            right += int((logits.argmax(1).cpu() == labels[part].cpu()).sum())
    return proportion(right, len(x))
