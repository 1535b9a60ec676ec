r"""Rows: arrays in files, of which single rows are read, the entries of the first axis.

| file | rows |
|---|---|
| `.npy` | read at their place in the file |
| `.npz` as `numpy.savez` writes it | read at their place in the archive |
| `.npz` with compression, arrays in Fortran order | the whole array is read into memory |
| `.h5`, `.hdf5`, arrays in one piece | read at their place in the file |
| `.h5`, `.hdf5`, arrays in chunks | read by HDF5, which reads and decompresses the whole chunk of a row |

A file is opened by every process for itself, at the first row that it reads: two processes that shared a handle would
move each other's position, and HDF5 forbids it. Rows are read, not mapped into memory: of a file that is cut off
meanwhile, a mapping would end the process.

Nothing in a file is executed, and nothing outside of it is read: pickled objects, soft and external links, and virtual
and externally stored HDF5 data sets are refused.
"""

from __future__ import annotations

__all__ = ["Array", "MissingArray", "Rows", "rows_of"]

import os
import sys
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class MissingArray(ValueError):
    """A file lacks the array of a name; the caller adds how to give another name."""


class Rows(ABC):
    """The rows of one array.

    Args:
        name: the array and its file, for messages.
        shape: the shape of the array.
        dtype: its dtype.
    """

    def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.name, self.shape, self.dtype = name, tuple(shape), dtype

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """The size of the array in memory, in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @abstractmethod
    def __getitem__(self, index: NDArray[np.int64]) -> Array:
        """The rows at some positions, with shape (B, ...).

        Raises:
            OSError: if a row cannot be read.
        """

    def whole(self) -> Array:
        """The array.

        Raises:
            ValueError: if it cannot be read.
        """
        try:
            return self._whole()
        # HDF5's filters raise exceptions of any type on damaged bytes.
        except Exception as error:
            raise ValueError(f"{self.name} cannot be read: {error}") from error

    @abstractmethod
    def _whole(self) -> Array:
        """The array, or any exception."""


class _InMemory(Rows):
    def __init__(self, name: str, array: Array) -> None:
        super().__init__(name, array.shape, array.dtype)
        self._array = array

    def __getitem__(self, index: NDArray[np.int64]) -> Array:
        return self._array[index]

    def _whole(self) -> Array:
        return self._array


class _InFile(Rows):
    """Rows whose file every process opens for itself."""

    def __init__(self, name: str, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        super().__init__(name, shape, dtype)
        self.path = path.absolute()
        self._handle: tuple[int, Any] | None = None  # the process, and what it has opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    @abstractmethod
    def _open(self) -> Any:
        """The handle that rows are read from."""

    def _opened(self) -> Any:
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = os.getpid(), self._open()
        return self._handle[1]


if sys.platform == "win32":

    def _pread(file: int, size: int, offset: int) -> bytes:
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, size)

else:
    _pread = os.pread


class _Descriptor:
    """A file that is open for reading as long as this object lives."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class _AtPlace(_InFile):
    """Rows of an array that lies in one piece, in C order, from an offset in bytes on.

    Args:
        name, path, shape, dtype: as above.
        offset: the offset.
        header: the offset of the array's header.
        crc: the checksum of header and array, if the file has one.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        offset: int,
        header: int,
        crc: int | None,
    ) -> None:
        super().__init__(name, path, shape, dtype)
        self._offset, self._header, self._crc = offset, header, crc

    def _open(self) -> _Descriptor:
        return _Descriptor(self.path)

    def __getitem__(self, index: NDArray[np.int64]) -> Array:
        result = np.empty((len(index), *self.shape[1:]), self.dtype)
        flat, file = result.reshape(len(index), -1).view(np.uint8), self._opened().number
        size = flat.shape[1]
        for row, position in zip(flat, index.tolist()):
            self._fill(file, row.data, self._offset + position * size)
        return result

    def _whole(self) -> Array:
        result, file = np.empty(self.shape, self.dtype), self._opened().number
        data, header = result.reshape(-1).view(np.uint8).data, bytearray(self._offset - self._header)
        self._fill(file, memoryview(header), self._header)
        self._fill(file, data, self._offset)
        if self._crc is not None and zlib.crc32(data, zlib.crc32(header)) != self._crc:
            raise OSError("Bad CRC-32")
        return result

    def _fill(self, file: int, target: memoryview, offset: int) -> None:
        """Reads bytes at an offset; one call of the system reads at most 2 GiB."""
        while len(target):
            block = _pread(file, min(len(target), 2**24), offset)
            if not block:
                raise OSError("the file ends before the array does")
            target[: len(block)] = block
            target, offset = target[len(block) :], offset + len(block)


class _Hdf5(_InFile):
    def __init__(self, name: str, path: Path, key: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        super().__init__(name, path, shape, dtype)
        self._key = key

    def _open(self) -> h5py.Dataset:
        return h5py.File(self.path, "r")[self._key]

    def __getitem__(self, index: NDArray[np.int64]) -> Array:
        array, result = self._opened(), np.empty((len(index), *self.shape[1:]), self.dtype)
        # In the order of the file, in which neighbours share a chunk.
        for row in np.argsort(index, kind="stable"):
            result[row] = array[int(index[row])]
        return result

    def _whole(self) -> Array:
        return np.asarray(self._opened()[()])


def rows_of(path: Path, names: Iterable[str], *, text: bool = False) -> dict[str, Rows]:
    """The rows of the arrays with the given names in a file; an `.npy` file has the single array `x_train`.

    Args:
        path: the file.
        names: the names of the arrays.
        text: whether an array may contain text, of which the whole is read into memory.

    Raises:
        FileNotFoundError: if there is no such file.
        MissingArray: if it lacks an array.
        ValueError: if the file cannot be read, or an array is refused.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} has the suffix {path.suffix!r}: expected one of {', '.join(_READERS)}")
    if not path.is_file():
        raise FileNotFoundError(f"the file {path} does not exist")
    try:
        contents = reader(path, names)
    except MissingArray as error:
        raise MissingArray(f"{path}: {error}") from error
    # The readers raise exceptions of any type on damaged bytes: each of them means that the file is unusable.
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    for name, rows in contents.items():
        if rows.dtype.kind not in f"biuf{'U' if text else ''}" or rows.dtype == np.uint64:
            raise ValueError(
                f"{path}: array {name!r} has dtype {rows.dtype}: expected floats or integers of up to 63 bits"
            )
        if len(rows.shape) == 0 or 0 in rows.shape:
            raise ValueError(f"{path}: array {name!r} has shape {rows.shape}: expected at least one sample")
    return contents


