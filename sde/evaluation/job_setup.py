r"""The setup of a job from its config: checkpoint, model, data and dequantisation, and the key of its result file."""

from __future__ import annotations

__all__ = ["JobSetup", "dequantiser_of", "guided_by", "tolerance_of"]

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..data import DataSet, Source
from ..data.arrays import single
from ..data.dataset import check_labels
from ..instantiate import build, find, public
from ..likelihood import Dequantiser, VariationalDequantiser
from ..model import Model, from_checkpoint
from ..runtime import choose_device
from ..sampling import state_like
from ..shapes import check_event
from ..storage.checkpoint import load_checkpoint, resolve, run_directory
from ..storage.files import sha256
from ..storage.results import Plain
from ..version import __version__
from .sharding import BatchPlan, Shard

# The keys of a config that may differ when a job is continued.
RESUMABLE_KEYS = ("out", "device", "trust", "repeats", "n", "ckpt", "rank", "world")


@dataclass(frozen=True)
class JobSetup:
    """The model and the data that a config describes.

    Attributes:
        config: the whole config, a plain tree.
        path: the checkpoint.
        model: the model in it.
        data: the data set of the config, by default the one that the model was trained on.
        shard: this process.
        variant: the end of the names of output files that have their default path; it tells the jobs of a sweep apart.
    """

    config: Mapping[str, Any]
    path: Path
    model: Model
    data: DataSet
    shard: Shard
    variant: str = ""

    @classmethod
    def load(cls, config: Mapping[str, Any], variant: str = "") -> JobSetup:
        """Loads the checkpoint `ckpt` with the average `ema` on the `device`, its `guidance` if any, and the `data`.

        Raises:
            FileNotFoundError: if there is no checkpoint.
            ValueError: if the checkpoint or the data cannot be used, or neither of the two names the data.
        """
        path, trust = resolve(config["ckpt"]), config["trust"]
        shard = Shard(config.get("rank", 0), config.get("world", 1))
        content, device = load_checkpoint(path), choose_device(shard.device(config["device"]))
        model = from_checkpoint(content, ema=config["ema"], device=device, trust=trust)
        tree = config.get("data") or json.loads(content["config"]).get("data")
        if not tree:
            raise ValueError("data is missing: give data=..., because this checkpoint does not name its training data")
        data = build(tree, rooms=("sde.data",), trust=trust)
        return cls(config, path, guided_by(config.get("guidance"), model, trust=trust), data, shard, variant)

    @property
    def directory(self) -> Path:
        """The run directory of the checkpoint, or the directory of a checkpoint outside a run."""
        return run_directory(self.path)

    def output(self, suffix: str) -> Path:
        """The path `out` of the config, by default the file of the split with this suffix in the run directory."""
        name = f"{self.config['split']}{self.variant}{suffix}"
        return Path(self.config["out"] or self.directory / "likelihood" / name)

    def build(self, key: str) -> Any:
        """The object that the config describes by a key."""
        return build(self.config[key], trust=self.config["trust"])

    def split(self, name: str, data: DataSet | None = None) -> Source:
        """A split of the data, or of another data set, with the shape, levels and classes of the model's data."""
        data = self.data if data is None else data
        split, (expected, levels) = data.split(name), (self.model.scaling.levels, data.scaling.levels)
        check_event(split.extent, self.model.shape)
        if levels != expected:
            ours, theirs = ("continuous values" if n is None else f"values with {n} levels" for n in (expected, levels))
            raise ValueError(
                f"this model is for {ours}, and {data.name} has {theirs}: give the data with levels={expected}"
            )
        if self.model.classes is not None and split.labels is not None:
            labels = f"{data.name}: {name} labels"
            check_labels(labels, split.labels, self.model.classes, describe=split.describe)
        return split

    def other_data(self) -> dict[str, Source]:
        """Out-of-distribution data for the same model, by the name `ood NAME`; none if the config has no `ood`.

        It is the tree of a data set, or the path of a `.npy`, `.npz`, `.h5` or `.hdf5` file with the array `ood_array`,
        whose values have the scaling of the model.
        """
        source, name = self.config.get("ood"), self.config["split"]
        if source is None:
            return {}
        if not isinstance(source, str):
            data = build(source, rooms=("sde.data",), trust=self.config["trust"])
            return {f"ood {data.name} {name}": self.split(name, data)}
        data = single(source, self.config["ood_array"], levels=self.model.scaling.levels, argument="ood_array")
        return {f"ood {data.name}": self.split("test", data)}

    @cached_property
    def dequantiser(self) -> Dequantiser | None:
        """The dequantiser of the config, or None."""
        return dequantiser_of(self.config.get("dequantise"), self.model, trust=self.config["trust"])

    def remarks(self) -> Iterator[str]:
        """Remarks for the user, on a learned dequantiser that was trained for another checkpoint."""
        tree = self.config.get("dequantise") or {}
        learned = isinstance(self.dequantiser, VariationalDequantiser) and "path" in tree
        if learned and load_checkpoint(tree["path"])["checkpoint_sha256"] != self.sha256:
            yield "this dequantiser was trained for another checkpoint: the bound is valid, but may not be the tightest"

    @property
    def name(self) -> str:
        """The name of the data and its split."""
        return f"{self.data.name} {self.config['split']}"

    def plan(self, split: Source, n: int | None) -> BatchPlan:
        """The batches of a split by `repeats` and `batch_size`."""
        return BatchPlan(len(split), n, self.config["repeats"], self.config["batch_size"], self.shard)

    @cached_property
    def sha256(self) -> str:
        """The digest of the checkpoint."""
        return sha256(self.path)

    def key(self, *resumable: str) -> dict[str, Plain]:
        """The attributes that must agree when the job is continued; the job adds its data.

        Args:
            resumable: the keys of the config that may differ, beside those that may differ in every job.
        """
        keys = {*RESUMABLE_KEYS, *resumable}
        config, tree = {k: v for k, v in self.config.items() if k not in keys}, self.config.get("dequantise") or {}
        noise = repr(self.dequantiser) if self.dequantiser else "uniform"
        key: dict[str, Plain] = {"checkpoint_sha256": self.sha256, "seed": config["seed"]}
        key["dequantisation"] = noise if self.model.scaling.levels else "none"
        if "path" in tree:  # the content of the file counts, not its path
            config["dequantise"] = {k: v for k, v in tree.items() if k != "path"}
            key["dequantiser_sha256"] = sha256(tree["path"])
        return {"config": json.dumps(public(config), sort_keys=True, indent=1), **key}

    @property
    def metadata(self) -> dict[str, Plain]:
        """Attributes that may differ when the job is continued."""
        return {"checkpoint": str(self.path), "sde_version": __version__, "torch_version": str(torch.__version__)}


