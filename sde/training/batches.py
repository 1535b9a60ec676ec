r"""Batches of a training: of a data set in a keyed order, or of any iterable.

Every value has a key, a pair of integers, from which its dequantisation noise is drawn. In :class:`Batches` these are
the position in the data set and the epoch, and a batch is a function of its number: it depends neither on who reads
it, this process or one of several workers, nor on what was read before, so that a run can be continued exactly. The
position of an iterable cannot be restored.
"""

from __future__ import annotations

__all__ = ["Batch", "BatchSource", "Batches", "to_model", "warn_of_spreads"]

import copy
import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Augmentation, Scaling, Source, Split, UnreadableSample
from ..data.dataset import check_labels, some_of
from ..noise import Noise, Stream
from ..shapes import check_condition, check_count, named_tensors
from .workers import loaded


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch.

    Attributes:
        values: the values, with shape (B, *).
        condition: named tensors of leading size B, or scalars.
        index: the first keys of the samples, int64 with shape (B,).
        counter: the second ones.
        null: whether a `label` may be the one that means "no label"; the labels of data are classes.
        replaced: samples that could not be read, by their positions, and why; others took their places.
        augmentation: the change of the samples, which :func:`to_model` makes; the keys determine it.
    """

    values: Tensor
    condition: dict[str, Tensor]
    index: Tensor
    counter: Tensor
    null: bool = True
    replaced: tuple[tuple[int, str], ...] = ()
    augmentation: Augmentation | None = None

    def rows(self, first: int, count: int) -> Batch:
        """Consecutive rows."""
        place = slice(first, first + count)
        condition = {name: value[place] if value.ndim else value for name, value in self.condition.items()}
        index, counter = self.index[place], self.counter[place]
        return replace(self, values=self.values[place], condition=condition, index=index, counter=counter)


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

    @property
    def sample(self) -> Tensor | None:
        """Values of some samples, with shape (n, *), from which spreads can be estimated; None if too few are known."""
        return None

    def check_labels(self, classes: int) -> None:
        """Refuses labels that are none of a network's classes, if they are known before the first batch."""
        return

    @abstractmethod
    def epoch(self) -> Iterator[Batch]:
        """Every sample once; the last batch may be smaller."""

    @abstractmethod
    def shard(self, rank: int, world: int) -> BatchSource:
        """The batches of one of several processes: consecutive rows of every batch, and every `world`-th batch of an
        epoch."""

    def state(self, number: int) -> Any:
        """The state on which the batch of a number, the next one, depends beside the number; None for none."""
        return None

    def restore(self, state: Any, number: int) -> None:
        """Goes on with the batch of a number, in a state that was saved."""
        return


