"""Digests by which the ranks of a training find out that they differ."""

from __future__ import annotations

__all__ = ["of_code", "of_tensors"]

import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

PACKAGE = Path(__file__).resolve().parents[1]


def of_code(module: nn.Module) -> str:
    """The digest of torch's version, of this library, and of the files that define the classes of a module."""
    digest = hashlib.sha256(torch.__version__.encode())
    own = {inspect.getfile(type(each)) for each in module.modules() if not _of_torch(each)}
    for path in sorted({*map(str, PACKAGE.rglob("*.py")), *own}):
        digest.update(Path(path).name.encode() + Path(path).read_bytes())
    return digest.hexdigest()[:16]


def _of_torch(module: nn.Module) -> bool:
    """Whether a class has no file of its own: it is torch's, or was defined in a session."""
    name = type(module).__module__
    return name.partition(".")[0] in ("torch", "__main__", "builtins")


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The digest of named tensors."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