def guided_by(tree: Mapping[str, Any] | None, model: Model, *, trust: Sequence[str] = ()) -> Model:
    """A model with the guidance that a tree describes, or as it is for None.

    With a classifier of the label, a model without classes gets those of the classifier.
    """
    if not tree:
        return model
    guided = build(tree, trust=trust, inner=model.denoiser).to(state_like(model.denoiser).device)
    return replace(model, denoiser=guided, classes=model.classes or guided.classes)


def dequantiser_of(tree: Mapping[str, Any] | None, model: Model, *, trust: Sequence[str] = ()) -> Dequantiser | None:
    """The dequantiser that a tree describes, or None.

    It gets those of the model's `process`, `scaling`, `shape` and `device` that it takes and the tree does not give.
    """
    if not tree:
        return None
    known: dict[str, Any] = {"process": model.process, "scaling": model.scaling, "shape": model.shape}
    known["device"] = state_like(model.denoiser).device
    names = inspect.signature(find(tree["_target_"], trust=trust)).parameters.keys() & known.keys() - tree.keys()
    dequantiser: Dequantiser = build(tree, trust=trust, **{name: known[name] for name in names})
    return dequantiser


def tolerance_of(atol: str | float | None) -> float | None:
    """The tolerance of the log-density in nats that a config gives; `auto` and null are the default of the library."""
    if isinstance(atol, str) and atol != "auto":
        raise ValueError(f"expected atol to be auto, a number of nats or null, got {atol!r}")
    return None if isinstance(atol, str) else atol