@dataclass(eq=False)
class _Reader:
    """The function from the number of a batch to the batch, which workers have a copy of."""

    data: Source
    condition: dict[str, Tensor]  # in place of the data's, if `null`
    size: int
    noise: Noise
    null: bool
    unreadable: int
    augmentation: Augmentation | None
    first: int = 0  # the first row of the batch that is read, and their number
    rows: int | None = None
    _epoch: tuple[int, Tensor] | None = field(default=None, init=False)

    def batch(self, number: int) -> Batch:
        rows = self.size if self.rows is None else self.rows
        start = number * self.size + self.first
        return self._read(torch.arange(start, start + rows, device="cpu"), self.augmentation)

    def part(self, number: int) -> Batch:
        """Part `number` of an epoch."""
        stop = min((number + 1) * self.size, len(self.data))
        return self._read(torch.arange(number * self.size, stop, device="cpu"))

    def _read(self, places: Tensor, augmentation: Augmentation | None = None) -> Batch:
        epochs, index = places // len(self.data), torch.empty_like(places)
        for epoch in epochs.unique().tolist():
            here = epochs == epoch
            index[here] = self._order(epoch)[places[here] % len(self.data)]
        replaced: tuple[tuple[int, str], ...] = ()
        try:
            values, condition = self.data[index]
        except UnreadableSample:
            if not self.unreadable:
                raise
            index, replaced = self._readable(index)
            values, condition = self.data[index]
        if self.null:
            condition = {name: value[index] if value.ndim else value for name, value in self.condition.items()}
        condition = self.with_vectors(condition, index, epochs, augmentation)
        return Batch(values, condition, index, epochs, self.null, replaced, augmentation)

    def with_vectors(
        self, condition: dict[str, Tensor], index: Tensor, counter: Tensor, augmentation: Augmentation | None = None
    ) -> dict[str, Tensor]:
        """The conditions with the vectors of the changes, where the network takes them; without a change, zeros."""
        if self.augmentation is None or not self.augmentation.length:
            return condition
        changes = self.augmentation.draw(self.noise, index, counter)
        changes = torch.zeros_like(changes) if augmentation is None else changes
        return {**condition, "augment": self.augmentation.vector(changes)}

    def _readable(self, index: Tensor) -> tuple[Tensor, tuple[tuple[int, str], ...]]:
        """The positions with the next one that can be read in place of each that cannot, and those that cannot."""
        result, failed = index.clone(), dict[int, str]()
        for row, position in enumerate(index.tolist()):
            while True:
                try:
                    self.data[torch.tensor([position], device="cpu")]
                    break
                except UnreadableSample as error:
                    failed[position] = str(error)
                    if len(failed) > self.unreadable:
                        raise
                    position = (position + 1) % len(self.data)
            result[row] = position
        return result, tuple(failed.items())

    def _order(self, epoch: int) -> Tensor:
        if self._epoch is None or self._epoch[0] != epoch:
            counter, keys = torch.tensor(epoch, device="cpu"), np.empty(len(self.data), np.int64)
            # In parts, because the intermediate results take several times the memory of the keys; sorted by NumPy for
            # the same reason.
            for start in range(0, len(keys), 2**16):
                part = torch.arange(start, min(start + 2**16, len(keys)), device="cpu")
                keys[start : start + 2**16] = self.noise.bits(Stream.ORDER, part, counter, 1)[:, 0].numpy()
            self._epoch = (epoch, torch.from_numpy(keys.argsort(kind="stable")))
        return self._epoch[1]


