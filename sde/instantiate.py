r"""Objects from plain trees, such as configs and checkpoints.

A node `{_target_: sde.VP, beta_min: 0.1}` is a call with keyword arguments. A name must belong to this package, to the
few torch classes listed here, or to a package that the user trusts by name. The tree of a checkpoint may name fewer
modules: only those that define plain constructors. An unknown argument is an error that lists the valid ones.
"""

from __future__ import annotations

__all__ = ["MODEL_ROOMS", "MOVED", "build", "check", "current", "describe", "find", "public"]

import contextlib
import importlib
import inspect
import numbers
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .annotations import annotations_of, check_value, nearest
from .networks.network import Network

TORCH = {"torch.optim.Adam": torch.optim.Adam, "torch.optim.AdamW": torch.optim.AdamW}

# The modules that the tree of a checkpoint may name. Their constructors build values and access no files.
MODEL_ROOMS = ("sde.processes", "sde.networks", "sde.denoisers", "sde.data.scaling")

# The modules whose constructors only check and store values, so that objects can be built to check a config.
VALUE_ROOMS = (
    *(f"sde.{room}" for room in ("processes", "grids", "networks", "denoisers", "trace", "solvers", "objective")),
    "sde.evaluation.dequantiser_training",
)

# The new names of the names of version 0.1.0, which files and configs contain. The longest matching prefix is replaced.
MOVED = {
    "sde.build": "sde.instantiate",
    "sde.Exact": "sde.ExactTrace",
    "sde.checkpoint": "sde.storage.checkpoint",
    "sde.comparison.cells": "sde.comparison.plan",
    "sde.comparison.cost": "sde.profiling",
    "sde.comparison.errors": "sde.comparison.metrics",
    "sde.comparison.picture": "sde.comparison.plots",
    "sde.comparison.rows": "sde.comparison.table",
    "sde.denoiser": "sde.denoisers",
    "sde.ema": "sde.training.ema",
    "sde.files": "sde.storage.files",
    "sde.interop.own": "sde.interop.native",
    "sde.interop.reading": "sde.interop.formats",
    "sde.interop.settings": "sde.interop.validated",
    "sde.interop.writing": "sde.storage.checkpoint",
    "sde.journal": "sde.storage.journal",
    "sde.learned_variance": "sde.denoisers",
    "sde.likelihood.Paired": "sde.evaluation.Paired",
    "sde.likelihood.bound": "sde.likelihood.bounds",
    "sde.likelihood.bound_chain": "sde.likelihood",
    "sde.likelihood.budget": "sde.likelihood",
    "sde.likelihood.data_end": "sde.likelihood.truncation",
    "sde.likelihood.dequantise": "sde.likelihood",
    "sde.likelihood.dequantiser_file": "sde.evaluation",
    "sde.likelihood.dequantiser_training": "sde.evaluation",
    "sde.likelihood.errors": "sde.likelihood.error_budget",
    "sde.likelihood.forecast": "sde.evaluation.forecast",
    "sde.likelihood.inputs": "sde.evaluation.job_setup",
    "sde.likelihood.job": "sde.evaluation.likelihood_job",
    "sde.likelihood.measures": "sde.evaluation.bounds_table",
    "sde.likelihood.ode": "sde.likelihood.flow",
    "sde.likelihood.out_of_distribution": "sde.evaluation.out_of_distribution",
    "sde.likelihood.paired": "sde.evaluation.paired",
    "sde.likelihood.pairing": "sde.evaluation.pairing",
    "sde.likelihood.parts": "sde.evaluation.shards",
    "sde.likelihood.picture": "sde.evaluation.plots",
    "sde.likelihood.share": "sde.evaluation.sharding",
    "sde.likelihood.side_by_side": "sde.evaluation.bounds_job",
    "sde.likelihood.weighted": "sde.evaluation.importance_weighting",
    "sde.networks.modes": "sde.networks.convolution",
    "sde.parametrisation": "sde.denoisers",
    "sde.results": "sde.storage.results",
    "sde.runs": "sde.training.run",
    "sde.solvers.variables": "sde.solvers.coordinates",
    "sde.store": "sde.storage.store",
    "sde.trace.Exact": "sde.ExactTrace",
    "sde.trace.exact": "sde.trace",
    "sde.tuning.kept": "sde.tuning.cache",
    "sde.wrappers": "sde.denoisers",
}


