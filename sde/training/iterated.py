"""Batches of any iterable, such as a torch DataLoader."""

from __future__ import annotations

__all__ = ["Iterated", "Stateful"]

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..noise import Noise
from ..shapes import check_condition, named_tensors, numbers_of
from .batches import Batch, BatchSource
from .loss import check_divides
from .workers import on_cpu

# The number of samples that tell the spreads of columns apart, to about a quarter of each.
ENOUGH = 32


@runtime_checkable
class Stateful(Protocol):
    """An iterable that can go on in the middle, such as the StatefulDataLoader of torchdata."""

    def state_dict(self) -> dict[str, Any]:
        """Its state, of plain values and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iterator go on from a state."""


class Iterated(BatchSource):
    """The batches of an iterable, such as a torch DataLoader, which is started again when it is exhausted.

    Args:
        batches: tensors with shape (B, *), or pairs of such a tensor and a condition: labels, or named tensors, whose
            `label` may be the one that means "no label". If it is :class:`Stateful`, a training goes on with the next
            batch; otherwise at the start of the next pass, with a warning.
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
        self._before: dict[str, Any] | None = None  # the state before the latest batch
        self._first: list[Tensor] = []  # values of the first samples, up to ENOUGH

    def __getitem__(self, number: int) -> Batch:
        if self._latest is None or self._latest[0] != number:
            self._before = self._state()
            self._latest = number, _parsed(self._next(), number)
            values, known = self._latest[1].values, sum(map(len, self._first))
            if known < ENOUGH and (not known or values.shape[1:] == self._first[0].shape[1:]):
                self._first.append(values[:ENOUGH])
        return self._latest[1]

    @property
    def sample(self) -> Tensor | None:
        return torch.cat(self._first) if sum(map(len, self._first)) >= ENOUGH else None

    def shard(self, rank: int, world: int) -> BatchSource:
        return _Part(self, rank, world)

    def state(self, number: int) -> dict[str, Any] | None:
        return self._before if self._latest is not None and self._latest[0] == number else self._state()

    def restore(self, state: dict[str, Any] | None, number: int) -> None:
        self._latest, self._iterator = None, iter(())
        if state is not None and isinstance(self._batches, Stateful):
            self._batches.load_state_dict(state)
            self._iterator = self._started()
        elif number:
            warnings.warn(
                f"the {type(self._batches).__name__} has no state: the training goes on at the start of its next "
                "epoch, and not bit for bit; sde.Batches does, and a loader with state_dict and load_state_dict",
                stacklevel=3,
            )

    def _state(self) -> dict[str, Any] | None:
        return self._batches.state_dict() if isinstance(self._batches, Stateful) else None

    @property
    def whole(self) -> None:
        return None

    def epoch(self) -> Iterator[Batch]:
        yield from (_parsed(batch, number) for number, batch in enumerate(self._started()))

    def _started(self) -> Iterator[Any]:
        """One pass through the batches; those of other iterables are wherever their author makes them."""
        return on_cpu(self._batches) if isinstance(self._batches, DataLoader) else iter(self._batches)

    def _next(self) -> Any:
        for _ in range(2):
            for batch in self._iterator:
                return batch
            self._iterator = self._started()
        raise ValueError(
            "the batches are exhausted and do not start again: expected a DataLoader, a list or an endless iterator"
        )


class _Part(BatchSource):
    """Consecutive rows of every batch, of which each process has equally many."""

    def __init__(self, source: BatchSource, rank: int, world: int) -> None:
        self._source, self._rank, self._world, self.noise = source, rank, world, source.noise

    def __getitem__(self, number: int) -> Batch:
        batch = self._source[number]
        check_divides(len(batch.values), self._world)
        n = len(batch.values) // self._world
        return batch.rows(self._rank * n, n)

    @property
    def whole(self) -> Batch | None:
        return self._source.whole

    @property
    def sample(self) -> Tensor | None:
        return self._source.sample

    def epoch(self) -> Iterator[Batch]:
        yield from itertools.islice(self._source.epoch(), self._rank, None, self._world)

    def shard(self, rank: int, world: int) -> BatchSource:
        return _Part(self, rank, world)


def _parsed(batch: Any, number: int) -> Batch:
    """A batch of an iterable; its keys are the place in the batch and the number of the batch."""
    parts = batch if isinstance(batch, tuple | list) else [batch]
    if len(parts) not in (1, 2):
        raise ValueError(f"expected a batch of a tensor, or of a tensor and a condition, got {len(parts)} parts")
    values, condition = numbers_of("a batch", parts[0]), parts[1] if len(parts) == 2 else None
    if values.ndim < 2 or len(values) == 0:
        raise ValueError(f"expected a batch with shape (B, *) and B >= 1, got {tuple(values.shape)}")
    null = condition is None or isinstance(condition, Mapping)
    if not null:
        label = numbers_of("the labels of a batch", condition)
        condition = {"label": label if label.is_floating_point() else label.long()}
    named = named_tensors(condition)
    check_condition(named, len(values))
    index = torch.arange(len(values), device=values.device)
    return Batch(values, named, index, torch.full_like(index, number), null)
