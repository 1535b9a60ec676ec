"""The part of any batches that belongs to one of several ranks."""

from __future__ import annotations

__all__ = ["Part"]

import itertools
from collections.abc import Iterator

from .batches import Batch, BatchSource
from .loss import rows


class Part(BatchSource):
    """Consecutive rows of every batch, of which each rank has equally many; in an epoch, every `world`-th batch.

    Args:
        source: the batches, which all ranks have.
        rank: the number of this rank.
        world: the number of ranks.
    """

    def __init__(self, source: BatchSource, rank: int, world: int) -> None:
        self.source, self.rank, self.world, self.noise = source, rank, world, source.noise

    def __getitem__(self, number: int) -> Batch:
        batch = self.source[number]
        n, left = divmod(len(batch.values), self.world)
        if left:
            raise ValueError(
                f"a batch of {len(batch.values)} samples does not divide into {self.world} ranks: give another "
                "batch_size=; a DataLoader with a smaller last batch needs drop_last=True"
            )
        return rows(batch, self.rank * n, n)

    @property
    def whole(self) -> Batch | None:
        return self.source.whole

    def epoch(self) -> Iterator[Batch]:
        yield from itertools.islice(self.source.epoch(), self.rank, None, self.world)
