r"""Importer of checkpoints of this library."""

from __future__ import annotations

__all__ = ["WHAT", "read", "recognises"]

from typing import Any

from ..processes import SDE
from ..storage.checkpoint import checkpoints, load_checkpoint
from .formats import Source

WHAT = "a checkpoint or run directory of this library"


def recognises(source: Source) -> bool:
    """Whether it is a run directory, or a checkpoint by its name, its digest file or its content."""
    path = source.path
    if path.is_dir():
        return (path / "checkpoints").is_dir()
    actual = path.resolve()
    if actual.with_name(actual.name + ".sha256").exists() or actual in checkpoints(actual.parent):
        return True
    return isinstance(source.content, dict) and {"format", "model"} <= source.content.keys()


def read(source: Source, process: SDE | None) -> dict[str, Any]:
    """The content of the checkpoint, unchanged."""
    return load_checkpoint(source.path)
