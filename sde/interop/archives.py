r"""Archives of tensors: PyTorch's two file formats and safetensors, opened without running or allocating anything.

PyTorch's format since version 1.6 is a zip file with uncompressed members: a pickle, `data.pkl`, and one member per
storage. The format before 1.6 is a sequence of pickles (a magic number, a protocol version, facts about the machine,
the content, the keys of the storages), followed by the storages, each preceded by its number of elements. In both
formats the pickles are evaluated as in `sde.interop.pickles`, and every size is checked against the file before it is
used.
"""

from __future__ import annotations

__all__ = ["no_storage", "open_legacy", "open_safetensors", "open_zip"]

import functools
import io
import mmap
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .pickles import LazyTensor, Storage, evaluate, shown

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


def open_zip(path: Path) -> Any:
    """The content of a file of `torch.save`, with tensors that are read later."""
    with _Bounded(path) as raw:
        with zipfile.ZipFile(raw) as archive:
            members = archive.infolist()
        places = _places(raw, members)
    # All members are in one folder, which has the name that the file had when it was written.
    folder = members[0].filename.partition("/")[0] if members else ""
    if f"{folder}/constants.pkl" in places:
        raise ValueError("it is a TorchScript program, which is not opened; export the weights alone, its state_dict()")
    pickle = places.get(f"{folder}/data.pkl")
    if pickle is None or pickle.size > 2**26:
        raise ValueError("it is a zip archive without data.pkl, or with too large a one: expected a file of torch.save")
    order = places.get(f"{folder}/byteorder")
    if order is not None and _bytes(path, order) != b"little":
        raise ValueError("it was written on a big-endian machine: expected little-endian numbers; save it again")

    storages: dict[tuple[str, torch.dtype], Storage] = {}  # so that tensors with a common storage still share it

    def persistent(identity: Any) -> Storage:
        kind, dtype, key, _, numel = identity
        size = _size(kind, key, dtype, numel)
        place = places.get(f"{folder}/data/{key}")
        if place is None:
            raise ValueError(f"its pickle refers to storage {key!r}, which is not in the archive")
        if size != place.size:
            raise ValueError(f"it claims {numel} elements of {dtype} for storage {key!r} of {place.size} bytes")
        read = functools.cache(lambda: _flat(_bytes(path, place), dtype))
        return storages.setdefault((key, dtype), Storage(numel, read))

    return evaluate(io.BytesIO(_bytes(path, pickle)), persistent)


def open_legacy(path: Path) -> Any:
    """The content of a file of `torch.save` before PyTorch 1.6, with tensors that are read later."""
    places: dict[str, _Place] = {}
    sizes: dict[str, int] = {}
    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Storage:
        kind, dtype, key, _, numel, view = identity
        size = _size(kind, key, dtype, numel)
        if view is not None or sizes.setdefault(key, size) != size:
            raise ValueError(f"its pickle refers to storage {key!r} in a way that torch.save does not")
        read = functools.cache(lambda: _flat(_bytes(path, places[key]), dtype))
        return storages.setdefault(key, Storage(numel, read))

    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        magic, protocol, machine = (evaluate(stream, no_storage) for _ in range(3))
        if magic != MAGIC or protocol != PROTOCOL or machine["little_endian"] is not True:
            raise ValueError("it was not written by torch.save, or on a big-endian machine; save it again")
        value = evaluate(stream, persistent)
        keys = evaluate(stream, no_storage)
        if not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(sizes):
            raise ValueError(f"its pickle refers to {len(sizes)} storages and lists {len(keys)} others")
        start, end = stream.tell(), len(stream)
        for key in keys:
            size, numel = sizes[key], storages[key].numel
            if start + 8 + size > end or struct.unpack("<q", stream[start : start + 8])[0] != numel:
                raise ValueError(f"it claims {numel} elements for storage {key!r}, which are not in the file")
            places[key] = _Place(start + 8, size, None)
            start += 8 + size
    return value


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a safetensors file by name, which are read later.

    The safetensors library checks that shapes, sizes and offsets agree, and that the tensors fill the file without
    overlap.
    """
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ValueError('opening it takes the package safetensors: pip install "score-sde[interop]"') from error
    archive = safe_open(path, framework="pt", device="cpu")
    shapes = {name: tuple(archive.get_slice(name).get_shape()) for name in archive.keys()}  # noqa: SIM118
    return {name: LazyTensor(shape, functools.partial(archive.get_tensor, name)) for name, shape in shapes.items()}


def no_storage(identity: Any) -> Storage:
    """Raises a ValueError: for pickles that must not contain a tensor."""
    raise ValueError("it contains a tensor where none is expected")


@dataclass(frozen=True)
class _Place:
    """The position of bytes in a file, and their CRC if it is known."""

    start: int
    size: int
    crc: int | None


class _Bounded(io.FileIO):
    """A file that refuses to read more than 16 MiB at once, which bounds the directory of an archive."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > 2**24:
            raise ValueError(f"its directory claims {size} bytes, for more members than any file of torch.save has")
        return super().read(size)


def _places(file: io.FileIO, members: Sequence[zipfile.ZipInfo]) -> dict[str, _Place]:
    """The positions of the members of an archive, whose sizes and names are checked."""
    end = file.seek(0, io.SEEK_END)
    if sum(member.file_size for member in members) > end:
        raise ValueError(f"its members claim more than the {end} bytes of the file")
    places: dict[str, _Place] = {}
    taken = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        name = member.filename
        if name.startswith("/") or "\\" in name or ".." in name.split("/") or name in places:
            raise ValueError(f"its member {name!r} has a path outside of the archive, or occurs twice")
        stored = member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size
        if not stored or member.flag_bits & 1:
            raise ValueError(f"its member {name!r} is compressed or encrypted, and torch.save does neither")
        file.seek(member.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise ValueError(f"its member {name!r} has no header at the offset in the directory")
        start = member.header_offset + 30 + sum(struct.unpack("<2H", header[26:]))
        if member.header_offset < taken or start + member.file_size > end:
            raise ValueError(f"its member {name!r} overlaps another, or ends after the file")
        taken = start + member.file_size
        places[name] = _Place(start, member.file_size, member.CRC)
    return places


def _size(kind: Any, key: Any, dtype: Any, numel: Any) -> int:
    """The size in bytes of a storage, from the checked claims of a pickle."""
    sane = kind == "storage" and isinstance(key, str) and isinstance(dtype, torch.dtype)
    if not sane or type(numel) is not int or numel < 0:
        raise ValueError(f"it claims a storage {shown(key)} with {shown(numel)} elements of {shown(dtype)}")
    return numel * int(dtype.itemsize)


def _bytes(path: Path, place: _Place) -> bytearray:
    data = bytearray(place.size)
    with open(path, "rb") as file:
        file.seek(place.start)
        read = file.readinto(data)
    if read != place.size or (place.crc is not None and zlib.crc32(data) != place.crc):
        raise ValueError(f"{path} is truncated or altered: {place.size} bytes at {place.start} are damaged")
    return data


def _flat(data: bytearray, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype, device="cpu")
