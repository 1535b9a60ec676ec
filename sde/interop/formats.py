r"""Reading what other projects wrote: what a path holds is seen from its first bytes, and nothing in it is run.

A source is a file or a directory. Of a file the tree of plain values is read, with its tensors left where they are;
its settings are given, or stand in a JSON file beside it. Whatever is wrong with a source is a ValueError that begins
with its path.
"""

from __future__ import annotations

__all__ = ["LazyTensor", "Source", "read_json", "read_state", "tensors"]

import functools
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .archives import no_storage, open_legacy, open_safetensors, open_zip
from .pickles import LazyTensor, evaluate

JSON_BYTES = 2**20
JSON_LEVELS = 32

Settings = Mapping[str, Any] | str | os.PathLike[str]

_EXPORT = (
    "a Python pickle, which can run any code when it is opened, as those of NVlabs' EDM do. Where it came from, save "
    "its weights and settings apart: torch.save(net.state_dict(), 'net.pt'); json.dump({'class_name': "
    "type(net).__name__, 'init_kwargs': dict(net.init_kwargs)}, open('net.json', 'w')); then open net.pt"
)


@dataclass(frozen=True)
class Source:
    """A file or a directory that may hold a model.

    Args:
        path: where.
        given: the settings that the user gave, or the path of a JSON file with them.
    """

    path: Path
    given: Settings | None = None

    def __post_init__(self) -> None:
        mode = _mode(self.path)
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ValueError(f"{self.path} is neither a file nor a directory")

    @functools.cached_property
    def content(self) -> Any:
        """The tree that a file holds, its tensors as :class:`LazyTensor`; None for a directory."""
        return None if self.path.is_dir() else _open(self.path)

    @functools.cached_property
    def state(self) -> dict[str, LazyTensor] | None:
        """The content, where it is a mapping of names to tensors and nothing else."""
        return _state(self.content)

    @functools.cached_property
    def settings(self) -> dict[str, Any] | None:
        """The settings given, or those in the JSON file beside it with the same name; None where there are none."""
        beside = self.path.with_suffix(".json")
        if isinstance(self.given, Mapping):
            try:
                return dict(json.loads(json.dumps(dict(self.given))))
            except (TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"{self.path}: settings= holds what a JSON file cannot: {error}") from error
        if self.given is not None:
            return read_json(Path(self.given))
        return read_json(beside) if not self.path.is_dir() and beside.exists() else None

    def need_settings(self, *names: str) -> dict[str, Any]:
        """The settings, in which the names have to be.

        Raises:
            ValueError: if there are none, or one of the names is missing.
        """
        if self.settings is None:
            raise ValueError(
                f"{self.path} does not hold the settings of its network: give settings= (a mapping, or the path of a "
                f"JSON file), or lay them beside it as {self.path.with_suffix('.json').name}"
            )
        missing = [name for name in names if name not in self.settings]
        if missing:
            raise ValueError(
                f"{self.path}: its settings lack {', '.join(map(repr, missing))}; "
                f"they have {', '.join(map(repr, self.settings)) or 'nothing'}"
            )
        return self.settings


def tensors(state: Mapping[str, LazyTensor]) -> dict[str, Tensor]:
    """Reads tensors."""
    return {name: tensor.read() for name, tensor in state.items()}


def read_state(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a file that holds nothing else, by name.

    Raises:
        ValueError: if it holds anything else, or is no file that can be opened.
    """
    state = _state(_open(path))
    if state is None:
        raise ValueError(f"{path} is no file of weights: expected a mapping of names to tensors")
    return state


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        ValueError: if it is longer than 1 MiB, deeper than 32 levels, no JSON, or no object.
    """
    mode = _mode(path)
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is no file: expected a JSON file of settings")
    size = path.stat().st_size
    if size > JSON_BYTES:
        raise ValueError(f"{path} is too large for settings: {size} bytes, expected at most {JSON_BYTES}")
    try:
        tree = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds {type(tree).__name__!r}: expected a JSON object of settings")
    if _deeper(tree, JSON_LEVELS):
        raise ValueError(f"{path} is nested more than {JSON_LEVELS} levels deep, which settings are not")
    return tree


def _open(path: Path) -> Any:
    """The tree in a file, by its first bytes."""
    if not stat.S_ISREG(_mode(path)):
        raise ValueError(f"{path} is no file: expected a file of weights")
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(16)
    if size == 0:
        raise ValueError(f"{path} is empty, not a checkpoint")
    try:
        if head.startswith(b"PK\x03\x04"):
            return open_zip(path)
        if head.startswith(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."):
            return open_legacy(path)
        if head.startswith(b"\x80"):
            _refuse_pickle(path)
        if head.startswith(b"\x89HDF\r\n\x1a\n"):
            raise ValueError("an HDF5 file, and no model is read from those: expected weights as torch or safetensors")
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= min(size - 8, 2**24):
            return open_safetensors(path)
    except Exception as error:  # a damaged file can raise anything; nothing in it was run
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ValueError(f"{path} is not a checkpoint, or damaged: {reason}") from error
    raise ValueError(
        f"{path} is not a checkpoint: it begins with {head!r}, and neither a file of torch.save nor safetensors does"
    )


def _refuse_pickle(path: Path) -> None:
    with open(path, "rb") as file:
        try:
            evaluate(file, no_storage)
        except ValueError as error:
            raise ValueError(f"{_EXPORT} ({str(error).split(',')[0]})") from error
    raise ValueError(_EXPORT)


def _state(content: Any) -> dict[str, LazyTensor] | None:
    fits = isinstance(content, dict) and content
    if fits and all(isinstance(k, str) and isinstance(v, LazyTensor) for k, v in content.items()):
        return dict(content)
    return None


def _mode(path: Path) -> int:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be opened: {error.strerror}") from error


def _deeper(tree: Any, levels: int) -> bool:
    """Whether a tree has more levels than that."""
    if levels == 0:
        return isinstance(tree, dict | list)
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return any(_deeper(value, levels - 1) for value in inner)
