r"""The result file: what stands in it, how it is written and read.

An HDF5 file whose root holds one data set with shape (N,) per column, contiguous and without filters, rows sorted by
(repeat, index), and whose root attributes describe the job: its identity, its notes, and `identity_names`, the names of
the attributes that form the identity, one a line. Before the HDF5 data, in the user block, which HDF5 leaves alone,
stands a seal:

    magic (8 bytes)    SHA-256 of all bytes from 512 on (32 bytes)    zeros up to byte 512

HDF5 itself notices a truncated file, but not most altered bytes, and some of them send it into an endless loop; so the
seal is checked before HDF5 sees the file. The seal proves no origin, and a file may come from anywhere. Reading
therefore follows no link, external storage or virtual data set, loads no filter, and allocates nothing for a size that
the file is too short to hold.
"""

from __future__ import annotations

__all__ = ["Job", "Plain", "Results", "encode", "load", "read", "seal"]

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import DTypeLike, NDArray

Plain = str | int | float | bool

_IDENTITY_NAMES = "identity_names"
_MAGIC = b"\x89SDERES1"
_BLOCK_SIZE = 512


@dataclass(frozen=True, eq=False)
class Results:
    """What a result file held when it was read.

    Args:
        columns: Name to array with shape (N,): `index`, `repeat`, then the others by name. Rows are sorted by
            (repeat, index), and each pair occurs once.
        attributes: Identity and notes of the job.
    """

    columns: dict[str, NDArray[Any]]
    attributes: dict[str, Plain]


@dataclass(frozen=True, eq=False)
class Job:
    """What a result file is about: its columns, its identity and its notes.

    Args:
        row_type: Structured dtype of a row: `index`, `repeat`, then the other columns by name.
        identity: Attributes without whose agreement rows do not belong together.
        notes: Attributes that need not agree.
    """

    row_type: np.dtype[Any]
    identity: dict[str, Plain]
    notes: dict[str, Plain]

    @classmethod
    def of(cls, columns: Mapping[str, DTypeLike], identity: Mapping[str, Plain], notes: Mapping[str, Plain]) -> Job:
        """A job whose columns and attributes can be stored.

        Args:
            columns: Name to dtype; `index` and `repeat` may be left out.
            identity: See the class.
            notes: See the class.

        Raises:
            ValueError: For a name, dtype or value that the file cannot hold, or a name in both identity and notes.
        """
        if both := sorted(identity.keys() & notes.keys()):
            raise ValueError(f"expected each attribute in identity or in notes, got {both} in both")
        return cls(_row_type(columns), _plain(identity), _plain(notes))

    def digest(self) -> bytes:
        """SHA-256 of columns and identity (32 bytes)."""
        return hashlib.sha256(json.dumps([self._types(), self.identity], sort_keys=True).encode()).digest()

    def refuse_another(self, path: Path, there: Job) -> None:
        """Raises a ValueError that names the first difference if `there`, found at `path`, is not this job.

        Values agree if they are the same and of the same type: 1, 1.0 and True differ.
        """
        if difference := (
            _difference("column", there._types(), self._types())
            or _difference("attribute", there.identity, self.identity)
        ):
            raise ValueError(
                f"{path} holds the results of another job: {difference}. Resume it with its own settings, or give this "
                "job another file; nothing was changed."
            )

    def _types(self) -> dict[str, str]:
        return {name: self.row_type[name].name for name in self.row_type.names or ()}


def read(path: str | os.PathLike[str]) -> Results:
    """The rows of the last finished snapshot, also while a job is writing; never those of its journal.

    Args:
        path: The HDF5 file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not a result file, is truncated or damaged, or holds something that is not to be followed.
    """
    rows, job = load(Path(path))
    columns = {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names or ()}
    return Results(columns, {**job.identity, **job.notes})


