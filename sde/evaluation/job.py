"""Jobs: a scorer, its batches, and the result file for its rows, with which the job can be resumed."""

from __future__ import annotations

__all__ = ["Job", "Progress", "Scorer", "waiting"]

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import DTypeLike
from torch import Tensor

from ..storage.results import Plain
from ..storage.store import read
from .sharding import BatchPlan, Done, nothing_done
from .shards import check_same, done_in, opened
from .summary import Columns, Rows, RunningMean


class Scorer(ABC):
    """Computes the rows of a result file for the samples of a split.

    A leaf checks its arguments in its constructor, so that a job that cannot run fails before the first network call.
    """

    @property
    @abstractmethod
    def columns(self) -> Mapping[str, DTypeLike]:
        """The columns beside `index` and `repeat`, name to dtype."""

    @property
    @abstractmethod
    def shown(self) -> Sequence[str]:
        """The columns whose means are shown while a job runs."""

    @abstractmethod
    def rows(self, index: Tensor, repeat: int) -> Rows:
        """The columns for the samples `index` (int64, (B,)), each with shape (B,)."""

    def score(self, plan: BatchPlan, done: Done = nothing_done) -> Iterator[Rows]:
        """The rows of one batch after another, without those that are done."""
        for repeat, index, new in plan.batches(done):
            # The whole batch is computed even if a part of it is done: the rows are those of an undisturbed job.
            rows = {"index": index.numpy(), "repeat": np.full(len(index), repeat), **self.rows(index, repeat)}
            yield {name: values[new.numpy()] for name, values in rows.items()}


@dataclass(frozen=True)
class Progress:
    """The state of a running job.

    Attributes:
        rows: the number of finished rows, those of earlier runs included.
        total: the number of rows when this process has finished.
        means: the means so far, as text.
    """

    rows: int
    total: int
    means: str


#: The kind of :class:`Scorer` that a job has.
AnyScorer = TypeVar("AnyScorer", bound=Scorer, covariant=True)


@dataclass(frozen=True)
class Job(Generic[AnyScorer]):
    """A scorer with the batches that it computes and the file for its rows.

    Attributes:
        name: the name of the data.
        scorer: the scorer.
        plan: the batches.
        path: the HDF5 file; its directory is created.
        key: the attributes of the file that must agree when the job is continued.
        metadata: attributes that may differ.
    """

    name: str
    scorer: AnyScorer
    plan: BatchPlan
    path: Path
    key: Mapping[str, Plain]
    metadata: Mapping[str, Plain]

    def run(self) -> Generator[Progress, None, None]:
        """Computes and stores the missing rows; yields its progress at the start and after every batch."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        attributes: dict[str, Any] = {"key": self.key, "metadata": self.metadata}
        with opened(self.path, columns=self.scorer.columns, shard=self.plan.shard, **attributes) as target:
            rows = len(target.rows["index"])
            total = rows + self.plan.pending(target.done)
            means = {name: RunningMean() for name in self.scorer.shown}

            def progress(batch: Columns) -> Progress:
                for name, mean in means.items():
                    mean.add(batch["index"], batch[name])
                return Progress(rows, total, ", ".join(f"{name} {mean}" for name, mean in means.items()))

            yield progress(target.rows)
            for batch in self.scorer.score(self.plan, target.done):
                target.store.append(batch)
                rows += len(batch["index"])
                yield progress(batch)

    def check(self, *without: str) -> None:
        """Refuses a file of another job before any work; nothing is written.

        Args:
            without: the attributes of the key that may differ.
        """
        check_same(self.path, columns=self.scorer.columns, key=self.key, without=without)

    def done(self, repeat: int) -> frozenset[int]:
        """The indices with a row in the last snapshot of the file."""
        return done_in(self.path)(repeat)

    def table(self) -> Rows:
        """The columns of the file, of its last snapshot."""
        return read(self.path).columns


def waiting(jobs: Sequence[Job[Scorer]]) -> str | None:
    """The number of rows that other processes have not written yet, as text; None if the files are complete."""
    missing = [job.plan.repeats * job.plan.samples - len(job.table()["index"]) for job in jobs]
    rows, shard = sum(max(0, n) for n in missing), jobs[0].plan.shard
    text = f"process {shard.rank} of {shard.world} has finished; {rows} rows of other processes are missing"
    return text if rows else None
