r"""Objects from plain trees: what a config or a checkpoint may name.

A node `{_target_: sde.VP, beta_min: 0.1}` stands for a call with keyword arguments. Names resolve only to what is
defined in this package, in the few torch classes listed here, and in packages that the user trusts by name; a
checkpoint's tree is held to fewer rooms still, those of plain constructors. An argument that the target does not
take is an error that says which ones it takes.
"""

from __future__ import annotations

__all__ = ["MODEL_ROOMS", "MOVED", "build", "current", "find", "public"]

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

TORCH = {"torch.optim.Adam": torch.optim.Adam, "torch.optim.AdamW": torch.optim.AdamW}

# All that the tree of a checkpoint may name: constructors of values, which touch no file.
MODEL_ROOMS = ("sde.processes", "sde.networks", "sde.denoisers", "sde.data.scaling")

# Where the names of version 0.1.0 stand now, for the files and configs that hold them: the longest that fits counts.
MOVED = {
    "sde.build": "sde.instantiate",
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
    "sde.likelihood.errors": "sde.evaluation.error_budget",
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
    "sde.trace.exact": "sde.trace",
    "sde.tuning.kept": "sde.tuning.cache",
    "sde.wrappers": "sde.denoisers",
}


def current(name: str) -> str:
    """A dotted name of version 0.1.0 as it stands now; other names as they are."""
    old = max((old for old in MOVED if name == old or name.startswith(old + ".")), key=len, default=None)
    return name if old is None else MOVED[old] + name[len(old) :]


def public(tree: Any) -> Any:
    """A tree with the public name of every `_target_` of this package, at most one room deep, as files hold them.

    Names of other packages, and those that name nothing, stay as they are.
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
            return ".".join(candidate)
    return ".".join(parts)


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
    parts = current(name).split(".") if isinstance(name, str) else [""]
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
