r"""Atomic replacement of files, SHA-256 checksums, and a lock for a single writer.

A file is replaced in four steps (POSIX): write a temporary file in the same directory, fsync it, rename it over the old
file, fsync the directory. The rename is atomic: at every moment, and after every crash, the path has either the whole
old content or the whole new content. Without the first fsync, a power cut may leave the new name without data; without
the second one, it may undo the rename.

A killed process may leave a temporary file `.NAME.XXXXXXXXXXXXXXXX.tmp` (16 hexadecimal digits) behind.
`remove_temporaries` deletes these files. Only the single writer, which holds a `Lock`, may call it.
"""

from __future__ import annotations

__all__ = ["check_writable", "write_atomically", "remove_temporaries", "sha256", "sync_directory", "Lock"]

import contextlib
import errno
import hashlib
import os
import re
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Replaces the file at `path` by the output of `write`; if anything fails, the old file is unchanged.

    A symbolic link at `path` is itself replaced; its target is unchanged.

    Args:
        path: the file to replace or create.
        write: called once with a binary file open for writing.

    Raises:
        OSError: if the disk is full or the directory is not writable; the old file is then unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        cause: BaseException | None = error
        while isinstance(cause, RuntimeError):  # by which writers such as torch's hide a full disk
            cause = cause.__context__
        if not isinstance(cause, OSError):
            raise
        cause.filename = str(path) if cause.filename in (None, str(temporary), temporary) else cause.filename
        raise cause from (None if cause is error else error)
    sync_directory(path.parent)


def check_writable(path: str | os.PathLike[str], suffixes: Sequence[str] = (), *, directory: bool = False) -> None:
    """Refuses a path to which nothing could be written, before the work whose result goes there.

    Args:
        path: the file, or the directory, that is going to be written; missing directories above it are no obstacle.
        suffixes: those that the name of a file may have, all by default.
        directory: whether it is a directory.

    Raises:
        ValueError: for another suffix, a file for a directory or the reverse, or a directory that is not writable.
    """
    path = Path(path)
    if path.is_dir() and not directory:
        raise ValueError(f"expected the path of a file, and {str(path)!r} is a directory")
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"expected a name that ends in {' or '.join(suffixes)}, got {str(path)!r}")
    place = next(p for p in (path if directory else path.parent, *path.parents) if os.path.lexists(p))
    try:
        if not os.access(place, os.W_OK):  # which the superuser is not asked for
            raise OSError(errno.EACCES, "no permission")
        with tempfile.TemporaryFile(dir=place):  # file systems such as /proc have permissions, and no files
            pass
    except OSError as error:
        raise ValueError(
            f"nothing can be written to {str(path)!r}: {str(place)!r} is not a directory that is writable"
        ) from error


def remove_temporaries(path: str | os.PathLike[str]) -> None:
    """Deletes the temporary files that killed calls of `write_atomically` for `path` left behind.

    Args:
        path: the file that was to be replaced. No other process may be writing it.
    """
    path = Path(path)
    leftover = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.tmp")
    for entry in path.parent.iterdir():
        if leftover.fullmatch(entry.name):
            entry.unlink()


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of the content of the file at `path`, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 16):
            digest.update(block)
    return digest.hexdigest()


class Lock:
    """Exclusive lock of a writer, held from construction to `release` or the end of the process.

    The lock is `flock` on a file that names the holder. The operating system releases it when the process ends, also by
    SIGKILL, so that the lock file of a killed process blocks nobody. A process forked while the lock is held shares it
    until that process ends too.

    Args:
        path: the lock file, created here and removed by `release`.

    Raises:
        BlockingIOError: if the lock is held elsewhere; the error gives the holder's process id and host.
        NotImplementedError: on Windows, which has no `flock`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if sys.platform == "win32":
            raise NotImplementedError(
                "writing results needs flock, which Windows does not have: expected a POSIX system (or WSL). "
                "Reading results works everywhere."
            )
        self.path = Path(path)
        while True:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(self._descriptor, 400).decode(errors="replace").strip() or "another process"
                os.close(self._descriptor)
                raise BlockingIOError(
                    errno.EWOULDBLOCK,
                    f"expected a single writer, but {holder} holds the lock: wait until it ends, or stop it",
                    str(self.path),
                ) from None
            except BaseException:
                os.close(self._descriptor)
                raise
            # The previous holder may have deleted the file between our open and our flock: that lock blocks nobody.
            if self._is_in_place():
                break
            os.close(self._descriptor)
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Deletes the lock file and releases the lock; must be called once only."""
        try:
            if self._is_in_place():
                self.path.unlink()
        finally:
            os.close(self._descriptor)

    def _is_in_place(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        return False


def sync_directory(directory: Path) -> None:
    """Makes renames in a directory survive a power cut."""
    if sys.platform == "win32":  # directories cannot be opened there; the file system journals the rename
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # file systems without fsync of directories
            raise
    finally:
        os.close(descriptor)