def current(name: str) -> str:
    """The new name for a dotted name of version 0.1.0; other names are unchanged."""
    old = max((old for old in MOVED if name == old or name.startswith(old + ".")), key=len, default=None)
    return name if old is None else MOVED[old] + name[len(old) :]


def public(tree: Any) -> Any:
    """The tree with the public name of every `_target_` of this package, such as `sde.networks.UNet`, for files.

    Names of other packages and unknown names are unchanged.
    """
    if isinstance(tree, Mapping):
        return {key: _public_name(value) if key == "_target_" else public(value) for key, value in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [public(value) for value in tree]
    return tree


def _public_name(name: Any) -> Any:
    if not isinstance(name, str) or not name.startswith("sde."):
        return name
    parts = current(name).split(".")
    target = _resolve(parts)
    candidates = [[*room, *parts[start:]] for room in (parts[:1], parts[:2]) for start in range(1, len(parts))]
    for candidate in sorted(candidates, key=len):
        if target is not None and _resolve(candidate) == target:
            return current(".".join(candidate))
    return ".".join(parts)


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
    ranges of their values.

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
    for name in values.keys() & tree.keys():
        check_value(f"{key}.{name}", values[name], annotations.get(name, Any))
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
    name = class_name(value)
    if find(name, rooms=MODEL_ROOMS) is not type(value):
        raise ValueError(f"{name} is not a class that a checkpoint may name")
    names = [key for key in inspect.signature(type(value)).parameters if key not in without]
    try:
        arguments = value.arguments if isinstance(value, Network) else {key: getattr(value, key) for key in names}
    except AttributeError as error:
        raise ValueError(f"{name} does not record the arguments of its constructor: {error}") from error
    return {"_target_": name, **{key: describe(arguments[key]) for key in names}}


def class_name(value: Any) -> str:
    """The dotted name of the class of an object, public for classes of this package."""
    return str(_public_name(f"{type(value).__module__}.{type(value).__qualname__}"))


def find(name: str, *, rooms: Sequence[str] = ("sde",), trust: Sequence[str] = ()) -> Callable[..., Any]:
    """The callable with a dotted name, in the modules and trusted packages of :func:`build`."""
    if isinstance(trust, str):
        raise ValueError(f"expected a list of packages, trust=[{trust}], got trust={trust!r}")
    allowed = (*rooms, *trust)
    parts = current(name).split(".") if isinstance(name, str) else [""]
    if isinstance(name, str) and name in TORCH and "sde" in rooms:
        return TORCH[name]
    if parts[0] in {room.split(".")[0] for room in allowed}:
        target = _resolve(parts)
        module = getattr(target, "__module__", None) or ""
        if callable(target) and any(module == room or module.startswith(room + ".") for room in allowed):
            return target
    raise ValueError(
        f"_target_ {name!r} is not known: expected a class or function defined in {', '.join(allowed)}"
        + (f", or one of {', '.join(TORCH)}" if "sde" in rooms else "")
        + "; add the name of your own package to trust="
    )


def _resolve(parts: list[str]) -> Any:
    """The object with a dotted name, or None; a name that a module exports has priority over its submodule."""
    try:
        value: Any = importlib.import_module(parts[0])
        for i, part in enumerate(parts[1:], start=1):
            if not hasattr(value, part) and inspect.ismodule(value):
                importlib.import_module(".".join(parts[: i + 1]))
            value = getattr(value, part)
    except (ImportError, AttributeError):
        return None
    return value


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
