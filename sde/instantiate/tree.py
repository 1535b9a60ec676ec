r"""Trees of plain values and the objects they describe."""

from __future__ import annotations

__all__ = ["build", "check", "describe"]

import contextlib
import inspect
import numbers
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from ..networks.network import Network
from .annotations import Existing, annotations_of, check_value, nearest, takes_path
from .names import MODEL_ROOMS, TORCH, VALUE_ROOMS, class_name, find


def build(tree: Any, *, rooms: Sequence[str] = ("sde",), trust: Sequence[str] = (), **arguments: Any) -> Any:
    """The object that a tree of mappings, sequences and plain values describes.

    Args:
        tree: the tree; a mapping with `_target_` becomes a call, other mappings, sequences and values are unchanged.
        rooms: the modules of this package that names may refer to.
        trust: other packages that names may refer to.
        arguments: keyword arguments added to the outermost call.

    Raises:
        ValueError: if a name or an argument is unknown, or a required argument is missing.
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


def check(tree: Any, key: str, *, rooms: Sequence[str] = ("sde",), trust: Sequence[str] = (), **arguments: Any) -> None:
    """Checks a tree before anything is built from it: its names, its arguments, and the types of its values.

    The objects of `VALUE_ROOMS` that it describes completely are built once, networks without memory, which checks the
    ranges of their values. There must be something at a path that a function needs.

    Args:
        tree: as in :func:`build`.
        key: the dotted key of the tree in the config.
        rooms: as in :func:`build`.
        trust: as in :func:`build`.
        arguments: examples of the arguments of the outermost call that are filled in later, where the tree has none.

    Raises:
        ValueError: for the first mistake; it begins with the dotted key.
    """
    entries = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in entries:
        check(value, f"{key}.{name}", rooms=rooms, trust=trust)
    if not (isinstance(tree, Mapping) and "_target_" in tree):
        return
    values = {
        **arguments,
        **{k: v for k, v in tree.items() if k != "_target_" and (v is not None or k not in arguments)},
    }
    with _named(key):
        target = find(tree["_target_"], rooms=rooms, trust=trust)
        _check_names(tree["_target_"], target, tree.keys() - {"_target_"})
    annotations = annotations_of(target)
    needed = _missing(target, ())
    for name in values.keys() & tree.keys():
        annotation = annotations.get(name, Any)
        read = name in needed and takes_path(annotation)  # a path that is not needed may be a place to write to
        check_value(f"{key}.{name}", values[name], Annotated[annotation, Existing()] if read else annotation)
    known = target in TORCH.values() or any(f"{target.__module__}.".startswith(f"{room}.") for room in VALUE_ROOMS)
    if known and not _missing(target, values):
        network = inspect.isclass(target) and issubclass(target, Network)
        with _named(key), torch.device("meta") if network else contextlib.nullcontext():
            names = inspect.signature(target).parameters
            build({**tree, **{k: v for k, v in values.items() if k in names}}, rooms=rooms, trust=trust)


@contextlib.contextmanager
def _named(key: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def describe(value: Any, *, without: Sequence[str] = ()) -> Any:
    """The tree of plain values from which :func:`build` makes an equal object.

    The classes are those that a checkpoint may name. Their objects are described by the arguments of the constructor,
    which are the fields of a dataclass, or attributes of the same names, or recorded by the networks.

    Args:
        value: the object, a sequence, a tensor or a plain value.
        without: arguments of the object to leave out.

    Raises:
        ValueError: if the object, or a part of it, has another class; the error names it.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Real):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Sequence):
        return [describe(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(key): describe(entry) for key, entry in value.items()}
    name = class_name(value)
    if find(name, rooms=MODEL_ROOMS) is not type(value):
        raise ValueError(f"{name} is not a class that a checkpoint may name")
    names = [key for key in inspect.signature(type(value)).parameters if key not in without]
    try:
        arguments = value.arguments if isinstance(value, Network) else {key: getattr(value, key) for key in names}
    except AttributeError as error:
        raise ValueError(f"{name} does not record the arguments of its constructor: {error}") from error
    return {"_target_": name, **{key: describe(arguments[key]) for key in names}}


def _check_arguments(name: str, target: Callable[..., Any], values: Mapping[str, Any]) -> None:
    _check_names(name, target, values)
    if missing := _missing(target, values):
        raise ValueError(f"{name} needs the argument {missing[0]!r}, which the config does not set")


def _check_names(name: str, target: Callable[..., Any], values: Collection[str]) -> None:
    parameters = inspect.signature(target).parameters
    unknown = [key for key in values if key not in parameters]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        advice = nearest(unknown[0], parameters)
        raise ValueError(f"{name} takes no argument {unknown[0]!r}: expected {', '.join(parameters)}{advice}")


def _missing(target: Callable[..., Any], values: Collection[str]) -> list[str]:
    parameters = inspect.signature(target).parameters
    required = [
        key for key, p in parameters.items() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return [key for key in required if key not in values]
