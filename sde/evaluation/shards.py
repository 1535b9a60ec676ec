r"""Shards: one result file from several processes.

A result file has one writer. Each of `world` processes therefore writes a shard of its own, `NAME.partRANK.h5` beside
`NAME.h5`, and merges the rows of all shards that nobody writes any more into the file when it finishes. The last
process to finish merges all of them. Shards of a killed job, with any number of processes, are merged by the next job
before it starts. The lock of the file is held while shards are merged or opened, so that a shard is never written and
merged at the same time. A process waits for the lock, because merging is short.

A shard is removed after the file with its rows is on the disk. After a kill between the two, the rows are in both, and
those of the shard are skipped by their (index, repeat).
"""

from __future__ import annotations

__all__ = ["Target", "check_same", "done_in", "opened"]

import contextlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from numpy.typing import DTypeLike

from ..storage.results import Job, Plain, load
from ..storage.store import Store, read
from ..training.run import differences
from .sharding import WHOLE, Done, Shard, nothing_done
from .summary import Columns


@dataclass(frozen=True)
class Target:
    """The open result file of a process.

    Attributes:
        store: the file, or the shard of this process.
        done: the indices with a row, for a repeat.
        rows: the rows at the time of opening.
    """

    store: Store
    done: Done
    rows: Columns


def done_in(path: Path) -> Done:
    """The finished rows in the snapshot of a file, none if there is no file; nothing is written."""
    if not path.exists():
        return nothing_done
    columns = read(path).columns
    return lambda repeat: frozenset(columns["index"][columns["repeat"] == repeat].tolist())


def check_same(
    path: Path, *, columns: Mapping[str, DTypeLike], key: Mapping[str, Plain], without: Collection[str] = ()
) -> None:
    """Refuses a file of another job; nothing is written.

    Args:
        path: the HDF5 file, which need not exist.
        columns, key: as in :func:`opened`.
        without: attributes that may differ.

    Raises:
        ValueError: if the file belongs to another job, or is not a result file.
    """
    if path.exists():
        jobs = load(path)[1], Job.of(columns, _with_stored_names(path, key), {})
        stored, job = (replace(j, key={k: v for k, v in j.key.items() if k not in without}) for j in jobs)
        job.check_same(path, stored)


@contextlib.contextmanager
def opened(
    path: Path,
    *,
    columns: Mapping[str, DTypeLike],
    key: Mapping[str, Plain],
    metadata: Mapping[str, Plain] | None = None,
    shard: Shard = WHOLE,
    snapshot_every: int = 4096,
    patience: float = 60.0,
) -> Iterator[Target]:
    """Opens a new or existing result file for one of the processes that write it.

    Args:
        path: the HDF5 file. Its directory must exist.
        columns: name to dtype, as in :meth:`sde.storage.store.Store.open`.
        key: the attributes that must agree with those of an existing file. In its `config`, names of older versions
            agree with the names that they have now, and null with a key that is missing.
        metadata: attributes that may differ.
        shard: this process.
        snapshot_every: as in :meth:`sde.storage.store.Store.open`.
        patience: how long one of several processes waits for the lock of the file, in seconds.

    Raises:
        ValueError: if the file or a shard belongs to another job.
        BlockingIOError: if another process writes the same file or shard.
    """
    key = _with_stored_names(path, key)

    def store_at(place: Path) -> Store:
        return Store.open(place, columns, key=key, metadata=metadata, snapshot_every=snapshot_every)

    with contextlib.ExitStack() as stack:
        with _wait_for(store_at, path, patience if shard.world > 1 else 0.0) as store:
            _merge(store, store_at, alone=shard.world == 1)
            store.snapshot()
            rows = read(store.path).columns
            if shard.world == 1:
                yield Target(store, store.done, rows)
                return
            part = stack.enter_context(store_at(store.path.with_name(f"{store.path.stem}.part{shard.rank}.h5")))
        yield Target(part, store.done, rows)
    with _wait_for(store_at, path, patience) as store:
        _merge(store, store_at, alone=False)


def _with_stored_names(path: Path, key: Mapping[str, Plain]) -> Mapping[str, Plain]:
    """The key with the config of an existing file if that differs only in names of an older version, or keys that are
    null."""
    stored = read(path).attributes.get("config") if path.exists() else None
    try:
        old, new = json.loads(str(stored)), json.loads(str(key.get("config")))
    except ValueError:  # not the config of a job
        return key
    same = isinstance(old, dict) and isinstance(new, dict) and not any(differences(old, new, free=()))
    return {**key, "config": stored} if same and stored is not None else key


def _wait_for(store_at: Callable[[Path], Store], path: Path, patience: float) -> Store:
    deadline = time.monotonic() + patience
    while True:
        try:
            return store_at(path)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.02)


def _merge(store: Store, store_at: Callable[[Path], Store], *, alone: bool) -> None:
    """Merges the shards that nobody writes. One that is being written stays; it is an error for a single process."""
    name = re.compile(rf"({re.escape(store.path.stem)}\.part\d+\.h5)(\.journal)?")
    matches = [name.fullmatch(entry.name) for entry in store.path.parent.iterdir()]
    for part in sorted({store.path.with_name(match[1]) for match in matches if match}):
        try:
            store_at(part).close()  # includes the rows of its journal
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
