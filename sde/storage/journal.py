r"""A journal: records that are on the disk once `append` has returned.

The file is a header and then one record per `append`:

    header   magic (8 bytes)   SHA-256 of the owner's description (32 bytes)
    record   mark (8 bytes)    length n of the payload (uint64)    CRC-32 of length and payload (uint32)    payload

all little-endian. The header is there in full from the first moment (`write_atomically`); a record is written, then
fsynced. A record is begun only after the one before it was fsynced, so that a kill or a power cut can damage the last
one only, which nobody was promised. Hence the reading rule: what stands behind the last whole record is the torn end
of a killed process, and is dropped, unless a whole record follows somewhere behind the damage. In that case a record
that had reached the disk was altered, and the journal is refused. (Damage to the last record itself cannot be told
from a torn one; it too is dropped and counted in `torn`.)
"""

from __future__ import annotations

__all__ = ["Journal"]

import contextlib
import os
import struct
import zlib
from pathlib import Path

from .files import write_atomically

_MAGIC = b"\x89SDEJNL1"
_MARK = b"\x89record\n"
_HEAD = struct.Struct("<8sQI")  # mark, length, CRC-32
_HEADER_SIZE = len(_MAGIC) + 32


class Journal:
    """An append-only file of byte strings, each durable once `append` has returned.

    Opening an existing journal reads its records and cuts off a torn end; the file is created by the first `append`.

    Args:
        path: The journal file. The caller holds the lock that makes it the only writer.
        digest: SHA-256 (32 bytes) of whatever must agree between the process that wrote the journal and this one.

    Attributes:
        records: The payloads found on opening, in the order they were appended; the caller's to clear.
        torn: How many bytes of a torn record were dropped on opening.

    Raises:
        ValueError: If the file is not a journal, belongs to another digest, or is damaged before its last record.
    """

    def __init__(self, path: str | os.PathLike[str], digest: bytes) -> None:
        self.path = Path(path)
        self.records: list[bytes] = []
        self.torn = 0
        self._header = _MAGIC + digest
        self._end = _HEADER_SIZE
        self._descriptor: int | None = None
        if self.path.exists():
            self._read(self.path.read_bytes())
            self._descriptor = os.open(self.path, os.O_RDWR)
            if self.torn:
                try:
                    self._cut(self._end)
                except BaseException:
                    self.close()
                    raise

    def append(self, payload: bytes) -> None:
        """Writes one record and returns when it is on the disk.

        Args:
            payload: The content, of any length.

        Raises:
            OSError: If it could not be written (a full disk, say). The record then does not exist, the earlier ones do,
                and `append` may be called again.
        """
        if self._descriptor is None:
            write_atomically(self.path, lambda file: file.write(self._header))
            self._descriptor = os.open(self.path, os.O_RDWR)
        record = _HEAD.pack(_MARK, len(payload), _crc(payload)) + payload
        try:
            written = 0
            while written < len(record):
                written += os.pwrite(self._descriptor, record[written:], self._end + written)
            os.fsync(self._descriptor)
        except BaseException:
            # If the cut fails too, the remains do no harm: the next record is written over their head, and what may
            # then stand behind it holds no whole record.
            with contextlib.suppress(OSError):
                self._cut(self._end)
            raise
        self._end += len(record)

    def restart(self) -> None:
        """Forgets all records, in one step: a crash leaves all of them or none."""
        if self._descriptor is not None:
            self._cut(_HEADER_SIZE)

    def remove(self) -> None:
        """Closes the journal and deletes its file."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the journal; its records stay on the disk. May be called again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _cut(self, end: int) -> None:
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, end)
        self._end = end  # before the fsync: should that fail, the file has this length all the same
        os.fsync(self._descriptor)

    def _read(self, data: bytes) -> None:
        if data[: len(_MAGIC)] != _MAGIC or len(data) < _HEADER_SIZE:
            raise ValueError(
                f"{self.path} is not a journal: expected it to begin with {_MAGIC!r} and a digest, got "
                f"{data[: len(_MAGIC)]!r} in {len(data)} bytes. Move it away to go on without it."
            )
        if data[:_HEADER_SIZE] != self._header:
            raise ValueError(
                f"{self.path} belongs to another job: expected the digest {self._header[8:].hex()} of this job's "
                f"columns and identity, got {data[8:_HEADER_SIZE].hex()}. Resume that job with its own settings to "
                "finish it, or move the journal away to give up what it holds."
            )
        while (payload := _payload(data, self._end)) is not None:
            self.records.append(payload)
            self._end += _HEAD.size + len(payload)
        self.torn = len(data) - self._end
        later = data.find(_MARK, self._end + 1)
        while later >= 0:
            if _payload(data, later) is not None:
                raise ValueError(
                    f"{self.path} is damaged at byte {self._end}: expected a record, but its mark, length or CRC-32 is "
                    f"wrong, and a whole record follows at byte {later}, so that this is no torn end of a killed job "
                    f"but a fault of the disk or an edit. {len(self.records)} whole records stand before it. Keep a "
                    f"copy; then cut the file to {self._end} bytes and resume: what is lost is computed again."
                )
            later = data.find(_MARK, later + 1)


def _payload(data: bytes, offset: int) -> bytes | None:
    """The payload of the record that begins at `offset`, or None if no whole record does."""
    begin = offset + _HEAD.size
    if begin > len(data):
        return None
    mark, length, crc = _HEAD.unpack_from(data, offset)
    payload = data[begin : begin + length]
    return payload if mark == _MARK and len(payload) == length and _crc(payload) == crc else None


def _crc(payload: bytes) -> int:
    """CRC-32 of length and payload: with the length, zeros from a power cut are not a whole record of no bytes."""
    return zlib.crc32(payload, zlib.crc32(struct.pack("<Q", len(payload))))
