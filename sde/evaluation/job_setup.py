r"""What a job works on: the data set, held against the model, the dequantisation that fits the model, and the identity
that its result file is known by."""

from __future__ import annotations

__all__ = ["data_of", "dequantiser_of", "identity_of", "other_split", "split_of", "stale", "tolerance_of"]

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import DataSet, Split, arrays
from ..instantiate import build, find
from ..likelihood.dequantisation import Dequantiser
from ..likelihood.variational import VariationalDequantiser
from ..model import Model
from ..sampling import state_like
from ..solvers import Solver
from ..solvers.base import FixedStep
from ..storage.checkpoint import load_checkpoint
from ..storage.files import sha256
from ..storage.results import Plain


def data_of(tree: Mapping[str, Any] | None, content: Mapping[str, Any], *, trust: Sequence[str] = ()) -> DataSet:
    """The data set that a tree describes, or else the one that a checkpoint's model was trained on.

    Raises:
        ValueError: if there is no tree, and the checkpoint names no data, as those of other projects.
    """
    tree = tree or json.loads(content["config"]).get("data")
    if not tree:
        raise ValueError("data is missing: give data=..., for this checkpoint does not name what it was trained on")
    data: DataSet = build(tree, rooms=("sde.data",), trust=trust)
    return data


def split_of(model: Model, data: DataSet, name: str) -> Split:
    """A split of a data set whose values have the shape and the levels of the model's.

    Raises:
        ValueError: if there is no such split, the shape is another, or the levels are: the same number would mean
            another value.
    """
    split = data.split(name)
    if data.shape != model.shape:
        event = ", ".join(map(str, model.shape))
        raise ValueError(f"this model is for data of shape (B, {event}), got {tuple(split.values.shape)}")
    ours, theirs = model.scaling.levels, data.scaling.levels
    if ours != theirs:
        raise ValueError(
            f"this model is of {_kind(ours)}, and {data.name} holds {_kind(theirs)}: give the data with levels={ours}"
        )
    return split


def other_split(
    model: Model, source: str | Mapping[str, Any] | None, array: str, name: str, *, trust: Sequence[str] = ()
) -> dict[str, Split]:
    """Data of another kind for the same model, by the name `ood NAME`; none without a source.

    Args:
        model: the model, whose scaling the values are held to have.
        source: the tree of a data set, or the path of a `.npy`, `.npz`, `.h5` or `.hdf5` file.
        array: the array of that file; a `.npy` file has no names.
        name: the split of that data set.
        trust: as in :func:`sde.instantiate.build`.
    """
    if source is None:
        return {}
    if not isinstance(source, str):
        data = data_of(source, {}, trust=trust)
        return {f"ood {data.name} {name}": split_of(model, data, name)}
    key = "x_train" if Path(source).suffix.lower() == ".npy" else array
    data = arrays(source, train=key, test=key, levels=model.scaling.levels, standardise=False)
    return {f"ood {data.name}": split_of(model, data, "test")}


def dequantiser_of(tree: Mapping[str, Any] | None, model: Model, *, trust: Sequence[str] = ()) -> Dequantiser | None:
    """The dequantisation that a tree describes; of `process`, `scaling`, `shape` and `device` it is given those that it
    takes, as the model has them."""
    if not tree:
        return None
    facts: dict[str, Any] = {"process": model.process, "scaling": model.scaling, "shape": model.shape}
    facts["device"] = state_like(model.denoiser).device
    known = inspect.signature(find(tree["_target_"], trust=trust)).parameters.keys() & facts.keys() - tree.keys()
    made: Dequantiser = build(tree, trust=trust, **{name: facts[name] for name in known})
    return made


def stale(tree: Mapping[str, Any] | None, dequantiser: Dequantiser | None, path: Path) -> bool:
    """Whether the learned dequantiser that a tree names was trained for another checkpoint than the one at this path:
    the bound holds, but is not as tight as it might be."""
    rule = tree or {}
    if not isinstance(dequantiser, VariationalDequantiser) or "path" not in rule:
        return False
    return bool(load_checkpoint(rule["path"])["checkpoint_sha256"] != sha256(path))


def identity_of(
    config: Mapping[str, Any], free: Sequence[str], path: Path, model: Model, dequantiser: Dequantiser | None
) -> dict[str, Plain]:
    """What must agree when a job is continued, for :meth:`sde.storage.store.Store.open`; the data and what else
    decides on the rows is the job's to add.

    Args:
        config: the whole config of the job.
        free: the keys of it that may differ.
        path: the checkpoint.
        model: the model in it.
        dequantiser: as in :func:`sde.evaluation.likelihood_job.score`.
    """
    kept, rule = {key: value for key, value in config.items() if key not in free}, config.get("dequantise") or {}
    found: dict[str, Plain] = {}
    if "path" in rule:  # what a file holds counts, not where it lies
        kept["dequantise"] = {key: value for key, value in rule.items() if key != "path"}
        found["dequantiser_sha256"] = sha256(rule["path"])
    noise = repr(dequantiser) if dequantiser else "uniform"
    return {
        "config": json.dumps(kept, sort_keys=True, indent=1),
        "checkpoint_sha256": sha256(path),
        "dequantisation": noise if model.scaling.levels else "none",
        "seed": config["seed"],
        **found,
    }


def tolerance_of(atol: str | float | None, solver: Solver) -> float | None:
    """The tolerance of the log-density in nats: `auto` is 0.01 for adaptive solvers, and none for those of fixed steps,
    which hold none."""
    if atol == "auto":
        return None if isinstance(solver, FixedStep) else 0.01
    if isinstance(atol, str):
        raise ValueError(f"expected atol to be auto, a number of nats or null, got {atol!r}")
    return atol


def _kind(levels: int | None) -> str:
    return "continuous values" if levels is None else f"values with {levels} levels"
