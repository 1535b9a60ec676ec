r"""Sharding: batches are fixed by index, and each of several processes computes its own ones."""

from __future__ import annotations

__all__ = ["WHOLE", "BatchPlan", "Done", "Shard", "nothing_done"]

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..shapes import check_count

# For a repeat, the indices whose rows exist already.
Done = Callable[[int], frozenset[int]]


def nothing_done(repeat: int) -> frozenset[int]:
    """No index, as at the beginning of a job."""
    return frozenset()


@dataclass(frozen=True)
class Shard:
    """One of several processes; it computes the batches whose number has the remainder `rank` modulo `world`.

    Args:
        rank: the number of this process, from 0.
        world: the number of processes.
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not (type(self.rank) is type(self.world) is int and 0 <= self.rank < self.world):
            raise ValueError(f"expected whole numbers 0 <= rank < world, got rank={self.rank!r}, world={self.world!r}")

    def device(self, name: str) -> str:
        """The device of this process: with `auto`, several processes take the GPUs of the machine in turn."""
        gpus = torch.cuda.device_count() if name == "auto" and self.world > 1 else 0
        return f"cuda:{self.rank % gpus}" if gpus else name


WHOLE = Shard()


@dataclass(frozen=True)
class BatchPlan:
    """The batches of a job: every sample once per repeat, in order.

    Args:
        total: the number of samples in the split.
        n: use the first n samples only; all by default.
        repeats: the number of draws of all noise for each sample.
        batch_size: samples per batch, or fewer where there would be none for some of the processes.
        shard: the process whose batches these are; a single process by default.
    """

    total: int
    n: int | None = None
    repeats: int = 1
    batch_size: int = 128
    shard: Shard = WHOLE

    def __post_init__(self) -> None:
        check_count("a job", "repeats", self.repeats)
        check_count("a job", "batch_size", self.batch_size)
        if type(self.samples) is not int or not 1 <= self.samples <= self.total:
            raise ValueError(f"expected 1 <= n <= {self.total}, the number of samples, or None, got n={self.n!r}")

    @property
    def samples(self) -> int:
        """The number of samples that are used."""
        return self.total if self.n is None else self.n

    def batches(self, done: Done = nothing_done) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The unfinished batches of this process, in order.

        Args:
            done: the finished rows; called once per repeat, at its first batch.

        Yields:
            The repeat, the indices of all samples in the batch, and a mask of the unfinished ones.
        """
        size = min(self.batch_size, -(-self.samples // self.shard.world))  # with something for every process
        batches, finished = torch.arange(self.samples, device="cpu").split(size), dict[int, frozenset[int]]()
        for number in range(self.shard.rank, self.repeats * len(batches), self.shard.world):
            repeat, place = divmod(number, len(batches))
            finished[repeat] = finished[repeat] if repeat in finished else done(repeat)
            new = torch.tensor([i not in finished[repeat] for i in batches[place].tolist()], device="cpu")
            if bool(new.any()):
                yield repeat, batches[place], new

    def pending(self, done: Done = nothing_done) -> int:
        """The number of unfinished rows of this process."""
        return sum(int(new.sum()) for _, _, new in self.batches(done))