def load(path: Path) -> tuple[NDArray[Any], Job]:
    """As `read`, but the rows as one structured array with shape (N,), and the job."""
    if not path.exists():
        raise FileNotFoundError(f"expected a result file at {path}, found nothing")
    if not path.is_file():
        raise ValueError(f"expected a result file at {path}, found something that is not a regular file")
    with open(path, "rb") as raw:
        if raw.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(
                f"expected {path} to be a result file, which begins with {_MAGIC!r}, but it has another format: "
                "name another file. Nothing was changed."
            )
        raw.seek(0)
        content = raw.read()
    if content != seal(content[_BLOCK_SIZE:]):
        raise ValueError(
            f"expected {path} to agree with the SHA-256 in its seal, but it was cut short or altered: take another copy"
        )
    try:
        with h5py.File(h5py.h5f.open_file_image(content)) as file:
            attributes = {name: _attribute(file, name) for name in file.attrs}
            names = str(attributes.pop(_IDENTITY_NAMES)).splitlines()
            identity = {name: attributes.pop(name) for name in names}
            columns = _columns(file, len(content))
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:  # whatever HDF5 says of a bad file
        raise ValueError(f"{path} is sealed as a result file, but cannot be read as one: {error}") from error
    job = Job(_row_type({name: values.dtype for name, values in columns.items()}), identity, attributes)
    rows = np.empty(len(columns["index"]), job.row_type)
    for name, values in columns.items():
        rows[name] = values
    return rows, job


def encode(rows: NDArray[Any], job: Job) -> bytes:
    """The content of the result file of `job` with the given rows.

    Args:
        rows: Structured array with shape (N,) of type `job.row_type`, sorted by (repeat, index).
        job: What the attributes say.
    """
    with h5py.File("image", "w", driver="core", backing_store=False, userblock_size=_BLOCK_SIZE) as file:
        file.attrs[_IDENTITY_NAMES] = "\n".join(job.identity)
        for name, value in {**job.identity, **job.notes}.items():
            file.attrs[name] = value
        for name in job.row_type.names or ():
            file.create_dataset(name, data=rows[name])
        file.flush()
        image = file.id.get_file_image()
    return seal(image[image.index(b"\x89HDF") :])  # with or without the user block, as the HDF5 version has it


def seal(data: bytes) -> bytes:
    """The HDF5 `data`, made with a user block of 512 bytes, behind a block that holds the seal."""
    return (_MAGIC + hashlib.sha256(data).digest()).ljust(_BLOCK_SIZE, b"\0") + data


def _columns(file: h5py.File, size: int) -> dict[str, NDArray[Any]]:
    """All columns of a file of `size` bytes, each looked at before anything is read."""
    sets = {}
    for name in file:
        if type(link := file.get(name, getlink=True)) is not h5py.HardLink:
            raise ValueError(f"{name!r} is a {type(link).__name__}, and links are not followed")
        if file.get(name, getclass=True) is not h5py.Dataset:
            raise ValueError(f"{name!r} is not a data set")
        values = file[name]
        storage = values.id.get_create_plist()
        if (
            storage.get_layout() != h5py.h5d.CONTIGUOUS
            or storage.get_nfilters() > 0
            or storage.get_external_count() > 0
        ):
            raise ValueError(f"{name!r} is not stored contiguously, without filters, in the file itself")
        if len(values.shape or ()) != 1:
            raise ValueError(f"{name!r} has shape {values.shape} instead of (N,)")
        if (there := values.id.get_storage_size()) != values.shape[0] * values.dtype.itemsize:
            raise ValueError(f"{name!r} has shape {values.shape} but {there} bytes of data")
        _check_column(name, values.dtype)
        sets[name] = values
    if len(shapes := {values.shape for values in sets.values()}) > 1:
        raise ValueError(f"the columns differ in length: {sorted(shapes)}")
    if not {"index", "repeat"} <= sets.keys():
        raise ValueError(f"there is no column 'index' or no column 'repeat' among {list(sets)}")
    claimed = sum(values.shape[0] * values.dtype.itemsize for values in sets.values())
    if claimed > size:
        raise ValueError(f"its columns claim {claimed} bytes, and the whole file has {size}")
    columns = {name: values[:] for name, values in sets.items()}
    index, repeat = columns["index"], columns["repeat"]
    if not np.all((repeat[1:] > repeat[:-1]) | ((repeat[1:] == repeat[:-1]) & (index[1:] > index[:-1]))):
        raise ValueError("its rows are not sorted by (repeat, index) with each pair once")
    return columns


