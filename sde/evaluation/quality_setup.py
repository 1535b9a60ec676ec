r"""The setup of a quality job from its config: sets of samples, reference, features."""

from __future__ import annotations

__all__ = ["quality_job"]

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import DataSet
from ..instantiate import build, find
from ..metrics.features import Features
from ..model import from_checkpoint
from ..runtime import choose_device
from ..storage.checkpoint import load_checkpoint, resolve
from ..storage.files import sha256
from .feature_files import FeatureFiles
from .item_sets import DrawnItems, ItemSet, StoredItems, items_of_file
from .quality_job import QualityJob
from .quality_table import ITEM_MEASURES
from .sharding import Shard


def quality_job(config: Mapping[str, Any]) -> QualityJob:
    """The job of a config; nothing is extracted, and what cannot be compared is refused.

    Raises:
        ValueError: if a source or a measure cannot be used, or two sets are of different items.
    """
    shard = Shard(config["rank"], config["world"])
    device = choose_device(shard.device(config["device"]))
    tree = config["features"]
    placed = "device" in inspect.signature(find(tree["_target_"], trust=config["trust"])).parameters
    arguments: dict[str, Any] = {"device": device} if placed else {}
    features: Features = build(tree, trust=config["trust"], **arguments)
    data: DataSet | None = None
    if config.get("data"):
        data = build(config["data"], rooms=("sde.data",), trust=config["trust"])
    sources = [(source, False) for source in _listed(config["samples"])]
    sources += [(source, True) for source in _listed(config["restored"])]
    if not sources:
        raise ValueError("samples is missing: give samples=PATH, a list of them, or restored=PATH")
    items = [_items(config, source, data, device) for source, _ in sources]
    items = _distinct(items)
    if data is None:
        trees = [tree for source, _ in sources if (tree := _data_of(source))]
        data = build(trees[0], rooms=("sde.data",), trust=config["trust"]) if trees else None
    reference = _reference(config, data)
    for one in items:
        _check_same_kind(one, reference)
    truths = {one.name: _truth(one, reference) for one, (_, restored) in zip(items, sources) if restored}
    metrics = list(dict.fromkeys(config["metrics"]))
    for measure in metrics:
        if measure in ITEM_MEASURES and len(truths) < len(items):
            raise ValueError(
                f"metrics: {measure} compares items with their true ones, which samples do not have: give restored=PATH"
            )
    cache = Path(config["cache"])

    def files(one: ItemSet) -> FeatureFiles:
        return FeatureFiles(features, one, cache, shard)

    training = held_out = None
    if "memorisation" in metrics:
        if data is None:
            raise ValueError(
                "memorisation compares with training and held-out items: give data=, or leave it out of metrics="
            )
        kind = "test" if data.valid is None else "valid"
        training, held_out = (files(StoredItems.of_split(data, name)) for name in ("train", kind))
    settings = {key: config[key] for key in ("seed", "groups", "permutations")}
    data_range = config["data_range"] or (None if reference.levels is None else reference.levels - 1.0)
    sets = [files(one) for one in items]
    return QualityJob(sets, files(reference), metrics, training, held_out, truths, settings, data_range)


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _is_run(source: str) -> bool:
    return Path(source).is_dir() or Path(source).suffix == ".pt"


def _data_of(source: str) -> Any:
    """The tree of the data set that the model of a run was trained on."""
    return json.loads(load_checkpoint(resolve(source))["config"]).get("data") if _is_run(source) else None


def _items(config: Mapping[str, Any], source: str, data: DataSet | None, device: torch.device) -> ItemSet:
    """The items of a source: a file, or a run, whose model draws them."""
    if not _is_run(source):
        levels = config["levels"] or (None if data is None else data.scaling.levels)
        return items_of_file(Path(source), array=config["array"], levels=levels, n=config["n"], name=Path(source).stem)
    path = resolve(source)
    model = from_checkpoint(load_checkpoint(path), ema=config["ema"], device=device, trust=config["trust"])
    solver, n = build(config["solver"], trust=config["trust"]), config["n"] or 1000
    name = Path(source).name if Path(source).is_dir() else path.stem
    return DrawnItems(name, model, n, solver, config["seed"], sha256(path), config["batch_size"])


def _distinct(items: Sequence[ItemSet]) -> list[ItemSet]:
    """The sets with names that differ: a name that occurs again gets a number."""
    seen: dict[str, int] = {}
    renamed: list[ItemSet] = []
    for one in items:
        seen[one.name] = seen.get(one.name, 0) + 1
        again = seen[one.name] > 1
        renamed.append(replace(one, name=f"{one.name} {seen[one.name]}") if again else one)  # type: ignore[type-var]
    return renamed


def _reference(config: Mapping[str, Any], data: DataSet | None) -> ItemSet:
    if config["reference"]:
        levels = config["levels"] or (None if data is None else data.scaling.levels)
        return items_of_file(Path(config["reference"]), array=config["array"], levels=levels)
    if data is None:
        raise ValueError("reference is missing: give reference=PATH or data=NAME, which the samples are compared with")
    return StoredItems.of_split(data, config["split"])


def _check_same_kind(one: ItemSet, reference: ItemSet) -> None:
    ours, theirs = ((side.shape, side.levels) for side in (one, reference))
    if ours != theirs:
        raise ValueError(
            f"{one.name} has items of shape {ours[0]} with levels={ours[1]}, and the reference {reference.name} of "
            f"{theirs[0]} with levels={theirs[1]}: compare items of one kind, and give levels= for files that do not "
            "say"
        )


def _truth(one: ItemSet, reference: ItemSet) -> Tensor:
    """The true items of restorations: those of the reference with the same index."""
    place = {key: i for i, key in enumerate(reference.index.tolist())}
    missing = [key for key in one.index.tolist() if key not in place]
    if missing:
        raise ValueError(
            f"{one.name} has restorations of item {missing[0]}, which the reference {reference.name} does not have: "
            "give the data and the split that were restored"
        )
    return reference.values(torch.tensor([place[key] for key in one.index.tolist()], device="cpu"))
