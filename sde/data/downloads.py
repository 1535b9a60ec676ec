r"""Downloads: files of published data sets, checked by their checksums, from their home or from a mirror.

A file is downloaded once, beside its place, and moved there when its checksum is right: what lies at its place is
whole. A file that was put there by hand is taken as it is.
"""

from __future__ import annotations

__all__ = ["Remote", "cache", "fetch"]

import hashlib
import http.client
import os
import secrets
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Remote:
    """A published file.

    Args:
        name: its name.
        home: the URL of the directory that it lies in.
        checksum: the algorithm and the hexadecimal digits, `sha256:...` or `md5:...`, as it was published.
    """

    name: str
    home: str
    checksum: str


def cache() -> Path:
    """The directory of downloaded data sets: `sde/data` in `$XDG_CACHE_HOME`, by default in `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "sde" / "data"


def fetch(file: Remote, folder: Path, *, mirror: str | None = None, download: bool = True) -> Path:
    """The path of a file in a folder, to which it is downloaded if it is not there.

    Args:
        file: the file.
        folder: the folder, which is created.
        mirror: the URL of a directory with the same file, instead of its home.
        download: whether it may be downloaded.

    Raises:
        FileNotFoundError: if it is not there and may not be downloaded.
        ConnectionError: if it cannot be downloaded.
        ValueError: if it is not the published file, by its checksum; nothing is left of it.
    """
    path = folder / file.name
    if path.is_file():
        return path
    url = f"{(mirror or file.home).rstrip('/')}/{file.name}"
    if not download:
        raise FileNotFoundError(f"{path} does not exist: put the file of {url} there, or set download=true")
    folder.mkdir(parents=True, exist_ok=True)
    kind, _, expected = file.checksum.partition(":")
    digest, temporary = hashlib.new(kind, usedforsecurity=False), path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as target:
            for block in _blocks(url):
                digest.update(block)
                target.write(block)
        if digest.hexdigest() != expected:
            raise ValueError(
                f"{url} is not the published {file.name}: expected {kind} {expected}, got {digest.hexdigest()}; set "
                "mirror= to a directory with the right file"
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _blocks(url: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            length = response.headers.get("Content-Length")
            received = 0
            while block := response.read(2**20):
                received += len(block)
                yield block
        if length is not None and received != int(length):
            raise ConnectionError(f"got {received} of {length} bytes")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ConnectionError(
            f"{url} cannot be downloaded: {error}; set mirror= to another directory with the file, or put it into the "
            "folder path= by hand"
        ) from error
