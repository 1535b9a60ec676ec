"""The types of the keys of scripts, and the check of a config against the class that describes it.

A class describes a config as its annotations do a function: a key with a default may be absent, any other key is
refused. A key whose annotation is a class of the library has a tree for :func:`sde.instantiate.build`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import torch
from faults import option, unknown_key

from sde.instantiate import check
from sde.instantiate.annotations import Existing, Limit, check_value, nearest, shown
from sde.runtime import choose_device
from sde.storage.checkpoint import resolve
from sde.storage.files import check_writable

Count = Annotated[int, Limit(">=", 1)]
Whole = Annotated[int, Limit(">=", 0)]
Positive = Annotated[float, Limit(">", 0)]
Fraction = Annotated[float, Limit(">=", 0), Limit("<", 1)]
Seed = Annotated[int, Limit(">=", -(2**63)), Limit("<", 2**63)]  # the range of torch.manual_seed
Device = Annotated[str, choose_device]


@dataclass(frozen=True)
class Output:
    """A file that is written at the end, with one of these suffixes, or a directory."""

    suffixes: tuple[str, ...] = ()
    directory: bool = False

    def __call__(self, path: str) -> None:
        check_writable(path, self.suffixes, directory=self.directory)


def check_target(name: str) -> None:
    """Checks `target` of `compare.py`."""
    if name != "posterior":
        Existing((".npz",), f"; expected posterior or an .npz file{nearest(name, ['posterior'])}")(name)


# What `out=` is in every script, by what it writes.
Picture = Annotated[str, Output((".png",))]
Results = Annotated[str, Output((".h5", ".hdf5"))]
Weights = Annotated[str, Output((".pt",))]
Directory = Annotated[str, Output(directory=True)]

# What is read.
ARRAYS = (".npy", ".npz", ".h5", ".hdf5")
Checkpoint = Annotated[str, Existing(), resolve]
Input = Annotated[str, Existing()]
Arrays = Annotated[str, Existing(ARRAYS)]
Target = Annotated[str, check_target]
Samples = Annotated[str, Existing((*ARRAYS, ".pt"), directory=True)]
# A class, or the word for samples without one.
Label = int | Literal["none"]


def some(entries: list[Any]) -> None:
    """Checks that a list has entries."""
    if not entries:
        raise ValueError("expected at least one, got []")


@dataclass(frozen=True)
class Option:
    """The name of an option of a group, which keys may follow, such as `heun steps=3`."""

    group: str

    def __call__(self, entry: str) -> None:
        option(self.group, entry)


class Keys:
    """The base of the classes that describe a config."""


# Examples of the arguments of trees that the library fills in.
EXAMPLES: dict[str, dict[str, Any]] = {
    "network": {"channels": 1, "features": 1, "rank": 1},
    "optimizer": {"params": [torch.zeros(1, device="cpu")]},
}


def check_keys(schema: type[Keys], tree: Mapping[str, Any], prefix: str = "", trust: Any = ()) -> None:
    """Checks a config before any work: its keys and their values.

    Raises:
        ValueError: for the first mistake, with its key.
    """
    annotations = get_type_hints(schema, include_extras=True)
    for key in tree:
        if key not in annotations:
            raise ValueError(unknown_key(f"{prefix}{key}", [f"{prefix}{known}" for known in annotations]))
    for key, annotation in annotations.items():
        name, value = f"{prefix}{key}", tree.get(key)
        if key not in tree:
            if not hasattr(schema, key):
                raise ValueError(f"{name} is missing: give {name}=...")
        elif isinstance(annotation, type) and issubclass(annotation, Keys):
            if not isinstance(value, Mapping):
                raise ValueError(f"{name}={shown(value)}: expected the keys {', '.join(get_type_hints(annotation))}")
            check_keys(annotation, value, f"{name}.", trust)
        else:
            check_value(name, value, annotation)
            trust = value if key == "trust" else trust
            check(value, name, trust=trust, **EXAMPLES.get(key, {}))
    if not prefix and isinstance(out := tree.get("out"), str):
        for key, value in tree.items():
            paths = value if isinstance(value, list) else [value]
            if key != "out" and any(isinstance(p, str) and Path(p).resolve() == Path(out).resolve() for p in paths):
                raise ValueError(f"out={out} is the file that {key} is read from: give another out=")
