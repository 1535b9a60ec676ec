r"""Batches: a data set in a fixed, keyed order."""

from __future__ import annotations

__all__ = ["Batches"]

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..data import Scaling, Split
from ..noise import Noise, Stream


@dataclass
class Batches:
    """The batches of a split in a fixed order: epochs of keyed permutations, end to end.

    Args:
        split: the raw values.
        scaling: how they become the model's; discrete values are dequantised with fresh uniform noise every time.
        size: the size of a batch.
        noise: the source of order and dequantisation.
    """

    split: Split
    scaling: Scaling
    size: int
    noise: Noise
    _epoch: tuple[int, Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a batch has at least one sample, got batch_size={self.size}")

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor | None]:
        """Batch `number`, counted from 0: model values with shape (B, *), and labels where there are any."""
        places = torch.arange(number * self.size, (number + 1) * self.size)
        epochs, index = places // len(self.split), torch.empty_like(places)
        for epoch in epochs.unique().tolist():
            here = epochs == epoch
            index[here] = self._order(epoch)[places[here] % len(self.split)]
        values = self.split.values[index]
        u = None
        if self.scaling.levels is not None:
            u = self.noise.uniform(Stream.DEQUANTISE, index, epochs, values.shape[1:], torch.float64)
        labels = self.split.labels
        return self.scaling.to_model(values, u), None if labels is None else labels[index]

    def _order(self, epoch: int) -> Tensor:
        if self._epoch is None or self._epoch[0] != epoch:
            index = torch.arange(len(self.split))
            keys = self.noise.bits(Stream.ORDER, index, torch.tensor(epoch), 1)[:, 0]
            self._epoch = (epoch, keys.argsort(stable=True))
        return self._epoch[1]
