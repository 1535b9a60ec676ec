r"""Batches of a training: of a data set in a keyed order, or of any iterable.

Every value has a key, a pair of integers, from which its dequantisation noise is drawn. In :class:`Batches` these are
the position in the data set and the epoch, and a batch is a function of its number, so that a run can be continued
exactly. The position of an iterable cannot be restored.
"""

from __future__ import annotations

__all__ = ["Batch", "BatchSource", "Batches", "Iterated", "to_model"]

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Scaling, Split
from ..noise import Noise, Stream
from ..shapes import as_tensor, check_condition


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch.

    Attributes:
        values: the values, with shape (B, *).
        condition: named tensors of leading size B, or scalars.
        index: the first keys of the samples, int64 with shape (B,).
        counter: the second ones.
        null: whether a `label` may be the one that means "no label"; the labels of data are classes.
    """

    values: Tensor
    condition: dict[str, Tensor]
    index: Tensor
    counter: Tensor
    null: bool = True


class BatchSource(ABC):
    """Numbered batches.

    Attributes:
        noise: the source of dequantisation noise.
    """

    noise: Noise

    @abstractmethod
    def __getitem__(self, number: int) -> Batch:
        """Batch `number`, counted from 0."""

    @property
    @abstractmethod
    def whole(self) -> Batch | None:
        """All samples, if they are in memory."""

    @abstractmethod
    def epoch(self) -> Iterator[Batch]:
        """Every sample once; the last batch may be smaller."""


class Batches(BatchSource):
    r"""Batches of a data set in a keyed order: random permutations, one per epoch, end to end.

    Args:
        data: a split, or values with shape (N, \*).
        size: the number of samples in a batch.
        condition: named tensors of leading size N, or scalars; by default the labels of the split as `label`. A
            `label` that is given here may be the one that means "no label".
        seed: the seed of the order and of the dequantisation.
    """

    def __init__(
        self, data: Split | Tensor, size: int, *, condition: Mapping[str, Tensor] | None = None, seed: int = 0
    ) -> None:
        split = data if isinstance(data, Split) else Split(data)
        labels = {} if split.labels is None else {"label": split.labels}
        self.values, self.condition = split.values, dict(labels if condition is None else condition)
        self.size, self.noise, self.null = size, Noise(seed), condition is not None
        if size < 1 or len(split) < 1:
            raise ValueError(f"expected batch_size >= 1 and data, got batch_size={size} and {len(split)} samples")
        check_condition(self.condition, len(split))
        self._epoch: tuple[int, Tensor] | None = None

    def __getitem__(self, number: int) -> Batch:
        return self._batch(torch.arange(number * self.size, (number + 1) * self.size, device="cpu"))

    @property
    def whole(self) -> Batch:
        index = torch.arange(len(self.values), device="cpu")
        return Batch(self.values, self.condition, index, torch.zeros_like(index), self.null)

    def epoch(self) -> Iterator[Batch]:
        yield from (self._batch(places) for places in torch.arange(len(self.values), device="cpu").split(self.size))

    def _batch(self, places: Tensor) -> Batch:
        epochs, index = places // len(self.values), torch.empty_like(places)
        for epoch in epochs.unique().tolist():
            here = epochs == epoch
            index[here] = self._order(epoch)[places[here] % len(self.values)]
        condition = {name: value[index] if value.ndim else value for name, value in self.condition.items()}
        return Batch(self.values[index], condition, index, epochs, self.null)

    def _order(self, epoch: int) -> Tensor:
        if self._epoch is None or self._epoch[0] != epoch:
            index = torch.arange(len(self.values), device="cpu")
            keys = self.noise.bits(Stream.ORDER, index, torch.tensor(epoch, device="cpu"), 1)[:, 0]
            self._epoch = (epoch, keys.argsort(stable=True))
        return self._epoch[1]


class Iterated(BatchSource):
    """The batches of an iterable, such as a torch DataLoader, which is started again when it is exhausted.

    Args:
        batches: tensors with shape (B, *), or pairs of such a tensor and a condition: labels, or named tensors, whose
            `label` may be the one that means "no label".
        seed: the seed of the dequantisation.
    """

    def __init__(self, batches: Iterable[Any], *, seed: int = 0) -> None:
        if isinstance(batches, Tensor | np.ndarray) or not isinstance(batches, Iterable):
            raise ValueError(
                f"expected an iterable of batches, such as a DataLoader, got a {type(batches).__name__}: for data in "
                "memory give sde.Batches(data, size), of a tensor or a split such as sde.data.digits().train"
            )
        self.noise = Noise(seed)
        self._batches = batches
        self._iterator: Iterator[Any] = iter(())  # a DataLoader draws a seed when it is started
        self._latest: tuple[int, Batch] | None = None

    def __getitem__(self, number: int) -> Batch:
        if self._latest is None or self._latest[0] != number:
            self._latest = number, _parsed(self._next(), number)
        return self._latest[1]

    @property
    def whole(self) -> None:
        return None

    def epoch(self) -> Iterator[Batch]:
        yield from (_parsed(batch, number) for number, batch in enumerate(self._batches))

    def _next(self) -> Any:
        for _ in range(2):
            for batch in self._iterator:
                return batch
            self._iterator = iter(self._batches)
        raise ValueError(
            "the batches are exhausted and do not start again: expected a DataLoader, a list or an endless iterator"
        )


def _parsed(batch: Any, number: int) -> Batch:
    """A batch of an iterable; its keys are the place in the batch and the number of the batch."""
    parts = batch if isinstance(batch, tuple | list) else [batch]
    if len(parts) not in (1, 2):
        raise ValueError(f"expected a batch of a tensor, or of a tensor and a condition, got {len(parts)} parts")
    values, condition = as_tensor(parts[0]), parts[1] if len(parts) == 2 else None
    if values.ndim < 2 or len(values) == 0:
        raise ValueError(f"expected a batch with shape (B, *) and B >= 1, got {tuple(values.shape)}")
    null = condition is None or isinstance(condition, Mapping)
    if not null:
        label = as_tensor(condition)
        condition = {"label": label if label.is_floating_point() else label.long()}
    named = {name: as_tensor(value) for name, value in (condition or {}).items()}
    check_condition(named, len(values))
    index = torch.arange(len(values), device=values.device)
    return Batch(values, named, index, torch.full_like(index, number), null)


def to_model(batch: Batch, scaling: Scaling | None, noise: Noise, dtype: torch.dtype) -> Tensor:
    """The values of a batch in the model's range, with shape (B, *); discrete ones with fresh uniform noise.

    Args:
        batch: the batch, in data units with a scaling, and in the model's range without one.
        scaling: the map between the two.
        noise: the source of the dequantisation noise.
        dtype: the dtype of the result.

    Raises:
        ValueError: if there are integers and no scaling, or the scaling refuses a value.
    """
    values = batch.values
    if scaling is None:
        if not values.is_floating_point():
            raise ValueError(
                f"the batches contain {values.dtype} values: give scaling=, such as sde.data.Scaling.interval(256) for "
                "images of 8 bits, or floats in the model's range"
            )
        return values.to(dtype)
    u = None
    if scaling.levels is not None:
        u = noise.uniform(Stream.DEQUANTISE, batch.index, batch.counter, values.shape[1:], torch.float64)
    return scaling.to_model(values, u, dtype=dtype)
