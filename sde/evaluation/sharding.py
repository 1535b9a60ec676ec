r"""Sharing a job among processes: batches are fixed by index, and each process takes its own ones."""

from __future__ import annotations

__all__ = ["WHOLE", "Done", "Share", "nothing_done"]

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# For a repeat the indices that need not be scored again.
Done = Callable[[int], frozenset[int]]


def nothing_done(repeat: int) -> frozenset[int]:
    """That of a job at its beginning."""
    return frozenset()


@dataclass(frozen=True)
class Share:
    """The batches that one of several processes scores: those whose number leaves the remainder `rank`.

    Args:
        rank: which process this is, from 0.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not (type(self.rank) is type(self.world) is int and 0 <= self.rank < self.world):
            raise ValueError(f"expected whole numbers 0 <= rank < world, got rank={self.rank!r}, world={self.world!r}")

    def device(self, name: str) -> str:
        """The device of this process: of several, with `auto`, each takes the next GPU of the machine."""
        gpus = torch.cuda.device_count() if name == "auto" and self.world > 1 else 0
        return f"cuda:{self.rank % gpus}" if gpus else name

    def batches(
        self, total: int, repeats: int, batch_size: int, done: Done = nothing_done
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The batches of this share of which something is not done, in order.

        Args:
            total: the number of samples.
            repeats: how often each is scored.
            batch_size: samples in a batch.
            done: what is done; asked once for a repeat, when its first batch is reached.

        Returns:
            The repeat, the index of all its samples, and which of them are not done.
        """
        batches, ready = torch.arange(total).split(batch_size), dict[int, frozenset[int]]()
        for number in range(self.rank, repeats * len(batches), self.world):
            repeat, place = divmod(number, len(batches))
            ready[repeat] = ready[repeat] if repeat in ready else done(repeat)
            new = torch.tensor([i not in ready[repeat] for i in batches[place].tolist()])
            if bool(new.any()):
                yield repeat, batches[place], new

    def pending(self, total: int, repeats: int, batch_size: int, done: Done = nothing_done) -> int:
        """How many rows of this share are not done."""
        return sum(int(new.sum()) for _, _, new in self.batches(total, repeats, batch_size, done))


WHOLE = Share()
