r"""Files that a crash leaves whole.

A file is replaced in four steps (POSIX): write a temporary file in the same directory, fsync it, rename it over the
old one, fsync the directory. The rename is atomic, so that at every moment, and after every crash, the path holds the
old content or the new content in full. Without the first fsync a power cut may leave the new name with no data; without
the second one it may undo the rename.

A process killed on the way leaves a temporary file `.NAME.XXXXXXXXXXXXXXXX.tmp` (16 hexadecimal digits) behind.
`remove_temporaries` clears these; it is for a writer that knows itself to be the only one, which `Lock` grants.
"""

from __future__ import annotations

__all__ = ["write_atomically", "remove_temporaries", "sha256", "Lock"]

import contextlib
import errno
import hashlib
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Replaces the file at `path` by what `write` writes, or, if anything fails, leaves it as it was.

    A symbolic link at `path` is itself replaced; its target stays as it is.

    Args:
        path: The file to replace or create.
        write: Called once with a binary file open for writing.

    Raises:
        OSError: If the disk is full or the directory cannot be written; the old file is then intact.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def remove_temporaries(path: str | os.PathLike[str]) -> None:
    """Removes what killed calls of `write_atomically` for the same `path` left behind.

    Args:
        path: The file that was to be replaced. No other process may be writing it.
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
    """The right to be the only writer, held from construction to `release` or to the end of the process.

    The lock is `flock` on a file that names its holder: the operating system drops it with the process, SIGKILL
    included, so that a lock file left behind by a killed holder bars nobody. A process forked meanwhile shares the lock
    until it ends too.

    Args:
        path: The lock file, created here and removed by `release`.

    Raises:
        BlockingIOError: If another holder has it; the message gives its process id and host.
        NotImplementedError: On Windows, which has no `flock`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if sys.platform == "win32":
            raise NotImplementedError(
                "writing a result store needs flock, which Windows lacks: expected a POSIX system (or WSL). "
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
                    f"expected to be the only writer, but {holder} holds the lock: wait for it to end, or stop it",
                    str(self.path),
                ) from None
            except BaseException:
                os.close(self._descriptor)
                raise
            # The holder before may have removed the file between our open and our flock: what we then hold bars nobody.
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
        """Removes the lock file and gives the lock up; to be called once."""
        try:
            if self._is_in_place():
                self.path.unlink()
        finally:
            os.close(self._descriptor)

    def _is_in_place(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        return False


def _sync_directory(directory: Path) -> None:
    if sys.platform == "win32":  # a directory cannot be opened there; the rename is journalled by the file system
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.EBADF,
            errno.ENOTSUP,
        ):  # file systems without fsync of directories
            raise
    finally:
        os.close(descriptor)