def _missing(name: str, available: Iterable[str]) -> MissingArray:
    return MissingArray(f"there is no array {name!r}; the arrays are {', '.join(map(repr, available)) or 'none'}")


def _described(path: Path, name: str) -> str:
    return f"{path}: array {name!r}"


def _at_place(path: Path, name: str, offset: int, length: int, crc: int | None = None) -> Rows | None:
    """The rows of an array in the `.npy` format at an offset of a file; None if they do not lie one after another."""
    with path.open("rb") as file:
        file.seek(offset)
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if header is None:
            return None
        shape, fortran, dtype = header(file)
        start = file.tell()
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded: they are pickled, and nothing in a file is executed")
    if fortran or not shape or 0 in shape or dtype.kind not in "biuf":
        return None
    rows = _AtPlace(_described(path, name), path, shape, dtype, start, offset, crc)
    if start - offset + rows.nbytes > length:
        raise ValueError("the file ends before the array does")
    return rows


def _read_npy(path: Path, names: Iterable[str]) -> dict[str, Rows]:
    rows = _at_place(path, "x_train", 0, path.stat().st_size)
    if rows is None:
        with path.open("rb") as file:
            rows = _InMemory(_described(path, "x_train"), np.lib.format.read_array(file, allow_pickle=False))
    for name in names:
        if name != "x_train":
            raise _missing(name, ["x_train"])
    return {"x_train": rows}


def _read_npz(path: Path, names: Iterable[str]) -> dict[str, Rows]:
    if not zipfile.is_zipfile(path):
        raise ValueError("expected a zip archive of arrays, as written by numpy.savez")
    contents: dict[str, Rows] = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in names:
            if name not in archive.files:
                raise _missing(name, archive.files)
            try:
                stored = _stored(path, name)
                rows = None if stored is None else _at_place(path, name, *stored)
                contents[name] = _InMemory(_described(path, name), np.asarray(archive[name])) if rows is None else rows
            except Exception as error:
                raise ValueError(f"array {name!r}: {error}") from error
    return contents


def _stored(path: Path, name: str) -> tuple[int, int, int] | None:
    """The offset, the length and the checksum of a member of a zip archive without compression."""
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        info = archive.getinfo(f"{name}.npy" if f"{name}.npy" in members else name)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        return None
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)  # the last 4 bytes are the lengths of the name and of the extra field
    if header[:4] != b"PK\x03\x04":
        raise ValueError("the archive is damaged")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return info.header_offset + 30 + lengths, info.file_size, info.CRC


def _read_hdf5(path: Path, names: Iterable[str]) -> dict[str, Rows]:
    with h5py.File(path, "r") as file:
        return {name: _dataset(path, file, name) for name in names}


def _dataset(path: Path, file: h5py.File, name: str) -> Rows:
    node = file
    for part in name.strip("/").encode().split(b"/"):
        # Link by link, because h5py follows a whole path, even into other files, before the links can be checked.
        links = node.id.links if isinstance(node, h5py.Group) else None
        if links is None or part in (b"", b".") or not links.exists(part):
            raise _missing(name, _dataset_names(file))
        if links.get_info(part).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"array {name!r} is behind a soft or external link, which is not followed: copy the array")
        node = node[part]
    if not isinstance(node, h5py.Dataset):
        raise ValueError(f"{name!r} is a group: set the name of an array in it, {name}/...")
    if node.is_virtual or node.external:
        raise ValueError(f"array {name!r} is stored in other files, which are not read: copy the array")
    if node.shape is None:  # an array without a shape and without values
        return _InMemory(_described(path, name), np.asarray(node[()]))
    if h5py.check_string_dtype(node.dtype) is not None:
        return _InMemory(_described(path, name), np.asarray(node.asstr()[()]).astype(np.str_))
    kind, offset = node.dtype.kind, node.id.get_offset()
    if kind in "biuf" and not file.userblock_size and offset is not None and node.size:
        # In one piece: where the file is cut off, HDF5 would give zeros.
        return _AtPlace(_described(path, name), path, node.shape, node.dtype, offset, offset, None)
    return _Hdf5(_described(path, name), path, node.name, node.shape, node.dtype)


def _dataset_names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
    return names


_READERS: dict[str, Callable[[Path, Iterable[str]], dict[str, Rows]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
}
