r"""Writing a converted checkpoint: one file and its digest."""

from __future__ import annotations

__all__ = ["write"]

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import FORMAT
from ..files import sha256, write_atomically


def write(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Writes a checkpoint at a path of the user's choice, where it appears whole and with its digest, or not at all.

    Args:
        path: the file, replaced where it is there; its directory exists.
        content: as `sde.interop.read` gives it.
    """
    path = Path(path)
    digest = path.with_name(path.name + ".sha256")
    staged = path.with_name(f".{path.name}.{secrets.token_hex(8)}.staged")
    try:
        write_atomically(staged, lambda file: torch.save({"format": FORMAT, **content}, file))
        # The digest comes first, and lists that of a file which is replaced until it has been.
        listed = [sha256(staged), *([sha256(path)] if path.exists() else [])]
        write_atomically(digest, lambda file: file.write("".join(line + "\n" for line in listed).encode()))
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
