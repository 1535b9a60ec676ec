r"""HDF5 files with a checksum, written and read as a whole.

The checksum is in the user block, the first 512 bytes of the file, which HDF5 itself ignores:

    magic (8 bytes)    SHA-256 of all bytes from 512 on (32 bytes)    zeros up to byte 512

HDF5 notices a truncated file, but not most altered bytes, and some of these send it into an endless loop. The checksum
is therefore verified before HDF5 opens the file. It does not prove where a file comes from: the content must still be
checked.
"""

from __future__ import annotations

__all__ = ["decode", "encode", "with_checksum"]

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import h5py

T = TypeVar("T")

_MAGIC = b"\x89SDERES1"
_BLOCK_SIZE = 512


def encode(fill: Callable[[h5py.File], None]) -> bytes:
    """The content of a file with a checksum.

    The file is built in memory, so that a full disk is an ordinary error of one write and not an error inside HDF5.

    Args:
        fill: writes the data sets and attributes into an empty HDF5 file.
    """
    with h5py.File("image", "w", driver="core", backing_store=False, userblock_size=_BLOCK_SIZE) as file:
        fill(file)
        file.flush()
        image = file.id.get_file_image()
    return with_checksum(image[image.index(b"\x89HDF") :])  # some HDF5 versions include the user block, others do not


def decode(path: Path, read: Callable[[h5py.File, int], T]) -> T:
    """The result of `read` for a file whose checksum is valid.

    Args:
        path: the file.
        read: called with the open HDF5 file and its size in bytes.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file has another format, is truncated or altered, or `read` fails.
    """
    if not path.exists():
        raise FileNotFoundError(f"expected a result file at {path}, but it does not exist")
    if not path.is_file():
        raise ValueError(f"expected a result file at {path}, got something that is not a regular file")
    with open(path, "rb") as raw:
        if raw.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(
                f"expected {path} to be a result file, which begins with {_MAGIC!r}, but it has another format: "
                "choose another file. Nothing was changed."
            )
        raw.seek(0)
        content = raw.read()
    if content != with_checksum(content[_BLOCK_SIZE:]):
        raise ValueError(
            f"expected {path} to match the SHA-256 in its header, but it was cut short or altered: use another copy"
        )
    try:
        with h5py.File(h5py.h5f.open_file_image(content)) as file:
            return read(file, len(content))
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:  # what HDF5 raises on a bad file
        raise ValueError(f"{path} has a valid checksum but other content: {error}; choose another file") from error


def with_checksum(data: bytes) -> bytes:
    """HDF5 data that was created with a user block of 512 bytes, preceded by the user block with the checksum."""
    return (_MAGIC + hashlib.sha256(data).digest()).ljust(_BLOCK_SIZE, b"\0") + data
