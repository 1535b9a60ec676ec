r"""Detection of file formats by their first bytes, and reading of files without running anything in them.

Of the signs of a format the longest is tried first: the first byte alone of a safetensors file, which is the lowest
byte of a length, may be that of a pickle.

A source is a file or a directory. From a file the tree of plain values is read; its tensors are read later. The
settings come from the user or from a JSON file beside the source. All errors about a source are ValueErrors that begin
with its path.
"""

from __future__ import annotations

__all__ = ["LazyTensor", "Source", "largest_size", "named_tensors", "read_json", "read_state", "tensors"]

import functools
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..storage.wrappers import unwrapped
from .archives import no_storage, open_legacy, open_safetensors, open_zip
from .pickles import LazyTensor, evaluate

JSON_BYTES = 2**20
JSON_LEVELS = 32

Settings = Mapping[str, Any] | str | os.PathLike[str]

_EXPORT = (
    "a Python pickle, which can run any code when it is opened, as those of NVlabs' EDM do. In the original project, "
    "save its weights and settings separately: torch.save(net.state_dict(), 'net.pt'); json.dump({'class_name': "
    "type(net).__name__, 'init_kwargs': dict(net.init_kwargs)}, open('net.json', 'w')); then open net.pt"
)


@dataclass(frozen=True)
class Source:
    """A file or a directory that may contain a model.

    Args:
        path: the path.
        user_settings: the user's settings, or the path of a JSON file with them.
    """

    path: Path
    user_settings: Settings | None = None

    def __post_init__(self) -> None:
        mode = _mode(self.path)
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ValueError(f"{self.path} is neither a file nor a directory")

    @functools.cached_property
    def content(self) -> Any:
        """The tree in a file, with tensors as :class:`sde.interop.pickles.LazyTensor`; None for a directory."""
        return None if self.path.is_dir() else _open(self.path)

    @functools.cached_property
    def state(self) -> dict[str, LazyTensor] | None:
        """The content by :func:`named_tensors` if it is a mapping of names to tensors only, else None."""
        return named_tensors(self.content)

    @functools.cached_property
    def settings(self) -> dict[str, Any] | None:
        """The user's settings, or those in the JSON file of the same name beside the source, or None."""
        beside = self.path.with_suffix(".json")
        if isinstance(self.user_settings, Mapping):
            try:
                return dict(json.loads(json.dumps(dict(self.user_settings))))
            except (TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"{self.path}: settings= cannot be stored as JSON: {error}") from error
        if self.user_settings is not None:
            return read_json(Path(self.user_settings))
        return read_json(beside) if not self.path.is_dir() and beside.exists() else None

    def need_settings(self, *names: str) -> dict[str, Any]:
        """The settings, which must contain the given names.

        Raises:
            ValueError: if there are no settings, or one of the names is missing.
        """
        if self.settings is None:
            raise ValueError(
                f"{self.path} does not contain the settings of its network: give sde.load or scripts/convert.py "
                f"settings= (a mapping or a JSON file), or save them beside it as {self.path.with_suffix('.json').name}"
            )
        missing = [name for name in names if name not in self.settings]
        if missing:
            lacking, present = (", ".join(map(repr, names)) for names in (missing, self.settings))
            raise ValueError(f"{self.path}: its settings lack {lacking}; they have {present or 'nothing'}")
        return self.settings


def tensors(state: Mapping[str, LazyTensor]) -> dict[str, Tensor]:
    """Reads all tensors."""
    return {name: tensor.read() for name, tensor in state.items()}


def largest_size(state: Mapping[str, LazyTensor]) -> int:
    """The size of the largest axis of all tensors in a file, which bounds every size that its settings may name."""
    return max(max(tensor.shape, default=1) for tensor in state.values())


def named_tensors(content: Any) -> dict[str, LazyTensor] | None:
    """The content if it is a mapping of names to tensors only, by its names without the prefixes of wrappers, else
    None."""
    fits = isinstance(content, dict) and content
    if fits and all(isinstance(k, str) and isinstance(v, LazyTensor) for k, v in content.items()):
        return unwrapped(content)
    return None


def read_state(path: Path) -> dict[str, LazyTensor]:
    """The tensors by name of a file that contains nothing else.

    Raises:
        ValueError: if the file contains anything else, or cannot be opened.
    """
    state = named_tensors(_open(path))
    if state is None:
        raise ValueError(f"{path} is not a file of weights: expected a mapping of names to tensors")
    return state


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: if it is longer than 1 MiB, deeper than 32 levels, not JSON, or not an object.
    """
    mode = _mode(path)
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is not a file: expected a JSON file of settings")
    size = path.stat().st_size
    if size > JSON_BYTES:
        raise ValueError(f"{path} is too large for settings: {size} bytes, expected at most {JSON_BYTES}")
    try:
        tree = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} contains {type(tree).__name__!r}: expected a JSON object of settings")
    if _deeper(tree, JSON_LEVELS):
        raise ValueError(f"{path} is nested more than {JSON_LEVELS} levels deep: expected settings")
    return tree


def _open(path: Path) -> Any:
    """The tree in a file, whose format its first bytes determine."""
    if not stat.S_ISREG(_mode(path)):
        raise ValueError(f"{path} is not a file: expected a file of weights")
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(16)
    if size == 0:
        raise ValueError(f"{path} is empty, not a checkpoint")
    try:
        if head.startswith(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."):
            return open_legacy(path)
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= min(size - 8, 2**24):
            return open_safetensors(path)
        if head.startswith(b"\x89HDF\r\n\x1a\n"):
            raise ValueError("an HDF5 file, which cannot contain a model: expected weights as torch or safetensors")
        if head.startswith(b"PK\x03\x04"):
            return open_zip(path)
        if head.startswith(b"\x80"):
            _refuse_pickle(path)
    except Exception as error:  # a damaged file can raise any exception; nothing in it was run
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ValueError(f"{path} is not a checkpoint, or damaged: {reason}") from error
    raise ValueError(f"{path} is not a checkpoint: it begins with {head!r}, unlike files of torch.save and safetensors")


def _refuse_pickle(path: Path) -> None:
    with open(path, "rb") as file:
        try:
            evaluate(file, no_storage)
        except ValueError as error:
            raise ValueError(f"{_EXPORT} ({str(error).split(',')[0]})") from error
    raise ValueError(_EXPORT)


def _mode(path: Path) -> int:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be opened: {error.strerror}") from error


def _deeper(tree: Any, levels: int) -> bool:
    """Whether a tree has more than the given number of levels."""
    if levels == 0:
        return isinstance(tree, dict | list)
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return any(_deeper(value, levels - 1) for value in inner)
