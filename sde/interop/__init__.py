r"""Other projects' checkpoints: read, never unpickled, and matched weight by weight to networks of this library.

Each kind has an importer, a module that recognises it and turns it into the content of a checkpoint of this library.
"""

from __future__ import annotations

__all__ = ["IMPORTERS", "Importer", "read"]

import os
from pathlib import Path
from typing import Any, Protocol

from ..processes import SDE
from ..storage.checkpoint import resolve
from . import diffusers, edm, openai, score_sde_checkpoint
from . import native as own
from .formats import Settings, Source


class Importer(Protocol):
    """A kind of checkpoint; the modules of this package are importers.

    Attributes:
        WHAT: what it reads, in one line.
    """

    WHAT: str

    def recognises(self, source: Source) -> bool:
        """Whether it is of this kind; by names and keys, without reading a tensor."""

    def read(self, source: Source, process: SDE | None) -> dict[str, Any]:
        """The content of a checkpoint of this library.

        Args:
            source: the source.
            process: the process that the user asked for, which may decide what the network is told and what its
                output means; the content names the importer's own default all the same.
        """


IMPORTERS: tuple[Importer, ...] = (own, score_sde_checkpoint, diffusers, edm, openai)


def read(path: str | os.PathLike[str], settings: Settings | None = None, process: SDE | None = None) -> dict[str, Any]:
    """The content of a checkpoint of this library, from whatever kind of checkpoint a path holds.

    Args:
        path: a file or a directory.
        settings: the settings of its network where it does not hold them, or the path of a JSON file; by default the
            JSON file beside it with the same name.
        process: the process to use it with.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ValueError: if it is damaged, of no known kind, or would run code.
    """
    try:
        source = Source(Path(path), settings)
    except FileNotFoundError:
        resolve(path)  # says what is there instead
        raise
    for importer in IMPORTERS:
        if importer.recognises(source):
            return importer.read(source, process)
    kinds = "; ".join(importer.WHAT for importer in IMPORTERS)
    raise ValueError(f"{path} is of no known kind: it holds {_outline(source)}; expected one of: {kinds}")


def _outline(source: Source) -> str:
    if source.path.is_dir():
        names = sorted(entry.name for entry in source.path.iterdir())
    elif isinstance(source.content, dict):
        names = [str(key) for key in source.content]
    else:
        return f"a {type(source.content).__name__}"
    return (", ".join(names[:6]) + (", ..." if len(names) > 6 else "")) or "nothing"
