r"""Files that say by which settings they were made, so that no command replaces the results of another one.

The settings are a JSON text: in a PNG the text `settings`, in an `.npz` file the array `settings`, in an HDF5 result
file the attribute `settings`, in a `.pt` file the entry `settings`.
"""

from __future__ import annotations

__all__ = ["check_replaceable", "relevant", "settings_of"]

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from ..instantiate import public
from ..storage.checkpoint import load_checkpoint
from ..storage.files import check_writable
from ..storage.hdf5 import decode
from ..training.run import differences

# The keys of a config without influence on the results of a command.
IRRELEVANT_KEYS = ("ckpt", "device", "out", "overwrite", "trust")


def relevant(config: Mapping[str, Any], *without: str, **facts: Any) -> dict[str, Any]:
    """The settings that a result depends on.

    Args:
        config: the config of the command, a plain tree.
        without: keys without influence, beside those that have none in any command.
        facts: what else the result depends on, such as the digest of the checkpoint.
    """
    keys = config.keys() - {*IRRELEVANT_KEYS, *without}
    return {**public({key: config[key] for key in sorted(keys)}), **facts}


def settings_of(path: Path) -> dict[str, Any] | None:
    """The settings by which a file was made; None if it does not say."""
    try:
        if path.suffix == ".npz":
            with np.load(path) as archive:
                text = str(archive["settings"])
        elif path.suffix == ".pt":
            text = load_checkpoint(path)["settings"]
        elif path.suffix in (".h5", ".hdf5"):
            text = decode(path, lambda file, size: str(file.attrs["settings"]))
        else:
            with Image.open(path) as image:
                text = image.info["settings"]
        return dict(json.loads(text))
    except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile):
        return None


def check_replaceable(path: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Refuses a path where writing would destroy something.

    Args:
        path: the path of the new file.
        settings: the settings by which it will be made. A file of the same settings may be replaced.
        overwrite: allow to replace any file.

    Raises:
        ValueError: if nothing can be written there, or if a file stands there that was not made by these settings.
    """
    check_writable(path)
    if overwrite or not path.exists():
        return
    stored = settings_of(path)
    for difference in ["it has none"] if stored is None else differences(stored, settings, free=()):
        raise ValueError(
            f"{path} was not made by these settings: {difference}; give another out=, or overwrite=true to replace it"
        )
