r"""HDF5 results that survive a killed process, can be read while they are written, and resume without loss.

There is one row per (index, repeat) and one column per quantity. Appending to an HDF5 file is not safe: a kill can
damage the whole file, and no other process can read an open file. Therefore no HDF5 file is ever changed in place:

    PATH           a finished snapshot, sorted by (repeat, index); replaced as a whole (`sde.storage.files`)
    PATH.journal   the rows since that snapshot, one record per `append`, fsynced (`sde.storage.journal`)
    PATH.lock      the lock of the single writer; names its process

`Store.append` returns when its rows are in the journal: they are then *acknowledged* and survive every crash.
`Store.snapshot` replaces PATH by all rows so far and then empties the journal. After a crash between the two, the rows
are in both, and those in the journal are skipped by their (index, repeat). Opening the store again combines snapshot
and journal. `read` sees finished snapshots only. PATH exists, without rows, as soon as a store is open.

The rows of one `append` form one record: after a crash, either all of them exist or none. A job that appends batches
with fixed indices therefore resumes with whole batches.

The attributes of the file describe the job. The *job key* (config, checkpoint digest, seed, tolerances) must agree
whenever the store is opened again, because otherwise the rows would not belong together. The *metadata* (versions) may
differ; the file has those of the latest writer that added rows.
"""

from __future__ import annotations

__all__ = ["Results", "Store", "read"]

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .files import Lock, remove_temporaries, write_atomically
from .journal import Journal
from .results import Job, Plain, Results, encode, load, read


