r"""Import of other projects' checkpoints: read without unpickling, and matched weight by weight to networks of `sde`.

Each format has an importer: a module that recognises it and converts it to the content of a checkpoint of this library.
"""

from __future__ import annotations

__all__ = ["IMPORTERS", "Importer", "read"]

import os
from pathlib import Path
from typing import Any, Protocol

from ..processes import SDE
from ..storage.checkpoint import resolve
from . import diffusers, edm, native, openai, score_sde_checkpoint
from .formats import Settings, Source


class Importer(Protocol):
    """Importer of one checkpoint format; the modules of this package are importers.

    Attributes:
        WHAT: description of the format in one line.
    """

    WHAT: str

    def recognises(self, source: Source) -> bool:
        """Whether the source has this format, judged by names and keys without reading a tensor."""

    def read(self, source: Source, process: SDE | None) -> dict[str, Any]:
        """The content of a checkpoint of this library.

        Args:
            source: the file or directory.
            process: the process chosen by the user, which may determine the noise conditioning and the meaning of the
                output; the content still names the process of training.
        """


IMPORTERS: tuple[Importer, ...] = (native, score_sde_checkpoint, diffusers, edm, openai)


def read(path: str | os.PathLike[str], settings: Settings | None = None, process: SDE | None = None) -> dict[str, Any]:
    """The content of a checkpoint of this library, from a checkpoint of any supported format.

    Args:
        path: a file or a directory.
        settings: the settings of the network if the checkpoint does not contain them, as a mapping or the path of a
            JSON file; by default the JSON file of the same name beside the checkpoint.
        process: the process to use the network with; by default that of training.

    Raises:
        FileNotFoundError: if the path does not exist.
        ValueError: if the checkpoint is damaged, of no supported format, or would run code.
    """
    try:
        source = Source(Path(path), settings)
    except FileNotFoundError:
        resolve(path)  # raises an error that names the newest checkpoint
        raise
    for importer in IMPORTERS:
        if importer.recognises(source):
            return importer.read(source, process)
    kinds = "; ".join(importer.WHAT for importer in IMPORTERS)
    raise ValueError(f"{path} has no known format: it contains {_outline(source)}; expected one of: {kinds}")


def _outline(source: Source) -> str:
    if source.path.is_dir():
        names = sorted(entry.name for entry in source.path.iterdir())
    elif isinstance(source.content, dict):
        names = [str(key) for key in source.content]
    else:
        return f"a {type(source.content).__name__}"
    return (", ".join(names[:6]) + (", ..." if len(names) > 6 else "")) or "nothing"