class Batches(BatchSource):
    r"""Batches of a data set in a keyed order: random permutations, one per epoch, end to end.

    Args:
        data: a source of samples, such as a split, or values with shape (N, \*).
        size: the number of samples in a batch.
        condition: named tensors of leading size N, or scalars; by default the conditions of the data, its labels as
            `label` among them. A `label` that is given here may be the one that means "no label".
        seed: the seed of the order and of the dequantisation.
        workers: the number of processes that read batches ahead; 0 reads them in this process. The batches are the
            same.
        unreadable: the number of samples that may turn out unreadable in the course of a run. The next sample takes
            the place of such a one, and a warning names it. By default the first one is an error.
        augmentation: a change of the samples, drawn anew in every epoch. If it has vectors, they are the condition
            `augment`. Passes by :meth:`epoch`, for validation, leave the samples as they are.

    Raises:
        ValueError: if a number is out of range, there is no sample, or a condition is neither a scalar nor of leading
            size N.
    """

    def __init__(
        self,
        data: Source | Tensor,
        size: int,
        *,
        condition: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        workers: int = 0,
        unreadable: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        source = data if isinstance(data, Source) else Split(data)
        self.data, self.size, self.noise, self.null = source, size, Noise(seed), condition is not None
        if size < 1 or len(source) < 1:
            raise ValueError(f"expected batch_size >= 1 and data, got batch_size={size} and {len(source)} samples")
        check_count("Batches", "workers", workers, 0)
        check_count("Batches", "unreadable", unreadable, 0)
        named = named_tensors(condition)
        check_condition(named, len(source))
        self.workers, self.unreadable = workers, unreadable
        self._reader = _Reader(source, named, size, self.noise, self.null, unreadable, augmentation)
        self._parts = range(-(-len(source) // size))  # of an epoch
        self._latest: tuple[int, Batch] | None = None
        self._ahead: tuple[int, Iterator[Batch]] | None = None  # the next number of the workers, and their batches
        self._replaced: dict[int, str] = {}

    def __getitem__(self, number: int) -> Batch:
        if self._latest is None or self._latest[0] != number:
            self._latest = number, self._seen(self._next(number))
        return self._latest[1]

    def _next(self, number: int) -> Batch:
        """Workers start at the second of two consecutive numbers; a single one does not disturb them."""
        following = self._latest is not None and self._latest[0] == number - 1
        if not self.workers or not (following or (self._ahead is not None and self._ahead[0] == number)):
            return self._reader.batch(number)
        if self._ahead is None or self._ahead[0] != number:
            self._ahead = number, loaded(self._reader.batch, itertools.count(number), self.workers)
        batches = self._ahead[1]
        self._ahead = None  # an error ends the iterator
        batch = next(batches)
        self._ahead = number + 1, batches
        return batch

    def shard(self, rank: int, world: int) -> Batches:
        """The batches of one of several processes, which together read those of one: each reads consecutive rows of
        every batch, as even as possible, and in an epoch every `world`-th part."""
        if not 0 <= rank < world <= self.size:
            raise ValueError(f"expected 0 <= rank < world <= {self.size}, the batch size, got {rank} and {world}")
        first, stop = (self.size * r // world for r in (rank, rank + 1))
        shard = copy.copy(self)
        shard._reader = replace(self._reader, first=first, rows=stop - first)
        shard._parts, shard._latest, shard._ahead, shard._replaced = self._parts[rank::world], None, None, {}
        return shard

    @property
    def whole(self) -> Batch | None:
        if (item := self.data.whole) is None:
            return None
        values, condition = item
        index = torch.arange(len(self.data), device="cpu")
        counter, condition = torch.zeros_like(index), self._reader.condition if self.null else condition
        return Batch(values, self._reader.with_vectors(condition, index, counter), index, counter, self.null)

    @property
    def sample(self) -> Tensor | None:
        try:
            return some_of(self.data, 1024)
        except UnreadableSample:  # which is counted where its batch is read
            return None

    @property
    def condition(self) -> dict[str, Tensor]:
        """The conditions of all samples that are in memory, by name."""
        known = {} if self.data.labels is None else {"label": self.data.labels}
        return self._reader.condition if self.null else known if (whole := self.data.whole) is None else whole[1]

    def check_labels(self, classes: int) -> None:
        if (labels := self.condition.get("label")) is not None:
            check_labels("labels", labels.reshape(-1), classes, null=self.null, describe=self.data.describe)

    def epoch(self) -> Iterator[Batch]:
        yield from map(self._seen, loaded(self._reader.part, self._parts, self.workers))

    def _seen(self, batch: Batch) -> Batch:
        """Counts the samples of a batch that could not be read, and warns of each of them once."""
        for position, reason in batch.replaced:
            if position not in self._replaced:
                self._replaced[position] = reason
                if len(self._replaced) > self.unreadable:
                    raise UnreadableSample(f"more than unreadable={self.unreadable} samples cannot be read: {reason}")
                warnings.warn(f"another sample takes the place of one that cannot be read: {reason}", stacklevel=4)
        return batch


def warn_of_spreads(batches: BatchSource, scaling: Scaling | None) -> bool:
    """Warns of columns that differ tenfold (:meth:`sde.data.Scaling.warn_of_spreads`); False if too few samples are
    known to tell."""
    scaling = Scaling.identity() if scaling is None else scaling
    if scaling.levels is not None:
        return True
    if (values := batches.sample) is not None:
        scaling.warn_of_spreads(values, whole=batches.whole is not None)
    return values is not None


def to_model(batch: Batch, scaling: Scaling | None, noise: Noise, dtype: torch.dtype) -> Tensor:
    """The values of a batch in the model's range, with shape (B, *); discrete ones with fresh uniform noise, augmented.

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
        return _augmented(values.to(dtype), batch, noise)
    u = None
    if scaling.levels is not None:
        u = noise.uniform(Stream.DEQUANTISE, batch.index, batch.counter, values.shape[1:], torch.float64)
    return _augmented(scaling.to_model(values, u, dtype=dtype), batch, noise)


def _augmented(x0: Tensor, batch: Batch, noise: Noise) -> Tensor:
    if batch.augmentation is None:
        return x0
    return batch.augmentation.apply(x0, batch.augmentation.draw(noise, batch.index, batch.counter))
