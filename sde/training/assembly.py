r"""A model from a config: the denoiser for a data set, with what follows from the data filled in."""

from __future__ import annotations

__all__ = ["assemble", "vector_length"]

import inspect
import math
from collections.abc import Mapping
from typing import Any

from ..data import DataSet
from ..denoisers import Denoiser
from ..instantiate import build, describe, find, public
from .conditions import dropouts, first_condition, sizes_of


def assemble(config: Mapping[str, Any], data: DataSet) -> tuple[Denoiser, dict[str, Any]]:
    """The denoiser of a config for a data set, and the tree of plain values from which a checkpoint rebuilds it.

    Arguments of the network that follow from the data (`channels`, `features`, `rank`; `classes` and `conditions` if it
    is `conditional`) are filled in if the config does not give them.

    Args:
        config: the trees `sde`, `network`, `denoiser` and, if there are some, `encoder` and `augmentation`;
            `conditional`, `condition_dropout` and `trust`.
        data: the data set.

    Raises:
        ValueError: if the network has classes and is not `conditional`, or if it is and the data has no conditions,
            those that the network does not take, a label that is none of its classes, or classes without samples.
    """
    trust, condition = config.get("trust") or (), first_condition(data, config["conditional"])
    if "label" in condition and data.train.labels is None:
        raise ValueError(f"{data.name} gives each sample a label and has no `labels`: its source needs those of all")
    classes = data.classes if "label" in condition else None
    facts: dict[str, Any] = {"channels": data.shape[0], "features": math.prod(data.shape), "rank": len(data.shape) - 1}
    facts |= {} if classes is None else {"classes": classes}
    network_tree = dict(config["network"])
    parameters = inspect.signature(find(network_tree["_target_"], trust=trust)).parameters.keys()
    if "conditions" in parameters and (sizes := sizes_of(condition, flat="channels" not in parameters)):
        facts["conditions"] = {"_target_": "sde.networks.Conditions", **sizes}
    for key in parameters & facts.keys():
        if network_tree.get(key) is None:
            network_tree[key] = facts[key]
    if classes is not None:
        data.check_classes(network_tree["classes"] if "classes" in parameters else classes)
    if (length := vector_length(config)) and not network_tree.get("augment"):
        network_tree["augment"] = length
    tree = public(
        {
            "process": config["sde"],
            "network": network_tree,
            "denoiser": config["denoiser"],
            "scaling": describe(data.scaling),
            "shape": list(data.shape),
            "classes": classes,
            "encoder": config.get("encoder"),
        }
    )
    parts = {"process": build(tree["process"], trust=trust), "network": build(network_tree, trust=trust)}
    denoiser: Denoiser = build(tree["denoiser"], trust=trust, **parts)
    if classes is None and denoiser.classes is not None:
        raise ValueError(f"network.classes={denoiser.classes} needs the labels of the data: give conditional=true")
    tree["dropout"] = dropouts(denoiser, list(condition), config.get("condition_dropout"))
    return denoiser, tree


def vector_length(config: Mapping[str, Any]) -> int:
    """The length of the vectors that the network gets from the augmentation."""
    tree = config.get("augmentation")
    return build(tree, trust=config.get("trust") or ()).length if tree else 0