class Store:
    """The single writer of a result file, created by `Store.open` and used in a `with` statement.

    The end of the `with` block, or `close`, takes a last snapshot and removes journal and lock. The same is tried after
    an exception in the block. If it fails too, for example on a full disk, the journal is kept, no acknowledged row is
    lost, and the first exception propagates.

    Attributes:
        path: the result file, with symbolic links resolved.
        recovered: the number of rows recovered from the journal of a killed writer.
        torn: the number of bytes of that journal's last record that were dropped, because the record was incomplete.
    """

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        columns: Mapping[str, DTypeLike],
        *,
        key: Mapping[str, Plain],
        metadata: Mapping[str, Plain] | None = None,
        snapshot_every: int | None = None,
    ) -> Store:
        """Opens a new or existing result file for writing.

        Args:
            path: the HDF5 file. Its directory must exist.
            columns: name to dtype: booleans, integers or floats of at most 8 bytes, or arrays of them,
                `np.dtype((kind, shape))`. `index` and `repeat`, int64, always exist and may be left out.
            key: the job key: attributes that must agree with those of an existing file.
            metadata: attributes that may differ; they replace those of the same name.
            snapshot_every: the number of rows since the last snapshot at which `append` takes the next one. None leaves
                snapshots to the caller and to `close`.

        Raises:
            ValueError: if the file is not a result file or belongs to another job (the error names the first
                difference), if its journal is damaged, or for a column or attribute that cannot be stored. Nothing is
                overwritten.
            BlockingIOError: if another writer has opened the store.
            FileNotFoundError: if the directory does not exist.
        """
        if snapshot_every is not None and snapshot_every < 1:
            raise ValueError(f"expected at least 1 row or None, got snapshot_every={snapshot_every}")
        job = Job.of(columns, key, metadata or {})
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
        self._done: set[tuple[int, int]] = set()
        rows = np.empty(0, job.row_type)
        exists = os.path.lexists(path)
        if exists:
            rows, stored = load(path)
            job.check_same(path, stored)
            job = Job(job.row_type, job.key, {**stored.metadata, **job.metadata})
        self._job = job
        self._rows = [rows]
        self._done.update(_keys(rows))
        journal_path = f"{path}.journal"
        self._journal = Journal(journal_path, job.digest())
        try:
            remove_temporaries(path)
            remove_temporaries(journal_path)
            journalled = np.frombuffer(b"".join(self._journal.records), job.row_type)
            self._journal.records.clear()
            new = journalled[[key not in self._done for key in _keys(journalled)]]
            self._rows.append(new)
            self._done.update(_keys(new))
            self.recovered = self._pending = len(new)
            self.torn = self._journal.torn
            if not exists:
                self._replace()
        except BaseException:
            self._journal.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except OSError:
            if error is None:
                raise

    def __len__(self) -> int:
        """The number of rows."""
        return sum(map(len, self._rows))

    def done(self, repeat: int = 0) -> frozenset[int]:
        """The indices of all acknowledged rows with the given `repeat`, in a snapshot or not."""
        return frozenset(index for index, other in self._done if other == repeat)

    def append(self, rows: Mapping[str, ArrayLike]) -> None:
        """Adds all of the rows or none, and returns when they are on the disk.

        Args:
            rows: the name of every column to its values, with shape (n,) or (n, *), of a type that converts to the
                column's type without loss.

        Raises:
            ValueError: if names, shapes or types do not fit, or an (index, repeat) exists already or occurs twice.
            OSError: if writing fails. The store is unchanged; `append` may be called again, or the job resumed later.
        """
        self._check_open()
        block = _block(rows, self._job.row_type)
        new: set[tuple[int, int]] = set()
        for index, repeat in _keys(block):
            if (index, repeat) in new or (index, repeat) in self._done:
                raise ValueError(
                    f"expected each (index, repeat) once, got ({index}, {repeat}) again: skip the indices in "
                    f"done({repeat}) when resuming"
                )
            new.add((index, repeat))
        if len(block) == 0:
            return
        # Before the rows and not after, so that a failed snapshot never concerns rows that are already in the journal.
        if self._snapshot_every is not None and self._pending >= self._snapshot_every:
            self.snapshot()
        self._journal.append(block.tobytes())
        self._rows.append(block)
        self._done |= new
        self._pending += len(block)

    def snapshot(self) -> None:
        """Writes all rows to the result file, if some are new, and empties the journal.

        Raises:
            OSError: if writing fails. The result file is unchanged, and the rows remain in the journal.
        """
        self._check_open()
        if self._pending:
            self._replace()
            self._journal.restart()
            self._pending = 0

    def close(self) -> None:
        """Takes a last snapshot and removes journal and lock; has no effect the second time.

        Raises:
            OSError: if the snapshot cannot be written. The journal is then kept for the next opening.
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
        image = encode(rows, self._job)
        write_atomically(self.path, lambda file: file.write(image))
        self._rows = [rows]

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError(f"the store of {self.path} is closed: open it again with Store.open")


def _keys(rows: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """(index, repeat) of each row."""
    return zip(rows["index"].tolist(), rows["repeat"].tolist())


def _block(rows: Mapping[str, ArrayLike], row_type: np.dtype[Any]) -> NDArray[Any]:
    """The columns as a structured array with shape (n,)."""
    names = row_type.names or ()
    if rows.keys() != set(names):
        missing, unknown = sorted(set(names) - rows.keys()), sorted(rows.keys() - set(names))
        raise ValueError(f"expected the columns {list(names)}, got missing={missing} and unknown={unknown}")
    arrays = {name: np.asarray(rows[name]) for name in names}
    events = {name: values.shape[values.ndim - len(row_type[name].shape) :] for name, values in arrays.items()}
    sizes = {values.shape[: values.ndim - len(row_type[name].shape)] for name, values in arrays.items()}
    if len(sizes) > 1 or len(next(iter(sizes))) != 1 or any(events[n] != row_type[n].shape for n in names):
        listed = ", ".join(f"{name} {values.shape}" for name, values in arrays.items())
        raise ValueError(f"expected one shape (n,) for all columns, got {listed}")
    block = np.empty(len(arrays["index"]), row_type)
    for name, values in arrays.items():
        if len(values) and not np.can_cast(values.dtype, row_type[name].base, "safe"):
            raise ValueError(
                f"expected values that convert to {row_type[name].base} without loss for column {name!r}, got "
                f"{values.dtype}: convert them, or open the store with that type"
            )
        block[name] = values
    return block