def _attribute(file: h5py.File, name: str) -> Plain:
    stored = file.attrs.get_id(name)
    text = h5py.check_string_dtype(stored.dtype)
    is_text = text is not None and text.length is None
    is_number = stored.dtype.kind in "biuf" and stored.dtype.itemsize <= 8
    if stored.shape != () or not (is_text or is_number):
        raise ValueError(f"its attribute {name!r} is not a string, number or truth value")
    value = file.attrs[name]
    return value if is_text else value.item()


def _plain(attributes: Mapping[str, Plain]) -> dict[str, Plain]:
    plain: dict[str, Plain] = {}
    for name, given in attributes.items():
        if not name or not name.isprintable() or name == _IDENTITY_NAMES:
            raise ValueError(f"expected printable attribute names other than {_IDENTITY_NAMES!r}, got {name!r}")
        value: Any = given.item() if isinstance(given, np.generic) else given
        if type(value) not in (str, int, float, bool):
            raise ValueError(f"expected a str, int, float or bool for attribute {name!r}, got {type(value).__name__}")
        if type(value) is int and not -(2**63) <= value < 2**64:
            raise ValueError(f"expected attribute {name!r} to fit into 64 bits, got {value}: store it as text")
        if type(value) is str and "\0" in value:
            raise ValueError(f"expected no NUL character in attribute {name!r}: HDF5 strings end there")
        plain[name] = value
    return plain


def _row_type(columns: Mapping[str, DTypeLike]) -> np.dtype[Any]:
    """index, repeat, then the other columns by name; little-endian."""
    types: dict[str, np.dtype[Any]] = {"index": np.dtype(np.int64), "repeat": np.dtype(np.int64)}
    types |= {name: np.dtype(columns[name]) for name in sorted(columns)}
    for name, kind in types.items():
        _check_column(name, kind)
    return np.dtype([(name, kind.newbyteorder("<")) for name, kind in types.items()])


def _check_column(name: str, kind: np.dtype[Any]) -> None:
    if not name.isidentifier():
        raise ValueError(f"column names are identifiers, and {name!r} is none")
    if name in ("index", "repeat") and kind != np.int64:
        raise ValueError(f"column {name!r} has the type {kind} instead of int64")
    if kind.kind not in "biuf" or kind.itemsize > 8:
        raise ValueError(f"column {name!r} has the type {kind} instead of a bool, integer or float of at most 8 bytes")


def _difference(what: str, there: Mapping[str, Plain], here: Mapping[str, Plain]) -> str | None:
    for name in [*here, *(name for name in there if name not in here)]:
        if name not in there:
            return f"{what} {name!r} is absent there and {_shown(here[name])} here"
        if name not in here:
            return f"{what} {name!r} is {_shown(there[name])} there and absent here"
        old, new = there[name], here[name]
        if repr(old) == repr(new):
            continue
        if type(old) is str and type(new) is str and "\n" in old + new:
            pairs = zip_longest(old.splitlines(keepends=True), new.splitlines(keepends=True))
            line, (old, new) = next((i, pair) for i, pair in enumerate(pairs, 1) if pair[0] != pair[1])
            return f"line {line} of {what} {name!r} is {_shown(old)} there and {_shown(new)} here"
        return f"{what} {name!r} is {_shown(old)} there and {_shown(new)} here"
    return None


def _shown(value: Plain | None) -> str:
    text = "absent" if value is None else repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
