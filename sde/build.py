r"""Objects from plain trees: what a config or a checkpoint may name.

A node `{_target_: sde.VP, beta_min: 0.1}` stands for a call with keyword arguments. Names resolve only to what is
defined in this package, in the few torch classes listed here, and in packages that the user trusts by name; a
checkpoint's tree is held to fewer rooms still, those of plain constructors. An argument that the target does not
take is an error that says which ones it takes.
"""

from __future__ import annotations

__all__ = ["MODEL_ROOMS", "build", "find"]

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

TORCH = {"torch.optim.Adam": torch.optim.Adam, "torch.optim.AdamW": torch.optim.AdamW}

# All that the tree of a checkpoint may name: constructors of values, which touch no file.
MODEL_ROOMS = (
    "sde.processes",
    "sde.networks",
    "sde.parametrisation",
    "sde.denoiser",
    "sde.learned_variance",
    "sde.wrappers",
    "sde.data.scaling",
)


def build(tree: Any, *, rooms: Sequence[str] = ("sde",), trust: Sequence[str] = (), **arguments: Any) -> Any:
    """Builds the object that a tree of mappings, sequences and plain values describes.

    Args:
        tree: the tree; a mapping with `_target_` becomes a call, other mappings, sequences and values stay.
        rooms: the modules of this package in which names may resolve.
        trust: further packages in which they may.
        arguments: keyword arguments added to the outermost call.

    Raises:
        ValueError: if a name or an argument is not known, or a required argument is missing.
    """
    if isinstance(tree, Mapping):
        values = {key: build(value, rooms=rooms, trust=trust) for key, value in tree.items() if key != "_target_"}
        if "_target_" not in tree:
            return {**values, **arguments}
        name = tree["_target_"]
        target = find(name, rooms=rooms, trust=trust)
        values |= arguments
        _check_arguments(name, target, values)
        try:
            return target(**values)
        except TypeError as error:
            raise ValueError(f"{name}: {error}") from error
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [build(value, rooms=rooms, trust=trust) for value in tree]
    return tree


def find(name: str, *, rooms: Sequence[str] = ("sde",), trust: Sequence[str] = ()) -> Callable[..., Any]:
    """The callable of a dotted name, for the rooms and the trusted packages as in :func:`build`."""
    if isinstance(trust, str):
        raise ValueError(f"trust={trust!r}: expected a list of packages, as [{trust}]")
    allowed = (*rooms, *trust)
    parts = name.split(".") if isinstance(name, str) else [""]
    if isinstance(name, str) and name in TORCH and "sde" in rooms:
        return TORCH[name]
    if parts[0] in {room.split(".")[0] for room in allowed}:
        found = _resolve(parts)
        home = getattr(found, "__module__", None) or ""
        if callable(found) and any(home == room or home.startswith(room + ".") for room in allowed):
            return found
    raise ValueError(
        f"_target_ {name!r} is not known: expected a class or function defined in {', '.join(allowed)}"
        + (f", or one of {', '.join(TORCH)}" if "sde" in rooms else "")
        + "; a package of your own has to be trusted by name"
    )


def _resolve(parts: list[str]) -> Any:
    """Follows a dotted name: what a module exports comes before a submodule of the same name."""
    try:
        found: Any = importlib.import_module(parts[0])
        for i, part in enumerate(parts[1:], start=1):
            if not hasattr(found, part) and inspect.ismodule(found):
                importlib.import_module(".".join(parts[: i + 1]))
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return found


def _check_arguments(name: str, target: Callable[..., Any], values: Mapping[str, Any]) -> None:
    parameters = inspect.signature(target).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    unknown = [key for key in values if key not in parameters]
    if unknown:
        raise ValueError(f"{name} takes no argument {unknown[0]!r}: it takes {', '.join(parameters)}")
    missing = [
        key
        for key, p in parameters.items()
        if p.default is p.empty and p.kind is not p.VAR_POSITIONAL and key not in values
    ]
    if missing:
        raise ValueError(f"{name} needs the argument {missing[0]!r}, which the config does not give")
