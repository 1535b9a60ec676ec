r"""An append-only journal: a record is on the disk once `append` has returned.

The file is a header followed by one record per `append`:

    header   magic (8 bytes)   SHA-256 of the job (32 bytes)
    record   mark (8 bytes)    length n of the payload (uint64)    CRC-32 of length and payload (uint32)    payload

all little-endian. The header is complete from the start (`write_atomically`). A record is written and then fsynced, and
only then the next record is begun. A kill or a power cut can therefore damage only the last record, whose `append` has
not returned. Accordingly, bytes after the last complete record are the incomplete record of a killed process, and are
dropped. If, however, a complete record follows the damage, then a record that had reached the disk was altered, and the
journal is refused. (A damaged last record cannot be distinguished from an incomplete one; it is also dropped and
counted in `torn`.)
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
    """An append-only file of byte strings, each of which is on the disk once `append` has returned.

    Opening an existing journal reads its records and cuts off an incomplete last record. The first `append` creates the
    file.

    Args:
        path: the journal file. The caller must hold the lock of the single writer.
        digest: SHA-256 (32 bytes) of the job, which must agree with that in the file.

    Attributes:
        records: the payloads in the file when it was opened, in the order of their `append`; the caller may clear them.
        torn: the number of bytes of an incomplete record that were dropped on opening.

    Raises:
        ValueError: if the file is not a journal, has another digest, or is damaged before its last record.
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
            payload: the content, of any length.

        Raises:
            OSError: if writing fails, for example on a full disk. Then this record does not exist, the earlier ones do,
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
            # If the cut fails too, the rest is harmless: the next record overwrites its beginning, and the bytes after
            # that record contain no complete record.
            with contextlib.suppress(OSError):
                self._cut(self._end)
            raise
        self._end += len(record)

    def restart(self) -> None:
        """Deletes all records in one step: after a crash either all of them exist or none."""
        if self._descriptor is not None:
            self._cut(_HEADER_SIZE)

    def remove(self) -> None:
        """Closes the journal and deletes its file."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the journal and keeps its records on the disk. May be called again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _cut(self, end: int) -> None:
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, end)
        self._end = end  # before the fsync, because the file has this length even if the fsync fails
        os.fsync(self._descriptor)

    def _read(self, data: bytes) -> None:
        if data[: len(_MAGIC)] != _MAGIC or len(data) < _HEADER_SIZE:
            raise ValueError(
                f"{self.path} is not a journal: expected it to begin with {_MAGIC!r} and a digest, got "
                f"{data[: len(_MAGIC)]!r} in {len(data)} bytes. Move the file away to continue without it."
            )
        if data[:_HEADER_SIZE] != self._header:
            raise ValueError(
                f"{self.path} belongs to another job: expected the digest {self._header[8:].hex()} of this job's "
                f"columns and key, got {data[8:_HEADER_SIZE].hex()}. Resume that job with its own settings to finish "
                "it, or move the journal away to discard its rows."
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
                    f"wrong. A complete record follows at byte {later}, so that the cause is not a killed job but a "
                    f"disk error or an edit. {len(self.records)} complete records precede it. Keep a copy, then cut "
                    f"the file to {self._end} bytes and resume: lost rows are computed again."
                )
            later = data.find(_MARK, later + 1)


def _payload(data: bytes, offset: int) -> bytes | None:
    """The payload of the record that begins at `offset`, or None if there is no complete record."""
    begin = offset + _HEAD.size
    if begin > len(data):
        return None
    mark, length, crc = _HEAD.unpack_from(data, offset)
    payload = data[begin : begin + length]
    return payload if mark == _MARK and len(payload) == length and _crc(payload) == crc else None


def _crc(payload: bytes) -> int:
    """CRC-32 of length and payload: including the length, zeros from a power cut are not an empty record."""
    return zlib.crc32(payload, zlib.crc32(struct.pack("<Q", len(payload))))
