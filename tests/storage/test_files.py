"""Replacing files whole, and the lock of the one writer."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from sde.storage.files import Lock, check_writable, remove_temporaries, sha256, write_atomically


def test_a_file_is_created_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for content in (b"one", b"and two"):
        write_atomically(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["a.bin"]


def test_others_may_read_what_the_umask_lets_them_read(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.bin", lambda file: file.write(b"one"))
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_failed_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"new, but not")
        raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(OSError, match="no space"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_system_call_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="broken disk"):
        write_atomically(path, lambda file: file.write(b"new"))
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_full_disk_is_named_though_the_writer_hides_it(tmp_path: Path) -> None:
    """torch raises a RuntimeError of many lines when a write fails; a limit on the size of files stands for a disk."""
    path = tmp_path / "a.pt"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: .*a\.pt") as caught:
            write_atomically(path, lambda file: torch.save(torch.zeros(1 << 16), file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_a_path_to_which_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "sealed").mkdir(mode=0o500)
    for path in ("a.png", "new/deep/a.PNG"):
        check_writable(tmp_path / path, (".png",))
    check_writable(tmp_path / "file")
    check_writable(tmp_path, directory=True)
    check_writable(tmp_path / "new", directory=True)
    for path, settings, words in (
        ("a", {"suffixes": (".png",)}, r"ends in \.png"),
        ("a.npz", {"suffixes": (".png", ".pdf")}, r"\.png or \.pdf"),
        (".", {}, "is a directory"),
        ("file/a.png", {}, "file' is not a directory"),
        ("file", {"directory": True}, "file' is not a directory"),
        *([("sealed/a", {}, "not a directory that is writable")] if os.geteuid() else []),
        *([("/proc/a.png", {}, "not a directory that is writable")] if os.path.isdir("/proc/self") else []),
    ):
        with pytest.raises(ValueError, match=words):
            check_writable(tmp_path / path, **settings)
    assert sorted(os.listdir(tmp_path)) == ["file", "sealed"]


def test_data_reach_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        events.append("fsync directory" if stat.S_ISDIR(status.st_mode) else f"fsync {status.st_size} bytes")
        fsync(descriptor)

    def spy_replace(old: Path, new: Path) -> None:
        events.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_atomically(tmp_path / "a.bin", lambda file: file.write(b"12345"))
    assert events == ["fsync 5 bytes", "rename", "fsync directory"]


def test_only_the_temporaries_of_this_file_are_removed(tmp_path: Path) -> None:
    mine = [".a.h5.0123456789abcdef.tmp", ".a.h5.ffffffffffffffff.tmp"]
    others = [".a.h5.journal.0123456789abcdef.tmp", ".a.h5.backup.tmp", ".axh5.0123456789abcdef.tmp", "a.h5"]
    for name in mine + others:
        (tmp_path / name).touch()
    remove_temporaries(tmp_path / "a.h5")
    assert sorted(os.listdir(tmp_path)) == sorted(others)


def test_a_temporary_left_by_a_kill_is_recognised(tmp_path: Path) -> None:
    left: list[str] = []
    write_atomically(tmp_path / "a.h5", lambda file: left.extend(os.listdir(tmp_path)))
    (tmp_path / left[0]).touch()
    remove_temporaries(tmp_path / "a.h5")
    assert os.listdir(tmp_path) == ["a.h5"]


def test_sha256_of_published_examples(tmp_path: Path) -> None:
    """FIPS 180 examples: "abc" and one million times "a"."""
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"a" * 1_000_000)
    assert sha256(path) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"


def test_a_lock_bars_others_until_it_is_released(tmp_path: Path) -> None:
    first = Lock(tmp_path / "a.lock")
    with pytest.raises(BlockingIOError, match=f"process {os.getpid()} on "):
        Lock(tmp_path / "a.lock")
    first.release()
    assert os.listdir(tmp_path) == []
    Lock(tmp_path / "a.lock").release()


def test_the_lock_of_a_killed_process_bars_nobody(tmp_path: Path) -> None:
    code = (
        "import fcntl, os, sys, time\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(fd, fcntl.LOCK_EX)\n"
        "os.write(fd, b'process 1')\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    path = tmp_path / "a.lock"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(BlockingIOError, match="process 1 holds"):
            Lock(path)
        holder.kill()
    assert path.exists()
    lock = Lock(path)
    assert f"process {os.getpid()} on" in path.read_text()
    lock.release()


def test_a_lock_file_removed_while_it_was_being_locked_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our open and our flock the holder before removes the file: another writer would then lock a new one."""
    path = tmp_path / "a.lock"
    flock = fcntl.flock
    calls: list[int] = []

    def removed_first(descriptor: int, operation: int) -> None:
        if not calls:
            path.unlink()
        calls.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    lock = Lock(path)
    assert len(calls) == 2
    with pytest.raises(BlockingIOError):
        Lock(path)
    lock.release()
