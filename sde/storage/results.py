r"""The content of a result file: rows of results, and attributes that describe the job.

The root of the HDF5 file has one data set per column, contiguous and without filters, with shape (N,), or (N, *) for a
column whose values are arrays of one shape. Rows are sorted by (repeat, index). The root attributes are the *job key*,
whose values must agree for rows to belong together, the *metadata*, and `identity_names`, the names of the attributes
in the job key, one per line. The file has a checksum (:mod:`sde.storage.hdf5`).

A result file may come from anywhere. Reading therefore follows no link, external storage or virtual data set, loads no
filter, and allocates no more memory than the file has bytes.
"""

from __future__ import annotations

__all__ = ["Job", "Plain", "Results", "encode", "load", "read"]

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import hdf5

Plain = str | int | float | bool

_KEY_NAMES = "identity_names"


@dataclass(frozen=True, eq=False)
class Results:
    """The content of a result file.

    Args:
        columns: name to array with shape (N,) or (N, *): `index`, `repeat`, then the others by name. Rows are sorted by
            (repeat, index), and each pair occurs once.
        attributes: the job key and the metadata.
    """

    columns: dict[str, NDArray[Any]]
    attributes: dict[str, Plain]


@dataclass(frozen=True, eq=False)
class Job:
    """The job whose results a file holds: its columns, its key and its metadata.

    Args:
        row_type: structured dtype of a row: `index`, `repeat`, then the other columns by name.
        key: attributes that must agree for rows to belong together.
        metadata: attributes that may differ.
    """

    row_type: np.dtype[Any]
    key: dict[str, Plain]
    metadata: dict[str, Plain]

    @classmethod
    def of(cls, columns: Mapping[str, DTypeLike], key: Mapping[str, Plain], metadata: Mapping[str, Plain]) -> Job:
        """A job whose columns and attributes can be stored.

        Args:
            columns: name to dtype; `index` and `repeat` may be left out.
            key: see the class.
            metadata: see the class.

        Raises:
            ValueError: for a name, dtype or value that HDF5 cannot store, or a name in both the key and the metadata.
        """
        if both := sorted(key.keys() & metadata.keys()):
            raise ValueError(f"expected each attribute in the job key or in the metadata, got {both} in both")
        return cls(_row_type(columns), _storable(key), _storable(metadata))

    def digest(self) -> bytes:
        """SHA-256 of the columns and the key (32 bytes)."""
        return hashlib.sha256(json.dumps([self._types(), self.key], sort_keys=True).encode()).digest()

    def check_same(self, path: Path, stored: Job) -> None:
        """Raises a ValueError that names the first difference if the job `stored` at `path` is not this job.

        Values agree if they are equal and of the same type: 1, 1.0 and True differ.
        """
        if difference := (
            _difference("column", stored._types(), self._types()) or _difference("attribute", stored.key, self.key)
        ):
            raise ValueError(
                f"{path} holds the results of another job: {difference}. Resume that job with its own settings, or "
                "choose another file for this job; nothing was changed."
            )

    def _types(self) -> dict[str, str]:
        types = {name: self.row_type[name] for name in self.row_type.names or ()}
        return {name: kind.base.name + (str(list(kind.shape)) if kind.shape else "") for name, kind in types.items()}


def read(path: str | os.PathLike[str]) -> Results:
    """The rows of the last finished snapshot, without those in the journal; also works while a job is writing.

    Args:
        path: the HDF5 file.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a result file, is truncated or damaged, or contains a link or external data.
    """
    rows, job = load(Path(path))
    columns = {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names or ()}
    return Results(columns, {**job.key, **job.metadata})


def load(path: Path) -> tuple[NDArray[Any], Job]:
    """The rows as one structured array with shape (N,), and the job; otherwise as `read`."""
    return hdf5.decode(path, _content)


def encode(rows: NDArray[Any], job: Job) -> bytes:
    """The bytes of a result file.

    Args:
        rows: structured array with shape (N,) of type `job.row_type`, sorted by (repeat, index).
        job: the job that the attributes describe.
    """

    def fill(file: h5py.File) -> None:
        file.attrs[_KEY_NAMES] = "\n".join(job.key)
        for name, value in {**job.key, **job.metadata}.items():
            file.attrs[name] = value
        for name in job.row_type.names or ():
            file.create_dataset(name, data=rows[name])

    return hdf5.encode(fill)


def _content(file: h5py.File, size: int) -> tuple[NDArray[Any], Job]:
    """The rows and the job in a file of `size` bytes."""
    attributes = {name: _attribute(file, name) for name in file.attrs}
    key = {name: attributes.pop(name) for name in str(attributes.pop(_KEY_NAMES)).splitlines()}
    columns = _columns(file, size)
    types = {name: np.dtype((values.dtype, values.shape[1:])) for name, values in columns.items()}
    job = Job(_row_type(types), key, attributes)
    rows = np.empty(len(columns["index"]), job.row_type)
    for name, values in columns.items():
        rows[name] = values
    return rows, job


