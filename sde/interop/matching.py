r"""Matching: foreign weights against the network that they are meant for, name by name and shape by shape."""

from __future__ import annotations

__all__ = ["content", "match"]

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..instantiate import MODEL_ROOMS, build
from ..storage.checkpoint import misfits
from ..version import __version__
from .formats import Source


def content(
    source: Source,
    tree: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    ema: Mapping[str, Mapping[str, Tensor]] | None = None,
    step: int = 0,
) -> dict[str, Any]:
    """The content of a checkpoint of this library.

    Args:
        source: where the weights come from.
        tree: `process`, `network`, `denoiser`, `scaling`, `shape` and `classes`, as a trained run has them.
        weights: the weights by the names of the network of `tree`.
        ema: their averages by name; None where the file has one set of weights, which then serves as both.
        step: the training steps behind them.

    Raises:
        ValueError: if the weights are not those of the network.
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


def match(source: Source, expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by the names of a denoiser with that network.

    Raises:
        ValueError: if a weight is missing, left over or of another shape; the first of each are named.
    """
    faults = misfits(expected, weights)
    if faults:
        raise ValueError(
            f"{source.path} does not hold the {len(expected)} weights of the network that its settings describe: "
            f"{faults}; check settings="
        )
    return {f"network.{name}": weights[name] for name in expected}


def _shapes(source: Source, tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights of a model's network, which is built without memory for them."""
    try:
        build(tree["scaling"], rooms=MODEL_ROOMS)
        process = build(tree["process"], rooms=MODEL_ROOMS)
        with torch.device("meta"):
            network = build(tree["network"], rooms=MODEL_ROOMS)
        build(tree["denoiser"], rooms=MODEL_ROOMS, network=network, process=process)
    except Exception as error:  # settings of a wrong type or size can raise anything
        raise ValueError(f"{source.path}: its settings describe no model: {error}") from error
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}
