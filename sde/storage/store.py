r"""Results in HDF5 that survive a kill, can be read meanwhile, and are resumed without loss or duplicates.

One row per (index, repeat), one column per quantity. An HDF5 file that is appended to can be torn by a kill, and
cannot be read meanwhile. So no HDF5 file is ever changed in place:

    PATH           a finished snapshot, sorted by (repeat, index); replaced as a whole (`sde.storage.files`)
    PATH.journal   the rows since that snapshot, one record per `append`, fsynced (`sde.storage.journal`)
    PATH.lock      held by the one writer; names its process

`Store.append` returns when its rows are in the journal: they are then *acknowledged* and outlive every crash.
`Store.snapshot` replaces PATH by all rows so far and then empties the journal; after a crash between the two the rows
stand in both, and those of the journal are skipped by their (index, repeat). Opening again takes snapshot and journal
together. `read` sees finished snapshots only. PATH exists, with no rows, from the moment a store is first open.

The rows of one `append` are one record: after a crash all of them are there or none. A job that appends batches of
fixed indices therefore resumes with whole batches.

The attributes of the file describe the job. Its *identity* (config, checkpoint digest, seed, tolerances) must agree
whenever the store is opened again, or else the rows would not belong together. *Notes* (versions) need not agree; the
file holds those of the latest writer that added rows.
"""

from __future__ import annotations

__all__ = ["Results", "Store", "read"]

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .files import Lock, remove_temporaries, write_atomically
from .journal import Journal
from .results import Job, Plain, Results, encode, load, read


