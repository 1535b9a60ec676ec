r"""One result file from several processes.

A result file has one writer. Of `world` processes each therefore writes a part of its own, `NAME.partRANK.h5` beside
`NAME.h5`, and whoever finishes gathers into the file the rows of all parts that nobody writes any more. The last one
to finish finds all of them. Parts that a killed job has left, of whatever number of processes, are gathered by the next
one before it starts. The file's lock is held while parts are gathered or opened, so that a part is never both written
and gathered; a process that finds the lock taken waits, because gathering is short.

A part goes only when the file with its rows is on the disk. After a kill between the two the rows stand in both, and
those of the part are skipped by their (index, repeat).
"""

from __future__ import annotations

__all__ = ["Target", "done_in", "opened"]

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import DTypeLike

from ..storage.results import Plain
from ..storage.store import Store, read
from .likelihood_job import COLUMNS, Rows
from .sharding import WHOLE, Done, Share


@dataclass(frozen=True)
class Target:
    """Where a process writes.

    Attributes:
        store: the file, or this process's part of it.
        done: for a repeat the indices that are done.
        rows: the rows that are there already.
    """

    store: Store
    done: Done
    rows: Rows


def done_in(path: Path) -> Done:
    """What the snapshot of a file shows as done, if there is one; nothing is written."""
    done: dict[int, set[int]] = {}
    if path.exists():
        columns = read(path).columns
        for index, repeat in zip(columns["index"].tolist(), columns["repeat"].tolist()):
            done.setdefault(repeat, set()).add(index)
    return lambda repeat: frozenset(done.get(repeat, ()))


@contextlib.contextmanager
def opened(
    path: Path,
    *,
    identity: Mapping[str, Plain],
    notes: Mapping[str, Plain] | None = None,
    columns: Mapping[str, DTypeLike] = COLUMNS,
    share: Share = WHOLE,
    snapshot_every: int = 4096,
    patience: float = 60.0,
) -> Iterator[Target]:
    """A likelihood file, new or to be resumed, for one of the processes that write it.

    Args:
        path: the HDF5 file. Its directory exists.
        identity: what must agree with the file, as in :meth:`sde.storage.store.Store.open`.
        notes: what need not agree.
        columns: name to dtype, as in :meth:`sde.storage.store.Store.open`.
        share: which process this is.
        snapshot_every: as in :meth:`sde.storage.store.Store.open`.
        patience: the seconds that one of several processes waits for the lock of the file.

    Raises:
        ValueError: if the file or a part is that of another job.
        BlockingIOError: if another process writes what this one is to write.
    """
    with contextlib.ExitStack() as stack:
        with _open(path, columns, identity, notes, snapshot_every, patience if share.world > 1 else 0.0) as store:
            _gather(store, columns, identity, notes, alone=share.world == 1)
            store.snapshot()
            rows = read(store.path).columns
            if share.world == 1:
                yield Target(store, store.done, rows)
                return
            part = store.path.with_name(f"{store.path.stem}.part{share.rank}.h5")
            own = stack.enter_context(_open(part, columns, identity, notes, snapshot_every, 0.0))
        yield Target(own, store.done, rows)
    with _open(path, columns, identity, notes, snapshot_every, patience) as store:
        _gather(store, columns, identity, notes, alone=False)


def _open(
    path: Path,
    columns: Mapping[str, DTypeLike],
    identity: Mapping[str, Plain],
    notes: Mapping[str, Plain] | None,
    snapshot_every: int,
    patience: float,
) -> Store:
    deadline = time.monotonic() + patience
    while True:
        try:
            return Store.open(path, columns, identity=identity, notes=notes, snapshot_every=snapshot_every)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.02)


def _gather(
    store: Store,
    columns: Mapping[str, DTypeLike],
    identity: Mapping[str, Plain],
    notes: Mapping[str, Plain] | None,
    *,
    alone: bool,
) -> None:
    """Takes in the parts that nobody writes; one that somebody does write stays, and bars a process that is alone."""
    name = re.compile(rf"({re.escape(store.path.stem)}\.part\d+\.h5)(\.journal)?")
    there = [name.fullmatch(entry.name) for entry in store.path.parent.iterdir()]
    for part in sorted({store.path.with_name(match[1]) for match in there if match}):
        try:
            Store.open(part, columns, identity=identity, notes=notes).close()  # takes its journal in
        except BlockingIOError:
            if alone:
                raise
            continue
        rows = read(part).columns
        done = {repeat: store.done(repeat) for repeat in set(rows["repeat"].tolist())}
        new = [i not in done[r] for i, r in zip(rows["index"].tolist(), rows["repeat"].tolist())]
        store.append({name: values[new] for name, values in rows.items()})
        store.snapshot()
        part.unlink()
