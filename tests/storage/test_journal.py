"""The journal: what was appended is found again, what is torn is dropped, what is damaged is refused."""

from __future__ import annotations

import errno
import itertools
import os
import re
from pathlib import Path

import pytest

from sde.storage.journal import Journal

DIGEST = bytes(range(32))
PAYLOADS = [b"first record", b"", b"the third, a longer one", b"last"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.journal"


def write(path: Path, payloads: list[bytes]) -> list[int]:
    """Appends the payloads; returns the size of the file before each and at the end."""
    journal = Journal(path, DIGEST)
    ends = []
    for payload in payloads:
        ends.append(path.stat().st_size if path.exists() else 40)
        journal.append(payload)
    journal.close()
    return [*ends, path.stat().st_size]


def found(path: Path) -> list[bytes]:
    journal = Journal(path, DIGEST)
    journal.close()
    return journal.records


def test_records_are_found_again_and_added_to(path: Path) -> None:
    write(path, PAYLOADS)
    assert found(path) == PAYLOADS
    write(path, [b"more"])
    assert found(path) == [*PAYLOADS, b"more"]


def test_restart_forgets_and_goes_on(path: Path) -> None:
    journal = Journal(path, DIGEST)
    journal.restart()
    assert not path.exists()
    journal.append(b"old")
    journal.restart()
    assert found(path) == []
    journal.append(b"new")
    assert found(path) == [b"new"]
    journal.remove()
    assert not path.exists()


def test_a_record_is_on_the_disk_before_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path, DIGEST)
    journal.append(b"one")
    sizes: list[int] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    journal.append(b"two")
    journal.close()
    assert sizes == [path.stat().st_size]


@pytest.mark.parametrize("fill", [False, True], ids=["cut", "zeros"])
def test_the_last_record_torn_at_every_byte_is_dropped(path: Path, fill: bool) -> None:
    """A kill leaves the beginning of the record; a power cut may leave zeros in place of the rest."""
    *_, begin, end = write(path, PAYLOADS)
    whole = path.read_bytes()
    for offset in range(begin, end):
        path.write_bytes(whole[:offset] + bytes(end - offset) * fill)
        journal = Journal(path, DIGEST)
        assert journal.records == PAYLOADS[:-1]
        assert journal.torn == (end if fill else offset) - begin
        journal.append(b"again")
        journal.close()
        assert found(path) == [*PAYLOADS[:-1], b"again"]


def test_a_byte_altered_before_the_last_record_is_refused_with_its_place(path: Path) -> None:
    ends = write(path, PAYLOADS)
    whole = path.read_bytes()
    for number, (begin, end) in enumerate(itertools.pairwise(ends[:-1])):
        for offset in range(begin, end):
            altered = bytearray(whole)
            altered[offset] ^= 0x40
            path.write_bytes(altered)
            message = rf"byte {begin}: .* {number} complete records .* {begin} bytes"
            with pytest.raises(ValueError, match=message):
                Journal(path, DIGEST)
            assert path.read_bytes() == altered


def test_the_advice_for_a_damaged_journal_works(path: Path) -> None:
    ends = write(path, PAYLOADS)
    os.truncate(path, ends[2])
    assert found(path) == PAYLOADS[:2]


def test_what_is_no_journal_or_another_jobs_is_refused(path: Path) -> None:
    for content in (b"", b"notes of mine, rather long ones, longer than a header", b"\x89SDEJNL1 short"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path.name}.*{re.escape(repr(content[:8]))}.* {len(content)} bytes"):
            Journal(path, DIGEST)
        assert path.read_bytes() == content
    path.unlink()
    write(path, PAYLOADS)
    with pytest.raises(ValueError, match=rf"{DIGEST[::-1].hex()}.*{DIGEST.hex()}"):
        Journal(path, DIGEST[::-1])
    assert found(path) == PAYLOADS


@pytest.mark.parametrize("cut_fails", [False, True])
@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_after_a_full_disk_only_the_failed_record_is_missing(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, cut_fails: bool
) -> None:
    journal = Journal(path, DIGEST)
    journal.append(b"one")
    size = path.stat().st_size
    pwrite = os.pwrite
    calls: list[int] = []

    def full(descriptor: int, *arguments: object) -> int:
        calls.append(descriptor)
        if call == "pwrite" and len(calls) == 1:
            data, offset = arguments
            assert isinstance(data, bytes)
            assert isinstance(offset, int)
            return pwrite(descriptor, data[:30], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "broken disk")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        if cut_fails:
            patch.setattr(os, "ftruncate", fail)
        with pytest.raises(OSError, match="No space left"):
            journal.append(b"two, which is a longer record than the next one")
    assert (path.stat().st_size == size) is not cut_fails
    journal.append(b"three")
    journal.append(b"four")
    journal.close()
    assert found(path) == [b"one", b"three", b"four"]


def test_a_failed_fsync_of_the_restart_does_not_leave_a_gap(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path, DIGEST)
    journal.append(b"one")

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="broken disk"):
            journal.restart()
    journal.append(b"two")
    journal.close()
    assert found(path) == [b"two"]