class Store:
    """The one writer of a result file; made by `Store.open` and used in a `with` statement.

    The end of the `with` block, or `close`, takes a last snapshot and removes journal and lock. After an exception in
    the block the same is tried; if this fails too (the disk is full), the journal stays, nothing acknowledged is
    lost, and the first exception is the one that propagates.

    Attributes:
        path: The result file, symbolic links resolved.
        recovered: How many rows the journal of a killed writer gave back on opening.
        torn: How many bytes of its last record were dropped on opening, because it was not written in full.
    """

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        columns: Mapping[str, DTypeLike],
        *,
        identity: Mapping[str, Plain],
        notes: Mapping[str, Plain] | None = None,
        snapshot_every: int | None = None,
    ) -> Store:
        """Opens the result file at `path` for writing, new or to be resumed.

        Args:
            path: The HDF5 file. Its directory must exist.
            columns: Name to dtype: booleans, integers or floats of at most 8 bytes. `index` and `repeat`, int64, are
                always there and may be left out.
            identity: Attributes that must agree with the file's if it exists.
            notes: Attributes that need not agree; they replace those of the same name.
            snapshot_every: `append` first takes a snapshot if this many rows have gathered since the last one. None:
                snapshots are the caller's, and the one on closing.

        Raises:
            ValueError: If the file is not a result file, or is that of another job (the first difference is named), or
                its journal is damaged; or for a column or attribute that cannot be stored. Nothing is overwritten.
            BlockingIOError: If another writer has the store open.
            FileNotFoundError: If the directory does not exist.
        """
        if snapshot_every is not None and snapshot_every < 1:
            raise ValueError(f"expected snapshot_every to be at least 1 row or None, got {snapshot_every}")
        job = Job.of(columns, identity, notes or {})
        path = Path(os.path.realpath(path))
        if not path.parent.is_dir():
            raise FileNotFoundError(f"expected the directory {path.parent} to exist: create it first")
        lock = Lock(f"{path}.lock")
        try:
            return cls(path, job, snapshot_every, lock)
        except BaseException:
            lock.release()
            raise

    def __init__(self, path: Path, job: Job, snapshot_every: int | None, lock: Lock) -> None:
        self.path = path
        self._snapshot_every = snapshot_every
        self._lock = lock
        self._open = True
        self._done: dict[int, set[int]] = {}
        exists = os.path.lexists(path)
        if exists:
            rows, there = load(path)
            job.refuse_another(path, there)
            job = Job(job.row_type, job.identity, {**there.notes, **job.notes})
        else:
            rows = np.empty(0, job.row_type)
        self._job = job
        self._rows = [rows]
        self._mark_done(rows)
        journal_path = f"{path}.journal"
        self._journal = Journal(journal_path, job.digest())
        try:
            remove_temporaries(path)
            remove_temporaries(journal_path)
            journalled = np.frombuffer(b"".join(self._journal.records), job.row_type)
            self._journal.records.clear()
            new = journalled[[not self._has(*key) for key in _keys(journalled)]]
            self._rows.append(new)
            self._mark_done(new)
            self.recovered = self._pending = len(new)
            self.torn = self._journal.torn
            if not exists:
                self._replace()
        except BaseException:
            self._journal.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OSError:
            if error is None:
                raise

    def __len__(self) -> int:
        """How many rows there are."""
        return sum(map(len, self._rows))

    def done(self, repeat: int = 0) -> frozenset[int]:
        """The indices that have a row for `repeat`, acknowledged ones that no snapshot holds yet included."""
        return frozenset(self._done.get(repeat, ()))

    def append(self, rows: Mapping[str, ArrayLike]) -> None:
        """Adds rows and returns when they are on the disk. Either all of them are added or none.

        Args:
            rows: Every column's name to values with shape (n,), of a type that converts to the column's without loss.

        Raises:
            ValueError: If names, shapes or types do not fit, or an (index, repeat) is there already or comes twice.
            OSError: If they could not be written. The store is as before; `append` may be called again, or the job
                resumed later.
        """
        self._check_open()
        block = _block(rows, self._job.row_type)
        new: set[tuple[int, int]] = set()
        for index, repeat in _keys(block):
            if (index, repeat) in new or self._has(index, repeat):
                raise ValueError(
                    f"expected each (index, repeat) once, got ({index}, {repeat}) again: skip the indices in "
                    f"done({repeat}) when resuming"
                )
            new.add((index, repeat))
        if len(block) == 0:
            return
        # Before the rows, not after: an error of the snapshot then never concerns rows that are in the journal already.
        if self._snapshot_every is not None and self._pending >= self._snapshot_every:
            self.snapshot()
        self._journal.append(block.tobytes())
        self._rows.append(block)
        self._mark_done(block)
        self._pending += len(block)

    def snapshot(self) -> None:
        """Replaces the result file by all rows so far, if there are new ones, and empties the journal.

        Raises:
            OSError: If it could not be written. The result file is the one before; the rows stay in the journal.
        """
        self._check_open()
        if self._pending:
            self._replace()
            self._journal.restart()
            self._pending = 0

    def close(self) -> None:
        """Takes a last snapshot and removes journal and lock; does nothing the second time.

        Raises:
            OSError: If the snapshot could not be written. The journal then stays, to be found on the next opening.
        """
        if self._open:
            try:
                self.snapshot()
                self._journal.remove()
            finally:
                self._open = False
                self._journal.close()
                self._lock.release()

    def _replace(self) -> None:
        rows = np.concatenate(self._rows)
        rows = rows[np.lexsort((rows["index"], rows["repeat"]))]
        # The image is made in memory, so that a full disk is an ordinary error of one write, not one inside HDF5.
        image = encode(rows, self._job)
        write_atomically(self.path, lambda file: file.write(image))
        self._rows = [rows]

    def _mark_done(self, rows: NDArray[Any]) -> None:
        for index, repeat in _keys(rows):
            self._done.setdefault(repeat, set()).add(index)

    def _has(self, index: int, repeat: int) -> bool:
        return index in self._done.get(repeat, ())

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError(f"the store of {self.path} is closed: open it again with Store.open")


def _keys(rows: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """(index, repeat) of each row."""
    return zip(rows["index"].tolist(), rows["repeat"].tolist())


def _block(rows: Mapping[str, ArrayLike], row_type: np.dtype[Any]) -> NDArray[Any]:
    """The given columns as a structured array with shape (n,)."""
    names = row_type.names or ()
    if rows.keys() != set(names):
        missing, unknown = sorted(set(names) - rows.keys()), sorted(rows.keys() - set(names))
        raise ValueError(f"expected the columns {list(names)}; missing are {missing}, unknown {unknown}")
    arrays = {name: np.asarray(rows[name]) for name in names}
    if len(shapes := {values.shape for values in arrays.values()}) > 1 or len(next(iter(shapes))) != 1:
        shown = ", ".join(f"{name} {values.shape}" for name, values in arrays.items())
        raise ValueError(f"expected one shape (n,) for all columns, got {shown}")
    block = np.empty(len(arrays["index"]), row_type)
    for name, values in arrays.items():
        if len(values) and not np.can_cast(values.dtype, row_type[name], "safe"):
            raise ValueError(
                f"expected values for column {name!r} that are {row_type[name]} or convert to it without loss, got "
                f"{values.dtype}: convert them before, or open the store with that type"
            )
        block[name] = values
    return block
