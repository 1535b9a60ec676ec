r"""Matching of imported weights to a network of this library, by name and shape."""

from __future__ import annotations

__all__ = ["Tree", "content", "image_model", "match", "node"]

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..instantiate import MODEL_ROOMS, build
from ..storage.checkpoint import misfits
from ..version import __version__
from .formats import Source

Tree = dict[str, Any]


def node(name: str, **arguments: Any) -> Tree:
    """The node of a tree that calls `sde.name` with these arguments."""
    return {"_target_": f"sde.{name}", **arguments}


def content(
    source: Source,
    tree: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    ema: Mapping[str, Mapping[str, Tensor]] | None = None,
    step: int = 0,
) -> dict[str, Any]:
    """The content of a checkpoint of this library.

    Args:
        source: the source of the weights.
        tree: `process`, `network`, `denoiser`, `scaling`, `shape` and `classes`, as in a checkpoint of a training run.
        weights: the weights, by their names in the network of `tree`.
        ema: the averaged weights by name; None if the source has a single set of weights, which then serves as both.
        step: the number of training steps.

    Raises:
        ValueError: if the weights do not fit the network.
    """
    expected = _shapes(source, tree)
    raw = match(source, expected, weights)
    averages = {name: match(source, expected, state) for name, state in (ema or {"default": weights}).items()}
    return {
        "version": __version__,
        "config": json.dumps({"source": str(source.path), "settings": source.settings}, indent=1),
        "model": json.dumps(tree, indent=1),
        "data": None,
        "step": step,
        "weights": raw,
        "ema": averages,
    }


def image_model(
    process: Tree,
    network: Tree,
    parametrisation: Tree,
    level: Tree,
    shape: list[int],
    *,
    matched: bool = False,
    learned_variance: bool = False,
    wrappers: Sequence[Tree] = (),
) -> Tree:
    """The tree of a model of 8-bit images, whose network receives pixels v as 2 v / 255 - 1.

    Args:
        process: the process of training.
        network: the network.
        parametrisation: the meaning of its output.
        level: its noise conditioning under the process of training.
        shape: (C, H, W).
        matched: whether another process may take the place of that of training.
        learned_variance: whether the network predicts the reverse variance.
        wrappers: wrappers of the denoiser, from the innermost.
    """
    if matched:
        level = node("MatchedLevel", trained=process, level=level)
    denoiser = "LearnedVarianceDenoiser" if learned_variance else "NetworkDenoiser"
    return {
        "process": process,
        "network": network,
        "denoiser": node(denoiser, parametrisation=parametrisation, level=level),
        "wrappers": list(wrappers),
        "scaling": node("data.Scaling", scale=2 / 255, shift=-1.0 - 1 / 255, levels=256),
        "shape": shape,
        "classes": network["classes"],
    }


def match(source: Source, expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under their names in a denoiser with that network.

    Raises:
        ValueError: if a weight is missing, left over or of another shape; the error names the first of each.
    """
    faults = misfits(expected, weights)
    if faults:
        raise ValueError(
            f"{source.path} does not hold the {len(expected)} weights of the network that its settings describe: "
            f"{faults}; check settings="
        )
    return {f"network.{name}": weights[name] for name in expected}


def _shapes(source: Source, tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights of a model's network, which is built without allocating them."""
    try:
        build(tree["scaling"], rooms=MODEL_ROOMS)
        process = build(tree["process"], rooms=MODEL_ROOMS)
        with torch.device("meta"):
            network = build(tree["network"], rooms=MODEL_ROOMS)
        build(tree["denoiser"], rooms=MODEL_ROOMS, network=network, process=process)
    except Exception as error:  # wrong types and sizes can raise any exception
        raise ValueError(f"{source.path}: its settings do not describe a model: {error}") from error
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}