def _columns(file: h5py.File, size: int) -> dict[str, NDArray[Any]]:
    """All columns of a file of `size` bytes, each checked before any is read."""
    sets = {}
    for name in file:
        if type(link := file.get(name, getlink=True)) is not h5py.HardLink:
            raise ValueError(f"{name!r} is a {type(link).__name__}, and links are not followed")
        if file.get(name, getclass=True) is not h5py.Dataset:
            raise ValueError(f"{name!r} is not a data set")
        values = file[name]
        storage = values.id.get_create_plist()
        layout = storage.get_layout(), storage.get_nfilters(), storage.get_external_count()
        if layout != (h5py.h5d.CONTIGUOUS, 0, 0):
            raise ValueError(f"{name!r} is not stored contiguously, without filters, in the file itself")
        if not values.shape or 0 in values.shape[1:]:
            raise ValueError(f"expected {name!r} to have shape (N, ...), got {values.shape}")
        if (stored := values.id.get_storage_size()) != math.prod(values.shape) * values.dtype.itemsize:
            raise ValueError(f"{name!r} has shape {values.shape} but {stored} bytes of data")
        _check_column(name, values.dtype)
        sets[name] = values
    if len(shapes := {values.shape[:1] for values in sets.values()}) > 1:
        raise ValueError(f"the columns differ in length: {sorted(shapes)}")
    if not {"index", "repeat"} <= sets.keys():
        raise ValueError(f"expected columns 'index' and 'repeat', got {list(sets)}")
    if any(sets[name].ndim != 1 for name in ("index", "repeat")):
        raise ValueError("expected columns 'index' and 'repeat' of shape (N,)")
    claimed = sum(math.prod(values.shape) * values.dtype.itemsize for values in sets.values())
    if claimed > size:
        raise ValueError(f"the columns claim {claimed} bytes, but the file has only {size}")
    columns = {name: values[:] for name, values in sets.items()}
    index, repeat = columns["index"], columns["repeat"]
    if not np.all((repeat[1:] > repeat[:-1]) | ((repeat[1:] == repeat[:-1]) & (index[1:] > index[:-1]))):
        raise ValueError("the rows are not sorted by (repeat, index) with each pair once")
    return columns


def _attribute(file: h5py.File, name: str) -> Plain:
    stored = file.attrs.get_id(name)
    text = h5py.check_string_dtype(stored.dtype)
    is_text = text is not None and text.length is None
    is_number = stored.dtype.kind in "biuf" and stored.dtype.itemsize <= 8
    if stored.shape != () or not (is_text or is_number):
        raise ValueError(f"the attribute {name!r} is not a string, number or bool")
    value = file.attrs[name]
    return value if is_text else value.item()


def _storable(attributes: Mapping[str, Plain]) -> dict[str, Plain]:
    """The attributes as Python values, if HDF5 can store them."""
    plain: dict[str, Plain] = {}
    for name, original in attributes.items():
        if not name or not name.isprintable() or name == _KEY_NAMES:
            raise ValueError(f"expected printable attribute names other than {_KEY_NAMES!r}, got {name!r}")
        value: Any = original.item() if isinstance(original, np.generic) else original
        if type(value) not in (str, int, float, bool):
            raise ValueError(f"expected a str, int, float or bool for attribute {name!r}, got {type(value).__name__}")
        if type(value) is int and not -(2**63) <= value < 2**64:
            raise ValueError(f"expected attribute {name!r} to fit into 64 bits, got {value}: store it as text")
        if type(value) is str and "\0" in value:
            raise ValueError(f"expected no NUL character in attribute {name!r}, because HDF5 strings end there")
        plain[name] = value
    return plain


def _row_type(columns: Mapping[str, DTypeLike]) -> np.dtype[Any]:
    """The little-endian dtype of a row: index, repeat, then the other columns by name."""
    types: dict[str, np.dtype[Any]] = {"index": np.dtype(np.int64), "repeat": np.dtype(np.int64)}
    types |= {name: np.dtype(columns[name]) for name in sorted(columns)}
    for name, kind in types.items():
        _check_column(name, kind.base)
        if kind.shape and (name in ("index", "repeat") or 0 in kind.shape):
            raise ValueError(f"expected numbers or arrays that are not empty for column {name!r}, got {kind}")
    return np.dtype([(name, kind.newbyteorder("<")) for name, kind in types.items()])


def _check_column(name: str, kind: np.dtype[Any]) -> None:
    if not name.isidentifier():
        raise ValueError(f"column name {name!r} is not a valid identifier")
    if name in ("index", "repeat") and kind != np.int64:
        raise ValueError(f"expected int64 for column {name!r}, got {kind}")
    if kind.kind not in "biuf" or kind.itemsize > 8:
        raise ValueError(f"expected a bool, integer or float of at most 8 bytes for column {name!r}, got {kind}")


def _difference(kind: str, stored: Mapping[str, Plain], current: Mapping[str, Plain]) -> str | None:
    """The first difference between two mappings, in words."""
    for name in [*current, *(name for name in stored if name not in current)]:
        what, old, new = f"{kind} {name!r}", stored.get(name), current.get(name)
        if repr(old) == repr(new):
            continue
        if type(old) is str and type(new) is str and "\n" in old + new:
            pairs = zip_longest(old.splitlines(keepends=True), new.splitlines(keepends=True))
            line, (old, new) = next((i, pair) for i, pair in enumerate(pairs, 1) if pair[0] != pair[1])
            what = f"line {line} of {what}"
        return f"{what} is {_short(old)} in the file and {_short(new)} in this job"
    return None


def _short(value: Plain | None) -> str:
    text = "absent" if value is None else repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
