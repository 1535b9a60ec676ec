r"""Dotted names: which a tree may name, the present names of those of version 0.1.0, and the public ones for files."""

from __future__ import annotations

__all__ = ["MODEL_ROOMS", "MOVED", "TORCH", "VALUE_ROOMS", "class_name", "current", "find", "public"]

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

TORCH = {
    "torch.optim.Adam": torch.optim.Adam,
    "torch.optim.AdamW": torch.optim.AdamW,
    "torch.optim.SGD": torch.optim.SGD,
}

# The modules that the tree of a checkpoint may name. Their constructors build values and access no files.
MODEL_ROOMS = (
    "sde.processes",
    "sde.networks",
    "sde.denoisers",
    "sde.guidance",
    "sde.data.scaling",
    "sde.data.captions",
)

# The modules whose constructors only check and store values, so that objects can be built to check a config.
VALUE_ROOMS = (
    *(f"sde.{room}" for room in ("processes", "grids", "networks", "denoisers", "trace", "solvers", "objective")),
    *(f"sde.training.{name}" for name in ("execution", "optimizers", "ranks", "schedules")),
    "sde.data.augmentation",
    "sde.evaluation.dequantiser_training",
    "sde.evaluation.restoration_tasks",
    "sde.metrics.features.raw",
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
